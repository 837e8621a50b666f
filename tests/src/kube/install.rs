//! Warren in the cluster, installed as its users install it.

use std::{env, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Cluster, SYSTEM, Said};
use crate::built;

/// Set by `cargo xtask test kube`: where helm is.
const HELM: &str = "WARREN_HELM";

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

    /// Has so many replicas of the controller run, and waits until it is so; of none, until the last is gone.
    pub async fn controllers(&self, count: u8) -> Result<()> {
        const DEPLOYMENT: &str = "deployment/warren-controller";
        let system = async |words: &[&str]| {
            let words = [&["-n", SYSTEM], words, &["--timeout=60s"]].concat();
            self.kubectl(&words).await.map(drop)
        };
        let replicas = format!("--replicas={count}");
        system(&["scale", DEPLOYMENT, &replicas]).await?;
        system(&["rollout", "status", DEPLOYMENT]).await?;
        if count == 0 {
            let pods = "app.kubernetes.io/name=warren-controller";
            system(&["wait", "--for=delete", "pod", "-l", pods]).await?;
        }
        Ok(())
    }

    /// Restores every node and removes Warren.
    pub async fn uninstall(&self) -> Result<()> {
        self.mesh_ctl(&["uninstall"]).await
    }

    /// The same, with the definitions of its kinds and all objects of them.
    pub async fn purge(&self) -> Result<()> {
        self.mesh_ctl(&["uninstall", "--purge"]).await?;
        // The API server empties a namespace after it said that it is deleted.
        let gone = format!("namespace/{SYSTEM}");
        self.kubectl(&["wait", "--for=delete", &gone, "--timeout=60s"])
            .await
            .map(drop)
    }

    /// Takes the mesh off the nodes, and leaves the rest to whoever installed it.
    pub async fn restore_nodes(&self) -> Result<()> {
        self.mesh_ctl(&["uninstall", "--nodes-only"]).await
    }

    /// An error unless `mesh-ctl check` finds that what is installed works.
    pub async fn check(&self) -> Result<()> {
        self.mesh_ctl(&["check"]).await
    }

    /// What `mesh-ctl check` finds, and whether it ends as if all were well.
    pub async fn findings(&self) -> Result<(bool, Vec<Value>)> {
        let said = self.try_mesh_ctl(&["check", "-o", "json"]).await?;
        let found = serde_json::from_str(&said.out)
            .with_context(|| format!("mesh-ctl check: {}{}", said.out, said.err))?;
        Ok((said.ok, found))
    }

    /// Runs the controller's program beside the cluster, with its KUBECONFIG.
    async fn try_mesh_ctl(&self, args: &[&str]) -> Result<Said> {
        let program = built("mesh-ctl")?.display().to_string();
        // The first word is where helm is, which nobody needs here.
        self.with(&[&["", program.as_str()], args].concat()).await
    }

    async fn mesh_ctl(&self, args: &[&str]) -> Result<()> {
        let said = self.try_mesh_ctl(args).await?;
        if !said.ok {
            bail!("mesh-ctl {}: {}{}", args.join(" "), said.out, said.err);
        }
        Ok(())
    }
}

/// The real helm, and the release that it makes of the chart.
#[derive(Clone, Debug)]
pub struct Helm(String);

impl Helm {
    /// The one that this process was told of.
    pub fn told() -> Option<Self> {
        env::var(HELM).ok().map(Self)
    }

    /// Installs the chart with the profile `minimal` and these values, and waits until it serves.
    pub async fn install(&self, cluster: &Cluster, values: &[&str]) -> Result<()> {
        let profile = chart()?.join("profiles/minimal.yaml");
        let profile = profile.display().to_string();
        let words = [
            "install",
            "--create-namespace",
            "--wait",
            "--timeout=100s",
            "-f",
            &profile,
        ];
        self.run(cluster, &words, values).await
    }

    /// Upgrades it, saying no more than this of its values, and waits until it serves.
    pub async fn upgrade(&self, cluster: &Cluster, values: &[&str]) -> Result<()> {
        let words = ["upgrade", "--reuse-values", "--wait", "--timeout=100s"];
        self.run(cluster, &words, values).await
    }

    /// Removes what it installed.
    pub async fn uninstall(&self, cluster: &Cluster) -> Result<()> {
        self.said(
            cluster,
            &[
                "uninstall",
                RELEASE,
                "-n",
                SYSTEM,
                "--wait",
                "--timeout=100s",
            ],
        )
        .await
    }

    async fn run(&self, cluster: &Cluster, words: &[&str], values: &[&str]) -> Result<()> {
        let (chart, values) = (chart()?.display().to_string(), values.join(","));
        let rest = [RELEASE, &chart, "-n", SYSTEM, "--set", &values];
        self.said(cluster, &[words, &rest].concat()).await
    }

    async fn said(&self, cluster: &Cluster, words: &[&str]) -> Result<()> {
        let said = cluster
            .with(&[&[self.0.as_str(), "helm"], words].concat())
            .await?;
        if !said.ok {
            bail!("helm {}: {}{}", words.join(" "), said.out, said.err);
        }
        Ok(())
    }
}

/// What its release is called.
const RELEASE: &str = "warren";

fn chart() -> Result<std::path::PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = tests.parent().context("the tests are in the workspace")?;
    Ok(workspace.join("deploy/chart"))
}
