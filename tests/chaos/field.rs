//! All that a story needs: three etcds behind TLS, captures, changefeeds between them and into files, a small disk, and a
//! network that can be cut.

use std::{
    collections::BTreeMap,
    future::Future,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use capturedrain::{client::Client as Cluster, tls::Current};
use etcd_client::{Client, ConnectOptions};
use tokio::{process::Command, sync::mpsc, task::JoinSet, time};

use crate::{
    authority::{Authority, Papers, Subject},
    disk::SmallDisk,
    etcd,
    fleet::Fleet,
    plan::{self, Etcd},
    proof::{self, Copies, Feed},
    watch::{Watches, follow},
    wires::Wires,
    writer::Writer,
};

const BINARY: &str = env!("CARGO_BIN_EXE_capturedrain");
/// What the changefeeds with an etcd as source replicate.
pub(crate) const SHOP: &str = "/shop/";
/// Where their mirror is.
pub(crate) const COPY: &str = "/copy/";
const DISK_SIZE: &str = "64m";
/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_mins(3);

/// The changefeeds, by the number that plans have for them.
pub(crate) const FEEDS: [&str; 5] = ["copy", "rows", "tight", "made-up", "made-up-tight"];

/// How servers are told to behave: quickly, and slowly enough for a drain to have a middle.
const SERVER: [&str; 18] = [
    "--cluster",
    "chaos",
    "--lease",
    "3s",
    "--heartbeat",
    "300ms",
    "--balance-cooldown",
    "2s",
    "--move-timeout",
    "4s",
    "--stopping-timeout",
    "20s",
    "--drain-maintainer-batch-size",
    "1",
    "--drain-dispatcher-batch-size",
    "1",
    "--log",
    "info",
];

/// What a mirror was, and up to which revision of its etcd that is known.
pub(crate) type Watched = Arc<Mutex<(i64, Copies)>>;

/// Everything that runs. It ends with this.
pub(crate) struct Field {
    pub(crate) wires: Wires,
    pub(crate) etcds: BTreeMap<Etcd, etcd::Etcd>,
    pub(crate) fleet: Fleet,
    pub(crate) disk: Option<SmallDisk>,
    pub(crate) feeds: BTreeMap<&'static str, Feed>,
    pub(crate) watches: Watches,
    pub(crate) mirrored: Watched,
    pub(crate) cluster: Cluster,
    pub(crate) writer: Option<Writer>,
    /// Source and sink of each changefeed, as captures are told them.
    wishes: BTreeMap<&'static str, [String; 2]>,
    anna: Papers,
    _tasks: JoinSet<()>,
}

/// How an etcd is named as a source or a sink.
fn url(port: u16, prefix: &str, guest: &Papers) -> String {
    let Papers { ca, cert, key } = guest;
    let (ca, cert, key) = (ca.display(), cert.display(), key.display());
    format!("etcd://127.0.0.1:{port}{prefix}?ca={ca}&cert={cert}&key={key}")
}

impl Field {
    /// Starts everything but the captures; all files go into the folder.
    pub(crate) async fn prepare(seed: u64, folder: &Path) -> Self {
        // Fails when another test was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (of_captures, of_etcds) = (Authority::new("of captures"), Authority::new("of etcds"));
        let server = of_captures.issue(folder, "server", &Subject::new("the captures", "capture"));
        let anna = of_captures.issue(folder, "anna", &Subject::new("anna", "client"));
        let guest = of_etcds.issue(folder, "guest", &Subject::new("cdc", ""));
        let (mut wires, mut etcds, mut doors) = (Wires::new(), BTreeMap::new(), BTreeMap::new());
        for name in Etcd::ALL {
            let papers = of_etcds.issue(folder, name.name(), &Subject::new(name.name(), ""));
            let etcd = etcd::Etcd::start_with_tls(papers.ca, papers.cert, papers.key).await;
            doors.insert(name, wires.before(name.name()).await);
            wires.listens(name.name(), etcd.client_port());
            etcds.insert(name, etcd);
        }
        let store = format!("etcd://127.0.0.1:{}", doors[&Etcd::Store]);
        let more = ["--store".to_owned(), store];
        let options = [&SERVER.map(str::to_owned)[..], &more, &server.options("tls"), &guest.options("etcd")].concat();
        let fleet = Fleet::new(plan::captures(seed), options, folder.to_owned(), &mut wires).await;
        let disk = SmallDisk::mount(DISK_SIZE);
        let small = disk.as_ref().map_or_else(|| folder.to_owned(), |disk| disk.path().to_owned());
        // Without wires in between: the proof is made when all is well, and not by a capture.
        let direct = |etcd: Etcd, prefix: &str| url(etcds[&etcd].client_port(), prefix, &guest);
        let shop = direct(Etcd::Source, SHOP);
        let feeds = BTreeMap::from([
            ("copy", Feed::Mirror { source: shop.clone(), sink: direct(Etcd::Mirror, COPY) }),
            ("rows", Feed::Files { source: shop.clone(), sink: folder.join("rows") }),
            ("tight", Feed::Files { source: shop, sink: small.join("tight") }),
            ("made-up", Feed::MadeUp { source: made_up(seed), sink: folder.join("made-up") }),
            ("made-up-tight", Feed::MadeUp { source: made_up(seed + 1), sink: small.join("made-up-tight") }),
        ]);
        let sinks = [folder, &small].map(|path| path.display().to_string()).to_vec();
        let way_to = |etcd: Etcd| (etcds[&etcd].client_url(), etcds[&etcd].client_options().unwrap());
        let mut watches = Watches::start(way_to(Etcd::Store), "/capturedrain/chaos/".to_owned(), anna.dialer(), sinks);
        let credentials = Some(Current::fixed(&anna.files()).unwrap());
        let cluster = Cluster::with_credentials(&fleet.servers(), credentials).unwrap();
        watches.ask(cluster.clone());
        let mut tasks = JoinSet::new();
        let mirrored = watch_mirror(way_to(Etcd::Mirror), &mut tasks);
        let (source, options) = way_to(Etcd::Source);
        let writer = Some(Writer::start(source, options, SHOP, seed));
        let through = |etcd: Etcd, prefix: &str| url(doors[&etcd], prefix, &guest);
        let wishes = feeds.iter().map(|(id, feed)| {
            let (source, sink) = match feed {
                Feed::Mirror { .. } => (through(Etcd::Source, SHOP), through(Etcd::Mirror, COPY)),
                Feed::Files { sink, .. } => (through(Etcd::Source, SHOP), format!("file://{}", sink.display())),
                Feed::MadeUp { source, sink } => (source.clone(), format!("file://{}", sink.display())),
            };
            (*id, [source, sink])
        });
        let wishes = wishes.collect();
        Self { wires, etcds, fleet, disk, feeds, wishes, watches, mirrored, cluster, writer, anna, _tasks: tasks }
    }

    /// Creates all changefeeds, those of etcds from before the first write, so that every row counts.
    pub(crate) async fn create_changefeeds(&self) -> Result<(), String> {
        for (id, [source, sink]) in &self.wishes {
            let from_first: &[&str] = if source.starts_with("etcd") { &["--start-ts", "1"] } else { &[] };
            let create = ["changefeed", "create", "--id", id, "--source", source, "--sink", sink];
            let (code, said) = self.command(&[&create[..], from_first].concat()).await;
            if code != 0 {
                return Err(format!("changefeed {id} cannot be created: {code}: {said}"));
            }
        }
        Ok(())
    }

    /// Runs a command as a person would: its exit code, and what it says on standard error.
    pub(crate) fn command(&self, args: &[&str]) -> impl Future<Output = (i32, String)> + Send + 'static {
        let mut command = Command::new(BINARY);
        command.args(args).args(self.anna.options("tls")).env("CAPTUREDRAIN_SERVER", self.fleet.servers().join(","));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        async move {
            match time::timeout(COMMAND_MAX, command.output()).await {
                Ok(output) => {
                    let output = output.unwrap();
                    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    (output.status.code().unwrap_or(-1), said)
                }
                Err(_) => (-1, format!("it has not ended within {COMMAND_MAX:?}")),
            }
        }
    }

    /// A client of one of the etcds.
    pub(crate) async fn client(&self, etcd: Etcd) -> Client {
        let etcd = &self.etcds[&etcd];
        Client::connect([etcd.client_url()], etcd.client_options()).await.unwrap()
    }

    /// Who runs at the moment, for those who watch.
    pub(crate) fn tell_who_runs(&self) {
        let mut running = self.watches.seen.running.lock().unwrap();
        (running.addresses, running.pids) = (self.fleet.addresses(), self.fleet.pids());
    }
}

fn made_up(seed: u64) -> String {
    format!("synthetic://?tables=6&rate=10&keys=40&seed={seed}")
}

/// Collects all that happens to the mirror's keys.
fn watch_mirror((url, options): (String, ConnectOptions), tasks: &mut JoinSet<()>) -> Watched {
    let (transactions, mut history) = mpsc::channel(64);
    let watched = Watched::default();
    let collected = watched.clone();
    tasks.spawn(follow(url, options, COPY.to_owned(), 1, transactions));
    tasks.spawn(async move {
        while let Some((revision, writes)) = history.recv().await {
            let mut watched = collected.lock().unwrap();
            watched.0 = revision;
            proof::add(&mut watched.1, writes);
        }
    });
    watched
}
