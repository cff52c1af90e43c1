//! Messages between captures, to the wire and back. What cannot be read is refused whole.

use std::sync::Arc;

use capturedrain_core::model::{
    Body, CaptureId, ChangefeedConfig, ChangefeedEpoch, ChangefeedId, Command, DispatcherFate, DispatcherNews,
    DrainEpoch, DrainNotice, DrainState, Envelope, Heartbeat, HostedDispatcher, Incarnation, Liveness, NewDispatcher,
    NodeEpoch, Order, Span, SpanId, Stamp, Status, Term, WriterEpoch,
};

use super::{
    pb,
    report::{decode_report, encode_report},
};

/// A message that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the field {0} is missing or makes no sense")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A field that has to be there.
pub(super) fn need<T>(value: Option<T>, field: &'static str) -> Result<T, Malformed> {
    value.ok_or(Malformed(field))
}

pub(super) fn capture(id: &str) -> Result<CaptureId, Malformed> {
    CaptureId::new(id).map_err(|_| Malformed("capture"))
}

pub(super) fn changefeed(id: &str) -> Result<ChangefeedId, Malformed> {
    ChangefeedId::new(id).map_err(|_| Malformed("changefeed"))
}

fn each<T, U>(values: Vec<T>, decode: impl FnMut(T) -> Result<U, Malformed>) -> Result<Vec<U>, Malformed> {
    values.into_iter().map(decode).collect()
}

pub(super) fn encode_incarnation(who: &Incarnation) -> pb::Incarnation {
    pb::Incarnation { capture: who.capture.to_string(), node_epoch: who.node_epoch.0 }
}

fn decode_incarnation(who: Option<pb::Incarnation>) -> Result<Incarnation, Malformed> {
    let who = need(who, "incarnation")?;
    Ok(Incarnation { capture: capture(&who.capture)?, node_epoch: NodeEpoch(who.node_epoch) })
}

pub(super) fn encode_stamp(stamp: Stamp) -> pb::Stamp {
    pb::Stamp { term: stamp.term.0, version: stamp.version }
}

pub(super) fn decode_stamp(stamp: Option<pb::Stamp>) -> Stamp {
    let stamp = stamp.unwrap_or_default();
    Stamp { term: Term(stamp.term), version: stamp.version }
}

pub(super) fn encode_liveness(liveness: Liveness) -> pb::Liveness {
    match liveness {
        Liveness::Alive => pb::Liveness::Alive,
        Liveness::Draining => pb::Liveness::Draining,
        Liveness::Stopping => pb::Liveness::Stopping,
    }
}

fn decode_liveness(liveness: i32) -> Result<Liveness, Malformed> {
    match pb::Liveness::try_from(liveness) {
        Ok(pb::Liveness::Alive) => Ok(Liveness::Alive),
        Ok(pb::Liveness::Draining) => Ok(Liveness::Draining),
        Ok(pb::Liveness::Stopping) => Ok(Liveness::Stopping),
        _ => Err(Malformed("liveness")),
    }
}

fn encode_writer(writer: WriterEpoch) -> pb::WriterEpoch {
    pb::WriterEpoch { changefeed: writer.changefeed.0, counter: writer.counter }
}

fn decode_writer(writer: Option<pb::WriterEpoch>) -> Result<WriterEpoch, Malformed> {
    let writer = need(writer, "writer_epoch")?;
    Ok(WriterEpoch { changefeed: ChangefeedEpoch(writer.changefeed), counter: writer.counter })
}

fn encode_config(config: &ChangefeedConfig) -> pb::ChangefeedConfig {
    pb::ChangefeedConfig {
        source: config.source.to_string(),
        sink: config.sink.to_string(),
        start_ts: config.start_ts,
        span_max_keys: config.span_max_keys,
    }
}

fn decode_config(config: Option<pb::ChangefeedConfig>) -> Result<Arc<ChangefeedConfig>, Malformed> {
    let config = need(config, "config")?;
    Ok(Arc::new(ChangefeedConfig {
        source: config.source.into(),
        sink: config.sink.into(),
        start_ts: config.start_ts,
        span_max_keys: config.span_max_keys,
    }))
}

fn encode_span(span: &Span) -> pb::Span {
    pb::Span { table: span.table.to_string(), start: span.start.to_vec(), end: span.end.to_vec() }
}

