//! Where the container runtime of a node looks for CNI configurations and programs.
//!
//! Invariants: what was configured counts; else the node's directories as they are mounted in a container, under
//! `/host`, come before those of the machine itself; a directory that holds a configuration comes before one that
//! only exists.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mesh_cni::{
    conflist,
    distribution::{ALL, Distribution},
    install::Node,
};

/// Where a container has the node's directories.
const PREFIXES: [&str; 2] = ["/host", "/"];

/// The directories, and how they were found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The directories.
    pub node: Node,
    /// Whose they are, for people.
    pub whose: String,
}

/// Finds the directories; `conf` and `bin` are those that were configured.
pub fn find(conf: Option<&Path>, bin: Option<&Path>) -> Found {
    search(&PREFIXES.map(Path::new), conf, bin)
}

fn search(prefixes: &[&Path], conf: Option<&Path>, bin: Option<&Path>) -> Found {
    let all: Vec<(&Distribution, PathBuf, PathBuf)> = prefixes
        .iter()
        .flat_map(|prefix| {
            let below = |dir: &str| prefix.join(dir.trim_start_matches('/'));
            ALL.iter()
                .map(move |d| (d, below(d.conf_dir), below(d.bin_dir)))
        })
        .collect();
    let fits = |(_, c, b): &&(&Distribution, PathBuf, PathBuf), used: bool| {
        let conf = conf.map_or(if used { in_use(c) } else { c.is_dir() }, |conf| conf == c);
        conf && bin.map_or(b.is_dir(), |bin| bin == b)
    };
    let best = all
        .iter()
        .find(|d| fits(d, true))
        .or_else(|| all.iter().find(|d| fits(d, false)));
    let (whose, found_conf, found_bin) = match best {
        Some((d, c, b)) => (d.name, c.clone(), b.clone()),
        None => ("configured", all[0].1.clone(), all[0].2.clone()),
    };
    Found {
        node: Node {
            conf_dir: conf.map_or(found_conf, Path::to_path_buf),
            bin_dir: bin.map_or(found_bin, Path::to_path_buf),
        },
        whose: whose.to_owned(),
    }
}

/// Whether a directory has a configuration that a runtime reads.
fn in_use(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .any(|name| conflist::is_read(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(made: &[&str], conf: Option<&str>, bin: Option<&str>, expect: (&str, &str, &str)) {
        let root = tempfile::tempdir().unwrap();
        let (host, own) = (root.path().join("host"), root.path().to_path_buf());
        for path in made {
            let path = root.path().join(path);
            if path.extension().is_some_and(|e| e == "conflist") {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "{}").unwrap();
            } else {
                fs::create_dir_all(path).unwrap();
            }
        }
        let (conf, bin) = (conf.map(|c| own.join(c)), bin.map(|b| own.join(b)));
        let found = search(&[&host, &own], conf.as_deref(), bin.as_deref());
        let (whose, conf_dir, bin_dir) = expect;
        assert_eq!(
            (
                found.whose.as_str(),
                found.node.conf_dir,
                found.node.bin_dir
            ),
            (whose, own.join(conf_dir), own.join(bin_dir)),
            "{made:?}"
        );
    }

    #[test]
    fn the_directories_in_use_are_found() {
        let usual = ("usual", "host/etc/cni/net.d", "host/opt/cni/bin");
        // In a container whose own directories are there as well.
        check(
            &[
                "etc/cni/net.d",
                "opt/cni/bin",
                "host/etc/cni/net.d/1.conflist",
                "host/opt/cni/bin",
            ],
            None,
            None,
            usual,
        );
        check(
            &["etc/cni/net.d/1.conflist", "home/kubernetes/bin"],
            None,
            None,
            ("GKE", "etc/cni/net.d", "home/kubernetes/bin"),
        );
        // The usual ones are there and empty.
        let k3s = "var/lib/rancher/k3s/agent/etc/cni/net.d";
        check(
            &[
                "etc/cni/net.d",
                "opt/cni/bin",
                "var/lib/rancher/k3s/agent/etc/cni/net.d/1.conflist",
                "var/lib/rancher/k3s/data/cni",
            ],
            None,
            None,
            ("k3s", k3s, "var/lib/rancher/k3s/data/cni"),
        );
        // Before the network provider is there.
        check(
            &["host/etc/cni/net.d", "host/opt/cni/bin"],
            None,
            None,
            usual,
        );
        // What is configured counts, whatever is there.
        check(
            &["etc/cni/net.d/1.conflist", "opt/cni/bin"],
            Some("a"),
            Some("b"),
            ("configured", "a", "b"),
        );
        check(
            &[
                "etc/cni/net.d/1.conflist",
                "opt/cni/bin",
                "home/kubernetes/bin",
            ],
            None,
            Some("home/kubernetes/bin"),
            ("GKE", "etc/cni/net.d", "home/kubernetes/bin"),
        );
    }
}
