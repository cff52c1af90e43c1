//! Judges everything that a cluster persists, revision by revision, as anybody can see it who watches the store.

use std::collections::{BTreeMap, BTreeSet};

use capturedrain_core::model::{
    CaptureId, ChangefeedId, CommitTs, DrainEnd, DrainEpoch, DrainOutcome, DrainRecord, KeyName, LastEpoch, Liveness,
    LivenessMark, NodeEpoch, Placement, Position, Registration, decode,
};
use serde::de::DeserializeOwned;

use crate::proof::Write;

/// What stands in the store, and what stood there once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    registered: BTreeMap<CaptureId, NodeEpoch>,
    marks: BTreeMap<CaptureId, LivenessMark>,
    epoch: DrainEpoch,
    record: Option<DrainRecord>,
    ended: BTreeMap<DrainEpoch, DrainOutcome>,
    places: BTreeMap<ChangefeedId, Placement>,
    positions: BTreeMap<ChangefeedId, CommitTs>,
    /// Lives that were proven empty.
    proven: BTreeSet<(CaptureId, NodeEpoch)>,
}

fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, String> {
    decode(key, value).map_err(|error| error.to_string())
}

impl Ledger {
    /// Takes in what one transaction wrote.
    pub(crate) fn take(&mut self, writes: &[Write]) -> Result<(), String> {
        let before = self.clone();
        for (key, value) in writes {
            self.write(key, value.as_deref())?;
        }
        self.check_epoch(&before)?;
        self.check_record(&before)?;
        self.check_ends(&before)?;
        self.check_liveness(&before)?;
        self.check_places(&before)
    }

