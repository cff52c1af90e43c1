//! `HookService`: what the hook of the capture's own pod asks, and how hooks have ended.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use capturedrain_core::model::{Answer, HookReport, Refusal, Request, Snapshot, UnixMillis};
use tonic::{Request as Call, Response, Status};

use super::{
    answer::{encode_captures, encode_end, encode_record, node_epoch},
    envelope::{Malformed, capture, encode_liveness},
    pb, refusal,
    report::encode_work,
};
use crate::door::Door;

/// How often it is told at most what a hook waits for.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// The door that hooks come through.
pub(super) struct HookDoor {
    door: Door,
    pod: Mutex<Pod>,
}

/// What is remembered of the hook of this process's pod, for a run that comes after another.
#[derive(Debug, Default)]
struct Pod {
    first: Option<First>,
    latest_started_ms: Option<u64>,
    told_at: Option<Instant>,
}

/// The first run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct First {
    started_ms: u64,
    /// When the pod is killed at the latest, as any run knew.
    killed_ms: Option<u64>,
}

impl Pod {
    /// Takes in a run. A container that lives on when it should have been killed was not being deleted then: what is
    /// remembered of that does not count.
    fn run(&mut self, started_ms: u64, killed_ms: Option<u64>) -> First {
        let earlier = self.first.filter(|first| first.killed_ms.is_none_or(|killed_ms| started_ms < killed_ms));
        let known = earlier.unwrap_or(First { started_ms, killed_ms });
        let first = First {
            started_ms: known.started_ms.min(started_ms),
            killed_ms: known.killed_ms.into_iter().chain(killed_ms).min(),
        };
        *self.first.insert(first)
    }

    /// Whether this is a later run than all before, and its time counts from the first.
    fn is_again(&mut self, started_ms: u64, first: First) -> bool {
        let latest = self.latest_started_ms.replace(self.latest_started_ms.unwrap_or(0).max(started_ms));
        latest.is_some_and(|latest| latest < started_ms) && first.started_ms < started_ms
    }

    fn may_tell(&mut self) -> bool {
        let due = self.told_at.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if due {
            self.told_at = Some(Instant::now());
        }
        due
    }
}

type Answered<T> = Result<Response<T>, Status>;

impl HookDoor {
    pub(super) fn new(door: Door) -> Self {
        Self { door, pod: Mutex::default() }
    }

    /// Tells in the log of this process what its hook waits for: nobody else sees it.
    fn tell(&self, snapshot: &Snapshot) {
        let capture = &self.door.capture;
        let work = snapshot.work.unwrap_or_default();
        let (maintainers, dispatchers) = (work.maintainers, work.dispatchers);
        match &snapshot.record {
            Some(record) if record.target == *capture => {
                let epoch = record.epoch.0;
                tracing::info!(%capture, epoch, maintainers, dispatchers, "the hook waits for the drain");
            }
            Some(record) => {
                let (target, epoch) = (&record.target, record.epoch.0);
                tracing::info!(%capture, %target, epoch, maintainers, dispatchers, "the hook waits for another's drain");
            }
            None => tracing::info!(%capture, maintainers, dispatchers, "the hook waits for its drain to begin"),
        }
    }
}

fn refused(refusal: &Refusal) -> Status {
    refusal::to_status(refusal)
}

#[tonic::async_trait]
impl pb::hook_service_server::HookService for HookDoor {
    async fn prove_drained(&self, call: Call<pb::ProveDrainedRequest>) -> Answered<pb::ProveDrainedResponse> {
        let call = call.into_inner();
        let own = self.door.pod_uid.as_deref();
        if let (Some(meant), Some(own)) = (call.pod_uid.as_deref(), own)
            && meant != own
        {
            let why = format!("the pod UID is {own}, not {meant}");
            return Err(refused(&Refusal::Mismatch(why)));
        }
        let proof = match self.door.prove().await {
            Ok(Answer::Drained { .. }) => pb::Proof::Drained,
            Ok(_) => pb::Proof::Unregistered,
            Err(_) => pb::Proof::Unspecified,
        };
        let snapshot = self.door.snapshots.borrow().clone();
        let (first, is_again, tells) = {
            let mut pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
            let first = pod.run(call.started_unix_ms, call.killed_unix_ms);
            let is_again = pod.is_again(call.started_unix_ms, first);
            (first, is_again, proof == pb::Proof::Unspecified && pod.may_tell())
        };
        if is_again {
            tracing::info!(capture = %self.door.capture, "the hook runs again, its time counts from the first run");
        }
        if tells {
            self.tell(&snapshot);
        } else if proof != pb::Proof::Unspecified {
            tracing::info!(capture = %self.door.capture, proof = ?proof, "the hook has the proof");
        }
        let me = snapshot.me.as_ref();
        let ends = snapshot.history.iter().rev();
        let last_end = ends.into_iter().find(|end| me.is_some_and(|me| end.record.incarnation() == *me));
        Ok(Response::new(pb::ProveDrainedResponse {
            proof: proof.into(),
            capture_id: self.door.capture.to_string(),
            node_epoch: me.map(|me| me.node_epoch.to_string()),
            liveness: snapshot.liveness.map_or(pb::Liveness::Unspecified, encode_liveness).into(),
            work: snapshot.work.map(encode_work),
            first_started_unix_ms: first.started_ms,
            killed_unix_ms: first.killed_ms,
            record: snapshot.record.as_ref().map(encode_record),
            last_end: last_end.map(encode_end),
            captures: encode_captures(&snapshot),
        }))
    }

