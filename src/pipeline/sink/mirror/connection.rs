//! One connection a mirror and process: unary calls only, so that dispatchers can share it.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Weak},
    time::Duration,
};

use capturedrain_core::{
    model::{ChangefeedId, CommitTs, WriterEpoch},
    work::DispatcherKey,
};
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time};

use super::{
    fence::{Fence, Found, Raise, raise},
    place::{TableFences, fences_of, owner_key},
};
use crate::pipeline::{
    EtcdUrl, PipelineError,
    dispatcher::Job,
    etcd::{Etcd, Page, PageSize, RECONNECT_BACKOFF, Range, Role, revision_of},
    table::KeyRange,
};

/// How many dispatchers of a process may raise fences of a mirror at once. Those of one table take turns.
const TURNS: usize = 64;
/// How many fences are replaced in one transaction; each takes at most three operations, of 128.
const GROUPS_MAX: usize = 40;
/// How long a writer waits at most when another one of its table was quicker.
const TURN_BACKOFF: Duration = Duration::from_millis(50);

/// The connections of a process to its mirrors.
#[derive(Clone, Default)]
pub(in crate::pipeline) struct Mirrors(Arc<std::sync::Mutex<HashMap<String, Weak<Connection>>>>);

impl Mirrors {
    /// The connection of an address. It goes when nobody has it any more.
    pub(super) fn connection(&self, url: &EtcdUrl) -> Arc<Connection> {
        let mut all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.retain(|_, known| known.strong_count() > 0);
        if let Some(known) = all.get(&url.url).and_then(Weak::upgrade) {
            return known;
        }
        let connection = Arc::new(Connection::new(url));
        all.insert(url.url.clone(), Arc::downgrade(&connection));
        connection
    }
}

/// A connection that is made anew when it is lost.
pub(super) struct Connection {
    pub(super) url: Arc<EtcdUrl>,
    present: Mutex<Present>,
    turns: [Mutex<()>; TURNS],
}

#[derive(Default)]
struct Present {
    etcd: Option<Etcd>,
    /// How many there were before.
    number: u64,
}

/// A range that a writer has.
pub(super) struct Held {
    key: Vec<u8>,
    pub(super) fence: Fence,
    revision: i64,
}

/// Who mirrors what into a range.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    version: u32,
    changefeed: ChangefeedId,
    source: String,
}

impl Connection {
    pub(super) fn new(url: &EtcdUrl) -> Self {
        let turns = std::array::from_fn(|_| Mutex::default());
        Self { url: Arc::new(url.clone()), present: Mutex::default(), turns }
    }

    async fn present(&self) -> Result<(Etcd, u64), PipelineError> {
        let mut present = self.present.lock().await;
        if present.etcd.is_none() {
            present.etcd = Some(Etcd::connect(&self.url, Role::Sink).await?);
            present.number += 1;
        }
        let number = present.number;
        present.etcd.clone().map(|etcd| (etcd, number)).ok_or_else(|| PipelineError::SinkUnreachable {
            url: self.url.url.clone(),
            reason: "not connected".to_owned(),
        })
    }

    async fn lose(&self, number: u64) {
        let mut present = self.present.lock().await;
        if present.number == number {
            present.etcd = None;
        }
    }

