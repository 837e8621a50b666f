//! What happens when parts of the mesh die.

use anyhow::{Result, ensure};
use mesh_tests::lab::{capture::contains, component::Order};
use nix::sys::signal::Signal;

use super::tunnel::{MARKER, echo, pair, until};

/// T03: `kill -9` of the node proxy. Refused, never in the clear; back at once after its start.
pub async fn t03_a_killed_node_proxy_leaks_nothing_and_comes_back() -> Result<()> {
    let lab = pair().await?;
    echo(&lab, "shop/client", "echo").await?;
    let capture = lab.capture("n2")?;
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
    let status = lab.status().await?;
    assert!(
        status.pods.iter().all(|p| p.restarts == 0),
        "no application noticed by dying"
    );
    Ok(())
}
