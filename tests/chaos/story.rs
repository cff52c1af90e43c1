//! One story: the steps of a plan, what is demanded meanwhile, and how it has to end.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use capturedrain::view::CaptureView;
use etcd_client::GetOptions;
use tokio::{task::JoinSet, time};

use crate::{
    field::{COPY, FEEDS, Field, SHOP},
    plan::{self, Etcd, Far, Step, Way},
    proof::{self, Feed},
};

/// How often the story looks after its processes.
const TICK: Duration = Duration::from_millis(50);
/// How long everything may take to be well again, once nothing is disturbed any more.
const RECOVERY_MAX: Duration = Duration::from_mins(3);

/// What came of a story, in one line.
pub(crate) type Outcome = Result<String, String>;

/// A story that is being told.
pub(crate) struct Story {
    seed: u64,
    begun: Instant,
    field: Field,
    folder: PathBuf,
    /// Commands that have not ended, with what they were.
    calls: JoinSet<(String, i32, String)>,
    /// How often commands ended with each exit code.
    codes: BTreeMap<i32, usize>,
    /// What each changefeed begins after.
    starts: BTreeMap<&'static str, u64>,
}

/// Tells the story of a seed. All logs go into the folder.
pub(crate) async fn tell(seed: u64, length: Duration, folder: &Path) -> Outcome {
    let field = Field::prepare(seed, folder).await;
    let (calls, codes, starts) = (JoinSet::new(), BTreeMap::new(), BTreeMap::new());
    let mut story = Story { seed, begun: Instant::now(), field, folder: folder.to_owned(), calls, codes, starts };
    let told = story.tell(length).await;
    if let (Err(_), Some(disk)) = (&told, &story.field.disk) {
        // It goes with the story.
        free(&story.field);
        let _ = Command::new("cp").arg("-r").arg(disk.path()).arg(folder.join("disk")).status();
    }
    told
}

impl Story {
    async fn tell(&mut self, length: Duration) -> Outcome {
        self.begin().await?;
        self.begun = Instant::now();
        for (at, step) in plan::plan(self.seed, length, FEEDS.len()) {
            self.wait_until(at).await?;
            self.say(&step.to_string());
            self.take(&step).await;
        }
        self.recover().await?;
        self.drain_each().await?;
        Box::pin(self.prove()).await
    }

    fn say(&self, what: &str) {
        println!("[{:>6.1} s] seed {}: {what}", self.begun.elapsed().as_secs_f64(), self.seed);
    }

    /// Everything up and replicating.
    async fn begin(&mut self) -> Result<(), String> {
        for id in self.field.fleet.names() {
            self.field.fleet.start(id);
        }
        self.until("the captures to be there", async |story| story.all_alive().await).await?;
        self.field.create_changefeeds().await?;
        for id in FEEDS {
            let feed = self.until("the changefeeds", async |story| story.changefeed(id).await).await?;
            self.starts.insert(id, feed.start_ts);
        }
        Ok(())
    }

    /// Looks after everything, and whether something is wrong.
    fn tend(&mut self) -> Result<(), String> {
        self.field.fleet.tend(&self.field.wires)?;
        self.field.tell_who_runs();
        while let Some(call) = self.calls.try_join_next() {
            let (what, code, said) = call.unwrap();
            self.judge_call(&what, code, &said)?;
        }
        self.field.watches.seen.trouble.found().map_or(Ok(()), Err)
    }

    /// A command may be refused and come too late; it may not break.
    fn judge_call(&mut self, what: &str, code: i32, said: &str) -> Result<(), String> {
        *self.codes.entry(code).or_default() += 1;
        let last = said.lines().last().unwrap_or_default();
        self.say(&format!("{what} ended with {code}: {last}"));
        match code {
            0 | 3 | 4 | 5 | 7 | 8 | 9 => Ok(()),
            _ => Err(format!("{what} ended with {code}: {said}")),
        }
    }

    async fn wait_until(&mut self, at: Duration) -> Result<(), String> {
        while self.begun.elapsed() < at {
            self.tend()?;
            time::sleep(TICK).await;
        }
        self.tend()
    }

    /// Asks again and again, and looks after everything meanwhile.
    async fn until<T>(&mut self, what: &str, ask: impl AsyncFn(&Self) -> Option<T>) -> Result<T, String> {
        let until = Instant::now() + RECOVERY_MAX;
        while Instant::now() < until {
            self.tend()?;
            if let Some(answer) = ask(self).await {
                return Ok(answer);
            }
            time::sleep(TICK).await;
        }
        Err(format!("waited {RECOVERY_MAX:?} for {what}; captures: {:?}", self.field.cluster.captures().await))
    }

