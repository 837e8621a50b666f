//! The end of an installation.

use anyhow::{Result, ensure};
use mesh_tests::kube::Space;

const URL: &str = "http://web/status/200";

/// An uninstalled mesh leaves every node as it was, and pods that were in it talk on. Must be the last test.
pub async fn uninstalling_restores_every_node() -> Result<()> {
    Space::with("leave", "warren.dev/mesh: enabled", async |space| {
        begin(space).await?;
        space.cluster.uninstall().await?;
        let plain = space.cluster.until("the pods to talk on", 10, async || space.get("client", URL).await);
        plain.await?;
        for node in space.cluster.nodes()? {
            let left = "ls -A /sys/fs/bpf/warren /run/warren; ls /opt/cni/bin | grep warren; grep -l warren /etc/cni/net.d/*";
            let said = space.cluster.on_node(&node, &["sh", "-c", left]).await?;
            let named = |line: &&str| !line.is_empty() && !line.ends_with(':');
            let left: Vec<&str> = said.out.lines().filter(named).collect();
            ensure!(left.is_empty(), "{node} still has {left:?}");
        }
        Ok(())
    })
    .await
}

async fn begin(space: &Space) -> Result<()> {
    let nodes = space.cluster.nodes()?;
    space.apply(&Space::server("web", &nodes[0])).await?;
    space.apply(&Space::client("client", &nodes[1])).await?;
    space.rolled_out("deployment/web").await?;
    space.ready("client").await?;
    space.get("client", URL).await.map(drop)
}
