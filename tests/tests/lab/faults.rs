//! What happens when parts of the mesh die.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, capture::contains, component::Order};
use nix::sys::signal::Signal;

use super::{
    flows::flows,
    tunnel::{MARKER, echo, pair, until},
};

/// How many connections of pods on n2 the kernel captured or refused.
async fn kernel_took(lab: &Lab) -> Result<f64> {
    let n2 = lab.node("n2");
    let captured = [("kind", "decision"), ("name", "connect_captured")];
    let captured = n2.metric("warren_kernel_total", &captured).await?;
    let refused = [("kind", "refused")];
    Ok(captured + n2.metric("warren_kernel_total", &refused).await?)
}

/// T03: `kill -9` of the node proxy. Refused, never in the clear; back at once after its start.
pub async fn t03_a_killed_node_proxy_leaks_nothing_and_comes_back() -> Result<()> {
    let lab = pair().await?;
    echo(&lab, "shop/client", "echo").await?;
    let capture = lab.capture("n2")?;
    let before = kernel_took(&lab).await?;
    for node in ["n2", "n1"] {
        lab.node(node).kill_agent(Signal::SIGKILL, true).await?;
        for _ in 0..10 {
            let refused = echo(&lab, "shop/client", "10.244.1.2").await;
            ensure!(
                refused.is_err(),
                "{node}'s proxy is dead and traffic went on"
            );
        }
        lab.node(node).agent(Order::Start).await?;
        until("service after the restart", async || {
            echo(&lab, "shop/client", "10.244.1.2").await
        })
        .await?;
    }
    let packets = capture.stop()?;
    assert!(
        !contains(&packets, MARKER.as_bytes()),
        "no plaintext at any time"
    );
    // The kernel's counters outlive the proxy: what was tried meanwhile was captured or refused, all of it.
    let taken = kernel_took(&lab).await? - before;
    ensure!(
        taken >= 20.0,
        "the kernel took {taken} of 20 attempts without a proxy"
    );
    lab.until_logged("n2", &["direction=outbound", "path=hbone", "reason="])
        .await
        .context("what n1's proxy could not take has a reason")?;
    let plain = flows(&lab, "n2", &[("src.workload", "client"), ("path", "plain")]).await?;
    ensure!(plain.is_empty(), "logged as plaintext: {plain:?}");
    let status = lab.status().await?;
    assert!(
        status.pods.iter().all(|p| p.restarts == 0),
        "no application noticed by dying"
    );
    Ok(())
}
