//! `DrainService`: what callers ask of the coordinator.

use capturedrain_core::model::{Answer, DrainEpoch, Refusal, Request, Snapshot, TooLong, check_requester};
use futures::{Stream, StreamExt as _, future, stream::BoxStream};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request as Call, Response, Status};

use super::{
    answer::{decode_drain, decode_release, encode_answer, encode_captures, encode_end, encode_view},
    envelope::{Malformed, capture},
    pb, refusal,
};
use crate::door::Door;

/// The door that callers come through.
pub(super) struct DrainDoor {
    door: Door,
}

type Answered<T> = Result<Response<T>, Status>;

impl DrainDoor {
    pub(super) fn new(door: Door) -> Self {
        Self { door }
    }

    async fn ask(&self, request: Request) -> Result<Answer, Status> {
        self.door.ask(request).await.map_err(|refusal| refusal::to_status(&refusal))
    }

    /// What the capture knows, when it is the coordinator.
    fn coordinator(&self) -> Result<std::sync::Arc<Snapshot>, Status> {
        let snapshot = self.door.snapshots.borrow().clone();
        if snapshot.is_coordinator { Ok(snapshot) } else { Err(elsewhere(&snapshot)) }
    }

    /// What changes, while the capture is the coordinator.
    fn views(&self) -> impl Stream<Item = Result<pb::WatchDrainResponse, Status>> + use<> {
        let mut last = None;
        let snapshots = WatchStream::new(self.door.snapshots.clone());
        let views =
            snapshots.map(
                |snapshot| {
                    if snapshot.is_coordinator { Ok(encode_view(&snapshot)) } else { Err(elsewhere(&snapshot)) }
                },
            );
        let mut ended = false;
        let until_elsewhere = views.take_while(move |view| {
            let go_on = !ended;
            ended = view.is_err();
            future::ready(go_on)
        });
        until_elsewhere.filter_map(move |view| {
            let news = match view {
                Ok(view) if last.as_ref() == Some(&view) => None,
                Ok(view) => {
                    last = Some(view.clone());
                    Some(Ok(pb::WatchDrainResponse { view: Some(view) }))
                }
                Err(status) => Some(Err(status)),
            };
            future::ready(news)
        })
    }
}

fn elsewhere(snapshot: &Snapshot) -> Status {
    let coordinator = snapshot.coordinator.as_ref().map(|(_, addr)| addr.clone());
    refusal::to_status(&Refusal::NotCoordinator { coordinator })
}

#[allow(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn too_long(error: TooLong) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl pb::drain_service_server::DrainService for DrainDoor {
    type WatchDrainStream = BoxStream<'static, Result<pb::WatchDrainResponse, Status>>;

    async fn drain_capture(&self, call: Call<pb::DrainCaptureRequest>) -> Answered<pb::DrainCaptureResponse> {
        let request = decode_drain(call.into_inner()).map_err(malformed)?;
        request.check().map_err(too_long)?;
        Ok(Response::new(encode_answer(self.ask(Request::Drain(request)).await?)))
    }

    async fn cancel_drain(&self, call: Call<pb::CancelDrainRequest>) -> Answered<pb::CancelDrainResponse> {
        let call = call.into_inner();
        let capture = capture(&call.capture_id).map_err(malformed)?;
        check_requester(&call.requester).map_err(too_long)?;
        let epoch = call.drain_epoch.map(DrainEpoch);
        self.ask(Request::Cancel { capture, epoch, requester: call.requester }).await?;
        Ok(Response::new(pb::CancelDrainResponse {}))
    }

    async fn release_capture(&self, call: Call<pb::ReleaseCaptureRequest>) -> Answered<pb::ReleaseCaptureResponse> {
        let call = call.into_inner();
        let node_epoch = decode_release(&call).map_err(malformed)?;
        let capture = capture(&call.capture_id).map_err(malformed)?;
        self.ask(Request::Release { capture, node_epoch }).await?;
        Ok(Response::new(pb::ReleaseCaptureResponse {}))
    }

    async fn get_drain_status(&self, _call: Call<pb::GetDrainStatusRequest>) -> Answered<pb::GetDrainStatusResponse> {
        let view = encode_view(&*self.coordinator()?);
        Ok(Response::new(pb::GetDrainStatusResponse { view: Some(view) }))
    }

    async fn watch_drain(&self, _call: Call<pb::WatchDrainRequest>) -> Answered<Self::WatchDrainStream> {
        self.coordinator()?;
        Ok(Response::new(self.views().boxed()))
    }

    async fn list_drains(&self, _call: Call<pb::ListDrainsRequest>) -> Answered<pb::ListDrainsResponse> {
        let snapshot = self.coordinator()?;
        Ok(Response::new(pb::ListDrainsResponse { drains: snapshot.history.iter().map(encode_end).collect() }))
    }

    async fn list_captures(&self, _call: Call<pb::ListCapturesRequest>) -> Answered<pb::ListCapturesResponse> {
        let snapshot = self.coordinator()?;
        Ok(Response::new(pb::ListCapturesResponse { captures: encode_captures(&snapshot) }))
    }
}
