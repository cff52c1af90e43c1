//! Where a cluster's state is persisted: etcd, or one file.
