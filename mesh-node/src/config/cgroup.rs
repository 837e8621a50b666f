//! Finding the cgroups that capture attaches to: the agent's own, and the one that holds the pods.
//!
//! Invariant: what is found is a directory of the version 2 hierarchy; when nothing fits, the error says what to pass.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the version 2 hierarchy is usually mounted.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The cgroups of this process and of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    /// This process's own.
    pub own: PathBuf,
    /// The one below which all pods live.
    pub pods: PathBuf,
    /// The root of the hierarchy.
    pub mount: PathBuf,
}

/// Finds both; `pods` is what was configured.
pub fn find(pods: Option<&Path>) -> io::Result<Cgroups> {
    let mount = MOUNTS
        .iter()
        .map(Path::new)
        .find(|m| m.join("cgroup.controllers").exists());
    let mount = mount.ok_or_else(|| {
        io::Error::other(
            "no cgroup version 2 hierarchy at /sys/fs/cgroup or /sys/fs/cgroup/unified; mount one",
        )
    })?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own
        .lines()
        .find_map(|l| l.strip_prefix("0::/"))
        .unwrap_or_default();
    // Seen from inside a cgroup namespace the path may begin with `..`; the mount's root is then the best there is.
    let own = if own.starts_with("..") {
        mount.to_path_buf()
    } else {
        mount.join(own)
    };
    let pods = match pods {
        Some(pods) => pods.to_path_buf(),
        None => above(&own, mount).ok_or_else(|| {
            io::Error::other("no kubepods* cgroup above the agent's own; pass --pods-cgroup")
        })?,
    };
    Ok(Cgroups {
        own,
        pods,
        mount: mount.to_path_buf(),
    })
}

/// The nearest `kubepods*` among the ancestors of `from` and what lies directly in them.
fn above(from: &Path, mount: &Path) -> Option<PathBuf> {
    let is_pods = |p: &Path| {
        p.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("kubepods"))
    };
    for ancestor in from.ancestors().take_while(|a| a.starts_with(mount)) {
        if is_pods(ancestor) {
            // The outermost one holds pods of every quality of service.
            return ancestor
                .ancestors()
                .take_while(|a| a.starts_with(mount))
                .filter(|a| is_pods(a))
                .last()
                .map(Path::to_path_buf);
        }
        let entries = fs::read_dir(ancestor).into_iter().flatten().flatten();
        if let Some(found) = entries.map(|e| e.path()).find(|p| is_pods(p) && p.is_dir()) {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_are_found_from_inside_and_from_beside() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        let inside = root.join("kubepods.slice/kubepods-besteffort.slice/pod1/agent");
        let beside = root.join("system.slice/agent.service");
        for path in [&inside, &beside] {
            fs::create_dir_all(path).expect("writable");
        }
        assert_eq!(above(&inside, root), Some(root.join("kubepods.slice")));
        assert_eq!(above(&beside, root), Some(root.join("kubepods.slice")));
        assert_eq!(
            above(&root.join("system.slice"), &root.join("system.slice")),
            None
        );
    }
}
