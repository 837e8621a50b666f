//! The `mesh-ctl` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_ctl::cli::main()
}
