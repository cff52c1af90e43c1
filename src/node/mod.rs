//! A capture as a process: runs the core over store, doors and data path.
