//! A cluster of 10,000 pods and 1,000 services: what the controller needs for them, how long it takes to read all of them
//! again, and how soon a change holds among them.
//!
//! The pods are objects on nodes that are objects: no kubelet runs them. Their nodes' leases are renewed here, so that the
//! cluster takes them for running. kube-proxy is told to leave the services alone, being no part of what is measured.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use super::{Bench, asking::Asking, part, times};
use crate::{
    bench::Fact,
    kube::{Api, Cluster, SYSTEM, Space},
};

const NODES: usize = 20;
const NAMESPACES: usize = 10;
/// Requests to the API server at once.
const AT_ONCE: usize = 48;
/// Half of what a kubelet may leave out.
const RENEWAL: Duration = Duration::from_secs(10);
/// How often the pod is asked on which changes are seen.
const EVERY: Duration = Duration::from_millis(2);
const HOLD: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(60);
const CONTROLLER: &str = "warren-controller";

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let (pods, services) = (bench.options.crowd, bench.options.services);
    let before = part::parts(&bench.cluster).await?;
    let before = (
        part::resident(&before, CONTROLLER)?,
        part::resident(&before, "warren-node")?,
    );
    bench.say(&format!("making {pods} pods and {services} services"));
    let leases = nodes(&bench.api).await?;
    let begun = Instant::now();
    fill(&bench.api, pods, services).await?;
    let written = begun.elapsed();
    published(bench, pods + services, None).await?;
    let last = begun.elapsed() - written;
    bench.findings.facts.push(Fact {
        row: "crowd",
        what: format!("{pods} pods, {services} services written"),
        figures: vec![
            ("s", written.as_secs_f64()),
            ("then published after s", last.as_secs_f64()),
        ],
    });
    // What was needed for the moment goes back.
    sleep(Duration::from_secs(10)).await;
    memory(bench, before, pods + 2 * services).await?;
    let changes = changes(bench).await?;
    bench.findings.facts.push(changes);
    again(bench, pods + services).await?;
    leases.abort();
    Ok(())
}

/// What controller and nodes hold more than before.
async fn memory(
    bench: &mut Bench,
    before: ((f64, usize), (f64, usize)),
    objects: usize,
) -> Result<()> {
    let parts = part::parts(&bench.cluster).await?;
    for (component, (then, _), each) in [
        (CONTROLLER, before.0, objects),
        ("warren-node", before.1, bench.options.crowd),
    ] {
        let (now, count) = part::resident(&parts, component)?;
        ensure!(count > 0, "no {component} runs");
        let (now, then) = (now / count as f64, then / count as f64);
        bench.findings.facts.push(Fact {
            row: "crowd",
            what: format!("memory of {component}"),
            figures: vec![
                ("resident MB", now / 1e6),
                ("before MB", then / 1e6),
                (
                    if component == CONTROLLER {
                        "KB per object"
                    } else {
                        "KB per pod"
                    },
                    (now - then) / each as f64 / 1e3,
                ),
            ],
        });
    }
    Ok(())
}

/// Kills the controller's process and waits until everything is published again and the nodes are back.
async fn again(bench: &mut Bench, resources: usize) -> Result<()> {
    bench.say("the controller is killed and reads everything again");
    let nodes = bench.cluster.nodes()?.len();
    let pod = controller(&bench.cluster).await?;
    let id = pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .context("it has a container")?;
    let node = pod["spec"]["nodeName"].as_str().context("it has a node")?;
    let begun = Instant::now();
    bench.cluster.kill_container(node, id).await?;
    published(bench, resources, Some(nodes)).await?;
    bench.findings.facts.push(Fact {
        row: "crowd",
        what: "controller killed, to all published and nodes connected".to_owned(),
        figures: vec![("s", begun.elapsed().as_secs_f64())],
    });
    Ok(())
}

