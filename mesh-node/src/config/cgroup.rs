//! Finding the cgroups that capture attaches to: the agent's own, and the one that holds the pods.
//!
//! Invariants: what is found is a directory of the version 2 hierarchy; when nothing fits, the error says what to pass.
//! In a container with a cgroup namespace of its own `/proc` shows the agent's cgroup as the root: it is then found by
//! the agent's process in the node's hierarchy, wherever that is mounted.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    process,
};

/// Where the version 2 hierarchy is mounted: the node's in a container, else the usual places.
const MOUNTS: [&str; 4] = [
    "/host/sys/fs/cgroup",
    "/host/sys/fs/cgroup/unified",
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/unified",
];
/// How many cgroups are looked at in a search.
const MOST: usize = 1 << 16;

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
        io::Error::other(format!(
            "no cgroup version 2 hierarchy at any of {}; mount one",
            MOUNTS.join(", ")
        ))
    })?;
    let told = fs::read_to_string("/proc/self/cgroup")?;
    let own = own(mount, &told, process::id());
    let pods = match pods {
        Some(pods) => pods.to_path_buf(),
        None => above(&own, mount).ok_or_else(|| {
            io::Error::other(format!(
                "no kubepods* cgroup above the agent's own, {}; mount the node's hierarchy at {}, or pass --pods-cgroup",
                own.display(),
                MOUNTS[0]
            ))
        })?,
    };
    Ok(Cgroups {
        own,
        pods,
        mount: mount.to_path_buf(),
    })
}

/// The cgroup of process `pid`, of which `/proc` tells `told`.
fn own(mount: &Path, told: &str, pid: u32) -> PathBuf {
    let path = told.lines().find_map(|l| l.strip_prefix("0::/"));
    let path = path.unwrap_or_default();
    // Seen from a cgroup namespace it may begin with steps upwards, or be the root without being it.
    let plain = mount.join(path);
    if !path.starts_with("..") && holds(&plain, pid) {
        return plain;
    }
    search(mount, |dir| holds(dir, pid)).unwrap_or_else(|| mount.to_path_buf())
}

/// The first cgroup at or below `from`, those above before those below, that is the one.
pub fn search(from: &Path, is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut waiting = VecDeque::from([from.to_path_buf()]);
    for _ in 0..MOST {
        let dir = waiting.pop_front()?;
        if is_it(&dir) {
            return Some(dir);
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let below = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        waiting.extend(below.map(|e| e.path()));
    }
    None
}

fn holds(cgroup: &Path, pid: u32) -> bool {
    let pid = pid.to_string();
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|t| t.lines().any(|l| l == pid))
}

/// The nearest `*kubepods*` among the ancestors of `from` and what lies directly in them.
fn above(from: &Path, mount: &Path) -> Option<PathBuf> {
    // With a parent of its own, as in kind, systemd's name for it is `kubelet-kubepods.slice`.
    let is_pods = |p: &Path| {
        p.file_name()
            .is_some_and(|n| n.to_string_lossy().contains("kubepods"))
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
        let nested =
            root.join("node/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/a");
        fs::create_dir_all(&nested).expect("writable");
        assert_eq!(
            above(&nested, &root.join("node")),
            Some(root.join("node/kubelet.slice/kubelet-kubepods.slice"))
        );
    }

    #[test]
    fn the_own_cgroup_is_found_whatever_a_cgroup_namespace_shows() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        let own_dir = root.join("kubepods/besteffort/pod1/agent");
        fs::create_dir_all(&own_dir).expect("writable");
        fs::write(root.join("cgroup.procs"), "0\n0\n").expect("writable");
        // Processes that are not to be seen from here are number 0.
        fs::write(own_dir.join("cgroup.procs"), "0\n41\n").expect("writable");
        for told in [
            "0::/\n",
            "0::/../..\n",
            "1:cpu:/x\n0::/kubepods/besteffort/pod1/agent\n",
            "0::/stale\n",
        ] {
            assert_eq!(own(root, told, 41), own_dir, "{told}");
        }
        assert_eq!(own(root, "0::/\n", 42), root, "nowhere to be seen");
        fs::write(root.join("cgroup.procs"), "42\n").expect("writable");
        assert_eq!(own(root, "0::/\n", 42), root);
    }
}
