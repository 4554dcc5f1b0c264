//! `godwit`: a table of subcommands. Exit codes: 0 done, 1 refused or failed, 2 usage.

use std::process::ExitCode;

fn main() -> ExitCode {
    godwit::cli::main()
}
