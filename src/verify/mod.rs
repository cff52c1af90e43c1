//! Is the sink equal to the source?
