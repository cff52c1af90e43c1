//! A cluster of this project, by the coordinator's gRPC.

use capturedrain_core::model::{CaptureId, DrainEpoch, DrainRequest, NodeEpoch};
use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};

use super::{Backend, Cluster, Outcome, Unseen};
use crate::{
    client::{Client, ClientError, ClusterView},
    operator::apply::done,
    view::DrainEndView,
};

/// Who calls drains off.
const REQUESTER: &str = "CaptureDrain";

impl From<ClientError> for Unseen {
    fn from(error: ClientError) -> Self {
        let sentence = error.to_string();
        if error.is_unauthorised() { Self::Unauthorized(sentence) } else { Self::Unreachable(sentence) }
    }
}

impl From<ClientError> for Outcome {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => Self::Refused(refusal),
            error => Self::Unseen(error.into()),
        }
    }
}

fn cluster(view: ClusterView, ends: Vec<DrainEndView>) -> Cluster {
    Cluster { captures: view.captures, drain: view.drain, ends, hook_reports: view.hook_reports }
}

/// How drains have ended, while the view of them may have changed.
#[derive(Debug, Default)]
struct Ends {
    of: Option<DrainEndView>,
    all: Vec<DrainEndView>,
}

impl Ends {
    /// Those that ended no later than the view was made.
    async fn until(&mut self, view: &ClusterView, client: &Client) -> Result<Vec<DrainEndView>, ClientError> {
        if view.last_end != self.of {
            self.all = client.drains().await?;
            self.of.clone_from(&view.last_end);
        }
        Ok(self.all.clone())
    }
}

impl Backend for Client {
    fn look(&self) -> BoxFuture<'_, Result<Cluster, Unseen>> {
        async {
            let view = self.status().await?;
            Ok(cluster(view, self.drains().await?))
        }
        .boxed()
    }

    fn follow(&self) -> BoxStream<'static, Result<Cluster, Unseen>> {
        let client = self.clone();
        let views = Box::pin(self.watch());
        let start = (client, views, Ends::default());
        stream::unfold(start, |(client, mut views, mut ends)| async move {
            let seen = match views.next().await? {
                Ok(view) => match ends.until(&view, &client).await {
                    Ok(ends) => Ok(cluster(view, ends)),
                    Err(error) => Err(error.into()),
                },
                Err(error) => Err(error.into()),
            };
            Some((seen, (client, views, ends)))
        })
        .boxed()
    }

    fn start<'a>(&'a self, request: &'a DrainRequest) -> BoxFuture<'a, Outcome> {
        async { self.drain(request.clone()).await.map_or_else(Outcome::from, Outcome::Answered) }.boxed()
    }

    fn cancel<'a>(&'a self, capture: &'a CaptureId, epoch: DrainEpoch) -> BoxFuture<'a, Outcome> {
        async move { done(Client::cancel(self, capture, Some(epoch), REQUESTER).await.map_err(Into::into)) }.boxed()
    }

    fn release<'a>(&'a self, capture: &'a CaptureId, node_epoch: Option<NodeEpoch>) -> BoxFuture<'a, Outcome> {
        async move { done(Client::release(self, capture, node_epoch).await.map_err(Into::into)) }.boxed()
    }
}
