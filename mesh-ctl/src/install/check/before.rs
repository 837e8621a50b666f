//! The cluster: its version, its clock, its nodes' kernels and container runtimes, and another mesh in it.

use std::{collections::BTreeSet, time::SystemTime};

use anyhow::Context;
use hyper::Request;
use k8s_openapi::{
    api::apps::v1::Deployment,
    jiff::{Timestamp, fmt::rfc2822},
};
use kube::{Api, api::ListParams, client::Body};

use super::Finding;
use crate::install::cluster::Cluster;

/// The oldest release of Kubernetes with all fields of the objects.
const MINOR: u32 = 30;
/// Kernels from here on have all that is used, and from the second on what can be done without.
const LINUX: [(u32, u32); 2] = [(6, 6), (6, 1)];
/// The container runtimes whose pods' cgroups are known.
const KNOWN: [&str; 2] = ["containerd", "cri-o"];
/// Clocks may differ by so many seconds before certificates and tokens suffer, and before somebody should look.
pub(super) const SKEWS: [i64; 2] = [300, 30];

/// The checks of the nodes.
const KERNELS: &str = "kernels";
const RUNTIMES: &str = "runtimes";

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let unknown = |check: &'static str| move |error: anyhow::Error| Finding::unknown(check, &error);
    let [kernels, runtimes] = machines(cluster).await;
    vec![
        version(cluster).await.unwrap_or_else(unknown("kubernetes")),
        skew(cluster)
            .await
            .map_or_else(unknown("clock"), judge_clock),
        kernels,
        runtimes,
        istio(cluster).await.unwrap_or_else(unknown("istio")),
    ]
}

async fn version(cluster: &Cluster) -> anyhow::Result<Finding> {
    const CHECK: &str = "kubernetes";
    let info = cluster.client.apiserver_version().await?;
    let minor = info.minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    let old = info.major == "1" && minor.parse::<u32>().is_ok_and(|m| m < MINOR);
    Ok(match old {
        true => Finding::failed(
            CHECK,
            info.git_version,
            format!("the objects need Kubernetes 1.{MINOR} or newer: upgrade the cluster"),
        ),
        false => Finding::ok(CHECK, info.git_version),
    })
}

/// How many seconds this machine is ahead of the API server, which says in every answer what time it is.
pub(super) async fn skew(cluster: &Cluster) -> anyhow::Result<i64> {
    let request = Request::get("/version").body(Body::empty())?;
    let before = SystemTime::now();
    let answer = cluster.client.send(request).await?;
    let after = SystemTime::now();
    let date = answer
        .headers()
        .get("date")
        .context("no Date in an answer")?;
    let theirs = rfc2822::parse(date.to_str()?)?.timestamp();
    let ours = before + after.duration_since(before).unwrap_or_default() / 2;
    Ok(Timestamp::try_from(ours)?.as_second() - theirs.as_second())
}

fn judge_clock(skew: i64) -> Finding {
    const CHECK: &str = "clock";
    let said = match skew {
        // The header has no fractions.
        -1..=1 => "this machine and the API server agree".to_owned(),
        s if s < 0 => format!("this machine is {} seconds behind the API server", -s),
        s => format!("this machine is {s} seconds ahead of the API server"),
    };
    let hint = "set the clocks by NTP; certificates and tokens are refused by clocks that differ";
    match skew.abs() {
        s if s > SKEWS[0] => Finding::failed(CHECK, said, hint),
        s if s > SKEWS[1] => Finding::warning(CHECK, said, hint),
        _ => Finding::ok(CHECK, said),
    }
}

/// What the nodes say of themselves: their kernels, and their container runtimes.
async fn machines(cluster: &Cluster) -> [Finding; 2] {
    let listed = match cluster.nodes().await {
        Ok(listed) => listed,
        Err(error) => return [KERNELS, RUNTIMES].map(|check| Finding::unknown(check, &error)),
    };
    let told = listed.into_iter().filter_map(|node| {
        let info = node.status?.node_info?;
        Some((node.metadata.name.unwrap_or_default(), info))
    });
    let (mut kernels, mut runtimes) = (Vec::new(), Vec::new());
    for (name, info) in told {
        if info.operating_system == "linux" {
            runtimes.push((name.clone(), info.container_runtime_version));
        }
        kernels.push((name, info.operating_system, info.kernel_version));
    }
    [judge_kernels(&kernels), judge_runtimes(&runtimes)]
}

/// Nodes with Linux by name, and their container runtime as `name://version`.
fn judge_runtimes(nodes: &[(String, String)]) -> Finding {
    let known = |runtime: &str| {
        KNOWN
            .iter()
            .any(|name| runtime.starts_with(&format!("{name}://")))
    };
    let others = nodes.iter().filter(|(_, runtime)| !known(runtime));
    let others: Vec<String> = others
        .map(|(node, runtime)| format!("{node} {runtime}"))
        .collect();
    match others.is_empty() {
        true => {
            let seen: BTreeSet<&str> = nodes.iter().map(|(_, runtime)| runtime.as_str()).collect();
            Finding::ok(RUNTIMES, seen.into_iter().collect::<Vec<_>>().join(", "))
        }
        false => Finding::warning(
            RUNTIMES,
            format!("not known: {}", others.join(", ")),
            "pods are found by their cgroups, as containerd and CRI-O name them; see that `mesh-ctl check` counts no pods that \
             are not captured",
        ),
    }
}

