//! Warren in the cluster, installed as its users install it.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, bail};

use super::Cluster;

impl Cluster {
    /// Installs Warren and waits until it serves.
    pub async fn install(&self) -> Result<()> {
        let values = "image.tag=dev,node.accessLog=true";
        self.mesh_ctl(&["install", "--profile", "minimal", "--set", values])
            .await
    }

    /// Restores every node and removes Warren.
    pub async fn uninstall(&self) -> Result<()> {
        self.mesh_ctl(&["uninstall"]).await
    }

    /// Runs the controller's program beside the cluster, with its KUBECONFIG.
    async fn mesh_ctl(&self, args: &[&str]) -> Result<()> {
        let program = program("mesh-ctl")?.display().to_string();
        // The first word is where helm is, which nobody needs here.
        let said = self.with(&[&["", program.as_str()], args].concat()).await?;
        if !said.ok {
            bail!("mesh-ctl {}: {}{}", args.join(" "), said.out, said.err);
        }
        Ok(())
    }
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
