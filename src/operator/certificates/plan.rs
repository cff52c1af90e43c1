//! What is to be done about the certificates: decided from what the Secret holds, and the time.
//!
//! A change of CA takes three steps, each some time after the one before, so that whoever still believes what was
//! published before that is never shown something else: the new CA is published beside the old one; then certificates are
//! signed by the new one; then the old one is published no longer.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    CHANGED_AT, ROTATE_CA,
    authority::{Pair, Unusable, authority, leaf},
    serving::Serving,
};
use crate::tls::valid_until;

/// What the Secret calls its parts. `ca.crt` is all that is published.
const BUNDLE: &str = "ca.crt";
const LEAF: (&str, &str) = ("tls.crt", "tls.key");
const SIGNER: (&str, &str) = ("signer.crt", "signer.key");
const NEXT: (&str, &str) = ("next.crt", "next.key");
const OLD: &str = "old.crt";

/// How long before its end a CA is replaced: a year.
const AUTHORITY_AGED: SignedDuration = SignedDuration::from_hours(24 * 365);

/// How certificates are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The names of the server, its own first.
    pub names: Vec<String>,
    /// How long a certificate is good for. It is replaced when a third is left.
    pub life: Duration,
    /// How long each step of a change of CA waits for the one before to be known everywhere.
    pub wait: Duration,
}

/// The data of a Secret.
pub type Data = BTreeMap<String, Vec<u8>>;

/// What the Secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The CA that signs.
    signer: Pair,
    /// What callers are shown.
    leaf: Pair,
    change: Change,
    /// Whether somebody wants another CA.
    is_wanted: bool,
}

/// How far a change of CA is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// There is none.
    None,
    /// The next one is published since.
    Announced { next: Pair, since: Timestamp },
    /// The next one signs, and the old one is published still, since.
    Switched { old: String, since: Timestamp },
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Publish another CA beside the one that signs.
    Announce,
    /// Have it sign.
    Switch,
    /// Publish the old one no longer.
    Forget,
    /// Sign another certificate for the server.
    Renew,
    /// Nothing until then.
    Wait(Timestamp),
}

