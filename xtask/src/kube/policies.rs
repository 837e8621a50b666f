//! A network policy engine, kube-router from its Go module, for the tests of NetworkPolicies in a cluster.
//!
//! Invariant: it is kept apart from the cluster's own parts, so that neither is built again for the other's sake.

use std::path::PathBuf;

use anyhow::Result;

use super::go::Module;
use crate::{provision, step};

/// The environment variable by which the tests in a cluster are told where it is.
pub const TOLD: &str = "WARREN_KUBE_ROUTER";
const ENGINE: Module = Module("kube/network-policy");
/// What it calls on the nodes.
const CALLED: [&str; 2] = ["ipset", "iptables"];

/// The program; built when it is not there yet.
pub fn program() -> Result<PathBuf> {
    provision::packages(&CALLED)?;
    let package = "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router";
    let build = || ENGINE.program(&["build"], package, "kube-router");
    match ENGINE.kept()?.join("kube-router").is_file() {
        true => build(),
        false => step::timed("building kube-router (a minute, once)", build),
    }
}