/// From the writing of a policy to its effect, seen by whoever asks a pod from outside.
async fn changes(bench: &mut Bench) -> Result<Fact> {
    let cluster = bench.cluster.clone();
    let mut taken = Vec::new();
    Space::with("changed", "warren.dev/mesh: enabled", async |space| {
        let node = cluster.nodes()?.remove(0);
        space.apply(&Space::deployment("web", &node)).await?;
        space.rolled_out("deployment/web").await?;
        let path = "jsonpath={.items[0].status.podIP}";
        let ip = space.kubectl(&["get", "pods", "-o", path]).await?;
        let asking = Asking::begin(vec![SocketAddr::new(ip.parse()?, 8080)], EVERY);
        let policies = "/apis/security.istio.io/v1/namespaces/changed/authorizationpolicies";
        let nobody = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "nobody"}, "spec": {}});
        asking.settled(true, HOLD, PATIENCE).await?;
        for _ in 0..bench.options.changes.div_ceil(2) {
            for answers in [false, true] {
                let begun = Instant::now();
                match answers {
                    false => bench.api.create(policies, &nobody).await?,
                    true => bench.api.delete(&format!("{policies}/nobody")).await?,
                };
                let since = asking.settled(answers, HOLD, PATIENCE).await?;
                taken.extend(since.iter().map(|s| s.saturating_duration_since(begun)));
            }
        }
        Ok(())
    })
    .await?;
    let what = format!(
        "policy written to enforced, among {} pods",
        bench.options.crowd
    );
    times("crowd", &what, &taken)
}

async fn controller(cluster: &Cluster) -> Result<Value> {
    let args = [
        "-n",
        SYSTEM,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=warren-controller",
    ];
    let pods = cluster.json(&args).await?;
    let mut all = pods["items"]
        .as_array()
        .cloned()
        .unwrap_or_default()
        .into_iter();
    all.next().context("no controller runs")
}

/// Waits until the controller publishes so many addresses, and so many nodes are connected to it.
async fn published(bench: &Bench, least: usize, nodes: Option<usize>) -> Result<()> {
    let cluster = &bench.cluster;
    let pod = controller(cluster).await?;
    let ip = pod["status"]["podIP"]
        .as_str()
        .context("the controller has an address")?;
    let url = format!("http://{ip}:15014/metrics");
    let what = format!("{least} addresses to be published");
    let wait = cluster.until(&what, 300, async || {
        let said = cluster.outside(&["curl", "-s", "-m", "5", &url]).await?;
        let number = |name: &str| -> f64 {
            let line = said.out.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.trim().parse().ok()).unwrap_or(-1.0)
        };
        let (found, connected) = (
            number("warren_ctl_resources{kind=\"Address\"}"),
            number("warren_ctl_subscribers"),
        );
        ensure!(found >= least as f64, "{found}");
        ensure!(
            nodes.is_none_or(|n| connected >= n as f64),
            "{connected} nodes"
        );
        Ok(())
    });
    wait.await
}