impl Held {
    /// A CA, and what it signs.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn make(now: Timestamp, settings: &Settings) -> Result<Self, Unusable> {
        let signer = authority(now)?;
        let leaf = leaf(&signer, &settings.names, now, settings.life)?;
        Ok(Self { signer, leaf, change: Change::None, is_wanted: false })
    }

    /// What a Secret holds; `None` when it is nothing that can be gone on with.
    pub fn read(data: &Data, annotations: &BTreeMap<String, String>, now: Timestamp) -> Option<Self> {
        let text = |key: &str| data.get(key).and_then(|bytes| String::from_utf8(bytes.clone()).ok());
        let pair = |keys: (&str, &str)| Some(Pair { certificate: text(keys.0)?, key: text(keys.1)? });
        // One whose step cannot be read waits once more.
        let since = annotations.get(CHANGED_AT).and_then(|at| at.parse().ok()).unwrap_or(now);
        let change = match (pair(NEXT), text(OLD)) {
            (Some(next), _) => Change::Announced { next, since },
            (None, Some(old)) => Change::Switched { old, since },
            (None, None) => Change::None,
        };
        let held =
            Self { signer: pair(SIGNER)?, leaf: pair(LEAF)?, change, is_wanted: annotations.contains_key(ROTATE_CA) };
        held.is_sound(now).then_some(held)
    }

    /// Whether the CA is one that signs, and its time is not over.
    fn is_sound(&self, now: Timestamp) -> bool {
        let is_of_now = valid_until(self.signer.certificate.as_bytes()).is_ok_and(|until| until > now);
        let trial = leaf(&self.signer, &["trial".to_owned()], now, Duration::from_mins(1));
        let is_signer = trial.is_ok_and(|trial| trusts(&self.signer.certificate, &trial, "trial", now));
        is_of_now && is_signer
    }

    /// What the Secret is to hold.
    pub fn data(&self) -> Data {
        let mut data = BTreeMap::from([
            (BUNDLE, self.bundle()),
            (LEAF.0, self.leaf.certificate.clone()),
            (LEAF.1, self.leaf.key.clone()),
            (SIGNER.0, self.signer.certificate.clone()),
            (SIGNER.1, self.signer.key.clone()),
        ]);
        match &self.change {
            Change::None => {}
            Change::Announced { next, .. } => {
                data.insert(NEXT.0, next.certificate.clone());
                data.insert(NEXT.1, next.key.clone());
            }
            Change::Switched { old, .. } => {
                data.insert(OLD, old.clone());
            }
        }
        data.into_iter().map(|(key, text)| (key.to_owned(), text.into_bytes())).collect()
    }

    /// The annotations of the Secret that belong to this, `None` where one is to go.
    pub fn annotations(&self) -> [(&'static str, Option<String>); 2] {
        let since = match &self.change {
            Change::None => None,
            Change::Announced { since, .. } | Change::Switched { since, .. } => Some(since.to_string()),
        };
        [(CHANGED_AT, since), (ROTATE_CA, self.is_wanted.then(|| "true".to_owned()))]
    }

    /// All CAs that are to be believed, PEM.
    pub fn bundle(&self) -> String {
        let mut bundle = self.signer.certificate.clone();
        match &self.change {
            Change::None => {}
            Change::Announced { next, .. } => bundle.push_str(&next.certificate),
            Change::Switched { old, .. } => bundle.push_str(old),
        }
        bundle
    }

    /// What callers are shown.
    pub fn leaf(&self) -> &Pair {
        &self.leaf
    }

    /// What is to be done next.
    pub fn step(&self, now: Timestamp, settings: &Settings) -> Step {
        let signed_duration = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        let far = Timestamp::MAX;
        let ends = |pem: &str| valid_until(pem.as_bytes()).unwrap_or(Timestamp::MIN);
        let renew_at = later(ends(&self.leaf.certificate), -signed_duration(settings.life / 3));
        let is_named = settings.names.iter().all(|name| trusts(&self.signer.certificate, &self.leaf, name, now));
        if !is_named || renew_at <= now {
            return Step::Renew;
        }
        let (due, step) = match &self.change {
            Change::Announced { since, .. } => (later(*since, signed_duration(settings.wait)), Step::Switch),
            Change::Switched { since, .. } => (later(*since, signed_duration(settings.wait)), Step::Forget),
            Change::None if self.is_wanted => (now, Step::Announce),
            Change::None => (later(ends(&self.signer.certificate), -AUTHORITY_AGED), Step::Announce),
        };
        if due <= now { step } else { Step::Wait(due.min(renew_at).min(far)) }
    }

    /// What the Secret is to hold once a step was taken.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn after(&self, step: Step, now: Timestamp, settings: &Settings) -> Result<Self, Unusable> {
        let mut held = self.clone();
        match (step, &self.change) {
            (Step::Announce, _) => {
                held.change = Change::Announced { next: authority(now)?, since: now };
                held.is_wanted = false;
            }
            (Step::Switch, Change::Announced { next, .. }) => {
                held.change = Change::Switched { old: self.signer.certificate.clone(), since: now };
                held.signer = next.clone();
                held.leaf = leaf(next, &settings.names, now, settings.life)?;
            }
            (Step::Forget, _) => held.change = Change::None,
            (Step::Renew, _) => held.leaf = leaf(&self.signer, &settings.names, now, settings.life)?,
            (Step::Switch | Step::Wait(_), _) => {}
        }
        Ok(held)
    }
}

fn trusts(ca: &str, leaf: &Pair, name: &str, now: Timestamp) -> bool {
    Serving::of(leaf).is_ok_and(|serving| serving.check(ca.as_bytes(), name, now).is_ok())
}

