//! All connections of a port: a bounded number of seats, and who has to get up for whom.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use axum_server::tls::TlsInfo;
use tokio::sync::oneshot;

use super::Limits;
use crate::tls::{Caller, Credentials};

/// What one connection is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// No call has come yet, or only calls that are open to all: it gets up for anybody.
    Stranger,
    /// A call that not everybody may make has come.
    Guest,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Seat {
    since: Instant,
    caller: OnceLock<(Caller, Option<Arc<TlsInfo>>)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    standing: Standing,
    /// Calls that are not answered to the end.
    open: usize,
    idle_since: Instant,
    /// Gone when it has to get up.
    end: Option<oneshot::Sender<()>>,
}

/// A call that is not answered to the end yet.
#[derive(Debug)]
pub(super) struct Open(Arc<Seat>);

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.open -= 1;
        state.idle_since = Instant::now();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there makes sense after any line.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seat {
    fn new() -> (Arc<Self>, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let now = Instant::now();
        let state = State { standing: Standing::Stranger, open: 0, idle_since: now, end: Some(end) };
        (Arc::new(Self { since: now, caller: OnceLock::new(), state: Mutex::new(state) }), ended)
    }

    /// Who is behind the calls of this connection.
    pub(super) fn caller(&self, mutual: bool, tls: Option<&Arc<TlsInfo>>) -> &Caller {
        let found = || match tls.and_then(|tls| tls.peer_certificates.first()) {
            Some(certificate) if mutual => (Caller::of_certificate(certificate), tls.cloned()),
            _ if mutual => (Caller::Stranger, None),
            _ => (Caller::Anyone, None),
        };
        &self.caller.get_or_init(found).0
    }

    /// A call has come that not everybody may make.
    pub(super) fn welcome(&self) {
        lock(&self.state).standing = Standing::Guest;
    }

    /// Counts a call for as long as the answer lasts.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        lock(&self.state).open += 1;
        Open(self.clone())
    }

    fn get_up(&self) {
        lock(&self.state).end = None;
    }

    /// Whether it has to go by itself: too long without a call, too long without a role, or no longer trusted.
    fn is_over(&self, credentials: Option<&Credentials>, limits: &Limits) -> bool {
        let chain = self.caller.get().and_then(|(_, tls)| tls.as_ref()).map(|tls| tls.peer_certificates.as_slice());
        let too_long = {
            let state = lock(&self.state);
            match state.standing {
                Standing::Stranger => self.since.elapsed() > limits.stranger,
                Standing::Guest => state.open == 0 && state.idle_since.elapsed() > limits.idle,
            }
        };
        // A certificate expires, and its CA may be taken from the file, while the connection lasts.
        too_long || chain.zip(credentials).is_some_and(|(chain, credentials)| !credentials.still_trusts(chain))
    }
}

/// The seats of a port.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    room: Arc<Mutex<Room>>,
    max: usize,
}

#[derive(Debug, Default)]
struct Room {
    next: u64,
    /// In the order in which they came.
    taken: BTreeMap<u64, Arc<Seat>>,
}

/// A seat that is given back when this goes.
#[derive(Debug)]
pub(super) struct Taken {
    seats: Seats,
    number: u64,
    seat: Arc<Seat>,
    pub(super) ended: oneshot::Receiver<()>,
}

impl Taken {
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&self.seats.room).taken.remove(&self.number);
    }
}

impl Seats {
    pub(super) fn new(max: usize) -> Self {
        Self { room: Arc::default(), max }
    }

    /// Takes a seat. In a full room somebody gets up: of those who do nothing, strangers first, and of these who came
    /// first. `None`: all are busy.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut room = lock(&self.room);
        if room.taken.len() >= self.max {
            let rank = |seat: &Seat| {
                let state = lock(&seat.state);
                (state.standing == Standing::Stranger || state.open == 0).then_some(state.standing)
            };
            let idle = room.taken.iter().filter_map(|(number, seat)| Some((rank(seat)?, *number)));
            let (_, number) = idle.min()?;
            if let Some(seat) = room.taken.remove(&number) {
                seat.get_up();
            }
        }
        let number = room.next;
        room.next += 1;
        let (seat, ended) = Seat::new();
        room.taken.insert(number, seat.clone());
        Some(Taken { seats: self.clone(), number, seat, ended })
    }

    /// Ends what is over.
    pub(super) fn sweep(&self, credentials: Option<&Credentials>, limits: &Limits) {
        // Judging takes a while, and nobody should wait for a seat meanwhile.
        let taken: Vec<_> = lock(&self.room).taken.values().cloned().collect();
        for seat in taken.iter().filter(|seat| seat.is_over(credentials, limits)) {
            tracing::debug!(caller = ?seat.caller.get().map(|(caller, _)| caller), "connection is ended");
            seat.get_up();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::time::Duration;

    use super::*;

    fn is_up(taken: &mut Taken) -> bool {
        taken.ended.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn in_a_full_room_the_oldest_stranger_gets_up_then_the_oldest_guest_without_a_call() {
        let seats = Seats::new(3);
        let (mut idle, mut stranger, mut busy) = (seats.take().unwrap(), seats.take().unwrap(), seats.take().unwrap());
        idle.seat().welcome();
        busy.seat().welcome();
        let open = busy.seat().open();
        let newcomer = seats.take().unwrap();
        assert_eq!((is_up(&mut idle), is_up(&mut stranger), is_up(&mut busy)), (false, true, false));
        newcomer.seat().welcome();
        let also_open = newcomer.seat().open();
        let last = seats.take().unwrap();
        assert_eq!((is_up(&mut idle), is_up(&mut busy)), (true, false));
        last.seat().welcome();
        let still_open = last.seat().open();
        assert!(seats.take().is_none(), "all are busy");
        drop((open, also_open, still_open));
        assert!(seats.take().is_some());
    }

    #[test]
    fn a_call_of_a_stranger_keeps_no_seat() {
        let seats = Seats::new(1);
        let mut stranger = seats.take().unwrap();
        let _open = stranger.seat().open();
        assert!(seats.take().is_some());
        assert!(is_up(&mut stranger));
    }

    #[test]
    fn a_seat_that_is_given_back_is_free() {
        let seats = Seats::new(1);
        let taken = seats.take().unwrap();
        taken.seat().welcome();
        let _open = taken.seat().open();
        drop(taken);
        assert!(seats.take().is_some());
    }

    #[test]
    fn strangers_and_the_idle_go_after_their_time() {
        let short = Limits { stranger: Duration::ZERO, ..Limits::default() };
        let seats = Seats::new(9);
        let (mut stranger, mut guest) = (seats.take().unwrap(), seats.take().unwrap());
        guest.seat().welcome();
        let open = guest.seat().open();
        seats.sweep(None, &short);
        assert_eq!((is_up(&mut stranger), is_up(&mut guest)), (true, false));
        let idle = Limits { idle: Duration::ZERO, ..short };
        seats.sweep(None, &idle);
        assert!(!is_up(&mut guest), "a call is open");
        drop(open);
        seats.sweep(None, &idle);
        assert!(is_up(&mut guest));
    }
}