fn decode_span(span: Option<pb::Span>) -> Result<Span, Malformed> {
    let span = need(span, "span")?;
    Ok(Span { table: span.table.into(), start: span.start.into(), end: span.end.into() })
}

/// A message as it is sent.
pub(super) fn encode(envelope: &Envelope) -> pb::Envelope {
    let body = match &envelope.body {
        Body::Command { term, command } => {
            pb::envelope::Body::Command(pb::Command { term: term.0, what: Some(encode_command(command)) })
        }
        Body::Report { term, report } => pb::envelope::Body::Report(encode_report(*term, report)),
        Body::Order { changefeed, epoch, order } => pb::envelope::Body::Order(pb::Order {
            changefeed: changefeed.to_string(),
            epoch: epoch.0,
            what: Some(encode_order(order)),
        }),
        Body::Status { changefeed, epoch, status } => pb::envelope::Body::Status(pb::Status {
            changefeed: changefeed.to_string(),
            epoch: epoch.0,
            what: Some(encode_status(status)),
        }),
    };
    pb::Envelope {
        from: Some(encode_incarnation(&envelope.from)),
        to: Some(encode_incarnation(&envelope.to)),
        body: Some(body),
    }
}

/// A message as it came.
pub(super) fn decode(envelope: pb::Envelope) -> Result<Envelope, Malformed> {
    let body = match need(envelope.body, "body")? {
        pb::envelope::Body::Command(command) => {
            Body::Command { term: Term(command.term), command: decode_command(need(command.what, "command")?)? }
        }
        pb::envelope::Body::Report(report) => {
            Body::Report { term: Term(report.term), report: Box::new(decode_report(report)?) }
        }
        pb::envelope::Body::Order(order) => Body::Order {
            changefeed: changefeed(&order.changefeed)?,
            epoch: ChangefeedEpoch(order.epoch),
            order: decode_order(need(order.what, "order")?)?,
        },
        pb::envelope::Body::Status(status) => Body::Status {
            changefeed: changefeed(&status.changefeed)?,
            epoch: ChangefeedEpoch(status.epoch),
            status: decode_status(need(status.what, "status")?)?,
        },
    };
    Ok(Envelope { from: decode_incarnation(envelope.from)?, to: decode_incarnation(envelope.to)?, body })
}

fn encode_command(command: &Command) -> pb::command::What {
    let placed = |changefeed: &ChangefeedId, epoch: &ChangefeedEpoch| pb::Placed {
        changefeed: changefeed.to_string(),
        epoch: epoch.0,
    };
    match command {
        Command::Heartbeat(heartbeat) => pb::command::What::Heartbeat(encode_heartbeat(heartbeat)),
        Command::StartMaintainer { changefeed, epoch, place_revision, config } => {
            pb::command::What::StartMaintainer(pb::StartMaintainer {
                changefeed: changefeed.to_string(),
                epoch: epoch.0,
                place_revision: *place_revision,
                config: Some(encode_config(config)),
            })
        }
        Command::StopMaintainer { changefeed, epoch } => pb::command::What::StopMaintainer(placed(changefeed, epoch)),
        Command::StopDispatchers { changefeed, epoch } => pb::command::What::StopDispatchers(placed(changefeed, epoch)),
        Command::Release => pb::command::What::Release(pb::Release {}),
    }
}

fn decode_command(command: pb::command::What) -> Result<Command, Malformed> {
    let placed = |placed: &pb::Placed| Ok((changefeed(&placed.changefeed)?, ChangefeedEpoch(placed.epoch)));
    Ok(match command {
        pb::command::What::Heartbeat(heartbeat) => Command::Heartbeat(Box::new(decode_heartbeat(heartbeat)?)),
        pb::command::What::StartMaintainer(start) => Command::StartMaintainer {
            changefeed: changefeed(&start.changefeed)?,
            epoch: ChangefeedEpoch(start.epoch),
            place_revision: start.place_revision,
            config: decode_config(start.config)?,
        },
        pb::command::What::StopMaintainer(stop) => {
            let (changefeed, epoch) = placed(&stop)?;
            Command::StopMaintainer { changefeed, epoch }
        }
        pb::command::What::StopDispatchers(stop) => {
            let (changefeed, epoch) = placed(&stop)?;
            Command::StopDispatchers { changefeed, epoch }
        }
        pb::command::What::Release(_) => Command::Release,
    })
}

