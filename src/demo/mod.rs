//! A whole cluster in one process, for a first look.
