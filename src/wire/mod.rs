//! The gRPC door: decode, hand over, encode.
