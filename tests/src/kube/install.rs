//! Warren in the cluster, installed as its users install it.

use std::{env, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::{Cluster, SYSTEM};

impl Cluster {
    /// Installs Warren and waits until it serves.
    pub async fn install(&self) -> Result<()> {
        let manifest = mesh_ctl(&[
            "manifest",
            "--profile",
            "minimal",
            "--set",
            "image.tag=dev,node.accessLog=true",
        ])
        .await?;
        self.apply(&manifest).await?;
        for workload in ["deployment/warren-controller", "daemonset/warren-node"] {
            self.kubectl(&["-n", SYSTEM, "rollout", "status", workload, "--timeout=90s"])
                .await?;
        }
        Ok(())
    }
}

/// Runs the controller's program here; what it said.
async fn mesh_ctl(args: &[&str]) -> Result<String> {
    let out = Command::new(program("mesh-ctl")?)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("mesh-ctl {}", args.join(" ")))?;
    if !out.status.success() {
        bail!(
            "mesh-ctl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    String::from_utf8(out.stdout).context("mesh-ctl writes UTF-8")
}

/// A program of the workspace: beside the running program, or one directory up for a test.
fn program(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("finding this program")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|d| d.join(name))
        .find(|p| p.exists())
        .with_context(|| format!("{name} is not built: run `cargo xtask test kube`"))
}
