//! `capturedrain changefeed …`: what is replicated.

use capturedrain_core::model::ChangefeedId;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Common,
    exit::{Exit, Failure},
    say,
    table::{known, table, time},
};
use crate::view::{ChangefeedView, NewChangefeed};

#[derive(Debug, Subcommand)]
pub(super) enum ChangefeedCommand {
    Create(CreateArgs),
    /// List the changefeeds
    List,
    /// Show one changefeed
    Get(IdArg),
    /// Stop its work and keep its position
    Pause(IdArg),
    /// Let a paused or failed one go on from its position
    Resume(IdArg),
    /// Remove it and its position; what is in the sink stays
    Delete(IdArg),
}

/// Create a changefeed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  capturedrain changefeed create --id orders \\
    --source etcd://127.0.0.1:2379/shop/ --sink file:///var/lib/orders
  capturedrain changefeed create --id load \\
    --source 'synthetic://?tables=100&rate=1000' --sink blackhole://

Sources:
  etcd://HOST:PORT[,HOST:PORT…]/PREFIX
  synthetic://?tables=8&rate=100&keys=1000&seed=1&value_bytes=16
Sinks:
  file:///FOLDER
  etcd://HOST:PORT[,HOST:PORT…]/PREFIX    a mirror
  blackhole://[?latency_ms=20]            counts, and keeps nothing")]
pub(super) struct CreateArgs {
    /// Its name
    #[arg(long, env = "CAPTUREDRAIN_CHANGEFEED")]
    id: ChangefeedId,
    /// What to replicate
    #[arg(long, env = "CAPTUREDRAIN_SOURCE", value_name = "URL")]
    source: String,
    /// Where to
    #[arg(long, env = "CAPTUREDRAIN_SINK", value_name = "URL")]
    sink: String,
    /// Commit timestamp after which it starts [default: with a snapshot of what is there; synthetic: now]
    #[arg(long, env = "CAPTUREDRAIN_START_TS", value_name = "TS")]
    start_ts: Option<u64>,
    /// Split a span that has more keys than this; 0: never
    #[arg(long, env = "CAPTUREDRAIN_SPAN_MAX_KEYS", value_name = "N", default_value_t = 0)]
    span_max_keys: u64,
}

#[derive(Debug, Args)]
pub(super) struct IdArg {
    /// Its name
    id: ChangefeedId,
}

pub(super) async fn run(command: ChangefeedCommand, common: &Common) -> Result<Exit, Failure> {
    let client = common.client()?;
    let (id, done) = match command {
        ChangefeedCommand::Create(args) => return create(args, common).await,
        ChangefeedCommand::List => {
            let feeds = client.changefeeds().await?;
            common.print(&feeds, |feeds| list(feeds))?;
            return Ok(Exit::Done);
        }
        ChangefeedCommand::Get(IdArg { id }) => {
            let feed = client.changefeed(&id).await?;
            common.print(&feed, one)?;
            return Ok(Exit::Done);
        }
        ChangefeedCommand::Pause(IdArg { id }) => (client.pause(&id).await.map(|()| id), "paused"),
        ChangefeedCommand::Resume(IdArg { id }) => (client.resume(&id).await.map(|()| id), "resumed"),
        ChangefeedCommand::Delete(IdArg { id }) => (client.delete(&id).await.map(|()| id), "deleted"),
    };
    let id = id?;
    common.print(&json!({ "id": id, "result": done }), |_| format!("{id} is {done}\n"))?;
    Ok(Exit::Done)
}

async fn create(args: CreateArgs, common: &Common) -> Result<Exit, Failure> {
    let new = NewChangefeed {
        id: args.id.to_string(),
        source: args.source,
        sink: args.sink,
        start_ts: args.start_ts,
        span_max_keys: args.span_max_keys,
    };
    let created = common.client()?.create_changefeed(&new).await?;
    for warning in &created.warnings {
        say(&format!("capturedrain: note: {warning}"));
    }
    common.print(&created, |created| match created.start_ts {
        0 => format!("{} is created; it begins with a snapshot\n", created.id),
        start_ts => format!("{} is created; it begins after {start_ts}\n", created.id),
    })?;
    Ok(Exit::Done)
}

fn lag(feed: &ChangefeedView) -> String {
    feed.lag_ms.filter(|_| feed.state == "normal").map_or_else(|| "-".to_owned(), time)
}

/// The state in the words of the commands.
fn state(feed: &ChangefeedView) -> String {
    match feed.state.as_str() {
        "normal" => "running",
        "stopped" => "paused",
        other => other,
    }
    .to_owned()
}

fn list(feeds: &[ChangefeedView]) -> String {
    let row = |feed: &ChangefeedView| {
        [
            feed.id.clone(),
            state(feed),
            lag(feed),
            known(feed.checkpoint_ts),
            feed.maintainer.clone().unwrap_or_else(|| "-".to_owned()),
            feed.dispatchers.values().sum::<u64>().to_string(),
        ]
    };
    let rows: Vec<_> = feeds.iter().map(row).collect();
    table(["CHANGEFEED", "STATE", "LAG", "CHECKPOINT", "MAINTAINER", "DISPATCHERS"], &rows)
}

fn one(feed: &ChangefeedView) -> String {
    let spread: Vec<_> = feed.dispatchers.iter().map(|(capture, count)| format!("{count} on {capture}")).collect();
    let lines = [
        ("id", feed.id.clone()),
        ("state", state(feed)),
        ("warning", feed.warning.clone().unwrap_or_else(|| "-".to_owned())),
        ("error", feed.error.as_ref().map_or_else(|| "-".to_owned(), |error| error.message.clone())),
        ("source", feed.source.clone()),
        ("sink", feed.sink.clone()),
        ("start", feed.start_ts.to_string()),
        (
            "split",
            if feed.span_max_keys == 0 { "never".to_owned() } else { format!("above {} keys", feed.span_max_keys) },
        ),
        ("checkpoint", known(feed.checkpoint_ts)),
        ("lag", lag(feed)),
        ("maintainer", feed.maintainer.clone().unwrap_or_else(|| "-".to_owned())),
        ("dispatchers", if spread.is_empty() { "-".to_owned() } else { spread.join(", ") }),
    ];
    super::lines(&lines)
}
