//! The command line: each command ends with an exit code that programs can rely on, and one sentence when it fails.

mod apply;
mod changefeed;
mod demo;
mod drain;
mod exit;
mod progress;
mod server;
mod show;
mod table;
mod tls;
mod value;

use std::{fmt::Write as _, io::Write as _, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use self::exit::{Exit, Failure};
use crate::{client::Client, telemetry, tls::Current};

/// Takes captures out of a change-data-capture cluster without hurting anyone.
#[derive(Debug, Parser)]
#[command(name = "capturedrain", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub(super) struct Common {
    /// Captures to ask, any of the cluster
    #[arg(
        long,
        global = true,
        env = "CAPTUREDRAIN_SERVER",
        value_name = "URL[,URL…]",
        value_delimiter = ',',
        default_value = "127.0.0.1:8300"
    )]
    server: Vec<String>,
    #[command(flatten)]
    tls: tls::TlsArgs,
    /// How results are printed
    #[arg(long, short, global = true, env = "CAPTUREDRAIN_OUTPUT", value_enum, default_value_t = Format::Table)]
    output: Format,
    /// What is logged to standard error, such as `info` or `capturedrain=debug`
    #[arg(long, global = true, env = "CAPTUREDRAIN_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look
    #[arg(long, global = true, env = "CAPTUREDRAIN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Server(Box<server::ServerArgs>),
    Drain(drain::DrainArgs),
    Cancel(drain::CancelArgs),
    Release(drain::ReleaseArgs),
    Status(show::StatusArgs),
    /// List the captures: who is there, who coordinates, what each has
    Captures,
    /// List the drains that have ended, oldest first
    History,
    /// Say what is replicated
    #[command(subcommand)]
    Changefeed(changefeed::ChangefeedCommand),
    Apply(apply::ApplyArgs),
    /// Print the custom resource definition
    Crd,
    /// Print the description of the HTTP API, an `OpenAPI` document
    Openapi,
    Demo(demo::DemoArgs),
}

impl Common {
    fn client(&self) -> Result<Client, Failure> {
        let credentials = self.tls.files()?.map(|files| Current::fixed(&files)).transpose()?;
        Ok(Client::with_credentials(&self.server, credentials)?)
    }

    /// Prints a result: as JSON, or as `people` have it.
    fn print<T: Serialize>(&self, value: &T, people: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let text = match self.output {
            Format::Table => people(value),
            Format::Json => {
                let json = serde_json::to_string_pretty(value);
                json.map_err(|error| Failure::new(Exit::Internal, error))? + "\n"
            }
        };
        print(&text)
    }
}

/// Writes to standard output. A reader that has gone, such as `head`, is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::environment(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Lines of a name and a value each.
fn lines(pairs: &[(&str, String)]) -> String {
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
        text
    })
}

/// Writes a sentence to standard error.
fn say(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "{sentence}");
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    crate::tls::install_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way, too; nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            say(&format!("capturedrain: {}", failure.sentence));
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    let serves = matches!(cli.command, Command::Server(_));
    let filter = cli.common.log.clone().unwrap_or_else(|| {
        let quiet = if matches!(cli.command, Command::Demo(_)) { "off" } else { "warn" };
        if serves { telemetry::DEFAULT_FILTER.to_owned() } else { quiet.to_owned() }
    });
    let format = match cli.common.log_format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    telemetry::init(&filter, format).map_err(|error| Failure::usage(format!("--log \"{filter}\": {error}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::environment(format!("cannot start threads: {error}")))?;
    let outcome = runtime.block_on(dispatch(cli.command, &cli.common));
    // Files that are being written are finished by the commands themselves; nothing else is worth waiting for.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: Command, common: &Common) -> Result<Exit, Failure> {
    match command {
        Command::Server(args) => server::run(*args, common).await,
        Command::Drain(args) => drain::drain(args, common).await,
        Command::Cancel(args) => drain::cancel(args, common).await,
        Command::Release(args) => drain::release(args, common).await,
        Command::Status(args) => show::status(args, common).await,
        Command::Captures => show::captures(common).await,
        Command::History => show::history(common).await,
        Command::Changefeed(command) => changefeed::run(command, common).await,
        Command::Apply(args) => apply::run(args, common).await,
        Command::Crd => crd(),
        Command::Openapi => print(crate::http::document()).map(|()| Exit::Done),
        Command::Demo(args) => demo::run(args, common).await,
    }
}

fn crd() -> Result<Exit, Failure> {
    let yaml = crate::resource::crd_yaml().map_err(|error| Failure::new(Exit::Internal, error))?;
    print(&yaml)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_commands_make_sense_to_the_parser() {
        Cli::command().debug_assert();
    }

    /// The options of a command and of those below it that are no environment variable.
    fn without_variable(command: &clap::Command) -> Vec<String> {
        let named = |option: &&clap::Arg| {
            option.get_env().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with("CAPTUREDRAIN_") || name.starts_with("POD_")
            })
        };
        let options = command.get_opts().filter(|option| !matches!(option.get_id().as_str(), "help" | "version"));
        let lacking = options
            .filter(|option| !named(option))
            .map(|option| format!("{} --{}", command.get_name(), option.get_id()));
        lacking.chain(command.get_subcommands().flat_map(without_variable)).collect()
    }

    #[test]
    fn every_option_is_also_an_environment_variable() {
        assert_eq!(without_variable(&Cli::command()), Vec::<String>::new());
    }
}
