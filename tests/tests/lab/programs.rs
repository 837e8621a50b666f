//! Real programs, unchanged, through the mesh: between nodes and on one node.
//!
//! A program that is not installed makes its test say so and pass over.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::lab::Lab;

use super::tunnel::{SOON, pair, until};

const NEAR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: n1, serviceAccountName: near, containers: [{name: c, image: idle}]}
"#;

/// The lab with a client beside the server too, or `None` when one of the programs is missing.
async fn world(programs: &[&str]) -> Result<Option<Lab>> {
    for program in programs {
        let found = std::process::Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output()?;
        if !found.status.success() {
            println!("skipped: {program} is not installed (cargo xtask provision)");
            return Ok(None);
        }
    }
    let lab = pair().await?;
    lab.apply(NEAR).await?;
    lab.wait_ready(SOON).await?;
    Ok(Some(lab))
}

/// Runs `script` in both clients until it prints `expect`, one between nodes and one on the server's node.
async fn both(lab: &Lab, script: &str, expect: &str) -> Result<()> {
    for who in ["shop/client", "shop/near"] {
        until(script, async || {
            let ran = lab.exec(who, &["sh", "-c", script]).await?;
            ensure!(ran.out.contains(expect), "{who}: {ran:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

pub async fn redis_answers() -> Result<()> {
    let Some(lab) = world(&["redis-server", "redis-cli"]).await? else {
        return Ok(());
    };
    let _server = lab
        .spawn(
            "shop/echo",
            &[
                "redis-server",
                "--port",
                "6379",
                "--bind",
                "0.0.0.0",
                "::",
                "--protected-mode",
                "no",
                "--save",
                "",
            ],
        )
        .await?;
    both(&lab, "redis-cli -h 10.244.1.2 ping", "PONG").await?;
    both(&lab, "redis-cli -h echo.shop -p 6379 -r 100 incr counter | tail -1; redis-cli -h 10.244.1.2 echo done", "done").await
}

pub async fn nginx_serves_wrk() -> Result<()> {
    let Some(lab) = world(&["nginx", "wrk"]).await? else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let conf = dir.path().join("nginx.conf");
    std::fs::write(
        &conf,
        format!(
            "daemon off; worker_processes 1; pid {0}/pid; error_log {0}/error.log;\nevents {{}}\nhttp {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};\nserver {{ listen 8080; listen [::]:8080; location / {{ return 200 \"from-nginx\\n\"; }} }} }}\n",
            dir.path().display()
        ),
    )?;
    let _server = lab
        .spawn("shop/echo", &["nginx", "-c", &conf.display().to_string()])
        .await?;
    both(&lab, "curl -s -m 5 http://10.244.1.2:8080/", "from-nginx").await?;
    for who in ["shop/client", "shop/near"] {
        let ran = lab
            .exec(
                who,
                &["wrk", "-t1", "-c16", "-d2s", "http://10.244.1.2:8080/"],
            )
            .await?;
        ensure!(
            ran.out.contains("Requests/sec") && !ran.out.contains("Socket errors"),
            "{who}: {ran:?}"
        );
    }
    Ok(())
}

pub async fn iperf_moves_bytes_both_ways() -> Result<()> {
    let Some(lab) = world(&["iperf3"]).await? else {
        return Ok(());
    };
    let _server = lab.spawn("shop/echo", &["iperf3", "-s"]).await?;
    both(&lab, "iperf3 -c 10.244.1.2 -n 64M -P 2", "iperf Done").await?;
    both(&lab, "iperf3 -c 10.244.1.2 -n 64M -R", "iperf Done").await
}

/// A server that speaks first is heard at once: nothing waits for the client's first byte.
pub async fn t21_a_server_that_speaks_first_is_heard_at_once() -> Result<()> {
    let Some(lab) = world(&[]).await? else {
        return Ok(());
    };
    let sample = env!("CARGO_BIN_EXE_warren-sample");
    let _server = lab
        .spawn(
            "shop/echo",
            &[
                sample,
                "tcp-echo",
                "--port",
                "2525",
                "--banner",
                "220 ready",
            ],
        )
        .await?;
    let script = "exec 3<>/dev/tcp/10.244.1.2/2525; timeout 5 head -1 <&3";
    for who in ["shop/client", "shop/near"] {
        until("the banner", async || {
            let ran = lab.exec(who, &["bash", "-c", script]).await?;
            ensure!(ran.out.trim() == "220 ready", "{ran:?}");
            Ok(())
        })
        .await?;
        let begun = std::time::Instant::now();
        lab.exec(who, &["bash", "-c", script]).await?;
        ensure!(
            begun.elapsed() < Duration::from_secs(2),
            "{who} waited {:?}",
            begun.elapsed()
        );
    }
    Ok(())
}
