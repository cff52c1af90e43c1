//! What the store holds, read: the mirror from which every decision is taken.
//!
//! A view advances only by listings and watches, also past this capture's own writes. So a write that was believed lost
//! and lands late is just another change.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::{
    model::{
        Candidacy, CaptureId, ChangefeedId, ChangefeedInfo, DrainEnd, DrainEpoch, DrainRecord, Incarnation, KeyName,
        LastEpoch, Liveness, LivenessMark, Placement, Registration, Term, ValueError, decode,
    },
    mutant::{Mutant, Mutants},
    store::{Change, Changes, Compare, Entry, Listing, Revision},
};

/// A value as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept<T> {
    pub(crate) value: T,
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
}

impl<T: DeserializeOwned> Kept<T> {
    fn read(entry: &Entry) -> Result<Self, ValueError> {
        Ok(Self {
            value: decode(&entry.key, &entry.value)?,
            created: entry.create_revision,
            modified: entry.mod_revision,
        })
    }
}

/// The mirror.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    mutants: Mutants,
    pub(crate) revision: Revision,
    pub(crate) captures: BTreeMap<CaptureId, Kept<Registration>>,
    pub(crate) owners: BTreeMap<Incarnation, Kept<Candidacy>>,
    pub(crate) liveness: BTreeMap<CaptureId, Kept<LivenessMark>>,
    pub(crate) last_epoch: Option<Kept<LastEpoch>>,
    pub(crate) record: Option<Kept<DrainRecord>>,
    pub(crate) history: BTreeMap<DrainEpoch, Kept<DrainEnd>>,
    pub(crate) infos: BTreeMap<ChangefeedId, Kept<ChangefeedInfo>>,
    pub(crate) places: BTreeMap<ChangefeedId, Kept<Placement>>,
}

impl View {
    /// Reads a whole listing.
    pub(crate) fn load(listing: &Listing, mutants: Mutants) -> Result<Self, ValueError> {
        let mut view = Self { revision: listing.revision, mutants, ..Self::default() };
        for entry in &listing.entries {
            view.put(entry)?;
        }
        Ok(view)
    }

    /// Takes in what a watch tells. Changes that the view has already are passed over.
    pub(crate) fn apply(&mut self, changes: &Changes) -> Result<(), ValueError> {
        if changes.revision <= self.revision {
            return Ok(());
        }
        for change in &changes.changes {
            match change {
                Change::Put(entry) if entry.mod_revision > self.revision => self.put(entry)?,
                Change::Put(_) => {}
                Change::Deleted(key) => self.delete(key),
            }
        }
        self.revision = changes.revision;
        Ok(())
    }

    fn put(&mut self, entry: &Entry) -> Result<(), ValueError> {
        match KeyName::parse(&entry.key) {
            Some(KeyName::Capture(id)) => drop(self.captures.insert(id, Kept::read(entry)?)),
            Some(KeyName::Owner(who)) => drop(self.owners.insert(who, Kept::read(entry)?)),
            Some(KeyName::Liveness(id)) => drop(self.liveness.insert(id, Kept::read(entry)?)),
            Some(KeyName::DrainEpoch) => self.last_epoch = Some(Kept::read(entry)?),
            Some(KeyName::DrainRecord) => self.record = Some(Kept::read(entry)?),
            Some(KeyName::DrainHistory(epoch)) => drop(self.history.insert(epoch, Kept::read(entry)?)),
            Some(KeyName::ChangefeedInfo(id)) => drop(self.infos.insert(id, Kept::read(entry)?)),
            Some(KeyName::ChangefeedPlace(id)) => drop(self.places.insert(id, Kept::read(entry)?)),
            Some(KeyName::Position(_)) | None => {}
        }
        Ok(())
    }

