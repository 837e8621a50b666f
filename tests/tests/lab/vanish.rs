//! T20, its last part: a peer that vanishes without a word, because the wire to its node is cut.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::Lab;

use super::{
    trust::pid,
    tunnel::{SOON, echo, pair, until},
};

/// A silent tunnel is asked after ten seconds, and twenty later it is over.
const PING_BUDGET: Duration = Duration::from_secs(30);
/// For what is not waiting: scheduling on a busy machine, and reading metrics.
const SLACK: Duration = Duration::from_secs(5);

async fn link(lab: &Lab, state: &str) -> Result<()> {
    let words = ["ip", "link", "set", "n1", state];
    let done = lab.exec("fabric", &words).await?;
    ensure!(done.code == 0, "{done:?}");
    Ok(())
}

/// Open descriptors of a node's proxy: how many are sockets, and all of them.
async fn held(lab: &Lab, node: &str) -> Result<(usize, usize)> {
    let dir = format!("/proc/{}/fd", pid(lab, node).await?);
    let files: Vec<PathBuf> = std::fs::read_dir(dir)?
        .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
        .collect();
    let is_socket = |f: &&PathBuf| f.to_string_lossy().starts_with("socket:");
    Ok((files.iter().filter(is_socket).count(), files.len()))
}

async fn live(lab: &Lab, node: &str) -> Result<f64> {
    lab.node(node).metric("warren_sessions", &[]).await
}

/// The wire is cut under an idle flow: both proxies end it within the ping budget, say why, and keep nothing of it.
pub async fn t20_a_flow_over_a_cut_link_ends_on_both_sides() -> Result<()> {
    let lab = pair().await?;
    let mut before: Option<[(usize, usize); 2]> = None;
    // What one cut left would be there twice after another: without tunnels the same is held each time.
    for _ in 0..2 {
        for node in ["n1", "n2"] {
            until("the end of the echo's flow", async || {
                let live = live(&lab, node).await?;
                ensure!(live == 0.0, "{live} flows are live on {node}");
                Ok(())
            })
            .await?;
        }
        cut_under_a_flow(&lab).await?;
        let now = async || anyhow::Ok([held(&lab, "n1").await?, held(&lab, "n2").await?]);
        if let Some(before) = before {
            until("the end of what the flow held", async || {
                let now = now().await?;
                let grown = now.iter().zip(&before).any(|(n, b)| n.0 > b.0 || n.1 > b.1);
                ensure!(
                    !grown,
                    "after a cut (sockets, all) {before:?}, after another {now:?}"
                );
                Ok(())
            })
            .await?;
        }
        before = Some(now().await?);
        println!("T20: descriptors (sockets, all) of n1 and n2: {before:?}");
        link(&lab, "up").await?;
        until("service over the mended wire", async || {
            echo(&lab, "shop/client", "10.244.1.2").await
        })
        .await?;
    }
    Ok(())
}

/// Opens a flow, cuts the wire under it and sees it end: on both nodes, for the application, in both logs.
async fn cut_under_a_flow(lab: &Lab) -> Result<()> {
    let told = async |node: &str| -> Result<usize> {
        let lines = lab.node(node).access_log().await?;
        Ok(lines
            .iter()
            .filter(|l| l.contains("reason=tunnel_failure"))
            .count())
    };
    let before = [told("n2").await?, told("n1").await?];
    let script = "exec 3<>/dev/tcp/10.244.1.2/9000 && echo hello >&3 && cat <&3";
    let mut client = lab.spawn("shop/client", &["bash", "-c", script]).await?;
    let mut out = BufReader::new(client.stdout.take().context("a pipe")?);
    let answer = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        out.read_line(&mut line).map(|_| line)
    });
    let answer = tokio::time::timeout(SOON, answer).await???;
    ensure!(answer == "hello\n", "the echo said {answer:?}");
    for node in ["n1", "n2"] {
        ensure!(live(lab, node).await? == 1.0, "no flow is live on {node}");
    }

    link(lab, "down").await?;
    let cut = Instant::now();
    let deadline = cut + PING_BUDGET + SLACK;
    for node in ["n2", "n1"] {
        loop {
            let live = live(lab, node).await?;
            if live == 0.0 {
                println!(
                    "T20: {node} ended the flow {:?} after the cut",
                    cut.elapsed()
                );
                break;
            }
            if Instant::now() > deadline {
                bail!(
                    "{live} flows are live on {node} {:?} after the cut",
                    cut.elapsed()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // The application learns of it at the same time: its read ends, with an error.
    let ended = tokio::task::spawn_blocking(move || client.wait_with_output());
    let ended = tokio::time::timeout(SLACK, ended)
        .await
        .context("the client was not told")???;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        said.contains("reset"),
        "the client saw {:?}: {said}",
        ended.status
    );

    for ((node, direction), before) in [("n2", "outbound"), ("n1", "inbound")].iter().zip(before) {
        let way = format!("direction={direction}");
        lab.until_logged(node, &[&way, "reason=tunnel_failure"])
            .await?;
        until("the access log", async || {
            let now = told(node).await?;
            ensure!(
                now == before + 1,
                "{node} logged {} such ends",
                now - before
            );
            Ok(())
        })
        .await?;
    }
    Ok(())
}
