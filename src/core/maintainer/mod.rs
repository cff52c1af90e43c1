//! stub
use crate::{model::*, mutant::Mutants, store::*};
use std::sync::Arc;
#[derive(Debug)]
pub struct Maintainer {
    config: Arc<ChangefeedConfig>,
}
#[derive(Debug)]
pub enum Input<'a> {
    PositionRead(Option<(Position, Revision)>),
    Heard(&'a Heartbeat),
    Status { from: Incarnation, status: Status },
    Tables { born: Vec<(Span, CommitTs)>, ended: Vec<(Arc<str>, CommitTs)>, resolved_ts: CommitTs, resolved_at_ms: u64 },
    TriggerFailed(String),
    Written(TxnOutcome),
    Wake,
}
#[derive(Debug)]
pub enum Output {
    ReadPosition,
    StartTrigger { start_ts: CommitTs },
    Order { to: Incarnation, order: Order },
    Write(Txn),
}
impl Maintainer {
    pub fn new(
        _me: Incarnation,
        _c: ChangefeedId,
        _e: ChangefeedEpoch,
        _r: Revision,
        config: Arc<ChangefeedConfig>,
        _o: Options,
    ) -> Self {
        Self { config }
    }
    pub fn set_mutants(&mut self, _m: Mutants) {}
    pub fn config(&self) -> &Arc<ChangefeedConfig> {
        &self.config
    }
    pub fn start(&mut self, _now: Now) -> Vec<Output> {
        vec![]
    }
    pub fn handle(&mut self, _i: Input<'_>, _now: Now) -> Vec<Output> {
        vec![]
    }
    pub fn wake_at(&self) -> Option<Instant> {
        None
    }
    pub fn report(&self) -> MaintainerReport {
        unimplemented!()
    }
}
