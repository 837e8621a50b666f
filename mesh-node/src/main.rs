//! `mesh-node`: reads the command line and runs a role.

use std::process::ExitCode;

use mesh_node::{
    app,
    config::{self, ConfigError},
};

fn main() -> ExitCode {
    let invocation = match config::parse(std::env::args(), &config::Process) {
        Ok(invocation) => invocation,
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(error) => {
            eprintln!("mesh-node: {error}");
            return ExitCode::from(2);
        }
    };
    match app::run(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}
