//! Names and generation numbers: who is meant, and which life of it.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest name of a capture or a changefeed, in bytes.
pub const NAME_MAX_BYTES: usize = 128;

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{name}\" is not a name: use 1 to {NAME_MAX_BYTES} letters, digits, '.', '_' or '-', not a dot first")]
pub struct NameError {
    /// What was given.
    pub name: String,
}

fn check_name(name: &str) -> Result<(), NameError> {
    let fits = !name.is_empty() && name.len() <= NAME_MAX_BYTES && !name.starts_with('.');
    let clean = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if fits && clean { Ok(()) } else { Err(NameError { name: name.to_owned() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// When it is empty, too long, or has characters that do not fit a path segment.
            pub fn new(name: impl AsRef<str>) -> Result<Self, NameError> {
                check_name(name.as_ref())?;
                Ok(Self(Arc::from(name.as_ref())))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = String::deserialize(deserializer)?;
                Self::new(&name).map_err(de::Error::custom)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a capture, which survives its restarts.
    CaptureId
}
name! {
    /// The name of a changefeed.
    ChangefeedId
}

macro_rules! number {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub u64);

        impl $type {
            /// The number that follows.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The number of a drain. Given out once each, rising over any number of coordinators.
    DrainEpoch
}
number! {
    /// A coordinator's time in office: the create revision of its election key.
    Term
}
number! {
    /// The number of a placement of a changefeed's maintainer; a maintainer is started once for each.
    ChangefeedEpoch
}

/// One registration of a capture: 16 random hexadecimal digits, compared for equality only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeEpoch(pub u64);

impl fmt::Display for NodeEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeEpoch {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for NodeEpoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeEpoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A capture in one of its lives: what a message, a placement or a drain means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Which capture.
    pub capture: CaptureId,
    /// Which registration of it.
    pub node_epoch: NodeEpoch,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.capture, self.node_epoch)
    }
}

/// Who may write a span: sinks refuse a lower one once a higher one has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct WriterEpoch {
    /// The maintainer that created the dispatcher.
    pub changefeed: ChangefeedEpoch,
    /// That maintainer's own count.
    pub counter: u64,
}

impl fmt::Display for WriterEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.changefeed, self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_a_path_segment() {
        for good in ["a", "capture-0", "cdc_1.example"] {
            assert!(CaptureId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "..", " a", "ä", &"x".repeat(NAME_MAX_BYTES + 1)] {
            assert!(CaptureId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_epoch_is_sixteen_hexadecimal_digits() {
        let json = serde_json::to_string(&NodeEpoch(0xab)).unwrap();
        assert_eq!(json, "\"00000000000000ab\"");
        assert_eq!(serde_json::from_str::<NodeEpoch>(&json).unwrap(), NodeEpoch(0xab));
    }
}
