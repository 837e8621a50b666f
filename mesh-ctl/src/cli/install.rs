//! `mesh-ctl install` and `mesh-ctl upgrade`: apply, wait, check.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;

use super::{check, manifest};
use crate::install::{self, Asked, cluster::Cluster, rollout};

/// What to install, and how long it may take.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: manifest::Args,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// How long until everything must run.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = super::duration)]
    timeout: Duration,
}

/// The same over what is there.
#[derive(clap::Args)]
pub struct UpgradeArgs {
    #[command(flatten)]
    args: Args,
    /// Only what is given now counts, not what was asked for before.
    #[arg(long)]
    reset_values: bool,
}

/// What an installation begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// With nothing there.
    Anew,
    /// With what is there, and with what that was asked for.
    Over,
    /// With what is there, whatever that was asked for.
    Reset,
}

/// Runs `install`.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    perform(args, Start::Anew)
}

/// Runs `upgrade`.
pub fn upgrade(args: UpgradeArgs) -> anyhow::Result<ExitCode> {
    let start = if args.reset_values {
        Start::Reset
    } else {
        Start::Over
    };
    perform(args.args, start)
}

fn perform(args: Args, start: Start) -> anyhow::Result<ExitCode> {
    // What is given has to make sense by itself, before a cluster is asked.
    args.what.read(Asked::default())?.values()?;
    super::at_hand(async {
        let say = |line: &str| println!("{line}");
        let cluster = Cluster::connect(&args.what.namespace).await?;
        let found = install::found(&cluster).await?;
        found.admit(&cluster.namespace, start != Start::Anew)?;
        let asked = args.what.read(before(&cluster, start, say).await?)?;
        asked.values().context(
            "what is asked for now, together with what was asked for before (--reset-values leaves that out)",
        )?;
        let asked = install::with_directories(&cluster, asked, say).await?;
        let values = asked.values()?;
        if found.deployment.is_none() {
            let findings = install::check::before(&cluster, &values).await;
            if !install::check::passed(&findings) {
                print!("{}", install::check::table(&findings));
                anyhow::bail!("the cluster is not fit for an installation; nothing was changed");
            }
        }
        let changed = install::install(&cluster, &asked, args.dry_run, say).await?;
        if args.dry_run {
            println!("{changed} objects would change; nothing was changed");
            return Ok(ExitCode::SUCCESS);
        }
        let waited = rollout::wait(&cluster, args.timeout, say).await;
        let findings = install::check::after(&cluster).await;
        println!();
        let code = check::show(&findings, super::Form::Table)?;
        waited?;
        Ok(code)
    })
}

/// What was asked for before, if that counts.
async fn before(cluster: &Cluster, start: Start, say: impl Fn(&str)) -> anyhow::Result<Asked> {
    if start != Start::Over {
        return Ok(Asked::default());
    }
    let Some(asked) = install::remembered(cluster).await? else {
        say("values: nothing is remembered of the installation; what is given now counts alone");
        return Ok(Asked::default());
    };
    let (profile, set) = (asked.profile.name(), asked.paths().join(", "));
    let set = if set.is_empty() { "nothing else" } else { &set };
    say(&format!(
        "values: remembered are profile {profile} and {set}"
    ));
    Ok(asked)
}
