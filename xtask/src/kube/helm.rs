//! helm from its Go module, to render the chart and to apply it.
//!
//! Invariant: it is kept apart from the cluster's own parts, so that neither is built again for the other's sake.

use std::path::PathBuf;

use anyhow::Result;

use super::go::Module;
use crate::step;

/// The environment variable by which the chart's tests are told where helm is.
pub const TOLD: &str = "WARREN_HELM";
const HELM: Module = Module("kube/helm");

/// The program; built when it is not there yet.
pub fn program() -> Result<PathBuf> {
    let build = || HELM.program(&["build"], "helm.sh/helm/v3/cmd/helm", "helm");
    match HELM.kept()?.join("helm").is_file() {
        true => build(),
        false => step::timed("building helm (a minute, once)", build),
    }
}
