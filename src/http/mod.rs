//! The HTTP door: decode, hand over, encode.