    async fn report_hook(&self, call: Call<pb::ReportHookRequest>) -> Answered<pb::ReportHookResponse> {
        let malformed = |error: Malformed| Status::invalid_argument(error.to_string());
        let report = decode_report(call.into_inner().report.unwrap_or_default()).map_err(malformed)?;
        report.check().map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.door.ask(Request::ReportHook(report)).await.map_err(|error| refused(&error))?;
        Ok(Response::new(pb::ReportHookResponse {}))
    }
}

/// How a hook ended, as it is sent.
pub(crate) fn encode_report(report: &HookReport) -> pb::HookReport {
    pb::HookReport {
        capture_id: report.capture.to_string(),
        node_epoch: report.node_epoch.map(|epoch| epoch.to_string()),
        pod_name: report.pod_name.as_ref().map(ToString::to_string),
        pod_uid: report.pod_uid.as_ref().map(ToString::to_string),
        outcome: report.outcome.to_string(),
        sentence: report.sentence.clone(),
        started_unix_ms: report.started_at_ms.0,
        ended_unix_ms: report.ended_at_ms.0,
    }
}

fn decode_report(report: pb::HookReport) -> Result<HookReport, Malformed> {
    // What stands in a log or an event is one line.
    let printable = |text: String| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    Ok(HookReport {
        capture: capture(&report.capture_id)?,
        node_epoch: node_epoch(report.node_epoch.as_ref())?,
        pod_name: report.pod_name.map(|name| printable(name).into()),
        pod_uid: report.pod_uid.map(|uid| printable(uid).into()),
        outcome: printable(report.outcome).into(),
        sentence: printable(report.sentence),
        started_at_ms: UnixMillis(report.started_unix_ms),
        ended_at_ms: UnixMillis(report.ended_unix_ms),
        unknown: std::collections::BTreeMap::new(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn a_report_comes_back_as_it_was_sent() {
        let report = HookReport {
            capture: "b".parse().unwrap(),
            node_epoch: Some(capturedrain_core::model::NodeEpoch(0xab)),
            pod_name: Some("cdc-1".into()),
            pod_uid: Some("uid".into()),
            outcome: "deadline".into(),
            sentence: "time is up".to_owned(),
            started_at_ms: UnixMillis(1),
            ended_at_ms: UnixMillis(2),
            unknown: std::collections::BTreeMap::new(),
        };
        assert_eq!(decode_report(encode_report(&report)), Ok(report));
    }

    #[test]
    fn a_second_run_counts_from_the_first() {
        let mut pod = Pod::default();
        let first = First { started_ms: 100, killed_ms: Some(700) };
        assert_eq!(pod.run(100, Some(700)), first);
        assert_eq!(pod.run(300, Some(900)), first, "a later run, which would have longer");
        assert_eq!(pod.run(100, Some(650)), First { killed_ms: Some(650), ..first }, "somebody knows better");
    }

    #[test]
    fn another_run_is_told_once_and_only_when_the_first_one_counts() {
        let mut pod = Pod::default();
        let mut told = |started_ms, killed_ms| {
            let first = pod.run(started_ms, Some(killed_ms));
            pod.is_again(started_ms, first)
        };
        // Two at once take turns; the last one comes when the others should have been killed.
        let runs = [(100, 700), (300, 900), (100, 700), (300, 900), (800, 1400), (800, 1400)];
        assert_eq!(runs.map(|(started, killed)| told(started, killed)), [false, true, false, false, false, false]);
    }

    #[test]
    fn a_run_from_before_the_pod_was_deleted_does_not_count() {
        let mut pod = Pod::default();
        pod.run(100, Some(700));
        let second = First { started_ms: 700, killed_ms: Some(1300) };
        assert_eq!(pod.run(700, Some(1300)), second);
        assert_eq!(pod.run(900, Some(1500)), second);
    }
}
