//! What goes wrong and what is asked for meanwhile, and when: all of it drawn from a seed before anything runs.

use std::{fmt, time::Duration};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

/// The names of captures.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// How long a process that had SIGTERM is mostly left alone.
const RESTART: Duration = Duration::from_secs(10);

/// A server that is not a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Etcd {
    /// Where the cluster keeps its state.
    Store,
    Source,
    Mirror,
}

impl Etcd {
    pub(crate) const ALL: [Self; 3] = [Self::Store, Self::Source, Self::Mirror];

    /// Its name among those who are called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Source => "source",
            Self::Mirror => "mirror",
        }
    }
}

/// From whom a capture is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Far {
    Peers,
    Etcd(Etcd),
    All,
}

/// What does not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// What it says.
    Out,
    /// What it is told.
    In,
    Both,
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// SIGKILL.
    Kill(&'static str),
    Start(&'static str),
    /// SIGSTOP.
    Pause(&'static str),
    /// SIGCONT.
    Resume(&'static str),
    /// SIGTERM: it drains itself, ends, and is started again.
    Restart(&'static str),
    Cut {
        capture: &'static str,
        from: Far,
        way: Way,
    },
    /// What was held back comes now, or is lost with its connections.
    Heal {
        capture: &'static str,
        late: bool,
    },
    Stop(Etcd),
    Launch(Etcd),
    FillDisk,
    FreeDisk,
    /// Asks for a drain; `wait`: and follows it.
    Drain {
        capture: &'static str,
        wait: bool,
    },
    Cancel(&'static str),
    Release(&'static str),
    PauseFeed(usize),
    ResumeFeed(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(id) => write!(f, "kill -9 {id}"),
            Self::Start(id) => write!(f, "start {id}"),
            Self::Pause(id) => write!(f, "SIGSTOP {id}"),
            Self::Resume(id) => write!(f, "SIGCONT {id}"),
            Self::Restart(id) => write!(f, "SIGTERM {id}"),
            Self::Cut { capture, from, way } => {
                let what = match way {
                    Way::Out => "what it says",
                    Way::In => "what it is told",
                    Way::Both => "everything",
                };
                match from {
                    Far::Peers => write!(f, "cut {capture} from its peers: {what}"),
                    Far::Etcd(etcd) => write!(f, "cut {capture} from the {}: {what}", etcd.name()),
                    Far::All => write!(f, "cut {capture} from all: {what}"),
                }
            }
            Self::Heal { capture, late: true } => write!(f, "heal {capture}: what was held back comes now"),
            Self::Heal { capture, late: false } => write!(f, "heal {capture}: its connections are reset"),
            Self::Stop(etcd) => write!(f, "kill -9 the {}", etcd.name()),
            Self::Launch(etcd) => write!(f, "start the {}", etcd.name()),
            Self::FillDisk => write!(f, "fill the disk"),
            Self::FreeDisk => write!(f, "free the disk"),
            Self::Drain { capture, wait: false } => write!(f, "drain {capture}"),
            Self::Drain { capture, wait: true } => write!(f, "drain {capture} --wait"),
            Self::Cancel(id) => write!(f, "cancel {id}"),
            Self::Release(id) => write!(f, "release {id}"),
            Self::PauseFeed(n) => write!(f, "pause changefeed {n}"),
            Self::ResumeFeed(n) => write!(f, "resume changefeed {n}"),
        }
    }
}

/// How many captures a seed has.
pub(crate) fn captures(seed: u64) -> &'static [&'static str] {
    if seed.is_multiple_of(2) { &NAMES[..3] } else { &NAMES }
}

/// Draws, and what is out of order already.
struct Draw {
    rng: ChaCha8Rng,
    now: Duration,
    steps: Vec<(Duration, Step)>,
    /// Until when each process is being hurt, each capture cut off, each etcd away.
    hurt: Vec<Duration>,
    cut: Vec<Duration>,
    away: [Duration; 3],
    disk: Duration,
    feeds: Vec<Duration>,
}

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.rng.next_u64() % n
    }

    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Now, and undone after some time.
    fn and_back(&mut self, step: Step, time: Duration, back: Step) -> Duration {
        let until = self.now + time;
        self.steps.push((self.now, step));
        self.steps.push((until, back));
        until
    }

    fn hurt_process(&mut self, names: &[&'static str]) {
        let n = self.index(names.len());
        let (id, kind, time) = (names[n], self.below(8), self.ms(200, 6000));
        let (short, long) = (self.ms(200, 2000), self.ms(3500, 9000));
        // Somebody has to be there most of the time, or nothing goes on that could be disturbed.
        let others = self.hurt.iter().filter(|until| **until > self.now).count();
        if self.hurt[n] > self.now || others + 1 >= names.len() && !self.one_in(4) {
            return;
        }
        self.hurt[n] = match kind {
            0..3 => self.and_back(Step::Kill(id), time, Step::Start(id)),
            3 | 4 => self.and_back(Step::Pause(id), short, Step::Resume(id)),
            5 | 6 => self.and_back(Step::Pause(id), long, Step::Resume(id)),
            _ => {
                self.steps.push((self.now, Step::Restart(id)));
                self.now + RESTART
            }
        };
    }

    /// A rolling restart: one capture after the other.
    fn roll(&mut self, names: &[&'static str]) {
        let mut at = self.now;
        for (n, id) in names.iter().enumerate().rev() {
            if self.hurt[n] <= at {
                self.steps.push((at, Step::Restart(id)));
                self.hurt[n] = at + RESTART;
                at += self.ms(2000, 6000);
            }
        }
    }

    fn cut_off(&mut self, names: &[&'static str]) {
        let n = self.index(names.len());
        let from = match self.below(8) {
            0..3 => Far::Peers,
            3 | 4 => Far::Etcd(Etcd::Store),
            5 => Far::Etcd(Etcd::Source),
            6 => Far::Etcd(Etcd::Mirror),
            _ => Far::All,
        };
        let way = [Way::Both, Way::Out, Way::In][self.index(3)];
        let (time, late, emptied, long) = (self.ms(500, 8000), self.one_in(2), self.one_in(2), self.ms(6500, 10_000));
        let capture = names[n];
        if self.cut[n] > self.now {
            return;
        }
        self.cut[n] = if emptied && from == Far::Etcd(Etcd::Mirror) {
            // Others go on with what it has not written; then what it sent before comes after all.
            let drain = Step::Drain { capture, wait: false };
            self.steps.push((self.now + Duration::from_millis(300), drain));
            self.and_back(Step::Cut { capture, from, way: Way::Out }, long, Step::Heal { capture, late: true })
        } else {
            self.and_back(Step::Cut { capture, from, way }, time, Step::Heal { capture, late })
        };
    }

    fn stop_etcd(&mut self) {
        let n = self.index(3);
        let (etcd, time) = (Etcd::ALL[n], self.ms(200, 5000));
        if self.away[n] <= self.now {
            self.away[n] = self.and_back(Step::Stop(etcd), time, Step::Launch(etcd));
        }
    }

    fn ask(&mut self, names: &[&'static str]) {
        let id = names[self.index(names.len())];
        let (kind, wait, soon) = (self.below(8), self.one_in(3), self.ms(200, 1500));
        let drain = Step::Drain { capture: id, wait };
        let asked = match kind {
            0..3 => vec![(Duration::ZERO, drain)],
            // Called off in its middle, or its target dies there.
            3 => vec![(Duration::ZERO, drain), (soon, Step::Cancel(id))],
            4 if !self.is_hurt(id, names) => {
                let n = names.iter().position(|name| *name == id).unwrap();
                self.hurt[n] = self.now + 3 * soon;
                vec![(Duration::ZERO, drain), (soon, Step::Kill(id)), (3 * soon, Step::Start(id))]
            }
            5 => vec![(Duration::ZERO, Step::Cancel(id))],
            _ => vec![(Duration::ZERO, Step::Release(id))],
        };
        self.steps.extend(asked.into_iter().map(|(after, step)| (self.now + after, step)));
    }

    fn is_hurt(&self, id: &str, names: &[&'static str]) -> bool {
        names.iter().zip(&self.hurt).any(|(name, until)| *name == id && *until > self.now)
    }

    fn pause_feed(&mut self) {
        let (n, time) = (self.index(self.feeds.len()), self.ms(200, 3000));
        if self.feeds[n] <= self.now {
            self.feeds[n] = self.and_back(Step::PauseFeed(n), time, Step::ResumeFeed(n));
        }
    }
}

/// All steps of a story in their order. A longer story of the same seed begins with the same steps; whatever is out of
/// order at its end is set right then.
pub(crate) fn plan(seed: u64, length: Duration, feeds: usize) -> Vec<(Duration, Step)> {
    let names = captures(seed);
    let idle = |n: usize| vec![Duration::ZERO; n];
    let mut draw = Draw {
        rng: ChaCha8Rng::seed_from_u64(seed),
        now: Duration::ZERO,
        steps: Vec::new(),
        hurt: idle(names.len()),
        cut: idle(names.len()),
        away: [Duration::ZERO; 3],
        disk: Duration::ZERO,
        feeds: idle(feeds),
    };
    loop {
        let pause = draw.ms(100, 1500);
        draw.now += pause;
        if draw.now >= length {
            break;
        }
        match draw.below(21) {
            0..9 => draw.ask(names),
            9..13 => draw.hurt_process(names),
            13..16 => draw.cut_off(names),
            16 | 17 => draw.stop_etcd(),
            18 => {
                let time = draw.ms(1000, 6000);
                if draw.disk <= draw.now {
                    draw.disk = draw.and_back(Step::FillDisk, time, Step::FreeDisk);
                }
            }
            19 => draw.pause_feed(),
            _ => draw.roll(names),
        }
    }
    let mut steps = draw.steps;
    // A kill at the very end would come after the start that undoes it; nobody misses it, nor other steps that are late.
    steps.retain(|(at, step)| *at < length || !matches!(step, Step::Kill(_) | Step::Restart(_) | Step::Cancel(_)));
    for (at, _) in &mut steps {
        *at = (*at).min(length);
    }
    // Stable: what is undone at the end comes after what was done.
    steps.sort_by_key(|(at, _)| *at);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_a_longer_one_begins_alike() {
        let (short, long) = (Duration::from_secs(30), Duration::from_mins(2));
        for seed in 0..50 {
            let plan_of = |length| plan(seed, length, 4);
            assert_eq!(plan_of(short), plan_of(short));
            let begun =
                |plan: Vec<(Duration, Step)>| plan.into_iter().filter(|(at, _)| *at < short).collect::<Vec<_>>();
            assert_eq!(begun(plan_of(short)), begun(plan_of(long)));
        }
        assert_ne!(plan(1, short, 4), plan(3, short, 4));
    }

    #[test]
    fn what_is_begun_is_undone_and_every_kind_of_step_comes() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let steps = plan(seed, Duration::from_mins(1), 4);
            let count = |is: fn(&Step) -> bool| steps.iter().filter(|(_, step)| is(step)).count();
            assert!(count(|s| matches!(s, Step::Kill(_))) <= count(|s| matches!(s, Step::Start(_))));
            assert_eq!(count(|s| matches!(s, Step::Pause(_))), count(|s| matches!(s, Step::Resume(_))));
            assert_eq!(count(|s| matches!(s, Step::Cut { .. })), count(|s| matches!(s, Step::Heal { .. })));
            assert_eq!(count(|s| matches!(s, Step::Stop(_))), count(|s| matches!(s, Step::Launch(_))));
            assert_eq!(count(|s| matches!(s, Step::FillDisk)), count(|s| matches!(s, Step::FreeDisk)));
            assert_eq!(count(|s| matches!(s, Step::PauseFeed(_))), count(|s| matches!(s, Step::ResumeFeed(_))));
            kinds.extend(steps.iter().map(|(_, step)| format!("{:?}", std::mem::discriminant(step))));
        }
        assert_eq!(kinds.len(), 16, "{kinds:?}");
    }
}
