//! The `chatvec` command. Everything is in [`chatvec::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    chatvec::cli::main()
}
