//! The command line: each command ends with an exit code that programs can rely on, and one sentence when it fails.

mod apply;
mod changefeed;
mod completions;
mod demo;
mod drain;
mod exit;
mod kubeconfig;
mod kubectl;
mod operator;
mod pace;
mod prestop;
mod progress;
mod selftest;
mod server;
mod show;
mod signals;
mod table;
mod ticdc;
mod tls;
mod uninstall;
mod value;

use std::{fmt::Write as _, io::Write as _, process::ExitCode};

use clap::{Args, CommandFactory as _, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use self::exit::{Exit, Failure};
use crate::{client::Client, telemetry, tls::Current};

/// What the program is called.
const NAME: &str = "capturedrain";

/// Takes captures out of a change-data-capture cluster without hurting anyone.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  capturedrain demo                       a tour of a minute, nothing to install
  capturedrain captures                   who is there, and what each has
  capturedrain drain capture-1 --dry-run  what would move, to whom, how long
  capturedrain drain capture-1 --wait     exits 0 on proof that nothing is left

Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 not found, 4 refused, 5 unreachable, 10 unauthorised, 12 port, \
file or disk not usable. Commands that wait have more: see `capturedrain drain --help`."
)]
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
    #[command(flatten)]
    printing: Printing,
}

/// What is printed, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub(super) struct Printing {
    /// How results are printed: for people, or for programs
    #[arg(
        long,
        short,
        global = true,
        env = "CAPTUREDRAIN_OUTPUT",
        value_name = "FORMAT",
        value_enum,
        default_value_t = Format::Table
    )]
    output: Format,
    /// What is logged to standard error, such as `info` or `capturedrain=debug`
    #[arg(long, global = true, env = "CAPTUREDRAIN_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look
    #[arg(
        long,
        global = true,
        env = "CAPTUREDRAIN_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t = LogFormat::Text
    )]
    log_format: LogFormat,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
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
    #[command(after_help = "\
Examples:
  capturedrain captures
  capturedrain captures -o json | jq -r '.[] | select(.is_coordinator).id'")]
    Captures,
    /// List the drains that have ended, oldest first
    #[command(after_help = "\
Examples:
  capturedrain history
  capturedrain history -o json | jq '.[-1] | {target, outcome, duration_ms}'")]
    History,
    /// Create, look at, pause, resume and delete what is replicated
    #[command(
        subcommand,
        after_help = "\
Examples:
  capturedrain changefeed create --id orders --sink file:///var/lib/orders \\
    --source etcd://127.0.0.1:2379/shop/
  capturedrain changefeed list
  capturedrain changefeed get orders
  capturedrain changefeed pause orders"
    )]
    Changefeed(changefeed::ChangefeedCommand),
    Apply(apply::ApplyArgs),
    Operator(Box<operator::OperatorArgs>),
    OperatorUninstall(uninstall::UninstallArgs),
    OperatorSelftest(selftest::SelfTestArgs),
    Prestop(prestop::PrestopArgs),
    Install(prestop::InstallArgs),
    Kubectl(kubectl::KubectlArgs),
    /// Print the custom resource definition
    #[command(after_help = "Example:\n  capturedrain crd | kubectl apply --server-side -f -")]
    Crd,
    /// Print the description of the HTTP API, an `OpenAPI` document
    #[command(after_help = "Example:\n  capturedrain openapi > openapi.json")]
    Openapi,
    #[command(after_help = "\
Examples:
  capturedrain demo
  capturedrain demo --report demo.html")]
    Demo(demo::DemoArgs),
    Completions(completions::CompletionsArgs),
}

impl Common {
    fn client(&self) -> Result<Client, Failure> {
        let credentials = self.tls.files()?.map(|files| Current::fixed(&files)).transpose()?;
        Ok(match self.tls.server_name() {
            Some(name) => Client::behind_name(&self.server, credentials, name),
            None => Client::with_credentials(&self.server, credentials),
        }?)
    }

    /// Prints a result: as JSON, or as `people` have it.
    fn print<T: Serialize>(&self, value: &T, people: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        self.printing.print(value, people)
    }
}