/// Makes the nodes; the leases of those are renewed until the task is ended.
async fn nodes(api: &Api) -> Result<tokio::task::JoinHandle<()>> {
    let names: Vec<String> = (0..NODES).map(|n| format!("crowd-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"taints": [{"key": "warren.dev/no-kubelet", "effect": "NoSchedule"}]}});
        api.create("/api/v1/nodes", &node).await?;
        let (now, room) = (
            now()?,
            json!({"cpu": "1000", "memory": "1000Gi", "pods": "1000"}),
        );
        let status = json!({"status": {"capacity": room, "allocatable": room,
            "addresses": [{"type": "InternalIP", "address": format!("10.97.0.{}", n + 1)}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Said", "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        api.patch(&format!("/api/v1/nodes/{name}/status"), &status)
            .await?;
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": micro(&now)}});
        api.create(LEASES, &lease).await?;
    }
    let api = api.clone();
    Ok(tokio::spawn(async move {
        loop {
            sleep(RENEWAL).await;
            for name in &names {
                let renewed = async {
                    let change = json!({"spec": {"renewTime": micro(&now()?)}});
                    api.patch(&format!("{LEASES}/{name}"), &change).await
                };
                if let Err(error) = renewed.await {
                    eprintln!("a lease was not renewed: {error:#}");
                }
            }
        }
    }))
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// The present time as the API writes it.
fn now() -> Result<String> {
    let date = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])
        .output()?;
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

/// The same with the fraction that leases have.
fn micro(time: &str) -> String {
    time.replace('Z', ".000000Z")
}

/// Writes all pods, services and slices.
async fn fill(api: &Api, pods: usize, services: usize) -> Result<()> {
    for n in 0..NAMESPACES {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("crowd-{n}"), "labels": {"warren.dev/mesh": "enabled"}}});
        api.create("/api/v1/namespaces", &namespace).await?;
    }
    for n in 0..NAMESPACES {
        account(api, n).await?;
    }
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut work = JoinSet::new();
    for index in 0..pods + services {
        let turn = turns.clone().acquire_owned().await?;
        let api = api.clone();
        work.spawn(async move {
            let _turn = turn;
            match index.checked_sub(pods) {
                None => pod(&api, index).await,
                Some(index) => service(&api, index, pods, services).await,
            }
        });
        while let Some(done) = work.try_join_next() {
            done??;
        }
    }
    while let Some(done) = work.join_next().await {
        done??;
    }
    Ok(())
}

/// Pods are refused until their namespace has an account; it is made here when the cluster has not come to it yet.
async fn account(api: &Api, n: usize) -> Result<()> {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    match api
        .create(
            &format!("/api/v1/namespaces/crowd-{n}/serviceaccounts"),
            &account,
        )
        .await
    {
        Err(error) if !format!("{error:#}").contains("AlreadyExists") => Err(error),
        _ => Ok(()),
    }
}

fn address(index: usize) -> String {
    format!(
        "10.{}.{}.{}",
        128 + index / 62_500,
        index / 250 % 250,
        index % 250 + 1
    )
}

async fn pod(api: &Api, index: usize) -> Result<()> {
    let (name, ip) = (format!("pod-{index}"), address(index));
    let pods = format!("/api/v1/namespaces/crowd-{}/pods", index % NAMESPACES);
    let labels = json!({"app": format!("app-{}", index % 1000), "version": "v1"});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": format!("crowd-{}", index % NODES), "automountServiceAccountToken": false,
            "tolerations": [{"operator": "Exists"}], "containers": [{"name": "app", "image": "nobody.runs/this:1"}]}});
    api.create(&pods, &pod).await?;
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    api.patch(&format!("{pods}/{name}/status"), &status)
        .await
        .map(drop)
}

/// A service of the pods that follow each other in its namespace, with their slice.
async fn service(api: &Api, index: usize, pods: usize, services: usize) -> Result<()> {
    let namespace = index % NAMESPACES;
    let name = format!("svc-{index}");
    let labels = json!({"service.kubernetes.io/service-proxy-name": "nobody"});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    api.create(
        &format!("/api/v1/namespaces/crowd-{namespace}/services"),
        &service,
    )
    .await?;
    let each = pods / services;
    let of: BTreeSet<usize> = (0..each)
        .map(|n| (index / NAMESPACES * each + n) * NAMESPACES + namespace)
        .filter(|index| *index < pods)
        .collect();
    let endpoints: Vec<Value> = of
        .iter()
        .map(|pod| {
            json!({"addresses": [address(*pod)], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": format!("pod-{pod}"), "namespace": format!("crowd-{namespace}")}})
        })
        .collect();
    let labels = json!({"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "warren-bench",
        "service.kubernetes.io/service-proxy-name": "nobody"});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": name, "labels": labels},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints});
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/crowd-{namespace}/endpointslices");
    api.create(&slices, &slice).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_has_an_address_of_its_own() {
        let all: BTreeSet<String> = (0..70_000).map(address).collect();
        assert_eq!(all.len(), 70_000);
        assert!(all.iter().all(|a| a.parse::<std::net::Ipv4Addr>().is_ok()));
    }
}