fn later(from: Timestamp, by: SignedDuration) -> Timestamp {
    from.checked_add(by).unwrap_or(if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn settings() -> Settings {
        let names = vec!["hook.shop.svc".to_owned(), "10.1.2.3".to_owned()];
        Settings { names, life: Duration::from_hours(720), wait: Duration::from_mins(5) }
    }

    fn at(hours: i64) -> Timestamp {
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        later(now, SignedDuration::from_hours(hours))
    }

    /// As the Secret gives it back.
    fn stored(held: &Held, more: &[&str], now: Timestamp) -> Option<Held> {
        let kept = held.annotations().into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let asked = more.iter().map(|key| ((*key).to_owned(), String::new()));
        Held::read(&held.data(), &kept.chain(asked).collect(), now)
    }

    #[test]
    fn what_was_made_is_read_back_and_waits_until_two_thirds_are_over() {
        let (now, settings) = (at(0), settings());
        let held = Held::make(now, &settings).unwrap();
        assert_eq!(stored(&held, &[], now).unwrap(), held);
        assert_eq!(held.step(now, &settings), Step::Wait(at(480)));
        assert_eq!(held.step(at(480), &settings), Step::Renew);
        let renewed = held.after(Step::Renew, at(480), &settings).unwrap();
        assert_eq!((renewed.bundle(), renewed.step(at(480), &settings)), (held.bundle(), Step::Wait(at(960))));
    }

    #[test]
    fn another_name_is_signed_at_once() {
        let (now, mut settings) = (at(0), settings());
        let held = Held::make(now, &settings).unwrap();
        settings.names.push("hook.cart.svc".to_owned());
        assert_eq!(held.step(now, &settings), Step::Renew);
        let held = held.after(Step::Renew, now, &settings).unwrap();
        assert!(matches!(held.step(now, &settings), Step::Wait(_)));
    }

    #[test]
    fn whoever_believes_what_was_published_a_step_ago_is_never_shown_something_else() {
        let (now, settings) = (at(0), settings());
        let first = stored(&Held::make(now, &settings).unwrap(), &[ROTATE_CA], now).unwrap();
        assert_eq!(first.step(now, &settings), Step::Announce);
        let mut steps = vec![first.clone(), first.after(Step::Announce, now, &settings).unwrap()];
        assert_eq!(steps[1].annotations()[1], (ROTATE_CA, None), "asked for once");
        let wait = SignedDuration::try_from(settings.wait).unwrap();
        let mut then = now;
        for expected in [Step::Switch, Step::Forget] {
            let last = stored(&steps[steps.len() - 1], &[], then).unwrap();
            assert_eq!(last.step(then, &settings), Step::Wait(later(then, wait)));
            then = later(then, wait);
            assert_eq!(last.step(then, &settings), expected);
            steps.push(last.after(expected, then, &settings).unwrap());
        }
        for pair in steps.windows(2) {
            for (bundle, leaf) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                assert!(trusts(&bundle.bundle(), leaf.leaf(), "hook.shop.svc", then));
            }
        }
        assert!(!trusts(&steps[3].bundle(), first.leaf(), "hook.shop.svc", then), "the old CA is forgotten");
        assert!(matches!(steps[3].step(then, &settings), Step::Wait(_)));
    }

    #[test]
    fn a_ca_is_replaced_a_year_before_its_end() {
        let (now, settings) = (at(0), settings());
        let made = Held::make(now, &settings).unwrap();
        let late = at(24 * (3653 - 364));
        let renewed = made.after(Step::Renew, late, &settings).unwrap();
        assert_eq!(renewed.step(late, &settings), Step::Announce);
    }

    #[test]
    fn what_makes_no_sense_is_made_anew() {
        let (now, settings) = (at(0), settings());
        let held = Held::make(now, &settings).unwrap();
        let other = Held::make(now, &settings).unwrap();
        let check = |change: fn(&mut Data, &Data)| {
            let mut data = held.data();
            change(&mut data, &other.data());
            assert_eq!(Held::read(&data, &BTreeMap::new(), now), None);
        };
        check(|data, _| data.clear());
        check(|data, _| drop(data.insert("signer.key".to_owned(), b"x".to_vec())));
        check(|data, other| drop(data.insert("signer.key".to_owned(), other["signer.key"].clone())));
        assert_eq!(Held::read(&held.data(), &BTreeMap::new(), at(24 * 3700)), None, "its time is over");
        // A damaged certificate of the server costs no more than another one.
        let mut data = held.data();
        data.insert("tls.crt".to_owned(), b"x".to_vec());
        let damaged = Held::read(&data, &BTreeMap::new(), now).unwrap();
        assert_eq!(damaged.step(now, &settings), Step::Renew);
    }
}
