//! Tables that appear and vanish, as the table trigger tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec,
};

use super::{Maintainer, Planned, Stage, Then, spans::Slot};
use crate::{
    measure::MoveOutcome,
    model::{CommitTs, Span},
};

/// How many moments are remembered at which the source passed a commit timestamp.
const SAMPLES_MAX: usize = 4096;

/// News of the table trigger of which a part is still to be planned.
#[derive(Debug)]
pub(super) struct TableNews {
    born: vec::IntoIter<(Span, CommitTs)>,
    ended: Vec<(Arc<str>, CommitTs)>,
    ends_known: bool,
    resolved_ts: CommitTs,
    resolved_at_ms: u64,
}

/// Tables that may have ended, by up to where their spans had come.
#[derive(Debug, Default)]
pub(super) struct Doubtful {
    known_ts: BTreeMap<Arc<str>, CommitTs>,
    order: BTreeSet<(CommitTs, Arc<str>)>,
}

impl Doubtful {
    fn insert(&mut self, table: Arc<str>, known_ts: CommitTs) {
        self.order.insert((known_ts, table.clone()));
        self.known_ts.insert(table, known_ts);
    }

    fn remove(&mut self, table: &str) {
        if let Some((table, known_ts)) = self.known_ts.remove_entry(table) {
            self.order.remove(&(known_ts, table));
        }
    }

    /// One whose birth would have been told by now.
    fn next_settled(&mut self, resolved_ts: CommitTs) -> Option<Arc<str>> {
        let is_settled = self.order.first().is_some_and(|(known_ts, _)| *known_ts < resolved_ts);
        let (_, table) = if is_settled { self.order.pop_first()? } else { return None };
        self.known_ts.remove(&table);
        Some(table)
    }
}

impl Maintainer {
    pub(super) fn take_tables(
        &mut self,
        born: Vec<(Span, CommitTs)>,
        ended: Vec<(Arc<str>, CommitTs)>,
        resolved_ts: CommitTs,
        resolved_at_ms: u64,
    ) {
        self.table_news.push_back(TableNews {
            born: born.into_iter(),
            ended,
            ends_known: false,
            resolved_ts,
            resolved_at_ms,
        });
    }

    /// Plans what the trigger told, as much as one event may.
    pub(super) fn plan_tables(&mut self) {
        while let Some(mut news) = self.table_news.pop_front() {
            if !news.ends_known {
                news.ends_known = true;
                self.ended.extend(news.ended.iter().cloned());
            }
            while self.room > 0
                && let Some((whole, birth)) = news.born.next()
            {
                self.room -= 1;
                self.plan_table(&whole, birth);
            }
            if self.room == 0 {
                // All of these are planned before the checkpoint may pass what the trigger has seen.
                return self.table_news.push_front(news);
            }
            for (table, _) in &news.ended {
                self.pass_table(table);
            }
            self.listed_ts.get_or_insert(news.resolved_ts);
            self.resolved_ts = self.resolved_ts.max(news.resolved_ts);
            if news.resolved_at_ms > 0 {
                self.sample(news.resolved_ts, news.resolved_at_ms);
            }
        }
        self.doubt_unlisted();
        self.let_ended_go();
    }

    /// A table that is there. What no span of it covers is queued.
    fn plan_table(&mut self, whole: &Span, birth: CommitTs) {
        self.unlisted.remove(&whole.table);
        self.doubtful.remove(&whole.table);
        if self.ended.get(&whole.table).is_some_and(|end| *end <= birth) {
            self.ended.remove(&whole.table);
        }
        let checkpoint_ts = self.checkpoint_ts.max(birth.saturating_sub(1));
        for span in self.spans.gaps(whole) {
            let stage = Stage::Queued { not_before: self.now };
            self.spans.insert(Planned { span, stage, checkpoint_ts, attempt: 0, failures: 0, moving: false });
        }
    }

    /// Each span of a table that has ended is looked at: it goes once it is past the end.
    fn pass_table(&mut self, table: &Arc<str>) {
        if self.spans.has_table(table) {
            self.passing.extend(self.spans.of_table(table));
        } else {
            self.ended.remove(table);
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

    /// Tables of the plan that the first news of the trigger do not list have ended before it, unless their birth is
    /// still to be told: it is at most one above what their spans have come to.
    fn doubt_unlisted(&mut self) {
        let Some(listed_ts) = self.listed_ts else { return };
        while self.room > 0
            && let Some(table) = self.unlisted.pop_first()
        {
            self.room -= 1;
            let spans = self.spans.of_table(&table).filter_map(|slot| self.spans.get(slot));
            let known_ts = spans.map(|planned| planned.checkpoint_ts).max().unwrap_or(0);
            self.doubtful.insert(table, known_ts);
        }
        while self.room > 0
            && let Some(table) = self.doubtful.next_settled(self.resolved_ts)
        {
            self.room -= 1;
            self.ended.insert(table.clone(), listed_ts);
            self.pass_table(&table);
        }
    }

    fn let_ended_go(&mut self) {
        while self.room > 0
            && let Some(slot) = self.passing.pop_front()
        {
            self.room -= 1;
            self.let_go(slot);
        }
    }

    pub(super) fn has_ended(&self, slot: Slot) -> bool {
        self.spans.get(slot).is_some_and(|planned| self.ended.contains_key(&planned.span.table))
    }

    /// Lets a span go when its table has ended and it is past the end. To be asked whenever it has come forward.
    pub(super) fn let_go(&mut self, slot: Slot) {
        if self.ended.is_empty() {
            return;
        }
        let Some(planned) = self.spans.get(slot) else { return };
        let passed = self.ended.get(&planned.span.table).is_some_and(|end| planned.checkpoint_ts >= *end);
        match planned.stage {
            Stage::Working(_) if passed => self.stop(slot, Then::Drop),
            Stage::Queued { .. } if passed => self.drop_span(slot),
            _ => {}
        }
    }

    /// Takes a span out of the plan, and its table's end when it was the last.
    pub(super) fn drop_span(&mut self, slot: Slot) {
        let Some(dropped) = self.spans.remove(slot) else { return };
        if dropped.moving {
            self.end_move(dropped.span.id(), |_| MoveOutcome::Dropped);
        }
        if !self.spans.has_table(&dropped.span.table) {
            self.ended.remove(&dropped.span.table);
        }
    }
}
