//! `check`: is everything there that a drain needs?

use clap::Args;

use super::Way;
use crate::{
    cli::{
        Printing,
        exit::{Exit, Failure},
        signals::Signals,
        table::table,
    },
    plugin::{Fault, Finding, Level, Wanted, facts, findings},
};

/// Say whether everything is there that a drain needs, and what to do when it is not
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl capturedrain check
  kubectl capturedrain check --service cdc --tls-secret cdc-client
  kubectl capturedrain check -o json | jq '.[] | select(.level == \"failure\")'

Exit codes, that of the first failure:
    0  nothing fails; there may be warnings
    3  something is missing: the CRD, an operator, a Service, a Secret
    5  the API server does not answer, or nobody is behind the Service
   10  rights are missing, or a certificate has expired
   12  something is no good: an old API server, an unclear port, damaged
       certificates, a single capture, a budget that allows nothing")]
pub(super) struct CheckArgs {
    /// Service of the captures [default: all that `CaptureDrain`s of the namespace name]
    #[arg(long, env = "CAPTUREDRAIN_SERVICE", value_name = "NAME")]
    service: Option<String>,
    /// Secret with which they are called [default: the one that `CaptureDrain`s name]
    #[arg(long, env = "CAPTUREDRAIN_TLS_SECRET", value_name = "NAME", requires = "service")]
    tls_secret: Option<String>,
}

pub(super) async fn run(args: CheckArgs, way: &Way, printing: &Printing) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let looked = async {
        let (client, namespace) = way.open().await?;
        let wanted = Wanted { namespace, service: args.service, tls_secret: args.tls_secret };
        Ok::<_, Failure>(findings(&facts(&client, &wanted).await?))
    };
    let found = tokio::select! {
        found = looked => found?,
        exit = signals.next() => return Ok(exit),
    };
    printing.print(&found, |found| text(found))?;
    Ok(exit(&found))
}

pub(in crate::cli) fn text(found: &[Finding]) -> String {
    let rows = found
        .iter()
        .map(|finding| [finding.level.as_str().to_owned(), finding.check.to_owned(), finding.message.clone()]);
    let rows: Vec<_> = rows.collect();
    let is = |wanted: fn(Level) -> bool| found.iter().filter(|finding| wanted(finding.level)).count();
    let failures = is(|level| matches!(level, Level::Failure(_)));
    let (warnings, skipped) = (is(|level| level == Level::Warning), is(|level| level == Level::Skipped));
    let table = table(["LEVEL", "CHECK", "WHAT"], &rows);
    format!("{table}\n{failures} failed, {warnings} to be looked at, {skipped} could not be checked from here\n")
}

/// That of the first failure.
pub(in crate::cli) fn exit(found: &[Finding]) -> Exit {
    let fault = found.iter().find_map(|finding| match finding.level {
        Level::Failure(fault) => Some(fault),
        Level::Ok | Level::Skipped | Level::Warning => None,
    });
    match fault {
        None => Exit::Done,
        Some(Fault::NotFound) => Exit::NotFound,
        Some(Fault::Unreachable) => Exit::Unreachable,
        Some(Fault::Unauthorised) => Exit::Unauthorised,
        Some(Fault::Environment) => Exit::Environment,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(level: Level) -> Finding {
        Finding { check: "x", level, message: "y".to_owned() }
    }

    #[test]
    fn the_first_failure_is_the_exit_code() {
        let check = |levels: &[Level], expected| {
            let found: Vec<_> = levels.iter().copied().map(finding).collect();
            assert_eq!(exit(&found), expected, "{levels:?}");
        };
        check(&[Level::Ok, Level::Warning, Level::Skipped], Exit::Done);
        let (missing, closed) = (Level::Failure(Fault::NotFound), Level::Failure(Fault::Unauthorised));
        check(&[Level::Warning, missing, closed], Exit::NotFound);
        check(&[closed, missing], Exit::Unauthorised);
        check(&[Level::Failure(Fault::Environment)], Exit::Environment);
        check(&[Level::Failure(Fault::Unreachable)], Exit::Unreachable);
    }

    #[test]
    fn the_last_line_counts() {
        let found = [finding(Level::Ok), finding(Level::Warning), finding(Level::Failure(Fault::NotFound))];
        let text = text(&found);
        assert!(text.ends_with("\n1 failed, 1 to be looked at, 0 could not be checked from here\n"), "{text}");
    }
}