fn encode_heartbeat(heartbeat: &Heartbeat) -> pb::Heartbeat {
    let state = &heartbeat.state;
    let member = |(id, (node_epoch, liveness)): (&CaptureId, &(NodeEpoch, Liveness))| pb::Member {
        capture: Some(pb::Incarnation { capture: id.to_string(), node_epoch: node_epoch.0 }),
        liveness: encode_liveness(*liveness).into(),
    };
    pb::Heartbeat {
        state: Some(pb::DrainState {
            stamp: Some(encode_stamp(state.stamp)),
            last_epoch: state.last_epoch.0,
            drain: state
                .drain
                .as_ref()
                .map(|drain| pb::DrainNotice { epoch: drain.epoch.0, target: Some(encode_incarnation(&drain.target)) }),
            captures: state.captures.iter().map(member).collect(),
            avoid: state.avoid.iter().map(ToString::to_string).collect(),
        }),
        destinations: heartbeat.destinations.iter().map(encode_incarnation).collect(),
        shares: heartbeat.shares.iter().map(|(id, share)| (id.to_string(), *share)).collect(),
        balance: heartbeat.balance,
        beat: heartbeat.beat,
        newcomers: heartbeat.newcomers.iter().map(encode_incarnation).collect(),
    }
}

fn decode_heartbeat(heartbeat: pb::Heartbeat) -> Result<Heartbeat, Malformed> {
    let state = need(heartbeat.state, "state")?;
    let drain = state
        .drain
        .map(|drain| Ok(DrainNotice { epoch: DrainEpoch(drain.epoch), target: decode_incarnation(drain.target)? }));
    let members = each(state.captures, |member| {
        let who = decode_incarnation(member.capture)?;
        Ok((who.capture, (who.node_epoch, decode_liveness(member.liveness)?)))
    });
    Ok(Heartbeat {
        state: DrainState {
            stamp: decode_stamp(state.stamp),
            last_epoch: DrainEpoch(state.last_epoch),
            drain: drain.transpose()?,
            captures: members?.into_iter().collect(),
            avoid: each(state.avoid, |id| capture(&id))?,
        },
        destinations: each(heartbeat.destinations, |who| decode_incarnation(Some(who)))?,
        shares: heartbeat
            .shares
            .into_iter()
            .map(|(id, share)| Ok((changefeed(&id)?, share)))
            .collect::<Result<_, Malformed>>()?,
        balance: heartbeat.balance,
        beat: heartbeat.beat,
        newcomers: each(heartbeat.newcomers, |who| decode_incarnation(Some(who)))?,
    })
}

fn encode_order(order: &Order) -> pb::order::What {
    match order {
        Order::Bootstrap { config } => pb::order::What::Bootstrap(encode_config(config)),
        Order::Create { config, dispatchers } => pb::order::What::Create(pb::Create {
            config: Some(encode_config(config)),
            dispatchers: dispatchers
                .iter()
                .map(|new| pb::NewDispatcher {
                    span: Some(encode_span(&new.span)),
                    writer_epoch: Some(encode_writer(new.writer_epoch)),
                    start_ts: new.start_ts,
                })
                .collect(),
        }),
        Order::Stop(dispatchers) => pb::order::What::Stop(pb::Stop {
            dispatchers: dispatchers.iter().map(|(span, writer)| encode_ref(*span, *writer)).collect(),
        }),
    }
}

fn decode_order(order: pb::order::What) -> Result<Order, Malformed> {
    Ok(match order {
        pb::order::What::Bootstrap(config) => Order::Bootstrap { config: decode_config(Some(config))? },
        pb::order::What::Create(create) => Order::Create {
            config: decode_config(create.config)?,
            dispatchers: each(create.dispatchers, |new| {
                Ok(NewDispatcher {
                    span: decode_span(new.span)?,
                    writer_epoch: decode_writer(new.writer_epoch)?,
                    start_ts: new.start_ts,
                })
            })?,
        },
        pb::order::What::Stop(stop) => {
            Order::Stop(each(stop.dispatchers, |of| Ok((SpanId(of.span), decode_writer(of.writer_epoch)?)))?)
        }
    })
}

fn encode_ref(span: SpanId, writer_epoch: WriterEpoch) -> pb::DispatcherRef {
    pb::DispatcherRef { span: span.0, writer_epoch: Some(encode_writer(writer_epoch)) }
}

