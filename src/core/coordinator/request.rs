//! What callers ask for: judged against the view, persisted, then answered.

use super::{Coordinator, HOOK_REPORTS_MAX, Output};
use crate::{
    log::Line,
    measure::Measurement,
    model::{
        Answer, CaptureId, ChangefeedConfig, ChangefeedId, ChangefeedInfo, ChangefeedState, Command, DrainEpoch,
        DrainOutcome, DrainRecord, DrainRequest, HookReport, KeyName, LastEpoch, Liveness, LivenessMark, NodeEpoch,
        Now, Refusal, Request, encode,
    },
    mutant::Mutant,
    store::Op,
    view::View,
    write::Draft,
};

/// What a call comes to: an answer at once, or one that is due when this is persisted.
enum Decision {
    Answer(Answer),
    Write(Draft, Answer),
}

impl Coordinator {
    /// Serves calls in their order, until one needs a write.
    pub(super) fn serve_requests(&mut self, view: &View, now: Now) -> Option<Draft> {
        while let Some((id, request)) = self.queue.pop_front() {
            match self.judge(view, request, now) {
                Ok(Decision::Answer(answer)) => self.outputs.push(Output::Answer { id, answer: Ok(answer) }),
                Err(refusal) => self.outputs.push(Output::Answer { id, answer: Err(refusal) }),
                Ok(Decision::Write(draft, answer)) if self.mutants.has(Mutant::AnswersFirst) => {
                    self.outputs.push(Output::Answer { id, answer: Ok(answer) });
                    return Some(draft);
                }
                Ok(Decision::Write(draft, answer)) => {
                    self.promised.push((id, answer));
                    return Some(draft);
                }
            }
        }
        None
    }

    fn judge(&mut self, view: &View, request: Request, now: Now) -> Result<Decision, Refusal> {
        match request {
            Request::Drain(request) => self.judge_drain(view, request, now),
            Request::Cancel { capture, epoch, requester } => self.judge_cancel(view, &capture, epoch, &requester, now),
            Request::Release { capture, node_epoch } => self.judge_release(view, &capture, node_epoch),
            Request::CreateChangefeed { id, config } => self.create_changefeed(view, id, config, now),
            Request::PauseChangefeed(id) => self.set_changefeed(view, &id, ChangefeedState::Paused),
            Request::ResumeChangefeed(id) => self.set_changefeed(view, &id, ChangefeedState::Running),
            Request::DeleteChangefeed(id) => self.delete_changefeed(view, &id),
            Request::Resign => {
                self.outputs.push(Output::Resigned);
                let draft = self.draft().delete(view, &KeyName::Owner(self.me.clone()));
                Ok(Decision::Write(draft, Answer::Done))
            }
            Request::ReportHook(report) => Ok(self.take_report(view, report)),
        }
    }

    fn judge_drain(&mut self, view: &View, request: DrainRequest, now: Now) -> Result<Decision, Refusal> {
        let registration = view.captures.get(&request.capture).map(|kept| &kept.value);
        let registration = registration.ok_or_else(|| Refusal::UnknownCapture(request.capture.clone()))?;
        check_meant("registration", request.node_epoch, Some(registration.node_epoch))?;
        check_meant("pod UID", request.pod_uid.as_deref(), registration.pod_uid.as_deref())?;
        let on = view.record.as_ref().map(|kept| &kept.value);
        let mark = view.liveness.get(&request.capture).map(|kept| &kept.value);
        if let Some(mark) =
            mark.filter(|mark| mark.node_epoch == registration.node_epoch && mark.liveness == Liveness::Stopping)
        {
            check_meant("drain epoch", request.epoch, Some(mark.drain_epoch))?;
            return Ok(Decision::Answer(Answer::Drained { epoch: mark.drain_epoch }));
        }
        if let Some(record) = on.filter(|record| record.target == request.capture) {
            check_meant("drain epoch", request.epoch, Some(record.epoch))?;
            return Ok(self.repeat_drain(view, record, &request));
        }
        if let Some(record) = on {
            return Err(Refusal::OtherDrain { target: record.target.clone(), epoch: record.epoch });
        }
        check_meant("drain epoch", request.epoch, None)?;
        if !self.is_ready() {
            return Err(Refusal::NotReady("not every capture has answered yet".to_owned()));
        }
        if !self.has_peer(view, &request.capture, now) {
            return Err(Refusal::NoPeers(request.capture));
        }
        if request.dry_run {
            let current = self.current_work(view, &request.capture).unwrap_or_default();
            let destinations = self.destinations(view).into_iter().map(|who| who.capture);
            let destinations: Vec<_> = destinations.filter(|id| *id != request.capture).collect();
            let plan = self.plan_drain(view, &request, &destinations);
            return Ok(Decision::Answer(Answer::DryRun { current, destinations, plan }));
        }
        Ok(self.start_drain(view, request, registration.node_epoch, now))
    }