/// Nodes by name, operating system and kernel.
fn judge_kernels(nodes: &[(String, String, String)]) -> Finding {
    let (mut old, mut limited, mut fine) = (Vec::new(), Vec::new(), 0);
    for (name, _, kernel) in nodes.iter().filter(|(_, system, _)| system == "linux") {
        match number(kernel) {
            Some(n) if n >= LINUX[0] => fine += 1,
            Some(n) if n >= LINUX[1] => limited.push(format!("{name} {kernel}")),
            _ => old.push(format!("{name} {kernel}")),
        }
    }
    if !old.is_empty() {
        let said = format!("too old: {}", old.join(", "));
        return Finding::failed(
            KERNELS,
            said,
            "the kernel programs need Linux 6.6; keep such nodes out by node.nodeSelector, or upgrade them",
        );
    }
    if !limited.is_empty() {
        let said = format!("without TCX: {}", limited.join(", "));
        return Finding::warning(
            KERNELS,
            said,
            "programs are attached by clsact there, which was tested on newer kernels only",
        );
    }
    match fine {
        0 => Finding::failed(
            KERNELS,
            "there is no node with Linux",
            "add a node to the cluster",
        ),
        n => Finding::ok(KERNELS, format!("{n} nodes with Linux 6.6 or newer")),
    }
}

fn number(kernel: &str) -> Option<(u32, u32)> {
    let mut parts = kernel.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

async fn istio(cluster: &Cluster) -> anyhow::Result<Finding> {
    const CHECK: &str = "istio";
    let deployments: Api<Deployment> = Api::all(cluster.client.clone());
    let of = ListParams::default().labels("app=istiod");
    let listed = deployments.list(&of).await?;
    let there: Vec<String> = listed
        .items
        .iter()
        .filter_map(|d| d.metadata.namespace.clone())
        .collect();
    Ok(match there.is_empty() {
        true => Finding::ok(CHECK, "no Istio runs here"),
        false => Finding::warning(
            CHECK,
            format!("Istio runs in {}", there.join(", ")),
            "a namespace belongs to one of the two: label none with both istio-injection or istio.io/dataplane-mode and \
             warren.dev/mesh, and let MeshConfig honourIstioLabels say whether Istio's labels count here",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn clocks_are_compared_in_both_directions() {
        let check = |ours: i64, outcome: Outcome, said: &str| {
            let found = judge_clock(ours - 1000);
            assert_eq!(found.outcome, outcome, "{ours}");
            assert!(found.said.contains(said), "{}", found.said);
        };
        check(1001, Outcome::Ok, "agree");
        check(1010, Outcome::Ok, "10 seconds ahead");
        check(960, Outcome::Warning, "40 seconds behind");
        check(1400, Outcome::Failed, "400 seconds ahead");
        let date = rfc2822::parse("Wed, 25 Nov 2026 08:38:03 GMT").expect("an HTTP date");
        assert_eq!(date.timestamp().as_second(), 1_795_595_883);
    }

    #[test]
    fn runtimes_that_are_not_known_are_named() {
        let check = |runtimes: &[&str], outcome: Outcome, said: &str| {
            let named = runtimes.iter().enumerate();
            let nodes: Vec<_> = named
                .map(|(i, r)| (format!("n{i}"), (*r).to_owned()))
                .collect();
            let found = judge_runtimes(&nodes);
            assert_eq!((found.outcome, found.said.as_str()), (outcome, said));
        };
        let (containerd, crio) = ("containerd://2.1.0", "cri-o://1.34.0");
        check(
            &[crio, containerd, containerd],
            Outcome::Ok,
            "containerd://2.1.0, cri-o://1.34.0",
        );
        check(
            &[containerd, "docker://27.0"],
            Outcome::Warning,
            "not known: n1 docker://27.0",
        );
    }

    #[test]
    fn the_oldest_kernel_decides() {
        let check = |kernels: &[&str], outcome: Outcome, said: &str| {
            let nodes: Vec<_> = kernels
                .iter()
                .enumerate()
                .map(|(i, k)| (format!("n{i}"), "linux".to_owned(), (*k).to_owned()))
                .chain([(
                    "w".to_owned(),
                    "windows".to_owned(),
                    "10.0.17763".to_owned(),
                )])
                .collect();
            let found = judge_kernels(&nodes);
            assert_eq!(found.outcome, outcome, "{kernels:?}");
            assert!(found.said.contains(said), "{}", found.said);
        };
        check(&["6.6.0", "6.18.1-cloud"], Outcome::Ok, "2 nodes");
        check(&["6.18.1", "6.1.0-13-amd64"], Outcome::Warning, "n1 6.1.0");
        check(&["6.6.0", "6.1.0", "5.15.0"], Outcome::Failed, "n2 5.15.0");
        check(&["unknown"], Outcome::Failed, "n0 unknown");
        check(&[], Outcome::Failed, "no node");
    }
}