impl Printing {
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

/// The command whose help names environment variables and leaves out what they are set to.
fn without_values(command: clap::Command) -> clap::Command {
    command.mut_args(|option| option.hide_env_values(true)).mut_subcommands(without_values)
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    crate::tls::install_provider();
    if kubectl::is_called(std::env::args_os().next().as_deref()) {
        return start(kubectl::Plugin::command(), kubectl::run_plugin);
    }
    start(Cli::command(), run)
}

/// Reads the arguments, and runs what they ask for.
fn start<C: FromArgMatches>(command: clap::Command, run: impl FnOnce(C) -> Result<Exit, Failure>) -> ExitCode {
    let name = command.get_bin_name().unwrap_or(NAME).to_owned();
    let parsed = without_values(command).try_get_matches().and_then(|found| C::from_arg_matches(&found));
    let cli = match parsed {
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
            say(&format!("{name}: {}", failure.sentence));
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    let serves = matches!(cli.command, Command::Server(_) | Command::Operator(_));
    let quiet = if matches!(cli.command, Command::Demo(_)) { "off" } else { "warn" };
    let filter = if serves { telemetry::DEFAULT_FILTER } else { quiet };
    block_on(&cli.common.printing, filter, dispatch(cli.command, &cli.common))
}

/// Sets logs and threads up, and waits for a command.
fn block_on(
    printing: &Printing,
    filter: &str,
    command: impl Future<Output = Result<Exit, Failure>>,
) -> Result<Exit, Failure> {
    let filter = printing.log.clone().unwrap_or_else(|| filter.to_owned());
    let format = match printing.log_format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    telemetry::init(&filter, format).map_err(|error| Failure::usage(format!("--log \"{filter}\": {error}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::environment(format!("cannot start threads: {error}")))?;
    let outcome = runtime.block_on(command);
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
        Command::Operator(args) => operator::run(*args).await,
        Command::OperatorUninstall(args) => uninstall::run(args, &common.printing).await,
        Command::OperatorSelftest(args) => selftest::run(args, &common.printing).await,
        Command::Prestop(args) => prestop::run(args, common).await,
        Command::Install(args) => prestop::install_into(&args),
        Command::Kubectl(args) => kubectl::run(args, &common.printing).await,
        Command::Crd => crd(),
        Command::Openapi => print(crate::http::document()).map(|()| Exit::Done),
        Command::Demo(args) => demo::run(args, common).await,
        Command::Completions(args) => completions::run(&args),
    }
}

fn crd() -> Result<Exit, Failure> {
    let yaml = crate::resource::crd_yaml().map_err(|error| Failure::new(Exit::Internal, error))?;
    print(&yaml)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_make_sense_to_the_parser() {
        Cli::command().debug_assert();
        kubectl::Plugin::command().debug_assert();
    }

    /// The options of a command and of those below it that are no environment variable.
    fn without_variable(command: &clap::Command) -> Vec<String> {
        let named = |option: &&clap::Arg| {
            option.get_env().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with("CAPTUREDRAIN_") || name.starts_with("POD_")
            })
        };
        // kubectl's own have no variables of ours, but where others have options of these names.
        let is_exempt = |id: &str| kubectl::OWN_OPTIONS.contains(&id) && command.get_name() != "operator";
        let options = command.get_opts().filter(|option| {
            let id = option.get_id().as_str();
            !matches!(id, "help" | "version") && !is_exempt(id)
        });
        let lacking = options
            .filter(|option| !named(option))
            .map(|option| format!("{} --{}", command.get_name(), option.get_id()));
        lacking.chain(command.get_subcommands().flat_map(without_variable)).collect()
    }

    /// What is wrong with the examples of a command and of those below it. A command without any has those above it.
    fn bad_examples(command: &clap::Command, above: bool) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let has = above || help.contains("Example");
        let wrapped = help.lines().filter(|line| line.starts_with("  ") && line.chars().count() > 80);
        let mut bad: Vec<_> = wrapped.map(str::to_owned).collect();
        if !has && !command.has_subcommands() {
            bad.push(format!("{} teaches nothing", command.get_name()));
        }
        bad.extend(command.get_subcommands().flat_map(|below| bad_examples(below, has && command.get_name() != NAME)));
        bad
    }

    #[test]
    fn help_teaches_with_examples_that_fit_a_terminal() {
        assert_eq!(bad_examples(&Cli::command(), false), Vec::<String>::new());
        assert_eq!(bad_examples(&kubectl::Plugin::command(), false), Vec::<String>::new());
    }

    #[test]
    fn every_option_is_also_an_environment_variable() {
        assert_eq!(without_variable(&Cli::command()), Vec::<String>::new());
        assert_eq!(without_variable(&kubectl::Plugin::command()), Vec::<String>::new());
    }
}
