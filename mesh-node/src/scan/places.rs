//! Where network namespaces of pods are found: by the names that the container runtime gives them, and by the
//! processes in a pod's cgroup where those can be seen.
//!
//! Invariants: blocking; opens no more than `MOST` namespaces in a look; the node's own is never given; a file that
//! will become a namespace is none yet.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::capture::Netns;

/// How many namespaces are opened in a look.
const MOST: usize = 4096;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// Directories with a file for each namespace.
    pub named: Vec<PathBuf>,
    /// The cgroup of all pods.
    pub pods: PathBuf,
    /// The processes.
    pub proc: PathBuf,
}

impl Places {
    /// Of a node: containerd and CRI-O keep their pods' namespaces in the first, Docker in the last. `pods` is the
    /// cgroup of all pods.
    pub fn of_a_node(pods: PathBuf) -> Self {
        let named = ["/var/run/netns", "/run/netns", "/var/run/docker/netns"];
        Self {
            named: named.map(PathBuf::from).to_vec(),
            pods,
            proc: "/proc".into(),
        }
    }
}

/// A namespace that is no registered pod's.
#[derive(Debug)]
pub struct Free {
    /// The namespace.
    pub netns: Netns,
    /// The addresses in it.
    pub addresses: BTreeSet<IpAddr>,
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// All that can be seen, by inode.
    pub visible: HashSet<u64>,
    /// Those that are not taken, when they were asked for.
    pub free: Vec<Free>,
}

impl Places {
    /// Looks at all namespaces; into those that are not `taken` only with `inside`.
    pub fn look(&self, taken: &HashSet<u64>, inside: bool) -> io::Result<Namespaces> {
        let home = fs::metadata(self.proc.join("self/ns/net"))?;
        let mut found = Namespaces::default();
        let named = self.named.iter().filter_map(|dir| fs::read_dir(dir).ok());
        let named = named.flatten().filter_map(|e| Some(e.ok()?.path()));
        for path in named {
            let Some(inode) = namespace(&path, &home) else {
                continue;
            };
            let news = found.visible.insert(inode);
            if inside && news && !taken.contains(&inode) && found.free.len() < MOST {
                found.free.extend(open(&path));
            }
        }
        let processes = fs::read_dir(&self.proc)?.filter_map(|e| Some(e.ok()?.path()));
        for path in processes.filter(|p| is_number(p)) {
            found.visible.extend(namespace(&path.join("ns/net"), &home));
        }
        Ok(found)
    }

    /// The namespace of a pod's processes; `None` where they cannot be seen.
    pub fn of_pod(&self, uid: &str, addresses: &[IpAddr]) -> Option<Netns> {
        let home = fs::metadata(self.proc.join("self/ns/net")).ok()?;
        let cgroup = pod_cgroup(&self.pods, uid)?;
        processes(&cgroup).into_iter().find_map(|pid| {
            let path = self.proc.join(pid).join("ns/net");
            namespace(&path, &home)?;
            let found = open(&path)?;
            let whole = addresses.iter().all(|ip| found.addresses.contains(ip));
            whole.then_some(found.netns)
        })
    }
}

/// The inode of a file, if it is a network namespace (or at least on the same file system) and not `home`.
fn namespace(path: &Path, home: &fs::Metadata) -> Option<u64> {
    let meta = fs::metadata(path).ok()?;
    (meta.dev() == home.dev() && meta.ino() != home.ino()).then(|| meta.ino())
}

fn open(path: &Path) -> Option<Free> {
    let look = || {
        let netns = Netns::open(path)?;
        let addresses = netns.interfaces()?.into_iter().map(|(_, ip)| ip).collect();
        Ok::<_, io::Error>(Free { netns, addresses })
    };
    match look() {
        Ok(free) => Some(free),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "a network namespace cannot be looked into");
            None
        }
    }
}

fn is_number(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// The cgroup of a pod, below that of all pods or of its quality of service. kubelet calls it `pod<uid>`, or with
/// systemd `<parent>-pod<uid>.slice`, where dashes of the uid are underscores.
fn pod_cgroup(pods: &Path, uid: &str) -> Option<PathBuf> {
    let plain = format!("pod{uid}");
    let slice = format!("-pod{}.slice", uid.replace('-', "_"));
    let is_pod = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == plain || name.ends_with(&slice)
    };
    let first = below(pods);
    let second: Vec<_> = first.iter().flat_map(|dir| below(dir)).collect();
    first.into_iter().chain(second).find(|path| is_pod(path))
}

/// The processes of a pod's cgroup. Each container has a cgroup in it, and crun puts its processes one deeper.
/// Processes of a process namespace that cannot be seen from here are all number 0, which is nobody's.
fn processes(pod: &Path) -> Vec<String> {
    let containers = below(pod);
    let inner: Vec<_> = containers.iter().flat_map(|dir| below(dir)).collect();
    let all = containers.into_iter().chain(inner).chain([pod.to_owned()]);
    let told = all.filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok());
    told.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|e| Some(e.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_cgroup_is_found_under_either_driver() {
        let dir = tempfile::tempdir().unwrap();
        let check = |made: &str, uid: &str| {
            let path = dir.path().join(made);
            fs::create_dir_all(&path).unwrap();
            let root = dir.path().join(made.split('/').next().unwrap());
            assert_eq!(pod_cgroup(&root, uid), Some(path), "{made}");
            assert_eq!(pod_cgroup(&root, "5-6"), None);
        };
        check("kubepods/pod1-2", "1-2");
        check("kubepods/besteffort/pod1-3", "1-3");
        check(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            "1-2",
        );
        check(
            "kubelet-kubepods.slice/kubelet-kubepods-pod1_2.slice",
            "1-2",
        );
    }

    #[test]
    fn processes_are_found_as_containerd_and_as_crun_place_them() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("kubepods-pod1_2.slice");
        for (of, pid) in [
            ("cri-containerd-a.scope", "17"),
            ("crio-b.scope/container", "18"),
        ] {
            fs::create_dir_all(pod.join(of)).unwrap();
            fs::write(pod.join(of).join("cgroup.procs"), format!("{pid}\n")).unwrap();
        }
        fs::write(pod.join("crio-b.scope/cgroup.procs"), "").unwrap();
        let mut found = processes(&pod);
        found.sort();
        assert_eq!(found, ["17", "18"]);
    }

    #[test]
    fn files_that_are_no_namespaces_are_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("to-be-mounted"), "").unwrap();
        let places = Places {
            named: vec![dir.path().into(), dir.path().join("none")],
            pods: dir.path().into(),
            proc: "/proc".into(),
        };
        let found = places.look(&HashSet::new(), true).unwrap();
        assert!(found.free.is_empty());
        let itself = fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert!(!found.visible.contains(&itself));
    }
}
