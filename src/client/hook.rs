//! What the hook of a pod asks of its own capture, and says to the coordinator.

use capturedrain_core::model::{CaptureId, HookReport, NodeEpoch, WorkCount};
use tokio::time;
use tonic::transport::Channel;

use super::{Attempt, CALL_TIMEOUT, Client, ClientError};
use crate::wire::{encode_report, pb};

type Hooks = pb::hook_service_client::HookServiceClient<Channel>;

/// Why a capture may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It was drained, and is proven empty.
    Drained,
    /// It is not registered, has nothing, and never registers again.
    Unregistered,
}

/// The drain that is on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordSeen {
    /// Its number.
    pub epoch: u64,
    /// Its target.
    pub target: String,
    /// In which registration.
    pub node_epoch: Option<NodeEpoch>,
    /// Who asked for it.
    pub requesters: Vec<String>,
    /// After which moment its policy lets the pod go, in milliseconds since 1970.
    pub proceeds_at_ms: Option<u64>,
    /// When the pod is killed at the latest, as somebody has said.
    pub killed_at_ms: Option<u64>,
}

/// What a capture says to the hook of its own pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookStanding {
    /// The proof, which is final.
    pub proof: Option<Proof>,
    /// Its name.
    pub capture: CaptureId,
    /// Its registration; `None` while it has none.
    pub node_epoch: Option<NodeEpoch>,
    /// Whether it is `Stopping`.
    pub is_stopping: bool,
    /// What it has; `None` while it is not registered.
    pub work: Option<WorkCount>,
    /// When the pod is killed at the latest, as any run of its hook knew.
    pub killed_at_ms: Option<u64>,
    /// The drain that is on.
    pub record: Option<RecordSeen>,
    /// The latest drain of this registration that was called off, and who had asked for it.
    pub withdrawn: Option<(u64, Vec<String>)>,
}

impl Client {
    /// Asks the first server, and nobody else, for the proof that it is empty; one attempt.
    ///
    /// # Errors
    /// When it does not answer, is of another pod, or does not trust the caller.
    pub async fn prove(
        &self,
        pod_uid: Option<&str>,
        started_ms: u64,
        killed_ms: Option<u64>,
    ) -> Result<HookStanding, ClientError> {
        let addr = self.servers.given().first().cloned().unwrap_or_default();
        let request = pb::ProveDrainedRequest {
            pod_uid: pod_uid.map(str::to_owned),
            started_unix_ms: started_ms,
            killed_unix_ms: killed_ms,
        };
        let asking = async {
            let channel = self.channel(&addr).await?;
            match Hooks::new(channel).prove_drained(request).await {
                Ok(answer) => Ok(answer.into_inner()),
                Err(status) => Err(self.judge(&addr, &status).await),
            }
        };
        let late = || Attempt::Later(format!("{addr} took too long"));
        let answer = time::timeout(CALL_TIMEOUT, asking).await.unwrap_or_else(|_| Err(late()));
        let answer = answer.map_err(|attempt| match attempt {
            Attempt::Follow(other) => self.unreachable(format!("it sends its hook to {other}")),
            Attempt::Later(why) => self.unreachable(why),
            Attempt::Distrusted(error) | Attempt::Never(error) => error,
        })?;
        self.servers.learn(answer.captures.iter().map(|capture| capture.advertise_addr.as_str()));
        standing(answer).ok_or_else(|| ClientError::Protocol("a capture without a name".to_owned()))
    }

    /// Says to the coordinator how a hook ended.
    ///
    /// # Errors
    /// When nobody answers, or the coordinator is of an older release.
    pub async fn report_hook(&self, report: &HookReport) -> Result<(), ClientError> {
        let call = pb::ReportHookRequest { report: Some(encode_report(report)) };
        let made = |channel| {
            let call = call.clone();
            async move { Hooks::new(channel).report_hook(call).await }
        };
        self.call_on(made).await.map(drop)
    }
}

fn standing(answer: pb::ProveDrainedResponse) -> Option<HookStanding> {
    let proof = match answer.proof() {
        pb::Proof::Unspecified => None,
        pb::Proof::Drained => Some(Proof::Drained),
        pb::Proof::Unregistered => Some(Proof::Unregistered),
    };
    let is_stopping = answer.liveness() == pb::Liveness::Stopping;
    let withdrawn = answer.last_end.filter(|end| end.outcome == "Cancelled").and_then(|end| end.record);
    Some(HookStanding {
        proof,
        capture: CaptureId::new(&answer.capture_id).ok()?,
        node_epoch: answer.node_epoch.and_then(|epoch| epoch.parse().ok()),
        is_stopping,
        work: answer.work.map(|work| WorkCount { maintainers: work.maintainers, dispatchers: work.dispatchers }),
        killed_at_ms: answer.killed_unix_ms,
        record: answer.record.map(record),
        withdrawn: withdrawn.map(|record| (record.drain_epoch, record.requesters)),
    })
}

fn record(record: pb::DrainRecord) -> RecordSeen {
    let proceeds = record.on_deadline() == pb::Policy::Proceed;
    let limit = record.deadline_ms.filter(|_| proceeds);
    RecordSeen {
        epoch: record.drain_epoch,
        node_epoch: record.node_epoch.parse().ok(),
        proceeds_at_ms: limit.map(|limit_ms| record.started_unix_ms.saturating_add(limit_ms)),
        killed_at_ms: record.hook_deadline_unix_ms,
        target: record.target,
        requesters: record.requesters,
    }
}
