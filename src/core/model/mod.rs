//! The words of the field: who, which generation, what is persisted, what is said.

mod hook;
mod id;
mod message;
mod protocol;
mod request;
mod snapshot;
mod span;
mod time;
mod value;

pub use hook::HookReport;
pub use id::{
    CaptureId, ChangefeedEpoch, ChangefeedId, DrainEpoch, Incarnation, NAME_MAX_BYTES, NameError, NodeEpoch, Term,
    WriterEpoch,
};
pub use message::*;
pub use protocol::*;
pub use request::*;
pub use snapshot::*;
pub use span::{CommitTs, Span, SpanId};
pub use time::{Instant, Now, UnixMillis};
pub use value::*;
