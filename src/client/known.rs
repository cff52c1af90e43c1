//! Whom a client may ask: the servers that it was given, and the captures that it has heard of since.

use std::sync::{Arc, Mutex, PoisonError};

/// Most addresses that are kept of what a cluster says of itself.
const LEARNED_MAX: usize = 64;

/// Addresses, `host:port` each. Clones learn together.
#[derive(Debug, Clone)]
pub(super) struct Known {
    given: Arc<[String]>,
    learned: Arc<Mutex<Vec<String>>>,
}

impl Known {
    pub(super) fn new(given: Vec<String>) -> Self {
        Self { given: given.into(), learned: Arc::default() }
    }

    /// The servers that the caller named.
    pub(super) fn given(&self) -> &[String] {
        &self.given
    }

    /// Takes the captures that are there now in place of those that were there before.
    pub(super) fn learn<'a>(&self, captures: impl Iterator<Item = &'a str>) {
        let news: Vec<_> = captures.filter(|addr| !self.given.iter().any(|given| given == addr)).collect();
        // A cluster that names nobody has nobody registered: those of before are the better guess.
        if news.is_empty() {
            return;
        }
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        *learned = news.into_iter().take(LEARNED_MAX).map(str::to_owned).collect();
    }

    /// Everybody who can be asked, those that were given first.
    pub(super) fn all(&self) -> Vec<String> {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        self.given.iter().chain(learned.iter()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_of_the_last_view_are_asked_after_those_that_were_given() {
        let known = Known::new(vec!["a:1".to_owned()]);
        known.learn(["a:1", "b:1", "c:1"].into_iter());
        assert_eq!(known.clone().all(), ["a:1", "b:1", "c:1"]);
        known.learn(["b:1", "d:1"].into_iter());
        known.learn(std::iter::empty());
        assert_eq!(known.all(), ["a:1", "b:1", "d:1"]);
        assert_eq!(known.given(), ["a:1"]);
    }
}
