//! Many values of one kind, each at a short number: growing never copies them, and indexes that name them stay small.

/// Where a value is. It is given to another once its own is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(u32);

impl Slot {
    /// After every other.
    pub(crate) const LAST: Self = Self(u32::MAX);
}

/// How many values are added at once.
const PAGE: usize = 1024;

/// The values.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    pages: Vec<Vec<Option<T>>>,
    free: Vec<Slot>,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new() }
    }
}

impl<T> Pages<T> {
    pub(crate) fn get(&self, slot: Slot) -> Option<&T> {
        let at = slot.0 as usize;
        self.pages.get(at / PAGE)?.get(at % PAGE)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.entry(slot)?.as_mut()
    }

    fn entry(&mut self, slot: Slot) -> Option<&mut Option<T>> {
        let at = slot.0 as usize;
        self.pages.get_mut(at / PAGE)?.get_mut(at % PAGE)
    }

    pub(crate) fn insert(&mut self, value: T) -> Slot {
        if let Some(free) = self.free.pop() {
            if let Some(entry) = self.entry(free) {
                *entry = Some(value);
            }
            return free;
        }
        let slot = self.pages.len().saturating_sub(1) * PAGE + self.pages.last().map_or(0, Vec::len);
        if let Some(page) = self.pages.last_mut().filter(|page| page.len() < PAGE) {
            page.push(Some(value));
        } else {
            let mut page = Vec::with_capacity(PAGE);
            page.push(Some(value));
            self.pages.push(page);
        }
        Slot(u32::try_from(slot).unwrap_or(u32::MAX))
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<T> {
        let value = self.entry(slot)?.take()?;
        self.free.push(slot);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_its_value_until_it_is_freed() {
        let mut pages = Pages::default();
        let slots: Vec<_> = (0..=PAGE * 2).map(|n| pages.insert(n)).collect();
        assert!(slots.iter().enumerate().all(|(n, slot)| pages.get(*slot) == Some(&n)));
        assert_eq!(pages.remove(slots[PAGE]), Some(PAGE));
        assert_eq!(pages.get(slots[PAGE]), None);
        assert_eq!(pages.remove(slots[PAGE]), None);
        assert_eq!(pages.insert(7), slots[PAGE]);
    }
}
