//! `mesh-ctl uninstall`: restores the nodes, then removes the rest.

use std::{process::ExitCode, time::Duration};

use crate::install::{self, cluster::Cluster, remove};

/// What to remove.
#[derive(clap::Args)]
pub struct Args {
    /// The namespace of the installation.
    #[arg(short, long, value_name = "NAME", env = "WARREN_CTL_NAMESPACE", default_value = install::NAMESPACE)]
    namespace: String,
    /// Also delete the root's key, the namespace, and all definitions with the objects that users wrote.
    #[arg(long, conflicts_with = "nodes_only")]
    purge: bool,
    /// Only restore the nodes and remove the node proxies; the rest is another's, such as helm's, to remove.
    #[arg(long)]
    nodes_only: bool,
    /// How long until a step must be done.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = super::duration)]
    timeout: Duration,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::at_hand(async {
        let cluster = Cluster::connect(&args.namespace).await?;
        let say = |line: &str| println!("{line}");
        if args.nodes_only {
            remove::nodes(&cluster, args.timeout, say).await?;
        } else {
            install::found(&cluster)
                .await?
                .is_ours(&cluster.namespace)?;
            remove::everything(&cluster, args.timeout, args.purge, say).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