    async fn take(&mut self, step: &Step) {
        let Self { field, .. } = self;
        match step {
            Step::Kill(id) => field.fleet.kill(id).await,
            Step::Start(id) => field.fleet.start(id),
            Step::Pause(id) => field.fleet.pause(id).await,
            Step::Resume(id) => field.fleet.resume(id).await,
            Step::Restart(id) => field.fleet.leave(id).await,
            Step::Cut { capture, from, way } => cut(field, capture, *from, *way),
            Step::Heal { capture, late } => field.wires.heal(capture, *late),
            Step::Stop(etcd) => field.etcds.get_mut(etcd).unwrap().kill(),
            Step::Launch(etcd) => field.etcds.get_mut(etcd).unwrap().restart().await,
            Step::FillDisk => fill(field),
            Step::FreeDisk => free(field),
            Step::Drain { capture, wait: false } => self.call(&["drain", capture, "--reason", "chaos"]),
            Step::Drain { capture, wait: true } => self.call(&["drain", capture, "--wait", "--deadline", "20s"]),
            Step::Cancel(id) => self.call(&["cancel", id]),
            Step::Release(id) => self.call(&["release", id]),
            Step::PauseFeed(n) => self.call(&["changefeed", "pause", FEEDS[*n]]),
            Step::ResumeFeed(n) => self.call(&["changefeed", "resume", FEEDS[*n]]),
        }
    }

    /// Has somebody ask, while the story goes on.
    fn call(&mut self, args: &[&str]) {
        let (what, command) = (args.join(" "), self.field.command(args));
        self.calls.spawn(async move {
            let (code, said) = command.await;
            (what, code, said)
        });
    }

    /// All captures, once they are heard and may have work, and no drain is on.
    async fn all_alive(&self) -> Option<Vec<CaptureView>> {
        let captures = self.field.cluster.captures().await.ok()?;
        for stopping in captures.iter().filter(|capture| capture.liveness == "Stopping") {
            // It may have ended or been released already.
            let _ = self.field.cluster.release(&stopping.id.parse().ok()?, None).await;
        }
        let is_well = captures.iter().all(|capture| capture.heard && capture.liveness == "Alive");
        let all = captures.len() == self.field.fleet.names().len();
        let calm = !self.field.watches.seen.ledger.lock().unwrap().is_draining();
        (all && is_well && calm).then_some(captures)
    }

    async fn changefeed(&self, id: &str) -> Option<capturedrain::view::ChangefeedView> {
        self.field.cluster.changefeed(&id.parse().unwrap()).await.ok()
    }

    /// Nothing is disturbed any more: everything comes to an end, and all is well again.
    async fn recover(&mut self) -> Result<(), String> {
        self.say("nothing is disturbed any more");
        for id in self.field.fleet.names() {
            self.field.wires.heal(id, false);
        }
        free(&self.field);
        self.until("commands to end", async |story| story.calls.is_empty().then_some(())).await?;
        self.until("all captures to be alive and all drains to end", async |story| story.all_alive().await).await?;
        self.say("all captures are alive, and no drain is on");
        for id in FEEDS {
            let running = async |story: &Self| {
                let feed = story.changefeed(id).await?;
                if feed.state == "stopped" {
                    let _ = story.field.cluster.resume(&id.parse().unwrap()).await;
                }
                (feed.state != "stopped").then_some(feed)
            };
            let feed = self.until("the changefeeds to run", running).await?;
            if feed.state != "normal" {
                return Err(format!("changefeed {id} is {}: {:?}", feed.state, feed.error));
            }
        }
        Ok(())
    }

    /// Whole drains, one capture after the other, while rows are written.
    async fn drain_each(&mut self) -> Result<(), String> {
        for id in self.field.fleet.names() {
            self.call(&["drain", id, "--wait"]);
            let before = self.codes.get(&0).copied().unwrap_or_default();
            self.until("a whole drain", async |story| story.calls.is_empty().then_some(())).await?;
            if self.codes.get(&0).copied().unwrap_or_default() != before + 1 {
                return Err(format!("the drain of {id} with nothing in its way did not end as it should"));
            }
            self.until("a drained capture to be alive again", async |story| story.all_alive().await).await?;
        }
        Ok(())
    }

    /// Nothing is lost, doubled or out of order, and the proof itself would have noticed.
    async fn prove(&mut self) -> Outcome {
        self.field.writer.take().unwrap().stop().await;
        let mut source = self.field.client(Etcd::Source).await;
        let end = source.get(SHOP, None).await.unwrap().header().unwrap().revision();
        let end = u64::try_from(end).unwrap();
        let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        let feeds = self.field.feeds.clone();
        let mut rows = 0;
        for (id, feed) in &feeds {
            let end = if matches!(feed, Feed::MadeUp { .. }) { now_ms } else { end };
            let caught_up = async |story: &Self| story.changefeed(id).await?.checkpoint_ts.filter(|at| *at >= end);
            self.until(&format!("changefeed {id} to catch up with {end}"), caught_up).await?;
            let proof = proof::of(feed, self.starts[id], end).await?;
            self.say(&format!("{id}: {proof}"));
            if !proof.is_good() {
                return Err(format!("changefeed {id}: {proof}"));
            }
            rows += proof.rows;
        }
        Box::pin(self.prove_order(end)).await?;
        Box::pin(self.doctor(end)).await?;
        self.look_back()?;
        let outcomes = self.field.watches.seen.ledger.lock().unwrap().outcomes();
        let (codes, ends) = (&self.codes, &self.field.fleet.ends);
        Ok(format!("{rows} rows proven; drains ended {outcomes:?}, commands {codes:?}, processes {ends:?}"))
    }

