//! How commands and the operator talk to a cluster.