    /// A call that is tried until the sink answers.
    fn attempts(&self) -> Attempts<'_> {
        Attempts { connection: self, number: 0, told: false }
    }

    /// Carries out a transaction. After a lost answer the same is asked again.
    async fn txn(&self, txn: &Txn) -> Result<TxnResponse, PipelineError> {
        let mut attempts = self.attempts();
        loop {
            let Some(etcd) = attempts.etcd().await? else { continue };
            let answer = etcd.call(etcd.kv.clone().txn(txn.clone())).await;
            if let Some(answer) = attempts.judge(answer).await {
                return answer;
            }
        }
    }

    /// The first part of what a range has now.
    pub(super) async fn page(&self, start: &[u8], end: &[u8], size: &mut PageSize) -> Result<Page, PipelineError> {
        let mut attempts = self.attempts();
        loop {
            let Some(etcd) = attempts.etcd().await? else { continue };
            let answer = etcd.page(&Range { start, end, revision: 0 }, GetOptions::new(), size).await;
            if let Some(answer) = attempts.judge(answer).await {
                return answer;
            }
        }
    }

    async fn fences(&self, fences: &TableFences) -> Result<(Vec<Found>, i64), PipelineError> {
        let mut attempts = self.attempts();
        loop {
            let Some(etcd) = attempts.etcd().await? else { continue };
            let answer = read(&etcd, fences).await;
            if let Some(answer) = attempts.judge(answer).await {
                return answer;
            }
        }
    }

    fn unusable(&self, reason: String) -> PipelineError {
        PipelineError::SinkUnusable { url: self.url.url.clone(), reason }
    }

    fn fenced(&self, writer: WriterEpoch, by: Option<WriterEpoch>) -> PipelineError {
        PipelineError::Fenced { url: self.url.url.clone(), writer, by, fences: fences_of(&self.url.prefix) }
    }

    /// Fences earlier writers of a span off: from here on only this one can write it.
    ///
    /// # Errors
    /// When a later writer was there.
    pub(super) async fn hold(&self, job: &Job) -> Result<Held, PipelineError> {
        self.own(job).await?;
        let table = &*job.span.table;
        let fences = TableFences::new(&self.url.prefix, table);
        let nonce = getrandom::u64().map_err(|error| self.unusable(format!("gets no fence: {error}")))?.max(1);
        let DispatcherKey { writer_epoch: writer, .. } = job.key;
        let _turn = self.turns[turn_of(table)].lock().await;
        loop {
            let (found, turn) = self.fences(&fences).await?;
            let mine = Fence::new(KeyRange::of(&job.span), writer, nonce, job.start_ts, &found);
            let groups = match raise(table, &found, &mine) {
                Raise::Held(Found { fence, revision }) => {
                    let key = fences.key(job.span.id());
                    return Ok(Held { key, fence, revision });
                }
                Raise::Refused(by) => return Err(self.fenced(writer, Some(by))),
                Raise::Write(groups) => groups,
            };
            let mut ops = vec![TxnOp::put(fences.turn_key(), writer.to_string(), None)];
            ops.extend(groups.into_iter().take(GROUPS_MAX).flatten().map(|(id, fence)| match fence {
                Some(fence) => TxnOp::put(fences.key(id), fence.encode(), None),
                None => TxnOp::delete(fences.key(id), None),
            }));
            let same = Compare::mod_revision(fences.turn_key(), CompareOp::Equal, turn);
            // Whether it was carried out is seen when the fences are read again.
            if !self.txn(&Txn::new().when([same]).and_then(ops)).await?.succeeded() {
                let wait = TURN_BACKOFF.mul_f64(f64::from(u8::try_from(nonce & 0xff).unwrap_or(0)) / 256.0);
                time::sleep(wait).await;
            }
        }
    }

    /// Makes sure that nobody else mirrors into the range.
    async fn own(&self, job: &Job) -> Result<(), PipelineError> {
        let key = owner_key(&self.url.prefix);
        let mine = Owner { version: 1, changefeed: job.key.changefeed.clone(), source: job.config.source.to_string() };
        // It has nothing that JSON cannot say.
        let value = serde_json::to_vec(&mine).unwrap_or_default();
        let txn = Txn::new()
            .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.clone(), value, None)])
            .or_else([TxnOp::get(key.clone(), None)]);
        let answer = self.txn(&txn).await?;
        if answer.succeeded() {
            return Ok(());
        }
        let there = got(&answer).and_then(|(value, _)| serde_json::from_slice::<Owner>(&value).ok());
        match there {
            Some(there) if there == mine => Ok(()),
            Some(Owner { changefeed, source, .. }) => Err(self.unusable(format!(
                "is the mirror of changefeed {changefeed} from {source}: choose another prefix or, when that changefeed \
                 is deleted, delete its keys and those below {}",
                fences_of(&self.url.prefix)
            ))),
            None => Err(self.unusable(format!("has an owner that cannot be read: {key}"))),
        }
    }

    /// Writes, if nobody came later; up to which commit timestamp the range then has everything stands with it, so that
    /// the next writer leaves out what is there.
    ///
    /// # Errors
    /// When this writer was fenced off.
    pub(super) async fn commit(
        &self,
        held: Held,
        mut ops: Vec<TxnOp>,
        applied_ts: CommitTs,
    ) -> Result<Held, PipelineError> {
        let fence = held.fence.advanced(applied_ts);
        let value = fence.encode();
        ops.push(TxnOp::put(held.key.clone(), value.clone(), None));
        let txn = Txn::new()
            .when([Compare::mod_revision(held.key.clone(), CompareOp::Equal, held.revision)])
            .and_then(ops)
            .or_else([TxnOp::get(held.key.clone(), None)]);
        let answer = self.txn(&txn).await?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            return Ok(Held { key: held.key, fence, revision });
        }
        match got(&answer) {
            // It was carried out, and only the answer was lost.
            Some((there, revision)) if there == value => Ok(Held { key: held.key, fence, revision }),
            Some((there, _)) => {
                let by = Fence::decode(&there).map(|there| there.writer);
                Err(self.fenced(held.fence.writer, by))
            }
            None => Err(self.fenced(held.fence.writer, None)),
        }
    }
}

