//! A captured pod, as the data path knows it: who it is, its addresses, and a source of sockets inside it.
//!
//! Invariants: a `Pod` exists only for a pod whose capture is complete; a socket that it gives belongs
//! to the pod's network namespace and is exempt from capture.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_model::{
    name::{Identity, Namespace, ServiceAccount, WorkloadUid},
    reason::Reason,
};

/// The uid that Kubernetes (or the lab) gave to a pod: unique in time, unlike its name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Wraps a uid as registered.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Which address family a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family that reaches an address.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Gives sockets that live in a pod's network namespace.
pub trait PodSockets: Send + Sync + fmt::Debug {
    /// A fresh non-blocking TCP socket inside the pod, exempt from capture. With `client`, an application
    /// that accepts its connection sees that address as its peer (inbound legs only).
    fn tcp(&self, family: Family, client: Option<SocketAddr>) -> io::Result<socket2::Socket>;

    /// A fresh non-blocking UDP socket inside the pod, bound to one of its addresses, exempt from capture.
    fn udp(&self, address: IpAddr) -> io::Result<std::net::UdpSocket> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("no UDP from {address}"),
        ))
    }
}

/// A captured pod.
#[derive(Debug)]
pub struct Pod {
    /// Its own uid.
    pub uid: PodUid,
    /// Its name in the mesh.
    pub workload: WorkloadUid,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name within the namespace.
    pub name: Arc<str>,
    /// Its service account.
    pub service_account: ServiceAccount,
    /// Its identity: which certificate the proxy shows for it.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Box<[IpAddr]>,
    /// Its network namespace's cookie, the kernel's name for it in verdicts.
    pub netns_cookie: u64,
    /// Why none of its flows is served although it is captured.
    pub barred: Option<Reason>,
    /// Sockets inside the pod.
    pub sockets: Arc<dyn PodSockets>,
}

impl Pod {
    /// Whether an address is one of the pod's own.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }
}
