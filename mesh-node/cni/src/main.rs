//! `warren-cni`, as the container runtime calls it. For a node it is linked statically, with
//! `RUSTFLAGS="-C target-feature=+crt-static"` and an explicit `--target`: the node's own libraries are not ours.

use std::{
    env,
    io::{self, Read},
    path::Path,
    process::ExitCode,
};

use mesh_cni::{
    PLUGIN, call,
    network::INTERFACES,
    plugin::{self, Environment},
};

/// The longest input; a configuration is a few kilobytes.
const INPUT: u64 = 1 << 20;

fn main() -> ExitCode {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let environment = Environment {
        command: variable("CNI_COMMAND"),
        netns: variable("CNI_NETNS"),
        args: variable("CNI_ARGS"),
    };
    if environment.command.is_empty() {
        eprintln!(
            "{PLUGIN} is called by container runtimes, after other CNI plugins; it speaks versions {}",
            call::VERSIONS.join(", ")
        );
        return ExitCode::FAILURE;
    }
    let mut input = Vec::new();
    if let Err(error) = io::stdin().lock().take(INPUT).read_to_end(&mut input) {
        eprintln!("{PLUGIN}: reading the configuration: {error}");
    }
    let outcome = plugin::run(&environment, &input, Path::new(INTERFACES));
    for note in &outcome.notes {
        eprintln!("{PLUGIN}: {note}");
    }
    if let Some(value) = &outcome.stdout {
        println!("{value}");
    }
    if outcome.failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