/// Attempts at one call, until the sink answers.
struct Attempts<'a> {
    connection: &'a Connection,
    /// Of the connection that is tried.
    number: u64,
    /// Whether it was said that the sink does not answer.
    told: bool,
}

impl Attempts<'_> {
    /// A connection; `None`: there was none, ask again.
    async fn etcd(&mut self) -> Result<Option<Etcd>, PipelineError> {
        match self.connection.present().await {
            Ok((etcd, number)) => {
                self.number = number;
                Ok(Some(etcd))
            }
            Err(error) if error.is_outage() => {
                self.wait(&error).await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this is an answer. If not, it is time to try again.
    async fn judge<T>(&mut self, answer: Result<T, PipelineError>) -> Option<Result<T, PipelineError>> {
        match answer {
            Err(error) if error.is_outage() => {
                self.connection.lose(self.number).await;
                self.wait(&error).await;
                None
            }
            answer => {
                if self.told {
                    tracing::info!(sink = %self.connection.url.url, "sink answers again");
                }
                Some(answer)
            }
        }
    }

    async fn wait(&mut self, error: &PipelineError) {
        if !self.told {
            tracing::warn!(%error, "sink is not reached, trying again");
        }
        self.told = true;
        time::sleep(RECONNECT_BACKOFF).await;
    }
}

fn turn_of(table: &str) -> usize {
    let mut hash = DefaultHasher::new();
    table.hash(&mut hash);
    usize::try_from(hash.finish() % TURNS as u64).unwrap_or(0)
}

/// The value and the modification revision that the first operation of a transaction got.
fn got(answer: &TxnResponse) -> Option<(Vec<u8>, i64)> {
    match answer.op_responses().into_iter().next()? {
        TxnOpResponse::Get(got) => got.kvs().first().map(|kv| (kv.value().to_vec(), kv.mod_revision())),
        _ => None,
    }
}

/// All fences of a table at one moment, and the revision that a new writer's turn has to compare.
async fn read(etcd: &Etcd, fences: &TableFences) -> Result<(Vec<Found>, i64), PipelineError> {
    let KeyRange { mut start, end } = fences.range();
    let (mut found, mut turn, mut revision, mut size) = (Vec::new(), 0, 0, PageSize::default());
    loop {
        let range = Range { start: &start, end: &end, revision };
        let page = match etcd.page(&range, GetOptions::new(), &mut size).await {
            // It took longer than the sink keeps its history: once more.
            Err(PipelineError::Compacted { url, .. }) => {
                return Err(PipelineError::SinkUnreachable {
                    url,
                    reason: "compacted while its fences were read".into(),
                });
            }
            page => page?,
        };
        revision = if revision == 0 { revision_of(&page.answer) } else { revision };
        for kv in page.answer.kvs() {
            if kv.key() == fences.turn_key() {
                turn = kv.mod_revision();
                continue;
            }
            let Some(fence) = Fence::decode(kv.value()) else {
                let reason = format!("has a fence that cannot be read: {}", String::from_utf8_lossy(kv.key()));
                return Err(PipelineError::SinkUnusable { url: etcd.url.url.clone(), reason });
            };
            found.push(Found { fence, revision: kv.mod_revision() });
        }
        match page.next {
            Some(next) => start = next,
            None => return Ok((found, turn)),
        }
    }
}
