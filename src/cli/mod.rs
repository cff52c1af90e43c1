//! What an administrator types.