fn encode_status(status: &Status) -> pb::status::What {
    match status {
        Status::Inventory { answer, part, parts, dispatchers } => pb::status::What::Inventory(pb::Inventory {
            answer: *answer,
            part: *part,
            parts: *parts,
            dispatchers: dispatchers
                .iter()
                .map(|hosted| pb::HostedDispatcher {
                    span: Some(encode_span(&hosted.span)),
                    writer_epoch: Some(encode_writer(hosted.writer_epoch)),
                    checkpoint_ts: hosted.checkpoint_ts,
                    stopping: hosted.stopping,
                })
                .collect(),
        }),
        Status::Progress(news) => pb::status::What::Progress(pb::Progress {
            news: news
                .iter()
                .map(|news| pb::DispatcherNews {
                    dispatcher: Some(encode_ref(news.span, news.writer_epoch)),
                    what: Some(encode_fate(&news.what)),
                })
                .collect(),
        }),
    }
}

fn decode_status(status: pb::status::What) -> Result<Status, Malformed> {
    Ok(match status {
        pb::status::What::Inventory(inventory) => Status::Inventory {
            answer: inventory.answer,
            part: inventory.part,
            parts: inventory.parts,
            dispatchers: each(inventory.dispatchers, |hosted| {
                Ok(HostedDispatcher {
                    span: decode_span(hosted.span)?,
                    writer_epoch: decode_writer(hosted.writer_epoch)?,
                    checkpoint_ts: hosted.checkpoint_ts,
                    stopping: hosted.stopping,
                })
            })?,
        },
        pb::status::What::Progress(progress) => Status::Progress(each(progress.news, |news| {
            let of = need(news.dispatcher, "dispatcher")?;
            Ok(DispatcherNews {
                span: SpanId(of.span),
                writer_epoch: decode_writer(of.writer_epoch)?,
                what: decode_fate(need(news.what, "news")?),
            })
        })?),
    })
}

fn encode_fate(fate: &DispatcherFate) -> pb::dispatcher_news::What {
    match fate {
        DispatcherFate::Working { checkpoint_ts, split_at } => pb::dispatcher_news::What::Working(pb::Working {
            checkpoint_ts: *checkpoint_ts,
            split_at: split_at.as_ref().map(|at| at.to_vec()),
        }),
        DispatcherFate::Stopped { checkpoint_ts } => {
            pb::dispatcher_news::What::Stopped(pb::Stopped { checkpoint_ts: *checkpoint_ts })
        }
        DispatcherFate::Refused => pb::dispatcher_news::What::Refused(pb::Refused {}),
        DispatcherFate::Failed { error, fatal, outranked_by } => {
            let outranked_by = outranked_by.map(|epoch| epoch.0);
            pb::dispatcher_news::What::Failed(pb::Failed { error: error.clone(), fatal: *fatal, outranked_by })
        }
    }
}

