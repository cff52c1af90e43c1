//! What a `CaptureDrain` is carried out by: a cluster of this project, or one of `TiCDC`.

mod grpc;
mod ticdc;
mod timed;

use std::fmt;

use capturedrain_core::model::{CaptureId, DrainEpoch, DrainRequest, NodeEpoch};
use futures::{future::BoxFuture, stream::BoxStream};

use super::{
    observe::{Cluster, Unseen},
    status::Outcome,
};

pub use self::{
    ticdc::{DEADLINE_MS, TiCdc},
    timed::{Durations, Timed},
};

/// A cluster that can be asked. Whoever holds it decides nothing: what to ask follows from the plan.
pub trait Backend: Send + Sync + fmt::Debug {
    /// What it says of itself now.
    fn look(&self) -> BoxFuture<'_, Result<Cluster, Unseen>>;

    /// What it says of itself now and after each change, without being asked again. A failure in it is not its end; when
    /// it ends, the way to the cluster is to be found anew.
    fn follow(&self) -> BoxStream<'static, Result<Cluster, Unseen>>;

    /// Asks for a drain. The same request again answers the same.
    fn start<'a>(&'a self, request: &'a DrainRequest) -> BoxFuture<'a, Outcome>;

    /// Calls a drain off.
    fn cancel<'a>(&'a self, capture: &'a CaptureId, epoch: DrainEpoch) -> BoxFuture<'a, Outcome>;

    /// Has a `Stopping` capture register anew.
    fn release<'a>(&'a self, capture: &'a CaptureId, node_epoch: Option<NodeEpoch>) -> BoxFuture<'a, Outcome>;
}
