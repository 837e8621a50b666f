//! Where the nodes keep CNI's files, before the plugin is put there.

use mesh_cni::distribution::Distribution;

use super::Finding;
use crate::install::{Values, cluster::Cluster, platform};

const CHECK: &str = "cni";

pub(super) async fn look(cluster: &Cluster, values: &Values) -> Finding {
    if !values.cni.enabled {
        return Finding::ok(
            CHECK,
            "no plugin is installed: pods are captured when they are seen",
        );
    }
    let dirs = (values.cni.conf_dir.as_str(), values.cni.bin_dir.as_str());
    judge(platform::distribution(cluster).await, dirs)
}

/// What the nodes are, and the directories that an installation would use.
fn judge(nodes: anyhow::Result<&'static Distribution>, dirs: (&str, &str)) -> Finding {
    let (conf, bin) = dirs;
    let said =
        |name: &str| format!("configuration in {conf}, plugins in {bin}; the nodes are {name}");
    match nodes {
        Ok(one) if (one.conf_dir, one.bin_dir) == dirs => Finding::ok(CHECK, said(one.name)),
        Ok(one) => Finding::warning(
            CHECK,
            said(one.name),
            format!(
                "nodes like these keep it in {} and {}: see that cni.confDir and cni.binDir are the runtime's",
                one.conf_dir, one.bin_dir
            ),
        ),
        Err(error) => Finding::warning(
            CHECK,
            format!("configuration in {conf}, plugins in {bin}; {error:#}"),
            "each node's own line of `mesh-ctl check` says after the installation whether the plugin is in its place",
        ),
    }
}

#[cfg(test)]
mod tests {
    use mesh_cni::distribution::{K3S, USUAL};

    use super::super::Outcome;
    use super::*;

    #[test]
    fn directories_are_held_against_the_nodes() {
        let usual = (USUAL.conf_dir, USUAL.bin_dir);
        let check = |nodes, outcome, said: &str| {
            let found = judge(nodes, usual);
            assert_eq!(found.outcome, outcome, "{}", found.said);
            assert!(found.said.contains(said), "{}", found.said);
        };
        check(Ok(&USUAL), Outcome::Ok, "/opt/cni/bin");
        check(Ok(&K3S), Outcome::Warning, "the nodes are k3s");
        check(
            Err(anyhow::anyhow!("they differ")),
            Outcome::Warning,
            "they differ",
        );
    }
}
