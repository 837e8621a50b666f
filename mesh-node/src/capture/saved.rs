//! The pods that this agent serves, on disk in its run directory: one file each, for an agent that starts over.
//!
//! Invariants: a file is replaced whole; one that cannot be read costs one pod and is named; the directory
//! dies with the machine's uptime, as the pods do.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::registration::PodReport;

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPod {
    /// The registration and what became of it.
    #[serde(flatten)]
    pub report: PodReport,
    /// Its network namespace's inode.
    pub netns: u64,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct SavedPods {
    dir: PathBuf,
}

impl SavedPods {
    /// Uses `<run dir>/pods`.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let dir = run_dir.join("pods");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        Ok(Self { dir })
    }

    /// Keeps a pod.
    pub fn put(&self, pod: &SavedPod) -> io::Result<()> {
        let path = self.path(&pod.report.pod.uid);
        let next = path.with_extension("next");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)?;
        file.write_all(&serde_json::to_vec(pod)?)?;
        drop(file);
        fs::rename(next, path)
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        match fs::remove_file(self.path(uid)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// All that are kept.
    pub fn load(&self) -> io::Result<Vec<SavedPod>> {
        let mut pods = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
                Ok(pod) => pods.push(pod),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a pod's record cannot be read; it must be registered again")
                }
            }
        }
        Ok(pods)
    }

    fn path(&self, uid: &str) -> PathBuf {
        // The prefix keeps any uid a plain file name.
        self.dir.join(format!("pod-{uid}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::registration::{PodState, Registration};
    use super::*;

    #[test]
    fn pods_come_back_and_a_broken_file_costs_only_itself() {
        let dir = std::env::temp_dir().join(format!("warren-saved-{}", std::process::id()));
        let saved = SavedPods::open(&dir).unwrap();
        let pod = |uid: &str| SavedPod {
            report: PodReport {
                pod: Registration {
                    uid: uid.into(),
                    namespace: "shop".into(),
                    name: "web".into(),
                    service_account: "web".into(),
                    addresses: vec!["10.1.1.5".parse().unwrap()],
                    veth_ifindex: 7,
                    cgroup: None,
                    probe_ports: vec![],
                },
                state: PodState::Captured,
                reason: None,
            },
            netns: 4_026_532_000,
        };
        saved.put(&pod("a")).unwrap();
        saved.put(&pod("..")).unwrap();
        fs::write(saved.path("broken"), "{").unwrap();
        saved.remove("never there").unwrap();
        let mut found = saved.load().unwrap();
        found.sort_by(|a, b| a.report.pod.uid.cmp(&b.report.pod.uid));
        assert_eq!(found, [pod(".."), pod("a")]);
        saved.remove("a").unwrap();
        assert_eq!(saved.load().unwrap(), [pod("..")]);
        fs::remove_dir_all(dir).unwrap();
    }
}
