//! Tables that appear and vanish, as the table trigger tells.

use std::{collections::BTreeSet, sync::Arc};

use super::{Maintainer, Planned, Stage, Then};
use crate::model::{CommitTs, Span};

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
        if let Some(start_ts) = self.tables_unlisted.take() {
            // The first news lists every table there: another's spans are left over from before the checkpoint.
            let listed: BTreeSet<_> = born.iter().map(|(whole, _)| &whole.table).collect();
            let left_over = self.spans.tables().filter(|table| !listed.contains(table));
            self.ended.extend(left_over.map(|table| (table.clone(), start_ts)));
        }
        for (table, end) in ended {
            self.ended.insert(table, end);
        }
        for (whole, birth) in born {
            if self.ended.get(&whole.table).is_some_and(|end| *end <= birth) {
                self.ended.remove(&whole.table);
            }
            let start = self.checkpoint_ts.max(birth.saturating_sub(1));
            for span in self.spans.gaps(&whole) {
                let stage = Stage::Queued { not_before: self.now };
                self.spans.put(Planned { span, stage, checkpoint_ts: start, attempt: 0, due: None, moving: false });
            }
        }
        self.resolved_ts = self.resolved_ts.max(resolved_ts);
        if resolved_at_ms > 0 && self.samples.back().is_none_or(|(ts, _)| *ts < resolved_ts) {
            self.samples.push_back((resolved_ts, resolved_at_ms));
            if self.samples.len() > SAMPLES_MAX {
                self.samples.pop_front();
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
            if matches!(planned.stage, Stage::Working { .. }) {
                self.stop(planned, Then::Drop);
            }
        }
    }
}
