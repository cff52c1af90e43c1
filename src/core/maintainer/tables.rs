//! Tables that appear and vanish, as the table trigger tells.

use std::{collections::BTreeSet, sync::Arc};

use super::{Maintainer, Planned, Stage, Then};
use crate::{
    measure::MoveOutcome,
    model::{CommitTs, Span},
};

/// How many moments are remembered at which the source passed a commit timestamp.
const SAMPLES_MAX: usize = 4096;

impl Maintainer {
    pub(super) fn take_tables(
        &mut self,
        born: Vec<(Span, CommitTs)>,
        ended: Vec<(Arc<str>, CommitTs)>,
        resolved_ts: CommitTs,
        resolved_at_ms: u64,
    ) {
        if !self.tables_listed {
            self.tables_listed = true;
            self.doubt_unlisted(&born, resolved_ts);
        }
        for (table, end) in ended {
            self.ended.insert(table, end);
        }
        for (whole, birth) in born {
            self.doubtful.remove(&whole.table);
            if self.ended.get(&whole.table).is_some_and(|end| *end <= birth) {
                self.ended.remove(&whole.table);
            }
            let start = self.checkpoint_ts.max(birth.saturating_sub(1));
            for span in self.spans.gaps(&whole) {
                let stage = Stage::Queued { not_before: self.now };
                self.spans.put(Planned {
                    span,
                    stage,
                    checkpoint_ts: start,
                    attempt: 0,
                    failures: 0,
                    due: None,
                    moving: false,
                });
            }
        }
        self.resolved_ts = self.resolved_ts.max(resolved_ts);
        let settled = self.doubtful.extract_if(.., |_, (known_ts, _)| *known_ts < resolved_ts);
        self.ended.extend(settled.map(|(table, (_, end))| (table, end)));
        if resolved_at_ms > 0 {
            self.sample(resolved_ts, resolved_at_ms);
        }
    }

    /// Tables of the plan that the first news of the trigger does not list have ended before it, unless their birth is
    /// still to be told: it is at most one above what their spans have come to.
    fn doubt_unlisted(&mut self, listed: &[(Span, CommitTs)], resolved_ts: CommitTs) {
        let listed: BTreeSet<_> = listed.iter().map(|(whole, _)| &whole.table).collect();
        for table in self.spans.tables().filter(|table| !listed.contains(table)) {
            let known_ts = self.spans.of_table(table).into_iter().filter_map(|id| self.spans.get(id));
            let known_ts = known_ts.map(|planned| planned.checkpoint_ts).max().unwrap_or(0);
            self.doubtful.insert(table.clone(), (known_ts, resolved_ts));
        }
    }

    /// Remembers when the source passed a commit timestamp. An idle source passes the same one again and again.
    fn sample(&mut self, ts: CommitTs, at_ms: u64) {
        match self.samples.back_mut() {
            Some((known, _)) if *known > ts => {}
            Some((known, at)) if *known == ts => *at = at_ms.max(*at),
            _ => {
                self.samples.push_back((ts, at_ms));
                if self.samples.len() > SAMPLES_MAX {
                    self.samples.pop_front();
                }
            }
        }
    }

    /// Lets the spans of ended tables go, once they are past the end.
    pub(super) fn drop_ended_tables(&mut self) {
        let spans = &self.spans;
        self.ended.retain(|table, _| !spans.of_table(table).is_empty());
        let passed: Vec<_> = self
            .ended
            .iter()
            .flat_map(|(table, end)| self.spans.of_table(table).into_iter().map(|id| (id, *end)))
            .filter(|(id, end)| {
                let planned = self.spans.get(*id);
                planned.is_some_and(|planned| {
                    planned.checkpoint_ts >= *end
                        && matches!(planned.stage, Stage::Working { .. } | Stage::Queued { .. })
                })
            })
            .map(|(id, _)| id)
            .collect();
        for id in passed {
            let Some(planned) = self.spans.take(id) else { continue };
            self.end_move(id, |_| MoveOutcome::Dropped);
            if matches!(planned.stage, Stage::Working { .. }) {
                self.stop(planned, Then::Drop);
            }
        }
    }
}
