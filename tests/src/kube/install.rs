//! Warren in the cluster, installed as its users install it.

use anyhow::{Result, bail};

use super::Cluster;
use crate::built;

impl Cluster {
    /// Installs Warren and waits until it serves.
    pub async fn install(&self) -> Result<()> {
        let values = "image.tag=dev,node.accessLog=true";
        self.mesh_ctl(&["install", "--profile", "minimal", "--set", values])
            .await
    }

    /// Upgrades what is installed, saying no more than this of its values, and waits until it serves.
    pub async fn upgrade(&self, words: &[&str]) -> Result<()> {
        self.mesh_ctl(&[&["upgrade"], words].concat()).await
    }

    /// Restores every node and removes Warren.
    pub async fn uninstall(&self) -> Result<()> {
        self.mesh_ctl(&["uninstall"]).await
    }

    /// Runs the controller's program beside the cluster, with its KUBECONFIG.
    async fn mesh_ctl(&self, args: &[&str]) -> Result<()> {
        let program = built("mesh-ctl")?.display().to_string();
        // The first word is where helm is, which nobody needs here.
        let said = self.with(&[&["", program.as_str()], args].concat()).await?;
        if !said.ok {
            bail!("mesh-ctl {}: {}{}", args.join(" "), said.out, said.err);
        }
        Ok(())
    }
}
