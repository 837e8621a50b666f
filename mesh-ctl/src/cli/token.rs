//! `mesh-ctl token`: join tokens for nodes outside Kubernetes.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::Subcommand;
use mesh_model::name::NodeName;

use crate::{ca::is_node_name, token::JoinKey};

/// What to do with tokens.
#[derive(Subcommand)]
pub enum Command {
    /// Print a token with which a node of this name asks for its first certificate.
    Create {
        /// The node that may use it.
        #[arg(long, value_name = "NAME", value_parser = node)]
        node: NodeName,
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
    let Command::Create { node, ttl, state } = command;
    println!(
        "{}",
        JoinKey::open(&state)?.issue(&node, SystemTime::now() + ttl)
    );
    Ok(())
}

fn node(text: &str) -> Result<NodeName, String> {
    if is_node_name(text) {
        Ok(NodeName::from(text))
    } else {
        Err("a node's name has letters, digits, '.', '-' and '_' only".to_owned())
    }
}
