//! Events in a line each, for people.

use capturedrain_core::{
    model::{Body, Command, Envelope, Order, Status},
    process::Event,
    work::WorkOrder,
};

pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::Message(envelope) => message(envelope),
        Event::Loaded(listing) => format!("listing at {} with {} keys", listing.revision, listing.entries.len()),
        other => format!("{other:?}"),
    }
}

fn message(envelope: &Envelope) -> String {
    let from = &envelope.from.capture;
    match &envelope.body {
        Body::Command { term, command: Command::Heartbeat(beat) } => {
            let to: Vec<_> = beat.destinations.iter().map(|who| who.capture.as_str()).collect();
            let drain = beat.state.drain.as_ref().map(|drain| format!("{} of {}", drain.epoch, drain.target.capture));
            let version = beat.state.stamp.version;
            format!("{from} term {term}: heartbeat {version}, drain {drain:?}, to {to:?}, shares {:?}", beat.shares)
        }
        Body::Command { term, command } => format!("{from} term {term}: {command:?}"),
        Body::Report { term, report } => format!(
            "{from} term {term}: report {} echo {}.{} {:?} maintainers {:?}",
            report.sequence,
            report.echo.term,
            report.echo.version,
            report.inventory,
            report
                .maintainers
                .iter()
                .map(|m| (m.changefeed.as_str(), m.epoch.0, m.phase, m.dispatchers.as_ref(), m.in_flight))
                .collect::<Vec<_>>()
        ),
        Body::Order { changefeed, epoch, order } => {
            let text = match order {
                Order::Bootstrap { .. } => "bootstrap".to_owned(),
                Order::Create { dispatchers, .. } => {
                    let spans: Vec<_> =
                        dispatchers.iter().map(|d| format!("{}@{}", d.span.table, d.writer_epoch)).collect();
                    format!("create {spans:?}")
                }
                Order::Stop(spans) => format!("stop {spans:?}"),
            };
            format!("{from} {changefeed} epoch {epoch}: {text}")
        }
        Body::Status { changefeed, epoch, status } => {
            let text = match status {
                Status::Inventory { dispatchers, .. } => format!("inventory of {}", dispatchers.len()),
                Status::Progress(news) => format!("progress {news:?}"),
            };
            format!("{from} {changefeed} epoch {epoch}: {text}")
        }
    }
}

pub(crate) fn work(order: &WorkOrder) -> String {
    match order {
        WorkOrder::StartDispatcher { key, span, start_ts, .. } => {
            format!("start {} {} {} from {start_ts}", key.changefeed, span.table, key.writer_epoch)
        }
        other => format!("{other:?}"),
    }
}
