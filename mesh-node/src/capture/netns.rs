//! Work inside pods' network namespaces, and finding a namespace again after a restart.
//!
//! Invariants: a thread that enters a namespace is back home before anything else runs on it, or the
//! process ends; a namespace found again is believed only when its inode and its addresses agree.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns},
};

/// A pod's network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    fd: File,
    inode: u64,
    cookie: u64,
}

impl Netns {
    /// Takes a descriptor that somebody sent. Fails when it is not a network namespace, or is the node's own.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let fd = File::from(fd);
        let inode = fd.metadata()?.ino();
        if inode == home()?.metadata()?.ino() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is the node's own network namespace",
            ));
        }
        let cookie = mesh_loader::netns_cookie(fd.as_fd())?;
        Ok(Self { fd, inode, cookie })
    }

    /// Opens a namespace by path, e.g. `/proc/<pid>/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// The namespace's inode.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The kernel's cookie for it, never used twice.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// A second descriptor, to give away.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.as_fd().try_clone_to_owned()
    }

    /// Does `work` on this thread inside the namespace.
    pub fn enter<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        struct Back(&'static File);
        impl Drop for Back {
            fn drop(&mut self) {
                if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
                    // This thread would go on in a pod's network: every later socket would be the pod's.
                    eprintln!(
                        "the node proxy cannot leave a pod's network namespace: {error}; ending"
                    );
                    std::process::abort();
                }
            }
        }
        let home = home()?;
        setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
        let back = Back(home);
        let done = work();
        drop(back);
        done
    }

    /// The interfaces inside that are up, without the loopback.
    pub fn links(&self) -> io::Result<BTreeSet<String>> {
        self.enter(|| {
            let up = getifaddrs()?.filter(|i| {
                i.flags.contains(InterfaceFlags::IFF_UP)
                    && !i.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            });
            Ok(up.map(|i| i.interface_name).collect())
        })
    }

    /// The interfaces inside that have an address of more than the link.
    pub fn interfaces(&self) -> io::Result<Vec<(String, IpAddr)>> {
        self.enter(|| {
            let mut found = Vec::new();
            for interface in getifaddrs()? {
                let address = interface.address.as_ref().and_then(|a| {
                    let v4 = a.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
                    v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
                });
                let Some(ip) = address else { continue };
                if !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) && !link_local(ip) {
                    found.push((interface.interface_name, ip));
                }
            }
            Ok(found)
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The namespace that the process was started in.
fn home() -> io::Result<&'static File> {
    static HOME: OnceLock<File> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    // Every thread that left has come back, so that whoever comes first opens the right one.
    let file = File::open("/proc/thread-self/ns/net")?;
    Ok(HOME.get_or_init(|| file))
}

/// Where a pod's namespace may be found again.
#[derive(Debug)]
pub struct Finder {
    named: Vec<PathBuf>,
    proc: PathBuf,
}

impl Default for Finder {
    fn default() -> Self {
        let named = ["/run/netns", "/var/run/netns", "/run/docker/netns"]
            .map(PathBuf::from)
            .to_vec();
        Self {
            named,
            proc: "/proc".into(),
        }
    }
}

/// Every namespace that can be reached now, by inode.
#[derive(Debug)]
pub struct Found(HashMap<u64, Vec<PathBuf>>);

impl Finder {
    /// Looks everywhere once.
    pub fn look(&self) -> Found {
        let mut found: HashMap<u64, Vec<PathBuf>> = HashMap::new();
        for path in self.of_names().chain(self.of_processes()) {
            if let Ok(meta) = fs::metadata(&path) {
                let paths = found.entry(meta.ino()).or_default();
                // A few suffice, should one of the processes end meanwhile.
                if paths.len() < 8 {
                    paths.push(path);
                }
            }
        }
        Found(found)
    }

    fn of_names(&self) -> impl Iterator<Item = PathBuf> {
        self.named
            .iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .filter_map(|e| Some(e.ok()?.path()))
    }

    fn of_processes(&self) -> impl Iterator<Item = PathBuf> {
        let processes = fs::read_dir(&self.proc)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        processes
            .filter(|e| {
                e.file_name()
                    .as_encoded_bytes()
                    .iter()
                    .all(u8::is_ascii_digit)
            })
            .map(|e| e.path().join("ns/net"))
    }
}

impl Found {
    /// The namespace with this inode that holds all these addresses.
    pub fn namespace(&self, inode: u64, addresses: &[IpAddr]) -> io::Result<Option<Netns>> {
        for path in self.0.get(&inode).into_iter().flatten() {
            let Ok(netns) = Netns::open(path) else {
                continue;
            };
            let inside: BTreeSet<_> = netns.interfaces()?.into_iter().map(|(_, ip)| ip).collect();
            if netns.inode() == inode && addresses.iter().all(|ip| inside.contains(ip)) {
                return Ok(Some(netns));
            }
        }
        Ok(None)
    }
}
