//! Trouble that may last, said once: when it begins, when it becomes another, and when it is over.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
};

/// What goes wrong at the moment, by what people are told of it. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Troubles(Arc<Mutex<Known>>);

type Known = BTreeMap<&'static str, String>;

#[derive(Debug, PartialEq, Eq)]
enum News {
    Trouble(String),
    Over,
}

impl Troubles {
    /// Takes how an attempt ended, and says what is new in that.
    pub(super) fn heed<T, E: Display>(&self, what: &'static str, attempt: &Result<T, E>) {
        let error = attempt.as_ref().err().map(ToString::to_string);
        match news(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), what, error) {
            Some(News::Trouble(error)) => tracing::warn!(error, "{what}"),
            Some(News::Over) => tracing::info!("over: {what}"),
            None => {}
        }
    }
}

fn news(known: &mut Known, what: &'static str, error: Option<String>) -> Option<News> {
    let Some(error) = error else { return known.remove(what).map(|_| News::Over) };
    let before = known.insert(what, error.clone());
    (before.as_ref() != Some(&error)).then_some(News::Trouble(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_said_when_it_begins_changes_and_ends_and_not_at_each_attempt() {
        let mut known = Known::new();
        let mut of = |what, error: Option<&str>| news(&mut known, what, error.map(ToOwned::to_owned));
        let trouble = |error: &str| Some(News::Trouble(error.to_owned()));
        assert_eq!(of("no lease", None), None);
        assert_eq!(of("no lease", Some("refused")), trouble("refused"));
        assert_eq!(of("no lease", Some("refused")), None);
        assert_eq!(of("no watch", Some("refused")), trouble("refused"));
        assert_eq!(of("no lease", Some("no quorum")), trouble("no quorum"));
        assert_eq!(of("no lease", None), Some(News::Over));
        assert_eq!(of("no lease", None), None);
        assert_eq!(of("no watch", Some("refused")), None);
    }
}
