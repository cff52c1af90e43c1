//! The data path: table triggers, dispatchers, sources and sinks.