fn decode_fate(fate: pb::dispatcher_news::What) -> DispatcherFate {
    match fate {
        pb::dispatcher_news::What::Working(working) => {
            DispatcherFate::Working { checkpoint_ts: working.checkpoint_ts, split_at: working.split_at.map(Into::into) }
        }
        pb::dispatcher_news::What::Stopped(stopped) => DispatcherFate::Stopped { checkpoint_ts: stopped.checkpoint_ts },
        pb::dispatcher_news::What::Refused(_) => DispatcherFate::Refused,
        pb::dispatcher_news::What::Failed(failed) => {
            let outranked_by = failed.outranked_by.map(ChangefeedEpoch);
            DispatcherFate::Failed { error: failed.error, fatal: failed.fatal, outranked_by }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::collections::BTreeMap;

    use capturedrain_core::model::{MaintainerPhase, MaintainerReport, Report, WorkCount};

    use super::*;

    fn who(id: &str, node_epoch: u64) -> Incarnation {
        Incarnation { capture: CaptureId::new(id).unwrap(), node_epoch: NodeEpoch(node_epoch) }
    }

    fn check(body: Body) {
        let sent = Envelope { from: who("a", 1), to: who("b", u64::MAX), body };
        assert_eq!(decode(encode(&sent)), Ok(sent));
    }

    fn config() -> Arc<ChangefeedConfig> {
        Arc::new(ChangefeedConfig { source: "s".into(), sink: "t".into(), start_ts: 3, span_max_keys: 4 })
    }

    fn span() -> Span {
        Span { table: "t".into(), start: [0, 255].as_slice().into(), end: [1].as_slice().into() }
    }

    const WRITER: WriterEpoch = WriterEpoch { changefeed: ChangefeedEpoch(5), counter: 6 };
    const EPOCH: ChangefeedEpoch = ChangefeedEpoch(9);

    #[test]
    fn every_command_comes_back_as_it_was_sent() {
        let feed = changefeed("f").unwrap();
        let state = DrainState {
            stamp: Stamp { term: Term(1), version: 2 },
            last_epoch: DrainEpoch(3),
            drain: Some(DrainNotice { epoch: DrainEpoch(3), target: who("b", 4) }),
            captures: [
                (capture("a").unwrap(), (NodeEpoch(1), Liveness::Alive)),
                (capture("b").unwrap(), (NodeEpoch(4), Liveness::Draining)),
                (capture("c").unwrap(), (NodeEpoch(5), Liveness::Stopping)),
            ]
            .into(),
            avoid: vec![capture("c").unwrap()],
        };
        let heartbeat = Heartbeat {
            state,
            destinations: vec![who("a", 1)],
            shares: [(feed.clone(), 7)].into(),
            balance: true,
            beat: 8,
            newcomers: vec![who("c", 5)],
        };
        let start =
            Command::StartMaintainer { changefeed: feed.clone(), epoch: EPOCH, place_revision: 11, config: config() };
        for command in [
            Command::Heartbeat(Box::new(heartbeat)),
            start,
            Command::StopMaintainer { changefeed: feed.clone(), epoch: EPOCH },
            Command::StopDispatchers { changefeed: feed, epoch: EPOCH },
            Command::Release,
        ] {
            check(Body::Command { term: Term(12), command });
        }
    }

    #[test]
    fn a_report_comes_back_as_it_was_sent() {
        let feed = changefeed("f").unwrap();
        let maintainer = MaintainerReport {
            changefeed: feed.clone(),
            epoch: EPOCH,
            phase: MaintainerPhase::Running,
            stamp: Stamp { term: Term(1), version: 2 },
            checkpoint_ts: 3,
            checkpoint_at_ms: 4,
            dispatchers: Some(BTreeMap::new()),
            in_flight: 5,
            share: 6,
            error: Some("why".to_owned()),
            warning: Some("slow".to_owned()),
            outranked_by: Some(EPOCH),
        };
        let report = Report {
            sequence: 1,
            echo: Stamp { term: Term(2), version: 3 },
            last_epoch: DrainEpoch(4),
            inventory: WorkCount { maintainers: 5, dispatchers: 6 },
            maintainers: vec![MaintainerReport { dispatchers: None, error: None, ..maintainer.clone() }, maintainer],
            ended: [(feed.clone(), EPOCH)].into(),
            dispatchers: [(feed, (7, EPOCH))].into(),
        };
        check(Body::Report { term: Term(8), report: Box::new(report) });
    }

    #[test]
    fn every_order_and_status_comes_back_as_it_was_sent() {
        let changefeed = changefeed("f").unwrap();
        let new = NewDispatcher { span: span(), writer_epoch: WRITER, start_ts: 2 };
        for order in [
            Order::Bootstrap { config: config() },
            Order::Create { config: config(), dispatchers: vec![new] },
            Order::Stop(vec![(SpanId(u64::MAX), WRITER)]),
        ] {
            check(Body::Order { changefeed: changefeed.clone(), epoch: EPOCH, order });
        }
        let hosted = HostedDispatcher { span: span(), writer_epoch: WRITER, checkpoint_ts: 1, stopping: true };
        let fates = [
            DispatcherFate::Working { checkpoint_ts: 1, split_at: Some([7].as_slice().into()) },
            DispatcherFate::Stopped { checkpoint_ts: None },
            DispatcherFate::Stopped { checkpoint_ts: Some(0) },
            DispatcherFate::Refused,
            DispatcherFate::Failed { error: "why".to_owned(), fatal: true, outranked_by: Some(EPOCH) },
        ];
        let news = fates.map(|what| DispatcherNews { span: SpanId(1), writer_epoch: WRITER, what });
        for status in [
            Status::Inventory { answer: 3, part: 1, parts: 2, dispatchers: vec![hosted] },
            Status::Progress(news.into()),
        ] {
            check(Body::Status { changefeed: changefeed.clone(), epoch: EPOCH, status });
        }
    }

    #[test]
    fn a_message_without_an_address_is_refused() {
        assert_eq!(decode(pb::Envelope::default()), Err(Malformed("body")));
    }
}
