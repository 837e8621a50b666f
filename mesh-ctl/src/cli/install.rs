//! `mesh-ctl install` and `mesh-ctl upgrade`: apply, wait, check.

use std::{process::ExitCode, time::Duration};

use super::{check, manifest};
use crate::install::{self, cluster::Cluster, rollout};

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

/// Runs the command. `upgrade`: over what is there.
pub fn run(args: Args, upgrade: bool) -> anyhow::Result<ExitCode> {
    let values = args.what.read()?;
    super::at_hand(async {
        let cluster = Cluster::connect(&args.what.namespace).await?;
        let found = install::found(&cluster).await?;
        found.admit(&cluster.namespace, upgrade)?;
        if found.deployment.is_none() {
            let findings = install::check::before(&cluster, &values).await;
            if !install::check::passed(&findings) {
                print!("{}", install::check::table(&findings));
                anyhow::bail!("the cluster is not fit for an installation; nothing was changed");
            }
        }
        let say = |line: &str| println!("{line}");
        let changed = install::install(&cluster, &values, args.dry_run, say).await?;
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
