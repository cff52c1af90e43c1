//! The network between processes of this machine: who calls is found out, so that any two of them can be parted, in both
//! directions or in one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{self, JoinSet},
};

/// Who calls that is no capture: commands, and the test itself.
const OUTSIDE: &str = "outside";

/// From whom, to whom.
type Direction = (String, String);

#[derive(Clone, Default)]
struct Rules {
    /// Bytes that go this way stand still.
    held: BTreeSet<Direction>,
    /// How often the connections by this caller to this server were reset.
    resets: BTreeMap<Direction, u64>,
}

/// All wires. They go with this.
pub(crate) struct Wires {
    rules: Arc<watch::Sender<Rules>>,
    processes: Arc<Mutex<BTreeMap<String, u32>>>,
    /// Where each server listens now.
    servers: BTreeMap<String, Arc<AtomicU16>>,
    listening: JoinSet<()>,
}

impl Wires {
    pub(crate) fn new() -> Self {
        let rules = Arc::new(watch::Sender::new(Rules::default()));
        Self { rules, processes: Arc::default(), servers: BTreeMap::new(), listening: JoinSet::new() }
    }

    /// The port at which a server can be called from now on.
    pub(crate) async fn before(&mut self, server: &str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let at = Arc::new(AtomicU16::new(0));
        self.servers.insert(server.to_owned(), at.clone());
        let (rules, processes, server) = (self.rules.clone(), self.processes.clone(), server.to_owned());
        self.listening.spawn(async move {
            while let Ok((client, from)) = listener.accept().await {
                let (rules, processes) = (rules.subscribe(), processes.clone());
                let (server, at) = (server.clone(), at.load(Ordering::SeqCst));
                tokio::spawn(async move {
                    let known = processes.lock().unwrap().clone();
                    let caller = task::spawn_blocking(move || caller(from.port(), &known)).await.unwrap();
                    let Ok(upstream) = TcpStream::connect(("127.0.0.1", at)).await else { return };
                    connect(client, upstream, (caller, server), rules).await;
                });
            }
        });
        port
    }

    /// Where a server listens from now on.
    pub(crate) fn listens(&self, server: &str, port: u16) {
        self.servers[server].store(port, Ordering::SeqCst);
    }

    /// Which process a capture is from now on.
    pub(crate) fn runs_as(&self, capture: &str, pid: u32) {
        self.processes.lock().unwrap().insert(capture.to_owned(), pid);
    }

    /// Holds back what one says to the other.
    pub(crate) fn hold(&self, from: &str, to: &str) {
        self.rules.send_modify(|rules| {
            rules.held.insert((from.to_owned(), to.to_owned()));
        });
    }

    /// Lets everything of a capture and to it pass again; `late`: also what was held back, or else connections are reset.
    pub(crate) fn heal(&self, capture: &str, late: bool) {
        self.rules.send_modify(|rules| {
            let healed: Vec<_> = rules.held.extract_if(.., |(from, to)| from == capture || to == capture).collect();
            for (from, to) in healed.into_iter().filter(|_| !late) {
                *rules.resets.entry((from.clone(), to.clone())).or_default() += 1;
                *rules.resets.entry((to, from)).or_default() += 1;
            }
        });
    }
}

/// Which of these processes has a connection that begins at a port of this machine.
fn caller(port: u16, processes: &BTreeMap<String, u32>) -> String {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let begin = format!("0100007F:{port:04X}");
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let Some(inode) = row.filter(|row| row.get(1) == Some(&begin.as_str())).find_map(|row| row.get(9).copied()) else {
        return OUTSIDE.to_owned();
    };
    let socket = format!("socket:[{inode}]");
    let owns = |pid: u32| open_files(pid).contains(&socket);
    processes.iter().find(|(_, pid)| owns(**pid)).map_or(OUTSIDE, |(name, _)| name).to_owned()
}

/// What a process has open, as the kernel names it.
pub(crate) fn open_files(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.map(|path| path.to_string_lossy().into_owned()).collect()
}

/// Passes bytes on until one end closes, or the connection is reset.
async fn connect(client: TcpStream, server: TcpStream, way: Direction, rules: watch::Receiver<Rules>) {
    let back = (way.1.clone(), way.0.clone());
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let resets = move |rules: &Rules, way: &Direction| rules.resets.get(way).copied().unwrap_or_default();
    let before = resets(&rules.borrow(), &way);
    let mut watched = rules.clone();
    tokio::select! {
        () = pass(from_client, to_server, &way, rules.clone()) => {}
        () = pass(from_server, to_client, &back, rules) => {}
        _ = watched.wait_for(|rules| resets(rules, &way) > before) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: &Direction, mut rules: watch::Receiver<Rules>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if rules.wait_for(|rules| !rules.held.contains(way)).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // The end of a connection is held like anything else.
    let _ = rules.wait_for(|rules| !rules.held.contains(way)).await;
}

#[cfg(test)]
mod tests {
    use std::{process, time::Duration};

    use tokio::time;

    use super::*;

    /// Whether a line arrives there and back.
    async fn says(stream: &mut TcpStream, limit: Duration) -> bool {
        let mut answer = [0; 3];
        stream.write_all(b"hey").await.is_ok()
            && matches!(time::timeout(limit, stream.read_exact(&mut answer)).await, Ok(Ok(_)))
    }

    #[tokio::test]
    async fn two_are_parted_and_others_are_not() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut wires = Wires::new();
        let port = wires.before("there").await;
        wires.listens("there", echo.local_addr().unwrap().port());
        tokio::spawn(async move {
            while let Ok((stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let (long, short) = (Duration::from_secs(30), Duration::from_millis(50));
        let mut outside = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert!(says(&mut outside, long).await);
        wires.runs_as("here", process::id());
        let mut here = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert!(says(&mut here, long).await);
        for (from, to) in [("here", "there"), ("there", "here")] {
            wires.hold(from, to);
            assert!(!says(&mut here, short).await, "{from} to {to}");
            assert!(says(&mut outside, long).await);
            wires.heal("here", true);
            let mut late = [0; 3];
            time::timeout(long, here.read_exact(&mut late)).await.unwrap().unwrap();
        }
        wires.hold("here", "there");
        assert!(!says(&mut here, short).await);
        wires.heal("here", false);
        assert!(matches!(time::timeout(long, here.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)), "a reset");
        assert!(says(&mut outside, long).await);
    }
}
