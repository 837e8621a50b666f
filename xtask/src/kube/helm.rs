//! helm from its Go module, to render the chart and to apply it.
//!
//! Invariant: it is kept under the hash of the modules that it was built from, apart from the cluster's own parts, so
//! that neither is built again for the other's sake.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{provision, root, step, workspace};

/// The environment variable by which the chart's tests are told where helm is.
pub const TOLD: &str = "WARREN_HELM";
const PACKAGE: &str = "helm.sh/helm/v3/cmd/helm";

/// The program; built when it is not there yet.
pub fn program() -> Result<PathBuf> {
    let module = workspace()?.join("tests/kube/helm");
    let folder = folder(&module)?;
    let program = folder.join("helm");
    if program.is_file() {
        return Ok(program);
    }
    if !root::on_path("go") {
        bail!("Go is missing, from which helm is built: install Go 1.24 or newer");
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let unfinished = folder.join("unfinished");
    step::timed("building helm (a minute, once)", || {
        let build = || {
            let mut go = Command::new("go");
            go.current_dir(&module)
                .env("CGO_ENABLED", "0")
                .env_remove("GOFLAGS")
                .args(["build", "-mod=readonly", "-ldflags", "-s -w", "-o"])
                .arg(&unfinished)
                .arg(PACKAGE);
            Ok(go.status().context("starting go")?.success())
        };
        provision::retry(build, "go build")
    })?;
    fs::rename(&unfinished, &program).context("putting helm in its place")?;
    Ok(program)
}

fn folder(module: &Path) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = module.join(file);
        hash.update(fs::read(&path).with_context(|| path.display().to_string())?);
    }
    let name: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect();
    Ok(provision::cache()?.join("helm").join(name))
}
