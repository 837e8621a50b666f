//! The command line: one file per command, errors that say what happened and what to do.

mod analyze;
mod ca;
mod check;
mod controller;
mod crds;
mod install;
mod manifest;
mod token;
mod uninstall;
mod why;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

/// The controller and command line of Warren, a service mesh without sidecars.
#[derive(Parser)]
#[command(
    name = "mesh-ctl",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller: read objects, tell nodes, sign certificates.
    Controller(Box<controller::Args>),
    /// Make the token with which a node joins.
    Token {
        #[command(subcommand)]
        command: token::Command,
    },
    /// Look at the certificate authority, or replace its root step by step.
    Ca {
        #[command(subcommand)]
        command: ca::Command,
    },
    /// Say what is wrong with manifests, by file, line and field.
    Analyze(analyze::Args),
    /// Say why one pod may, or may not, talk to another.
    Why(why::Args),
    /// Print the CustomResourceDefinitions of Warren's own kinds, as YAML that can be applied.
    Crds,
    /// Install into a cluster, wait until everything runs, and say how it is.
    Install(install::Args),
    /// Replace another version of an installation, or some of its values; existing connections are carried on.
    Upgrade(install::UpgradeArgs),
    /// Restore every node and remove an installation; what holds users' objects or keys stays unless --purge.
    Uninstall(uninstall::Args),
    /// Say what is well and what is not, in a cluster or of an installation, with hints; fails when something failed.
    Check(check::Args),
    /// Print every object of an installation, as YAML that can be applied.
    Manifest(manifest::Args),
    /// Print the version.
    Version,
}

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Lines for people.
    Table,
    /// JSON for programs.
    Json,
    /// YAML.
    Yaml,
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Controller(args) => controller::run(*args)?,
        Command::Token { command } => token::run(command)?,
        Command::Ca { command } => ca::run(command)?,
        Command::Analyze(args) => return analyze::run(args),
        Command::Why(args) => return why::run(args),
        Command::Crds => print!("{}", crds::text()?),
        Command::Install(args) => return install::run(args),
        Command::Upgrade(args) => return install::upgrade(args),
        Command::Uninstall(args) => return uninstall::run(args),
        Command::Check(args) => return check::run(args),
        Command::Manifest(args) => print!("{}", manifest::text(&args)?),
        Command::Version => println!("mesh-ctl {}", env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Does a piece of work for whoever waits for it.
fn at_hand<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

/// A time such as `90`, `90s`, `15m`, `24h` or `7d`; without a unit it is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        other => {
            return Err(format!(
                "{other:?} is no unit of time; there are s, m, h and d"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is no time; write for example 90s, 15m, 24h"))?;
    match number.checked_mul(unit) {
        Some(seconds) if (1..=10 * 365 * 86_400).contains(&seconds) => {
            Ok(Duration::from_secs(seconds))
        }
        _ => Err(format!("{text:?} is not between one second and ten years")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_have_units() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), expect, "{text}")
        };
        check("5", Some(5));
        check("90s", Some(90));
        check("15m", Some(900));
        check("24h", Some(86_400));
        check("7d", Some(604_800));
        check("0", None);
        check("h", None);
        check("-1", None);
        check("5 s", None);
        check("1w", None);
        check("99999999999999999999", None);
        check("18446744073709551615d", None);
    }
}