    /// Whoever watched the mirror saw each key change as the source's did.
    async fn prove_order(&mut self, end: u64) -> Result<(), String> {
        // A last key of one's own, so that the watch has an end.
        let mark = format!("{COPY}~end");
        let mut mirror = self.field.client(Etcd::Mirror).await;
        let last = mirror.put(mark.clone(), "", None).await.unwrap().header().unwrap().revision();
        let seen = async |story: &Self| (story.field.mirrored.lock().unwrap().0 >= last).then_some(());
        self.until("the last of the mirror's changes", seen).await?;
        mirror.delete(mark, None).await.unwrap();
        let mut copies = self.field.mirrored.lock().unwrap().1.clone();
        copies.remove("~end");
        let Feed::Mirror { source, .. } = &self.field.feeds["copy"] else { panic!("copy is a mirror") };
        let truth = proof::truth(source, SHOP, end).await;
        self.say(&format!("the mirror's {} keys changed in the order of the source's {}", copies.len(), truth.len()));
        proof::in_order(&truth, &copies)
    }

    /// Spoils each sink, and demands that the same proof notices.
    async fn doctor(&mut self, end: u64) -> Result<(), String> {
        let mut mirror = self.field.client(Etcd::Mirror).await;
        let one = GetOptions::new().with_prefix().with_limit(1);
        let key = mirror.get(COPY, Some(one)).await.unwrap().kvs()[0].key().to_vec();
        mirror.delete(key, None).await.unwrap();
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        for (id, mut feed) in self.field.feeds.clone() {
            let (Feed::Files { sink, .. } | Feed::MadeUp { sink, .. }) = &mut feed else { continue };
            // A copy, since captures go on with theirs.
            let copied = self.folder.join(format!("{id}-spoilt"));
            assert!(Command::new("cp").arg("-r").arg(&sink).arg(&copied).status().unwrap().success());
            let table = proof::a_table(&copied);
            fs::remove_dir_all(&table).unwrap();
            *sink = copied;
            let end = if matches!(feed, Feed::MadeUp { .. }) { now } else { end };
            let proof = proof::of(&feed, self.starts[id], end).await?;
            if proof.lost == 0 {
                return Err(format!("{} is taken away, and the proof of {id} says {proof}", table.display()));
            }
        }
        let proof = proof::of(&self.field.feeds["copy"], 1, end).await?;
        if proof.lost == 1 {
            Ok(())
        } else {
            Err(format!("a key of the mirror is deleted, and its proof says {proof}"))
        }
    }

    /// What is left to say once all is told.
    fn look_back(&self) -> Result<(), String> {
        let seen = &self.field.watches.seen;
        let (told, persisted) = (*seen.told_epoch.lock().unwrap(), seen.ledger.lock().unwrap().epoch());
        if told > persisted {
            return Err(format!("single_target: somebody told of epoch {told}, and the store has {persisted}"));
        }
        for id in self.field.fleet.names() {
            let log = fs::read_to_string(self.field.fleet.log(id)).unwrap();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                return Err(format!("{id} in {}: {line}", self.folder.display()));
            }
        }
        Ok(())
    }
}

fn cut(field: &Field, capture: &str, from: Far, way: Way) {
    let peers = || field.fleet.names().into_iter().filter(|id| *id != capture);
    let far: Vec<&str> = match from {
        Far::Peers => peers().collect(),
        Far::Etcd(etcd) => vec![etcd.name()],
        Far::All => peers().chain(Etcd::ALL.map(Etcd::name)).collect(),
    };
    for other in far {
        if way != Way::In {
            field.wires.hold(capture, other);
        }
        if way != Way::Out {
            field.wires.hold(other, capture);
        }
    }
}

/// Leaves no byte on the small disk.
fn fill(field: &Field) {
    let Some(disk) = &field.disk else { return println!("           left out: mounting a small disk needs root") };
    let mut ballast = fs::File::create(disk.path().join("ballast")).unwrap();
    // First much at once, then to the last byte.
    for size in [1 << 20, 1] {
        while ballast.write_all(&vec![0; size]).is_ok() {}
    }
}

fn free(field: &Field) {
    if let Some(disk) = &field.disk {
        let _ = fs::remove_file(disk.path().join("ballast"));
    }
}
