//! `capturedrain completions`

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{
    Cli,
    exit::{Exit, Failure},
    print,
};

/// Print a script that completes commands and options in a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples, each for one user:
  bash  capturedrain completions bash \\
          > ~/.local/share/bash-completion/completions/capturedrain
  zsh   capturedrain completions zsh > \"${fpath[1]}/_capturedrain\"
  fish  capturedrain completions fish \\
          > ~/.config/fish/completions/capturedrain.fish")]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "capturedrain", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
