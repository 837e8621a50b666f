//! Where a lab keeps its things: names of namespaces, directories, sockets and cgroups.
//!
//! Invariants: everything a lab creates can be found again from its name alone, so that `down` works after
//! any crash; the name has no dash, so that one lab's prefix is never the beginning of another's.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Every network namespace of every lab begins with this.
pub const NETNS_PREFIX: &str = "w-lab-";
/// Where `ip netns` keeps named namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// Sockets and keys; one tmpfs per lab.
pub const RUN_ROOT: &str = "/run/warren-lab";
/// The pins of all node proxies on this machine; one directory per instance.
pub const BPF_ROOT: &str = "/sys/fs/bpf/warren";

/// The cgroup of all labs.
const CGROUP: &str = "warren-lab";
/// By this variable users choose where labs keep their state.
const STATE: &str = "WARREN_LAB_STATE";

/// The name of a lab.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl FromStr for LabName {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Self> {
        let good = (1..=12).contains(&s.len())
            && s.starts_with(|c: char| c.is_ascii_lowercase())
            && s.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !good {
            bail!(
                "`{s}` cannot name a lab: use 1 to 12 lower-case letters and digits, a letter first"
            );
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for LabName {
    type Error = anyhow::Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The places of one lab.
#[derive(Clone, Debug)]
pub struct Place {
    /// The lab's name.
    pub name: LabName,
    state: PathBuf,
    run: PathBuf,
    cgroup: PathBuf,
}

impl Place {
    /// The places of the lab `name`; fails without a cgroup v2 hierarchy.
    pub fn new(name: LabName) -> Result<Self> {
        let state = state_root().join(&name.0);
        let run = Path::new(RUN_ROOT).join(&name.0);
        let cgroup = cgroup2_root()?.join(CGROUP).join(&name.0);
        Ok(Self {
            name,
            state,
            run,
            cgroup,
        })
    }

    /// Logs, manifests and what the components keep.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Sockets and keys, on tmpfs.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The control socket of the lab's supervisor.
    pub fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// The directory that the controller reads.
    pub fn manifests(&self) -> PathBuf {
        self.state.join("manifests")
    }

    /// One log file per component and container.
    pub fn log(&self, who: &str) -> PathBuf {
        self.state
            .join("logs")
            .join(format!("{}.log", who.replace('/', ".")))
    }

    /// `mesh-node`'s WARREN_RUN_DIR on that node.
    pub fn node_run(&self, node: &str) -> PathBuf {
        self.run.join(node)
    }

    /// `mesh-node`'s WARREN_STATE_DIR on that node; lives as long as the lab.
    pub fn node_state(&self, node: &str) -> PathBuf {
        self.state.join("nodes").join(node)
    }

    /// The node proxy's instance name: unique on the machine.
    pub fn instance(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }

    /// The root of the lab's cgroups.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// What all of this lab's network namespaces begin with.
    pub fn netns_prefix(&self) -> String {
        format!("{NETNS_PREFIX}{}-", self.name)
    }

    /// The name of the network namespace of the fabric, a node or a pod.
    pub fn netns(&self, what: &str) -> String {
        format!("{}{what}", self.netns_prefix())
    }

    /// The path of a network namespace.
    pub fn netns_path(&self, what: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(self.netns(what))
    }

    /// Names of this lab's network namespaces that exist now.
    pub fn existing_netns(&self) -> Vec<String> {
        let prefix = self.netns_prefix();
        list(Path::new(NETNS_DIR))
            .into_iter()
            .filter(|n| n.starts_with(&prefix))
            .collect()
    }

    /// Pin directories of this lab's node proxies that exist now.
    pub fn existing_pins(&self) -> Vec<PathBuf> {
        let prefix = format!("{}-", self.name);
        let root = Path::new(BPF_ROOT);
        list(root)
            .into_iter()
            .filter(|n| n.starts_with(&prefix))
            .map(|n| root.join(n))
            .collect()
    }
}

/// The directories that all labs share, the cgroup among them. One that the user chose is not.
pub fn shared() -> Result<Vec<PathBuf>> {
    let mut dirs = vec![
        PathBuf::from(BPF_ROOT),
        PathBuf::from(RUN_ROOT),
        cgroup2_root()?.join(CGROUP),
    ];
    if std::env::var_os(STATE).is_none() {
        dirs.push(state_root());
    }
    Ok(dirs)
}

/// Names of all labs of which any trace is left.
pub fn traces() -> Result<Vec<LabName>> {
    let mut names: Vec<LabName> = Vec::new();
    let dirs = [
        state_root(),
        PathBuf::from(RUN_ROOT),
        cgroup2_root()?.join(CGROUP),
    ];
    names.extend(
        dirs.iter()
            .flat_map(|d| list(d))
            .filter_map(|n| n.parse().ok()),
    );
    let spaces = list(Path::new(NETNS_DIR));
    names.extend(spaces.iter().filter_map(|n| {
        n.strip_prefix(NETNS_PREFIX)?
            .split_once('-')?
            .0
            .parse()
            .ok()
    }));
    names.sort();
    names.dedup();
    Ok(names)
}

/// Makes a directory that only root may enter, and refuses one that somebody else made.
pub fn private_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let meta = fs::symlink_metadata(dir)?;
    if meta.uid() != 0 || !meta.is_dir() {
        bail!(
            "{} belongs to uid {}: remove it, or choose another place by WARREN_LAB_STATE",
            dir.display(),
            meta.uid()
        );
    }
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
}

/// The mount point of the cgroup v2 hierarchy (hybrid systems have it beside version 1).
pub fn cgroup2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, dir, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(dir))
    });
    found.context("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

fn state_root() -> PathBuf {
    std::env::var_os(STATE).map_or_else(|| PathBuf::from("/var/tmp/warren-lab"), PathBuf::from)
}

fn list(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_dash_only() {
        for bad in ["", "a-b", "A", "1a", "thirteenchars", "a/b", ".."] {
            assert!(bad.parse::<LabName>().is_err(), "{bad} must be refused");
        }
        assert_eq!(
            "demo2".parse::<LabName>().expect("good").to_string(),
            "demo2"
        );
    }
}
