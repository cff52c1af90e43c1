//! `capturedrain server`

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use capturedrain_core::model::{CaptureId, Options};
use clap::Args;

use super::{
    Common,
    exit::{Exit, Failure},
    tls::EtcdArgs,
    value,
};
use crate::{
    node::{Ending, ServeConfig, serve},
    store::AnyStore,
};

/// Run a capture, or several on one machine.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Name of the cluster; captures of one cluster share a store
    #[arg(long, env = "CAPTUREDRAIN_CLUSTER", default_value = "default")]
    cluster: CaptureId,
    /// Where its state is persisted: `etcd://HOST:PORT[,HOST:PORT…]`, or `embedded:PATH` for one machine
    #[arg(long, env = "CAPTUREDRAIN_STORE")]
    store: String,
    /// Address to listen on; with --captures the port counts up
    #[arg(long, env = "CAPTUREDRAIN_ADDR", default_value = "127.0.0.1:8300", value_name = "HOST:PORT")]
    addr: SocketAddr,
    /// Listen on another address than loopback, although nothing is encrypted and nobody is asked who he is
    #[arg(long, env = "CAPTUREDRAIN_INSECURE")]
    insecure: bool,
    /// Address at which others reach it; with --captures the port counts up [default: --addr]
    #[arg(long, env = "CAPTUREDRAIN_ADVERTISE_ADDR", value_name = "HOST:PORT", value_parser = value::reachable)]
    advertise_addr: Option<String>,
    /// Name of the capture [default: `capture-` and its port]
    #[arg(long, env = "CAPTUREDRAIN_ID")]
    id: Option<CaptureId>,
    /// How many captures this process runs; more than one need the embedded store
    #[arg(long, env = "CAPTUREDRAIN_CAPTURES", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    captures: u16,
    /// Its Kubernetes pod
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// That pod's UID
    #[arg(long, env = "POD_UID")]
    pod_uid: Option<String>,
    /// Free labels
    #[arg(long = "label", env = "CAPTUREDRAIN_LABELS", value_name = "KEY=VALUE", value_parser = value::label, value_delimiter = ',')]
    labels: Vec<(String, String)>,
    /// How long SIGTERM waits for this capture to be drained
    #[arg(long, env = "CAPTUREDRAIN_SHUTDOWN_TIMEOUT", default_value = "10m", value_parser = value::duration)]
    shutdown_timeout: Duration,
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(flatten)]
    tuning: Tuning,
}

/// How the cluster behaves: every capture should have the same.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tuning (the same on every capture)")]
struct Tuning {
    /// Time to live of a capture's lease
    #[arg(long, env = "CAPTUREDRAIN_LEASE", default_value = "10s", value_parser = value::duration)]
    lease: Duration,
    /// Interval of the coordinator's heartbeats
    #[arg(long, env = "CAPTUREDRAIN_HEARTBEAT", default_value = "1s", value_parser = value::duration)]
    heartbeat: Duration,
    /// How long balance rests after a drain
    #[arg(long, env = "CAPTUREDRAIN_BALANCE_COOLDOWN", default_value = "30s", value_parser = value::duration)]
    balance_cooldown: Duration,
    /// First time-out of a move; it doubles with each retry, up to 5 min
    #[arg(long, env = "CAPTUREDRAIN_MOVE_TIMEOUT", default_value = "30s", value_parser = value::duration)]
    move_timeout: Duration,
    /// After which a `Stopping` capture that lives on registers anew
    #[arg(long, env = "CAPTUREDRAIN_STOPPING_TIMEOUT", default_value = "10m", value_parser = value::duration)]
    stopping_timeout: Duration,
    /// How many ended drains are kept
    #[arg(long, env = "CAPTUREDRAIN_HISTORY", default_value_t = 100)]
    history: usize,
    /// How many maintainers may be on the move at once
    #[arg(long, env = "CAPTUREDRAIN_DRAIN_MAINTAINER_BATCH_SIZE", default_value_t = 10)]
    drain_maintainer_batch_size: usize,
    /// How many dispatchers may be on the move at once; 0: the larger of 10 and 1 % of the target's
    #[arg(long, env = "CAPTUREDRAIN_DRAIN_DISPATCHER_BATCH_SIZE", default_value_t = 0)]
    drain_dispatcher_batch_size: usize,
}

impl Tuning {
    fn options(&self) -> Result<Options, Failure> {
        if self.lease < Duration::from_secs(2) {
            return Err(Failure::usage("--lease is below 2 s, which a short pause would lose"));
        }
        if self.heartbeat.is_zero() || self.heartbeat.saturating_mul(3) > self.lease {
            return Err(Failure::usage("--heartbeat has to be above 0 and at most a third of --lease"));
        }
        if self.move_timeout.is_zero() || self.drain_maintainer_batch_size == 0 {
            return Err(Failure::usage("--move-timeout and --drain-maintainer-batch-size have to be above 0"));
        }
        let defaults = Options::default();
        Ok(Options {
            lease: self.lease,
            heartbeat: self.heartbeat,
            balance_cooldown: self.balance_cooldown,
            move_timeout: self.move_timeout,
            move_timeout_max: defaults.move_timeout_max.max(self.move_timeout),
            stopping_timeout: self.stopping_timeout,
            history_max: self.history,
            drain_maintainer_batch_size: self.drain_maintainer_batch_size,
            drain_dispatcher_batch_size: self.drain_dispatcher_batch_size,
        })
    }
}

pub(super) async fn run(args: ServerArgs, common: &Common) -> Result<Exit, Failure> {
    let options = args.tuning.options()?;
    let tls = common.tls.files()?;
    if tls.as_ref().is_some_and(|files| files.identity.is_none()) {
        return Err(Failure::usage("a server that is given --tls-ca needs --tls-cert and --tls-key, too"));
    }
    if tls.is_none() && !args.addr.ip().is_loopback() && !args.insecure {
        let addr = args.addr;
        return Err(Failure::usage(format!(
            "{addr} is not a loopback address, and nothing is encrypted there: give --tls-ca, --tls-cert and --tls-key, \
             or add --insecure if that is meant"
        )));
    }
    if args.addr.ip().is_unspecified() && args.advertise_addr.is_none() {
        let addr = args.addr;
        return Err(Failure::usage(format!(
            "{addr} is every address of this machine, and no other capture could reach it there: say with \
             --advertise-addr HOST:PORT where they can"
        )));
    }
    if args.captures > 1 && !args.store.starts_with("embedded:") {
        return Err(Failure::usage("--captures above 1 needs --store embedded:PATH; with etcd run one process each"));
    }
    if args.captures == 1 && args.store.starts_with("embedded:") {
        tracing::warn!("one capture on an embedded store has no peer: a drain of it has nowhere to go");
    }
    let store = AnyStore::open_with(&args.store, args.cluster.as_str(), args.etcd.files()?).await?;
    let config = ServeConfig {
        cluster: args.cluster.as_str().into(),
        id: args.id,
        addr: args.addr,
        advertise_addr: args.advertise_addr,
        captures: args.captures,
        pod_name: args.pod_name,
        pod_uid: args.pod_uid,
        labels: args.labels.into_iter().collect::<BTreeMap<_, _>>(),
        options,
        shutdown_timeout: args.shutdown_timeout,
        tls,
    };
    Ok(match serve(config, store).await? {
        Ending::Done => Exit::Done,
        Ending::WorkLeft => Exit::Proceeded,
        Ending::Interrupted => Exit::Interrupted,
        Ending::Terminated => Exit::Terminated,
    })
}