    fn delete(&mut self, key: &str) {
        match KeyName::parse(key) {
            Some(KeyName::Capture(id)) => drop(self.captures.remove(&id)),
            Some(KeyName::Owner(who)) => drop(self.owners.remove(&who)),
            Some(KeyName::Liveness(id)) => drop(self.liveness.remove(&id)),
            Some(KeyName::DrainEpoch) => self.last_epoch = None,
            Some(KeyName::DrainRecord) => self.record = None,
            Some(KeyName::DrainHistory(epoch)) => drop(self.history.remove(&epoch)),
            Some(KeyName::ChangefeedInfo(id)) => drop(self.infos.remove(&id)),
            Some(KeyName::ChangefeedPlace(id)) => drop(self.places.remove(&id)),
            Some(KeyName::Position(_)) | None => {}
        }
    }

    /// The present life of a registered capture.
    pub(crate) fn incarnation(&self, id: &CaptureId) -> Option<Incarnation> {
        let node_epoch = self.captures.get(id)?.value.node_epoch;
        Some(Incarnation { capture: id.clone(), node_epoch })
    }

    /// Whether this life of a capture is the registered one.
    pub(crate) fn is_registered(&self, who: &Incarnation) -> bool {
        self.captures.get(&who.capture).is_some_and(|kept| kept.value.node_epoch == who.node_epoch)
    }

    /// The liveness of a registered capture. A mark of another registration reads as `Alive`.
    pub(crate) fn liveness(&self, id: &CaptureId) -> Option<Liveness> {
        let node_epoch = self.captures.get(id)?.value.node_epoch;
        let of_this_life = |mark: &&Kept<LivenessMark>| {
            mark.value.node_epoch == node_epoch || self.mutants.has(Mutant::BelievesFormerLife)
        };
        let mark = self.liveness.get(id).filter(of_this_life);
        Some(mark.map_or(Liveness::Alive, |mark| mark.value.liveness))
    }

    /// The winner of the election and its term, whether it acts already or not.
    pub(crate) fn leader(&self) -> Option<(&Incarnation, Term, bool)> {
        let (who, kept) = self.owners.iter().min_by_key(|(_, kept)| kept.created)?;
        Some((who, Term(kept.created), kept.value.acting))
    }

    /// The revision at which a candidate that acts took office.
    pub(crate) fn in_office_since(&self, who: &Incarnation) -> Option<Revision> {
        self.owners.get(who).filter(|kept| kept.value.acting).map(|kept| kept.modified)
    }

    /// The capture that acts as coordinator, and its address.
    pub(crate) fn coordinator(&self) -> Option<&Registration> {
        let (who, _, acting) = self.leader()?;
        let registration = &self.captures.get(&who.capture)?.value;
        (acting && registration.node_epoch == who.node_epoch).then_some(registration)
    }

    /// Whether any registered capture is `Alive`.
    pub(crate) fn anybody_alive(&self) -> bool {
        self.captures.keys().any(|id| self.liveness(id) == Some(Liveness::Alive))
    }

    /// The last drain epoch given out.
    pub(crate) fn drain_epoch(&self) -> DrainEpoch {
        self.last_epoch.as_ref().map(|kept| kept.value.epoch).unwrap_or_default()
    }

    /// The condition that a key is still as the view has it.
    pub(crate) fn same(&self, name: &KeyName) -> Compare {
        let modified = match name {
            KeyName::Capture(id) => self.captures.get(id).map(|kept| kept.modified),
            KeyName::Owner(who) => self.owners.get(who).map(|kept| kept.modified),
            KeyName::Liveness(id) => self.liveness.get(id).map(|kept| kept.modified),
            KeyName::DrainEpoch => self.last_epoch.as_ref().map(|kept| kept.modified),
            KeyName::DrainRecord => self.record.as_ref().map(|kept| kept.modified),
            KeyName::DrainHistory(epoch) => self.history.get(epoch).map(|kept| kept.modified),
            KeyName::ChangefeedInfo(id) => self.infos.get(id).map(|kept| kept.modified),
            KeyName::ChangefeedPlace(id) => self.places.get(id).map(|kept| kept.modified),
            KeyName::Position(_) => None,
        };
        Compare::Modified(name.key(), modified.unwrap_or(0))
    }
}
