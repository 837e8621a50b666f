//! What an installation takes from the nodes: the directories of CNI, which differ by distribution of Kubernetes.
//!
//! Invariant: what a user set counts; nodes that differ are said, and nothing is taken from them.

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use mesh_cni::distribution::{Distribution, USUAL, of_node};

use super::{Asked, Assignment, cluster::Cluster};

const PATHS: [&str; 2] = ["cni.confDir", "cni.binDir"];

/// What is asked for, with the directories of the nodes' distribution where none were asked for; `say` hears of it.
pub async fn with_directories(
    cluster: &Cluster,
    asked: Asked,
    say: impl Fn(&str),
) -> anyhow::Result<Asked> {
    let set = asked.paths();
    let is_set = |path: &&str| set.iter().any(|s| s == path);
    if PATHS.iter().any(is_set) || !asked.values()?.cni.enabled {
        return Ok(asked);
    }
    let listed = match cluster.nodes().await {
        Ok(listed) => listed,
        Err(error) => {
            say(&format!(
                "values: the nodes cannot be listed ({error:#}); CNI's directories are taken to be the usual ones"
            ));
            return Ok(asked);
        }
    };
    let Distribution {
        name,
        conf_dir,
        bin_dir,
    } = one_of(&listed)?;
    if *name == USUAL.name {
        return Ok(asked);
    }
    let written = format!("cni.confDir={conf_dir},cni.binDir={bin_dir}");
    say(&format!("values: {written}, since the nodes are {name}"));
    Ok(asked.with(None, &[], Assignment::parse(&written, true)?)?)
}

/// The distribution of the cluster's nodes; an error when they cannot be listed or differ.
pub(super) async fn distribution(cluster: &Cluster) -> anyhow::Result<&'static Distribution> {
    one_of(&cluster.nodes().await?)
}

/// The distribution of all nodes that run Linux.
fn one_of(nodes: &[Node]) -> anyhow::Result<&'static Distribution> {
    let known = nodes.iter().filter_map(|node| {
        let info = node.status.as_ref()?.node_info.as_ref()?;
        let labels = node.metadata.labels.iter().flatten();
        (info.operating_system == "linux").then(|| {
            let labels = labels.map(|(name, _)| name.as_str());
            of_node(&info.kubelet_version, &info.os_image, labels)
        })
    });
    let mut all: Vec<_> = known.collect();
    all.sort_by_key(|d| d.name);
    all.dedup();
    match all.as_slice() {
        [] => Ok(&USUAL),
        [one] => Ok(one),
        several => {
            let names: Vec<&str> = several.iter().map(|d| d.name).collect();
            Err(anyhow::anyhow!(
                "nodes keep CNI in different directories ({})",
                names.join(", ")
            ))
            .context("set cni.confDir and cni.binDir to those of the nodes that take part (node.nodeSelector chooses them), or cni.enabled=false")
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeStatus, NodeSystemInfo};

    use super::*;

    fn node(kubelet: &str, system: &str) -> Node {
        let info = NodeSystemInfo {
            kubelet_version: kubelet.to_owned(),
            operating_system: system.to_owned(),
            ..NodeSystemInfo::default()
        };
        Node {
            status: Some(NodeStatus {
                node_info: Some(info),
                ..NodeStatus::default()
            }),
            ..Node::default()
        }
    }

    #[test]
    fn nodes_that_agree_decide_and_others_are_said() {
        let windows = node("v1.34.1", "windows");
        let k3s = node("v1.34.1+k3s1", "linux");
        assert_eq!(one_of(&[]).expect("usual").name, "usual");
        assert_eq!(
            one_of(&[windows, k3s.clone(), k3s.clone()])
                .expect("k3s")
                .name,
            "k3s"
        );
        let error = one_of(&[k3s, node("v1.34.1", "linux")]).expect_err("differ");
        let text = format!("{error:#}");
        assert!(
            text.contains("cni.confDir") && text.contains("(k3s, usual)"),
            "{text}"
        );
    }
}