    /// The same call again: it adds its requester, replaces `avoid`, and tells how the drain stands.
    fn repeat_drain(&self, view: &View, record: &DrainRecord, request: &DrainRequest) -> Decision {
        let answer = Answer::Draining { epoch: record.epoch, current: self.current_work(view, &record.target) };
        let mut updated = record.clone();
        updated.add_requester(&request.requester);
        if !request.avoid.is_empty() {
            updated.avoid.clone_from(&request.avoid);
        }
        // A hook that is run again keeps its first deadline, and a deletion that comes sooner shortens it.
        updated.hook_deadline_ms = updated.hook_deadline_ms.into_iter().chain(request.hook_deadline_ms).min();
        if updated == *record || request.dry_run {
            return Decision::Answer(answer);
        }
        Decision::Write(self.draft().put(view, &KeyName::DrainRecord, &updated), answer)
    }

    /// Whether another `Alive` capture that was heard within a lease period stands in the election.
    fn has_peer(&self, view: &View, target: &CaptureId, now: Now) -> bool {
        view.owners.keys().any(|who| {
            who.capture != *target
                && view.is_registered(who)
                && view.liveness(&who.capture) == Some(Liveness::Alive)
                && self.heard_within(&who.capture, 1, now)
        })
    }

    /// One transaction: record, epoch, liveness, and when the target is this coordinator, the end of its office.
    fn start_drain(&mut self, view: &View, request: DrainRequest, node_epoch: NodeEpoch, now: Now) -> Decision {
        let told = self.peers.values().filter_map(|peer| peer.report.as_ref()).map(|report| report.last_epoch);
        let last = told.fold(view.drain_epoch(), Ord::max);
        let epoch = if self.mutants.has(Mutant::ReusesEpoch) { last.max(DrainEpoch(1)) } else { last.next() };
        let current = self.current_work(view, &request.capture);
        let pod_uid = view.captures.get(&request.capture).and_then(|kept| kept.value.pod_uid.clone());
        let record = DrainRecord {
            version: view.common_version(),
            epoch,
            target: request.capture,
            node_epoch,
            pod_uid,
            requesters: vec![request.requester],
            reason: request.reason,
            started_at_ms: now.wall,
            initial: current.unwrap_or_default(),
            deadline_ms: request.deadline_ms,
            on_deadline: request.on_deadline,
            no_peers_policy: request.no_peers_policy,
            hook_deadline_ms: request.hook_deadline_ms,
            hook_report: None,
            avoid: request.avoid,
            unknown: std::collections::BTreeMap::new(),
        };
        let last_epoch = LastEpoch {
            version: view.common_version(),
            epoch,
            unknown: view.last_epoch.as_ref().map(|kept| kept.value.unknown.clone()).unwrap_or_default(),
        };
        let mark = LivenessMark {
            version: view.common_version(),
            liveness: Liveness::Draining,
            node_epoch,
            drain_epoch: epoch,
            unknown: std::collections::BTreeMap::new(),
        };
        let draft = self.draft().require_same(view, &KeyName::Capture(record.target.clone()));
        let mut draft = if self.mutants.has(Mutant::StartIgnoresRecord) {
            let put = |name: KeyName, value| Op::Put { key: name.key(), value, lease: None };
            draft.operations(vec![
                put(KeyName::DrainRecord, encode(&record)),
                put(KeyName::DrainEpoch, encode(&last_epoch)),
            ])
        } else {
            draft.put(view, &KeyName::DrainRecord, &record).put(view, &KeyName::DrainEpoch, &last_epoch)
        };
        if !self.mutants.has(Mutant::RecordWithoutLiveness) {
            draft = draft.put(view, &KeyName::Liveness(record.target.clone()), &mark);
        }
        if record.incarnation() == self.me && !self.mutants.has(Mutant::KeepsOffice) {
            draft = draft.delete(view, &KeyName::Owner(self.me.clone()));
        }
        Decision::Write(draft, Answer::Draining { epoch, current })
    }

