//! `capturedrain`: see [`capturedrain::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    capturedrain::cli::main()
}
