//! Finding the kubelet by the port that it owns, so that its probes are told from other connections of the node. Where
//! its process cannot be seen, as in a container with processes of its own, by the cgroup of its listening socket.
//!
//! Invariants: a cgroup that the agent or the pods are below, or that is a pod's, is never taken for kubelet's:
//! everybody's connections would pass as probes; whoever shares kubelet's cgroup is named in the log and in the status.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Kernel, diag};
use crate::{
    config::cgroup::{self, Cgroups},
    observe::Metrics,
};

/// Where a kubelet listens.
const PORT: u16 = 10250;
/// How often it is looked for, and looked after.
const EVERY: Duration = Duration::from_secs(1);
/// How many others are named.
const NAMED: usize = 8;
/// How many processes are looked at for kubelet, from a process upwards to whoever began it.
const LINEAGE: usize = 8;
/// TCP_LISTEN, as `/proc/net/tcp` writes it.
const LISTENING: &str = "0A";

/// A kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    pid: u32,
    cgroup: PathBuf,
    /// Programs that are neither kubelet nor begun by it, and in its cgroup or below it.
    others: Vec<String>,
}

/// What is known of the node's kubelet. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Kubelet {
    configured: Option<PathBuf>,
    groups: Cgroups,
    proc: PathBuf,
    cgroup_ids: fn(u16) -> io::Result<BTreeSet<u64>>,
    last: Arc<Mutex<Result<Found, String>>>,
}

impl Kubelet {
    /// To be found, unless its cgroup is `configured`.
    pub fn new(configured: Option<PathBuf>, groups: Cgroups) -> Self {
        Self {
            configured,
            groups,
            proc: "/proc".into(),
            cgroup_ids: diag::listeners,
            last: Arc::new(Mutex::new(Err("not looked for yet".into()))),
        }
    }

