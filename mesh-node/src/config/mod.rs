//! The node proxy's configuration: flags, then environment, then file, then defaults, into one validated value.
//!
//! Invariants: read once at start, through an injected [`Source`]; every setting has one row in
//! [`settings::SETTINGS`]; an unknown name in the file is an error, never ignored.

pub mod cgroup;
mod parse;
mod prepare;
pub mod settings;
mod source;
#[cfg(test)]
mod tests;

pub use parse::{ConfigError, Invocation, Task, parse};
pub use source::{Process, Source};

use std::{net::IpAddr, path::PathBuf, time::Duration};

pub use mesh_loader::Tc;
use mesh_model::name::{ClusterId, Namespace, NodeName, ServiceAccount};

use crate::dns::{Resolvers, TtlBounds};

/// Everything that can be configured from outside, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name in the cluster.
    pub node_name: NodeName,
    /// The node's address: metrics listen there, probes come from there.
    pub node_ip: IpAddr,
    /// The name of this agent among those sharing the kernel.
    pub instance: String,
    /// The pod that a waypoint is; a node proxy needs none.
    pub pod: Option<OwnPod>,
    /// The cluster that the node belongs to.
    pub cluster_id: ClusterId,
    /// The controller's URL.
    pub controller: String,
    /// PEM roots that the controller's certificate must chain to.
    pub controller_ca: PathBuf,
    /// The join token or projected token.
    pub token_file: PathBuf,
    /// The cgroup that holds the pods; found when absent.
    pub pods_cgroup: Option<PathBuf>,
    /// The CNI plugin.
    pub cni: Cni,
    /// Whether pods that run already are looked for.
    pub pod_scan: bool,
    /// The cgroup that kubelet is in, if its probes are to be recognised.
    pub kubelet_cgroup: Option<PathBuf>,
    /// Data threads.
    pub threads: usize,
    /// How programs get on interfaces.
    pub tc: Tc,
    /// Which edition of the kernel maps' layout is used.
    pub edition: u8,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which log lines are written.
    pub log: String,
    /// Whether flows are written to the access log.
    pub access_log: bool,
    /// How long live flows may go on after SIGTERM or a hand-over.
    pub drain: Duration,
    /// Whether to take over from a running instance.
    pub takeover: Takeover,
    /// What to do once a successor has taken over and the last flow has ended.
    pub after_handover: AfterHandover,
    /// Sockets and keys: `<run root>/<instance>`.
    pub run_dir: PathBuf,
    /// What outlives a reboot: `<state root>/<instance>`.
    pub state_dir: PathBuf,
    /// Bounds of the data path.
    pub limits: Limits,
    /// Bounds of the control path.
    pub control: Control,
    /// Whom the node asks for the addresses of host names.
    pub resolvers: Resolvers,
    /// How long their answers are kept.
    pub name_ttl: TtlBounds,
}

/// The pod that this process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPod {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub account: ServiceAccount,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The CNI plugin on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cni {
    /// Whether it is installed and kept.
    pub keep: bool,
    /// Where the runtime's programs are; found when absent.
    pub bin_dir: Option<PathBuf>,
    /// Where the runtime's configurations are; found when absent.
    pub conf_dir: Option<PathBuf>,
    /// Whether enrolled pods start without their capture when the node proxy is away or refuses them.
    pub fail_open: bool,
    /// The program to install.
    pub plugin: PathBuf,
}

/// Bounds of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long all attempts to reach a destination may take together.
    pub connect_timeout: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Handshakes under way at once.
    pub handshakes: usize,
    /// Handshakes under way at once from one address.
    pub handshakes_per_source: usize,
    /// Flows at once.
    pub flows: usize,
    /// How long a tunnel without flows stays open.
    pub tunnel_idle: Duration,
    /// How long a waypoint takes something new on one tunnel, and on one connection of requests, so that clients come again
    /// and all of its replicas share the load.
    pub waypoint_age: Duration,
    /// How long a waypoint waits for a client that says nothing on a connection of HTTP/1, before its first request or
    /// between two.
    pub http_idle: Duration,
    /// How long the head of a request may take once it has begun.
    pub http_head: Duration,
}

impl Limits {
    /// Envoy's default of `idle_timeout`, which users of Istio know.
    pub const HTTP_IDLE: Duration = Duration::from_secs(3600);
    /// Longer than any network takes for some kilobytes; what is slower holds places on purpose.
    pub const HTTP_HEAD: Duration = Duration::from_secs(60);
}

/// Bounds of the control path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// How long connecting to the controller may take.
    pub xds_timeout: Duration,
    /// The longest pause between attempts to reach the controller.
    pub xds_backoff: Duration,
    /// How long a certificate is asked to be valid.
    pub certificate_lifetime: Duration,
    /// The port of metrics and readiness on the node's address.
    pub metrics_port: u16,
}

impl Config {
    /// The namespace that the controller's Service is in, where its URL says so by the name of one.
    pub fn controller_namespace(&self) -> Option<Namespace> {
        let uri: http::Uri = self.controller.parse().ok()?;
        let mut labels = uri.host()?.split('.');
        let (_, namespace) = (labels.next()?, labels.next()?);
        (labels.next()? == "svc").then(|| namespace.into())
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Whether to take over from a running instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// When there is one.
    Auto,
    /// Never: what a running instance holds is not touched, and this one fails if it is in the way.
    Never,
}

/// What a process does once a successor serves in its place and its own flows have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterHandover {
    /// It ends.
    Exit,
    /// It stays, idle, until it is told to stop: whoever started it would start it again, and it would take over back.
    Wait,
}
