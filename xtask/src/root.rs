//! Asking for root, for exactly the step that needs it.

use std::{env, path::Path, process::Command};

use anyhow::{Result, bail};

/// Whether this process may do everything already.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs as root; says why when it has to ask.
pub fn command(program: &Path, why: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if !on_path("sudo") {
        bail!("root is needed: {why}. There is no sudo here: run this command as root");
    }
    eprintln!("xtask: root is needed: {why}; asking sudo for this step only");
    let mut command = Command::new("sudo");
    // sudo clears the environment; what is ours goes along.
    command
        .arg("env")
        .args(kept().map(|(k, v)| format!("{k}={v}")))
        .arg(program);
    Ok(command)
}

fn kept() -> impl Iterator<Item = (String, String)> {
    let ours =
        |name: &str| name.starts_with("WARREN_") || name == "PATH" || name == "RUST_BACKTRACE";
    env::vars().filter(move |(name, _)| ours(name))
}

/// Whether a program is on the search path.
pub fn on_path(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
