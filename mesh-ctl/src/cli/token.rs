//! `mesh-ctl token`: join tokens for nodes and waypoints outside Kubernetes.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use clap::Subcommand;
use mesh_model::name::NodeName;

use crate::{
    ca::{Member, Waypoint, is_node_name},
    token::JoinKey,
};

/// What to do with tokens.
#[derive(Subcommand)]
pub enum Command {
    /// Print a token with which a node or a waypoint of this name asks for its first certificate.
    Create {
        /// The node that may use it.
        #[arg(long, value_name = "NAME", value_parser = node, required_unless_present = "waypoint")]
        node: Option<NodeName>,
        /// The waypoint that may use it: its namespace, service account and pod.
        #[arg(long, value_name = "NAMESPACE/ACCOUNT/POD", value_parser = waypoint, conflicts_with = "node")]
        waypoint: Option<Waypoint>,
        /// How long it can be used.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = super::duration)]
        ttl: Duration,
        /// The controller's state directory.
        #[arg(long, value_name = "DIR", env = "WARREN_CTL_STATE")]
        state: PathBuf,
    },
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    let Command::Create {
        node,
        waypoint,
        ttl,
        state,
    } = command;
    let member = node
        .map(Member::Node)
        .or(waypoint.map(Member::Waypoint))
        .context("name a node or a waypoint")?;
    println!(
        "{}",
        JoinKey::open(&state)?.issue(&member, SystemTime::now() + ttl)
    );
    Ok(())
}

fn waypoint(text: &str) -> Result<Waypoint, String> {
    Waypoint::parse(text).ok_or_else(|| "expected NAMESPACE/ACCOUNT/POD".to_owned())
}

fn node(text: &str) -> Result<NodeName, String> {
    if is_node_name(text) {
        Ok(NodeName::from(text))
    } else {
        Err("a node's name has letters, digits, '.', '-' and '_' only".to_owned())
    }
}