    fn judge_cancel(
        &mut self,
        view: &View,
        capture: &CaptureId,
        epoch: Option<DrainEpoch>,
        requester: &str,
        now: Now,
    ) -> Result<Decision, Refusal> {
        let record = view.record.as_ref().map(|kept| &kept.value).filter(|record| record.target == *capture);
        if let Some(record) = record {
            check_meant("drain epoch", epoch, Some(record.epoch))?;
            let line = Line::warn("drain cancelled").drain(record).with("requester", requester);
            let draft = self.finish(view, record, DrainOutcome::Cancelled, now);
            self.announced.push(line);
            return Ok(Decision::Write(draft, Answer::Done));
        }
        let cancelled = |epoch: DrainEpoch| {
            view.history.get(&epoch).is_some_and(|end| end.value.outcome == DrainOutcome::Cancelled)
        };
        match (epoch, view.liveness(capture)) {
            (Some(epoch), _) if cancelled(epoch) => Ok(Decision::Answer(Answer::Done)),
            (_, None) => Err(Refusal::UnknownCapture(capture.clone())),
            (_, Some(Liveness::Stopping)) => Err(Refusal::Conflict(format!(
                "the drain of capture {capture} has ended, it is proven empty; use release to have it back"
            ))),
            _ => Err(Refusal::Conflict(format!("no drain of capture {capture} is on"))),
        }
    }

    fn judge_release(
        &mut self,
        view: &View,
        capture: &CaptureId,
        node_epoch: Option<NodeEpoch>,
    ) -> Result<Decision, Refusal> {
        let who = view.incarnation(capture).ok_or_else(|| Refusal::UnknownCapture(capture.clone()))?;
        check_meant("registration", node_epoch, Some(who.node_epoch))?;
        if view.liveness(capture) != Some(Liveness::Stopping) {
            return Err(Refusal::Conflict(format!("capture {capture} is not stopping, there is nothing to release")));
        }
        self.outputs.push(Output::Log(Line::info("capture is released").of(capture)));
        self.released.insert(who.clone());
        self.outputs.push(Output::Send { to: who, command: Command::Release });
        Ok(Decision::Answer(Answer::Done))
    }