    /// Looks for it, and tells the kernel when it was found or came back elsewhere.
    pub async fn run(self, kernel: Arc<dyn Kernel>, metrics: Metrics) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            every.tick().await;
            let (this, kernel) = (self.clone(), kernel.clone());
            let looked = tokio::task::spawn_blocking(move || this.look(kernel.as_ref())).await;
            let found = looked.unwrap_or_else(|e| Err(e.to_string()));
            let others = found.as_ref().map_or(0, |f| f.others.len());
            metrics.node().kubelet_found.set(i64::from(found.is_ok()));
            metrics
                .node()
                .kubelet_cgroup_others
                .set(i64::try_from(others).unwrap_or(i64::MAX));
            self.tell(found);
        }
    }

    /// For the configuration dump.
    pub fn describe(&self) -> Value {
        match &*self.lock() {
            Ok(found) => json!({
                "pid": found.pid,
                "cgroup": found.cgroup,
                "alsoAdmits": found.others,
            }),
            Err(why) => json!({ "missing": why }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Result<Found, String>> {
        self.last
            .lock()
            .expect("no code panics while it holds what was found")
    }

    /// Says what is new.
    fn tell(&self, found: Result<Found, String>) {
        let mut last = self.lock();
        if *last == found {
            return;
        }
        match &found {
            Ok(f) if f.others.is_empty() => {
                tracing::info!(pid = f.pid, cgroup = %f.cgroup.display(), "kubelet was found; its probes pass under STRICT to the ports that pods declare")
            }
            Ok(f) => {
                tracing::warn!(pid = f.pid, cgroup = %f.cgroup.display(), others = f.others.join(", "),
                    "kubelet was found, and shares its cgroup with others, whose connections pass as probes too, to the ports that pods declare; give kubelet a cgroup of its own");
            }
            Err(why) => {
                tracing::warn!(
                    why,
                    "kubelet's probes cannot be told from other connections; under STRICT they are refused"
                )
            }
        }
        *last = found;
    }

    fn look(&self, kernel: &dyn Kernel) -> Result<Found, String> {
        let known = self.lock().as_ref().ok().map(|f| (f.pid, f.cgroup.clone()));
        let found = match known {
            // As long as it lives where it was, nobody has to be searched.
            Some((pid, cgroup)) if self.cgroup_of(pid).as_ref() == Ok(&cgroup) => {
                self.judge(pid, cgroup)
            }
            _ => self.find(),
        };
        let attach = found.as_ref().ok().map(|f| f.cgroup.as_path());
        match kernel.set_kubelet(attach) {
            Ok(()) => found,
            Err(e) => Err(format!("its cgroup cannot be watched: {e}")),
        }
    }

    fn find(&self) -> Result<Found, String> {
        let inodes =
            listeners(&self.proc).map_err(|e| format!("the node's sockets cannot be read: {e}"))?;
        if inodes.is_empty() && self.configured.is_none() {
            return Err(format!("nobody listens on port {PORT} of the node"));
        }
        let pid = owner(&self.proc, &inodes);
        let cgroup = match (&self.configured, pid) {
            (Some(configured), _) => configured.clone(),
            (None, Some(pid)) => self.cgroup_of(pid)?,
            (None, None) => self.cgroup_of_socket()?,
        };
        self.judge(pid.unwrap_or(0), cgroup)
    }

    /// Where a process is in the hierarchy. Seen from a cgroup namespace, the path begins with steps upwards.
    fn cgroup_of(&self, pid: u32) -> Result<PathBuf, String> {
        if let Some(configured) = &self.configured {
            return Ok(configured.clone());
        }
        let text = fs::read_to_string(self.proc.join(format!("{pid}/cgroup")))
            .map_err(|e| format!("the cgroup of process {pid} cannot be read: {e}"))?;
        let path = text
            .lines()
            .find_map(|l| l.strip_prefix("0::/"))
            .ok_or_else(|| format!("process {pid} is in no cgroup of version 2"))?;
        Ok(self
            .groups
            .mount
            .join(path.trim_start_matches("../").trim_start_matches("..")))
    }

    /// Where the socket that listens was made.
    fn cgroup_of_socket(&self) -> Result<PathBuf, String> {
        let ids = (self.cgroup_ids)(PORT)
            .map_err(|e| format!("the node's sockets cannot be listed: {e}"))?;
        let id = match ids.iter().collect::<Vec<_>>()[..] {
            [id] => *id,
            [] => {
                return Err(format!(
                    "the process that listens on port {PORT} cannot be seen from here, and this kernel does not tell its cgroup (Linux 5.9 does); pass --kubelet-cgroup, or run the agent in the node's pid namespace"
                ));
            }
            _ => {
                return Err(format!(
                    "several programs listen on port {PORT}; pass --kubelet-cgroup"
                ));
            }
        };
        let is_it = |dir: &Path| fs::metadata(dir).is_ok_and(|m| m.ino() == id);
        // Where it was a moment ago, without a search.
        let last = self.lock().as_ref().ok().map(|f| f.cgroup.clone());
        last.filter(|dir| is_it(dir))
            .or_else(|| cgroup::search(&self.groups.mount, is_it))
            .ok_or_else(|| {
                format!(
                    "the cgroup of whoever listens on port {PORT} is not below {}: mount the node's hierarchy",
                    self.groups.mount.display()
                )
            })
    }

    fn judge(&self, pid: u32, cgroup: PathBuf) -> Result<Found, String> {
        let inside = members(&cgroup)
            .map_err(|e| format!("cgroup {} cannot be read: {e}", cgroup.display()))?;
        let strange = pid != 0 && !inside.contains(&pid);
        let pid = if strange && self.configured.is_some() {
            0
        } else {
            pid
        };
        if strange && self.configured.is_none() {
            return Err(format!(
                "process {pid} is not in cgroup {}",
                cgroup.display()
            ));
        }
        for (who, path) in [
            ("the pods", &self.groups.pods),
            ("this agent", &self.groups.own),
        ] {
            if path.starts_with(&cgroup) {
                return Err(format!(
                    "cgroup {} holds {who} as well: everybody's connections would pass as probes; give kubelet a cgroup of its own",
                    cgroup.display()
                ));
            }
        }
        if cgroup.starts_with(&self.groups.pods) {
            return Err(format!(
                "a pod listens on kubelet's port {PORT} on the node's network (cgroup {})",
                cgroup.display()
            ));
        }
        let mut others: Vec<String> = inside
            .iter()
            .filter(|p| pid != 0 && !is_part_of(&self.proc, **p, pid))
            .filter_map(|p| name(&self.proc, *p))
            .collect();
        others.sort();
        others.dedup();
        others.truncate(NAMED);
        Ok(Found {
            pid,
            cgroup,
            others,
        })
    }
}

/// Inodes of the sockets that listen on kubelet's port in this process's network namespace.
fn listeners(proc: &Path) -> io::Result<HashSet<String>> {
    let mut found = HashSet::new();
    for table in ["tcp", "tcp6"] {
        let text = match fs::read_to_string(proc.join("self/net").join(table)) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        found.extend(text.lines().skip(1).filter_map(listener));
    }
    Ok(found)
}

/// The inode in a line of `/proc/net/tcp`, if it is such a listener.
fn listener(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let port = words.get(1)?.rsplit(':').next()?;
    let good = words.get(3) == Some(&LISTENING) && u16::from_str_radix(port, 16) == Ok(PORT);
    let inode = words.get(9).filter(|_| good)?;
    Some((*inode).to_owned())
}

/// The process that has one of these sockets open.
fn owner(proc: &Path, inodes: &HashSet<String>) -> Option<u32> {
    let wanted: HashSet<PathBuf> = inodes
        .iter()
        .map(|i| format!("socket:[{i}]").into())
        .collect();
    let pids = fs::read_dir(proc)
        .ok()?
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|_| !wanted.is_empty()).find(|pid: &u32| {
        // A process that ends meanwhile, or that we may not look into, is not the one.
        let open = fs::read_dir(proc.join(format!("{pid}/fd")))
            .into_iter()
            .flatten();
        open.filter_map(|e| fs::read_link(e.ok()?.path()).ok())
            .any(|to| wanted.contains(&to))
    })
}

/// Processes in a cgroup and below it.
fn members(cgroup: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let mut all: Vec<u32> = text.lines().filter_map(|l| l.parse().ok()).collect();
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match members(&entry.path()) {
                Ok(more) => all.extend(more),
                // It went while we looked.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(all)
}

/// Whether a process is `kubelet`, or one of the helpers that it begins now and then (`mount`, `iptables`).
fn is_part_of(proc: &Path, pid: u32, kubelet: u32) -> bool {
    let parent = |pid: &u32| {
        let text = fs::read_to_string(proc.join(format!("{pid}/stat"))).ok()?;
        // Behind the program's name, which may have anything in it: the state, then the parent.
        let (_, rest) = text.rsplit_once(')')?;
        rest.split_whitespace().nth(1)?.parse().ok()
    };
    std::iter::successors(Some(pid), parent)
        .take(LINEAGE)
        .any(|p| p == kubelet)
}

/// What a process runs; nothing when it has ended meanwhile.
fn name(proc: &Path, pid: u32) -> Option<String> {
    match fs::read_to_string(proc.join(format!("{pid}/comm"))) {
        Ok(name) => Some(name.trim().to_owned()),
        // Which of the two depends on whether it ended before the file was opened or after.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
            None
        }
        Err(_) => Some(format!("process {pid}")),
    }
}

#[cfg(test)]
#[path = "kubelet_tests.rs"]
mod tests;