    fn write(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        match (KeyName::parse(key).ok_or_else(|| format!("nobody knows the key {key}"))?, value) {
            (KeyName::Capture(id), Some(value)) => {
                let registration: Registration = read(key, value)?;
                if let Some(there) = self.registered.insert(id, registration.node_epoch)
                    && there != registration.node_epoch
                {
                    return Err(format!("{key} is replaced, although it is created only if absent"));
                }
            }
            (KeyName::Capture(id), None) => drop(self.registered.remove(&id)),
            (KeyName::Liveness(id), Some(value)) => drop(self.marks.insert(id, read(key, value)?)),
            (KeyName::Liveness(id), None) => drop(self.marks.remove(&id)),
            (KeyName::DrainEpoch, Some(value)) => self.epoch = read::<LastEpoch>(key, value)?.epoch,
            (KeyName::DrainEpoch, None) => return Err("drain/epoch is deleted".to_owned()),
            (KeyName::DrainRecord, value) => self.record = value.map(|value| read(key, value)).transpose()?,
            (KeyName::DrainHistory(epoch), Some(value)) => {
                let end: DrainEnd = read(key, value)?;
                if self.ended.insert(epoch, end.outcome).is_some() {
                    return Err(format!("drain {epoch} ends twice"));
                }
                if end.outcome == DrainOutcome::Drained {
                    self.proven.insert((end.record.target, end.record.node_epoch));
                }
            }
            (KeyName::ChangefeedPlace(id), Some(value)) => drop(self.places.insert(id, read(key, value)?)),
            (KeyName::Position(id), Some(value)) => {
                let checkpoint_ts = read::<Position>(key, value)?.checkpoint_ts;
                let before = self.positions.insert(id, checkpoint_ts).unwrap_or_default();
                if before > checkpoint_ts {
                    return Err(format!("checkpoint_forward: {key} goes back from {before} to {checkpoint_ts}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_epoch(&self, before: &Self) -> Result<(), String> {
        if self.epoch < before.epoch {
            return Err(format!("single_target: drain/epoch goes back from {} to {}", before.epoch, self.epoch));
        }
        Ok(())
    }

    /// A drain begins with a new epoch, and does not go without an end.
    fn check_record(&self, before: &Self) -> Result<(), String> {
        let epoch = |ledger: &Self| ledger.record.as_ref().map(|record| record.epoch);
        if epoch(self) == epoch(before) {
            return Ok(());
        }
        if let Some(gone) = epoch(before)
            && !self.ended.contains_key(&gone)
        {
            return Err(format!("single_target: drain {gone} goes without an end"));
        }
        let Some(record) = &self.record else { return Ok(()) };
        if record.epoch != self.epoch || self.epoch <= before.epoch {
            return Err(format!("single_target: drain {} begins at epoch {}", record.epoch, self.epoch));
        }
        match self.marks.get(&record.target) {
            Some(mark) if (mark.liveness, mark.node_epoch) == (Liveness::Draining, record.node_epoch) => Ok(()),
            mark => Err(format!("drain {} begins, and its target is {mark:?}", record.epoch)),
        }
    }

    /// Who is proven is `Stopping` from that moment on.
    fn check_ends(&self, before: &Self) -> Result<(), String> {
        for (target, life) in self.proven.difference(&before.proven) {
            match self.marks.get(target) {
                Some(mark) if (mark.liveness, mark.node_epoch) == (Liveness::Stopping, *life) => {}
                mark => return Err(format!("{target} of {life} is proven, and it is {mark:?}")),
            }
        }
        Ok(())
    }

    /// What a registered capture is.
    fn liveness(&self, id: &CaptureId, life: NodeEpoch) -> Liveness {
        let mark = self.marks.get(id).filter(|mark| mark.node_epoch == life);
        mark.map_or(Liveness::Alive, |mark| mark.liveness)
    }

    /// A life goes forward; back only by a cancel, or when nobody was `Alive`.
    fn check_liveness(&self, before: &Self) -> Result<(), String> {
        let nobody = before.registered.iter().all(|(id, life)| before.liveness(id, *life) != Liveness::Alive);
        let cancelled = |id: &CaptureId| {
            let record = before.record.as_ref().filter(|record| record.target == *id);
            record.is_some_and(|record| self.ended.get(&record.epoch) == Some(&DrainOutcome::Cancelled))
        };
        for (id, life) in &self.registered {
            let (was, is) = (before.liveness(id, *life), self.liveness(id, *life));
            let may = was == Liveness::Draining && cancelled(id) || nobody;
            if before.registered.get(id) == Some(life) && is < was && !may {
                return Err(format!("liveness_forward: {id} of {life} goes from {was:?} to {is:?}"));
            }
        }
        Ok(())
    }

    fn check_places(&self, before: &Self) -> Result<(), String> {
        for (id, place) in &self.places {
            let Some(was) = before.places.get(id) else { continue };
            if place.epoch < was.epoch || place.epoch == was.epoch && place.host != was.host {
                return Err(format!("one_owner: {id} is placed under {} after {}", place.epoch, was.epoch));
            }
        }
        Ok(())
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.0
    }

    /// Whether a drain is on.
    pub(crate) fn is_draining(&self) -> bool {
        self.record.is_some()
    }

    /// The lives that are registered, and were proven empty.
    pub(crate) fn proven(&self) -> Vec<(CaptureId, NodeEpoch)> {
        let there = |(id, life): &&(CaptureId, NodeEpoch)| self.registered.get(id) == Some(life);
        let stopping = |(id, life): &&(CaptureId, NodeEpoch)| self.liveness(id, *life) == Liveness::Stopping;
        self.proven.iter().filter(there).filter(stopping).cloned().collect()
    }

    /// How many drains ended in each way.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, usize> {
        let mut outcomes = BTreeMap::new();
        for outcome in self.ended.values() {
            *outcomes.entry(format!("{outcome:?}")).or_default() += 1;
        }
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: &str = "0000000000000001";
    const OTHER: &str = "0000000000000002";

    fn put(key: &str, json: String) -> Write {
        (key.to_owned(), Some(json.into_bytes()))
    }

    fn gone(key: &str) -> Write {
        (key.to_owned(), None)
    }

    fn registered(id: &str, life: &str) -> Write {
        let rest = r#""advertise_addr":"x:1","protocol":{"min":1,"max":1},"binary_version":"0""#;
        put(&format!("capture/{id}"), format!(r#"{{"version":1,"id":"{id}","node_epoch":"{life}",{rest}}}"#))
    }

    fn mark(id: &str, liveness: &str) -> Write {
        let of = format!(r#""liveness":"{liveness}","node_epoch":"{LIFE}","drain_epoch":1"#);
        put(&format!("liveness/{id}"), format!(r#"{{"version":1,{of}}}"#))
    }

    fn epoch(epoch: u64) -> Write {
        put("drain/epoch", format!(r#"{{"version":1,"epoch":{epoch}}}"#))
    }

    fn record_json(epoch: u64) -> String {
        let rest = r#""requesters":[],"started_at_ms":0,"initial":{"maintainers":0,"dispatchers":0}"#;
        format!(r#"{{"version":1,"epoch":{epoch},"target":"a","node_epoch":"{LIFE}",{rest}}}"#)
    }

    fn record(epoch: u64) -> Write {
        put("drain/record", record_json(epoch))
    }

    fn end(epoch: u64, outcome: &str) -> Write {
        let record = record_json(epoch);
        let json = format!(r#"{{"version":1,"outcome":"{outcome}","ended_at_ms":1,"record":{record}}}"#);
        put(&format!("drain/history/{epoch:020}"), json)
    }

    fn place(host: &str, epoch: u64) -> Write {
        let host = format!(r#""capture":"{host}","node_epoch":"{LIFE}""#);
        put("changefeed/place/f", format!(r#"{{"version":1,{host},"epoch":{epoch}}}"#))
    }

    fn position(ts: u64) -> Write {
        put("position/f", format!(r#"{{"version":1,"checkpoint_ts":{ts}}}"#))
    }

    /// What the last of these transactions is told; those before it have to be well.
    fn verdict(history: &[Vec<Write>]) -> Result<(), String> {
        let mut ledger = Ledger::default();
        let (last, before) = history.split_last().unwrap();
        for writes in before {
            ledger.take(writes).unwrap();
        }
        ledger.take(last)
    }

    fn begun() -> Vec<Vec<Write>> {
        let peers = vec![registered("a", LIFE), registered("b", LIFE)];
        vec![peers, vec![epoch(1), record(1), mark("a", "Draining")]]
    }

    fn after(mut history: Vec<Vec<Write>>, more: &[&[Write]]) -> Vec<Vec<Write>> {
        history.extend(more.iter().map(|writes| writes.to_vec()));
        history
    }

    #[test]
    fn what_has_to_be_is_let_pass() {
        let drained = [gone("drain/record"), end(1, "Drained"), mark("a", "Stopping")];
        let cancelled = [gone("drain/record"), end(1, "Cancelled"), gone("liveness/a")];
        for history in [
            after(begun(), &[&drained, &[gone("capture/a")], &[registered("a", OTHER), gone("liveness/a")]]),
            after(begun(), &[&cancelled, &[place("a", 3)], &[place("b", 4)], &[position(7)], &[position(7)]]),
            // Nobody is Alive: one comes back.
            after(begun(), &[&drained, &[gone("capture/b")], &[gone("liveness/a")]]),
        ] {
            assert_eq!(verdict(&history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn what_must_not_be_is_noticed() {
        let drained = [gone("drain/record"), end(1, "Drained"), mark("a", "Stopping")];
        for (history, says) in [
            (after(begun(), &[&[epoch(0)]]), "goes back"),
            (after(begun(), &[&[gone("drain/epoch")]]), "deleted"),
            (after(begun(), &[&[gone("drain/record")]]), "goes without an end"),
            (after(begun(), &[&[epoch(2), record(2)]]), "goes without an end"),
            (after(begun(), &[&[gone("drain/record"), end(1, "Drained")]]), "is proven, and it is"),
            (after(begun(), &[&drained, &[record(1)]]), "begins at epoch"),
            (after(begun(), &[&drained, &[gone("liveness/a")]]), "liveness_forward"),
            (after(begun(), &[&[gone("liveness/a")]]), "liveness_forward"),
            (after(begun(), &[&drained, &[end(1, "Cancelled")]]), "ends twice"),
            (vec![vec![registered("a", LIFE), epoch(1), record(1)]], "its target is"),
            (vec![vec![registered("a", LIFE)], vec![registered("a", OTHER)]], "is replaced"),
            (vec![vec![place("a", 3)], vec![place("b", 3)]], "one_owner"),
            (vec![vec![place("a", 3)], vec![place("a", 2)]], "one_owner"),
            (vec![vec![position(7)], vec![position(6)]], "checkpoint_forward"),
            (vec![vec![put("drain/other/x", String::new())]], "nobody knows"),
        ] {
            let told = verdict(&history).expect_err(says);
            assert!(told.contains(says), "{told}");
        }
    }
}