    /// Keeps how a hook ended: with the drain of its capture when there is one, where it outlives this coordinator.
    fn take_report(&mut self, view: &View, report: HookReport) -> Decision {
        if !self.hook_reports.iter().any(|known| known.is_same(&report)) {
            let line = if report.is_good() { Line::info("hook has ended") } else { Line::warn("hook has ended") };
            self.outputs.push(Output::Log(line.of(&report.capture).with("phase", &report.outcome)));
            self.outputs.push(Output::Measured(Measurement::HookEnded { outcome: report.known_outcome() }));
            self.hook_reports.push_back(report.clone());
            let surplus = self.hook_reports.len().saturating_sub(HOOK_REPORTS_MAX);
            self.hook_reports.drain(..surplus);
        }
        let lacks = |record: &DrainRecord| record.hook_report.as_ref().is_none_or(|known| !known.is_same(&report));
        let is_of =
            |record: &DrainRecord| record.target == report.capture && Some(record.node_epoch) == report.node_epoch;
        if let Some(record) = view.record.as_ref().map(|kept| &kept.value).filter(|record| is_of(record)) {
            if !lacks(record) {
                return Decision::Answer(Answer::Done);
            }
            let updated = DrainRecord { hook_report: Some(Box::new(report)), ..record.clone() };
            return Decision::Write(self.draft().put(view, &KeyName::DrainRecord, &updated), Answer::Done);
        }
        match view.history.iter().rev().find(|(_, end)| is_of(&end.value.record)) {
            Some((epoch, end)) if lacks(&end.value.record) => {
                let mut updated = end.value.clone();
                updated.record.hook_report = Some(Box::new(report));
                Decision::Write(self.draft().put(view, &KeyName::DrainHistory(*epoch), &updated), Answer::Done)
            }
            _ => Decision::Answer(Answer::Done),
        }
    }

    fn create_changefeed(
        &self,
        view: &View,
        id: ChangefeedId,
        config: std::sync::Arc<ChangefeedConfig>,
        now: Now,
    ) -> Result<Decision, Refusal> {
        if view.infos.contains_key(&id) {
            return Err(Refusal::ChangefeedExists(id));
        }
        let info = ChangefeedInfo {
            version: view.common_version(),
            id: id.clone(),
            config,
            state: ChangefeedState::Running,
            created_at_ms: now.wall,
            unknown: std::collections::BTreeMap::new(),
        };
        let draft = self.draft().put(view, &KeyName::ChangefeedInfo(id), &info);
        Ok(Decision::Write(draft, Answer::Done))
    }

    fn set_changefeed(&self, view: &View, id: &ChangefeedId, state: ChangefeedState) -> Result<Decision, Refusal> {
        let info = view.infos.get(id).ok_or_else(|| Refusal::UnknownChangefeed(id.clone()))?;
        if info.value.state == state {
            return Ok(Decision::Answer(Answer::Done));
        }
        let mut updated = info.value.clone();
        updated.state = state;
        let draft = self.draft().put(view, &KeyName::ChangefeedInfo(id.clone()), &updated);
        Ok(Decision::Write(self.without_place(draft, view, id), Answer::Done))
    }

    fn delete_changefeed(&self, view: &View, id: &ChangefeedId) -> Result<Decision, Refusal> {
        if !view.infos.contains_key(id) {
            return Err(Refusal::UnknownChangefeed(id.clone()));
        }
        let draft = self
            .draft()
            .delete(view, &KeyName::ChangefeedInfo(id.clone()))
            .delete_unseen(&KeyName::Position(id.clone()));
        Ok(Decision::Write(self.without_place(draft, view, id), Answer::Done))
    }

    /// A changefeed that stops running loses its place: hosts were told to take nothing more of that placement, so it
    /// goes on under a new one.
    pub(super) fn without_place(&self, draft: Draft, view: &View, id: &ChangefeedId) -> Draft {
        if view.places.contains_key(id) && !self.mutants.has(Mutant::PausesInPlace) {
            draft.delete(view, &KeyName::ChangefeedPlace(id.clone()))
        } else {
            draft
        }
    }
}

/// Refuses a caller who means something else than what is there.
fn check_meant<T: PartialEq + std::fmt::Display>(
    what: &str,
    meant: Option<T>,
    there: Option<T>,
) -> Result<(), Refusal> {
    match (meant, there) {
        (None, _) => Ok(()),
        (Some(meant), Some(there)) if meant == there => Ok(()),
        (Some(meant), Some(there)) => Err(Refusal::Mismatch(format!("the {what} is {there}, not {meant}"))),
        (Some(meant), None) => Err(Refusal::Mismatch(format!("there is no {what} now, let alone {meant}"))),
    }
}
