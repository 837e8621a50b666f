//! From the label on a namespace to enforced mutual TLS, for running pods.
//!
//! STRICT is asked for before the label, which gives it somebody to hold for. A pod counts as enforced from the moment at
//! which a plaintext request from outside the mesh was first refused, after which none was answered. Then every pod has to
//! answer a pod of the same namespace, and the log of its node has to call that request mutual TLS.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Bench, asking::Asking, times};
use crate::kube::Space;

/// How often each pod is asked: what a time may be told too long by.
const EVERY: Duration = Duration::from_millis(25);
/// How long all have to keep to what they do until it counts.
const HOLD: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "labelled";
const PORT: u16 = 8080;
pub(super) const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let cluster = bench.cluster.clone();
    let nodes = cluster.nodes()?;
    Space::with(NAME, "", async |space| {
        bench.say(&format!("starting {} pods", bench.options.pods));
        space.apply(STRICT).await?;
        let each = bench.options.pods.div_ceil(nodes.len());
        for node in &nodes {
            space
                .apply(&many(&format!("web-{node}"), node, each))
                .await?;
        }
        space.apply(&Space::client("client", &nodes[0])).await?;
        space.ready("client").await?;
        let of = each * nodes.len();
        let pods = cluster.until("all pods to be ready", 400, async || {
            let ready = addresses(space).await?;
            ensure!(ready.len() == of, "{} of {of} pods are ready", ready.len());
            Ok(ready)
        });
        let pods = pods.await?;
        if bench.wants("label") {
            rounds(bench, space, &pods).await?;
        }
        if bench.wants("usage") {
            enrol(bench, true).await?;
            bench.idle(&format!("idle, {of} pods enrolled")).await?;
        }
        Ok(())
    })
    .await
}

async fn rounds(bench: &mut Bench, space: &Space, pods: &[IpAddr]) -> Result<()> {
    let targets = pods.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
    let asking = Asking::begin(targets, EVERY);
    let mut taken = Vec::new();
    for round in 1..=bench.options.rounds {
        asking.settled(true, HOLD, PATIENCE).await?;
        let begun = Instant::now();
        enrol(bench, true).await?;
        let since = asking.settled(false, HOLD, PATIENCE).await?;
        let mut own: Vec<Duration> = since
            .iter()
            .map(|s| s.saturating_duration_since(begun))
            .collect();
        own.sort();
        if let Some(last) = own.last() {
            bench.say(&format!(
                "round {round}: the last pod was enforced after {last:.1?}"
            ));
        }
        taken.extend(own);
        proven(space, pods).await?;
        enrol(bench, false).await?;
    }
    drop(asking);
    let what = format!("label to enforced mTLS, {} pods", pods.len());
    bench.findings.facts.push(times("label", &what, &taken)?);
    Ok(())
}

async fn enrol(bench: &Bench, on: bool) -> Result<()> {
    let label = if on { json!("enabled") } else { json!(null) };
    let change = json!({"metadata": {"labels": {"warren.dev/mesh": label}}});
    bench
        .api
        .patch(&format!("/api/v1/namespaces/{NAME}"), &change)
        .await
        .map(drop)
}

/// Every pod answers a client of the mesh, and its node says that it was by mutual TLS.
async fn proven(space: &Space, pods: &[IpAddr]) -> Result<()> {
    let list = pods
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ");
    let script = format!(
        "for a in {list}; do curl -s -m 5 -o /dev/null -w '%{{http_code}}\\n' http://$a:{PORT}/status/200; done"
    );
    let said = space.exec("client", &["sh", "-c", &script]).await?;
    let good = said.out.lines().filter(|l| *l == "200").count();
    ensure!(
        good == pods.len(),
        "{good} of {} pods answered a client of the mesh: {}",
        pods.len(),
        said.err
    );
    let logged = space.cluster.until("mutual TLS in the logs", 20, async || {
        let mut missing: BTreeSet<String> = pods
            .iter()
            .map(|ip| format!("dst.addr={ip}:{PORT} "))
            .collect();
        for node in space.cluster.nodes()? {
            for line in space.cluster.log(&node, "warren-node")? {
                if line.contains("direction=inbound") && line.contains("mtls=true") {
                    missing.retain(|m| !line.contains(m.as_str()));
                }
            }
        }
        ensure!(missing.is_empty(), "not told of: {missing:?}");
        Ok(())
    });
    logged.await
}

/// Servers that are asked for their readiness seldom: it is not what is measured.
fn many(name: &str, node: &str, replicas: usize) -> String {
    Space::deployment(name, node)
        .replace(
            "spec:\n  selector: {matchLabels",
            &format!("spec:\n  replicas: {replicas}\n  selector: {{matchLabels"),
        )
        .replace("periodSeconds: 1}", "periodSeconds: 10}")
}

/// The addresses of the servers that are ready.
async fn addresses(space: &Space) -> Result<Vec<IpAddr>> {
    let pods = space.json(&["get", "pods"]).await?;
    let mut found = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        let server = pod["metadata"]["labels"]["app"]
            .as_str()
            .is_some_and(|a| a.starts_with("web-"));
        if ready && server {
            let ip = pod["status"]["podIP"]
                .as_str()
                .context("a ready pod has an address")?;
            found.push(ip.parse()?);
        }
    }
    Ok(found)
}
