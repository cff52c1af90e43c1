//! A capture's report, to the wire and back.

use capturedrain_core::model::{
    ChangefeedEpoch, DrainEpoch, MaintainerPhase, MaintainerReport, Report, Term, WorkCount,
};

use super::{
    envelope::{Malformed, capture, changefeed, decode_stamp, encode_stamp, need},
    pb,
};

pub(super) fn encode_work(work: WorkCount) -> pb::WorkCount {
    pb::WorkCount { maintainers: work.maintainers, dispatchers: work.dispatchers }
}

pub(super) fn encode_report(term: Term, report: &Report) -> pb::Report {
    pb::Report {
        term: term.0,
        sequence: report.sequence,
        echo: Some(encode_stamp(report.echo)),
        last_epoch: report.last_epoch.0,
        inventory: Some(encode_work(report.inventory)),
        maintainers: report.maintainers.iter().map(encode_maintainer).collect(),
        ended: report.ended.iter().map(|(id, epoch)| (id.to_string(), epoch.0)).collect(),
        dispatchers: report
            .dispatchers
            .iter()
            .map(|(id, (count, epoch))| pb::Hosted { changefeed: id.to_string(), count: *count, epoch: epoch.0 })
            .collect(),
    }
}

pub(super) fn decode_report(report: pb::Report) -> Result<Report, Malformed> {
    let inventory = need(report.inventory, "inventory")?;
    Ok(Report {
        sequence: report.sequence,
        echo: decode_stamp(report.echo),
        last_epoch: DrainEpoch(report.last_epoch),
        inventory: WorkCount { maintainers: inventory.maintainers, dispatchers: inventory.dispatchers },
        maintainers: report.maintainers.into_iter().map(decode_maintainer).collect::<Result<_, _>>()?,
        ended: report
            .ended
            .into_iter()
            .map(|(id, epoch)| Ok((changefeed(&id)?, ChangefeedEpoch(epoch))))
            .collect::<Result<_, Malformed>>()?,
        dispatchers: report
            .dispatchers
            .into_iter()
            .map(|hosted| Ok((changefeed(&hosted.changefeed)?, (hosted.count, ChangefeedEpoch(hosted.epoch)))))
            .collect::<Result<_, Malformed>>()?,
    })
}

fn encode_maintainer(report: &MaintainerReport) -> pb::MaintainerReport {
    let phase = match report.phase {
        MaintainerPhase::Bootstrapping => pb::MaintainerPhase::Bootstrapping,
        MaintainerPhase::Running => pb::MaintainerPhase::Running,
        MaintainerPhase::Stopping => pb::MaintainerPhase::Stopping,
    };
    pb::MaintainerReport {
        changefeed: report.changefeed.to_string(),
        epoch: report.epoch.0,
        phase: phase.into(),
        stamp: Some(encode_stamp(report.stamp)),
        checkpoint_ts: report.checkpoint_ts,
        checkpoint_at_ms: report.checkpoint_at_ms,
        dispatchers: report.dispatchers.as_ref().map(|counts| pb::DispatcherCounts {
            by_capture: counts.iter().map(|(id, count)| (id.to_string(), *count)).collect(),
        }),
        in_flight: report.in_flight,
        share: report.share,
        error: report.error.clone(),
        warning: report.warning.clone(),
        outranked_by: report.outranked_by.map(|epoch| epoch.0),
    }
}

fn decode_maintainer(report: pb::MaintainerReport) -> Result<MaintainerReport, Malformed> {
    let phase = match report.phase() {
        pb::MaintainerPhase::Bootstrapping => MaintainerPhase::Bootstrapping,
        pb::MaintainerPhase::Running => MaintainerPhase::Running,
        pb::MaintainerPhase::Stopping => MaintainerPhase::Stopping,
        pb::MaintainerPhase::Unspecified => return Err(Malformed("phase")),
    };
    let counts = report.dispatchers.map(|counts| {
        counts.by_capture.into_iter().map(|(id, count)| Ok((capture(&id)?, count))).collect::<Result<_, Malformed>>()
    });
    Ok(MaintainerReport {
        changefeed: changefeed(&report.changefeed)?,
        epoch: ChangefeedEpoch(report.epoch),
        phase,
        stamp: decode_stamp(report.stamp),
        checkpoint_ts: report.checkpoint_ts,
        checkpoint_at_ms: report.checkpoint_at_ms,
        dispatchers: counts.transpose()?,
        in_flight: report.in_flight,
        share: report.share,
        error: report.error,
        warning: report.warning,
        outranked_by: report.outranked_by.map(ChangefeedEpoch),
    })
}
