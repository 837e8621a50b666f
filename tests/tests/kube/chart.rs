//! The chart by the real helm, from nothing to nothing.

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{Helm, SYSTEM, Space};
use serde_json::Value;

use super::{
    life::nothing_is_left,
    workloads::{ENROLLED, STRICT},
};

const URL: &str = "http://web/status/200";
/// A kind of Istio's that somebody else has defined, and looks after.
const FOREIGN: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: telemetries.telemetry.istio.io
  labels: {app.kubernetes.io/part-of: somebody}
spec:
  group: telemetry.istio.io
  names: {kind: Telemetry, listKind: TelemetryList, plural: telemetries, singular: telemetry}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

const TELEMETRIES: &str = "crd/telemetries.telemetry.istio.io";
/// What Istio's control plane is known by, wherever it runs.
const ISTIOD: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: istiod, labels: {app: istiod}}
spec:
  replicas: 0
  selector: {matchLabels: {app: istiod}}
  template:
    metadata: {labels: {app: istiod}}
    spec: {containers: [{name: discovery, image: 'warren.test/none:1'}]}
";

/// helm installs what serves, keeps on an upgrade what was set, and takes it away after the nodes were restored; what
/// somebody else defined of Istio's is left alone all the time, by `mesh-ctl` as well, and pods talk all the time. Must
/// come after the last test that needs an installation by `mesh-ctl`.
pub async fn helm_installs_upgrades_and_removes_the_chart() -> Result<()> {
    let Some(helm) = Helm::told() else {
        println!("SKIPPED: helm is not there: run `cargo xtask test kube`");
        return Ok(());
    };
    Space::with("helmed", ENROLLED, async |space| {
        let cluster = &space.cluster;
        cluster.purge().await?;
        cluster.apply(FOREIGN).await?;
        let foreign = definition(space).await?;
        let left_alone = async || {
            let now = definition(space).await?;
            ensure!(
                now == foreign,
                "another's definition was {foreign}, and is {now}"
            );
            Ok(())
        };
        cluster.install().await?;
        left_alone().await?;
        a_running_istio_is_named(space).await?;
        cluster.purge().await?;
        left_alone().await?;
        let nodes = cluster.nodes()?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        space.apply(&Space::asker("asker", &nodes[1], URL)).await?;
        space.rolled_out("deployment/web").await?;
        space.is_answered("asker").await?;

        helm.install(cluster, &["image.tag=dev", "node.accessLog=true"])
            .await?;
        cluster.check().await?;
        space.apply(STRICT).await?;
        let encrypted = ["src.workload=asker", "src.namespace=helmed", "mtls=true"];
        cluster.until_logged(&nodes[1], &encrypted).await?;
        left_alone().await?;

        let before = space.tally("asker")?;
        let node = container(space, "daemonset/warren-node").await?;
        helm.upgrade(cluster, &["controller.leafTtl=2h"]).await?;
        let same = container(space, "daemonset/warren-node").await?;
        ensure!(node == same, "the node proxies were {node}, and are {same}");
        let controller = container(space, "deployment/warren-controller").await?;
        ensure!(
            controller.to_string().contains("2h"),
            "the controller has {controller}"
        );
        cluster.check().await?;

        cluster.restore_nodes().await?;
        helm.uninstall(cluster).await?;
        let seen = space.tally("asker")?.since(&before);
        println!("from the upgrade to the end of the installation: {seen}");
        seen.flawless(50)?;
        for node in &nodes {
            nothing_is_left(space, node).await?;
        }
        // Pods end in their own time after helm said that all is deleted.
        let empty = async || {
            let left = cluster.json(&["-n", SYSTEM, "get", "all"]).await?;
            ensure!(
                left["items"] == serde_json::json!([]),
                "left: {}",
                left["items"]
            );
            Ok(())
        };
        cluster.until("nothing to be left of it", 60, empty).await?;
        left_alone().await?;
        cluster.kubectl(&["delete", TELEMETRIES]).await.map(drop)
    })
    .await
}

/// Two meshes may take the same namespaces: whoever looks is told that there is another, and where.
async fn a_running_istio_is_named(space: &Space) -> Result<()> {
    let look = async || {
        let (well, all) = space.cluster.findings().await?;
        ensure!(well, "{all:?}");
        let mut all = all.into_iter();
        all.find(|f| f["check"] == "istio").context("no finding")
    };
    let found = look().await?;
    ensure!(found["outcome"] == "ok", "{found}");
    Space::with("istio-other", "", async |other| {
        other.apply(ISTIOD).await?;
        let found = look().await?;
        let said = found["said"].as_str().unwrap_or_default();
        let hinted = found["hint"].as_str().is_some_and(|h| !h.is_empty());
        ensure!(
            found["outcome"] == "warning" && said.contains("istio-other") && hinted,
            "{found}"
        );
        Ok(())
    })
    .await
}

/// The definition that is another's, as far as somebody could have changed it.
async fn definition(space: &Space) -> Result<Value> {
    let found = space.cluster.json(&["get", TELEMETRIES]).await?;
    let of = |key: &str| found["metadata"][key].clone();
    Ok(Value::from(vec![
        of("uid"),
        of("generation"),
        of("labels"),
        of("annotations"),
        found["spec"].clone(),
    ]))
}

/// What the first container of a workload's pods is to be.
async fn container(space: &Space, workload: &str) -> Result<Value> {
    let found = space.cluster.json(&["-n", SYSTEM, "get", workload]).await?;
    let container = found.pointer("/spec/template/spec/containers/0");
    container.cloned().context("no container")
}
