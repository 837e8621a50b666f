//! The table of settings: one row each, from which flags, environment names, file keys and help are made.

/// A setting that can come from a flag, the environment or the file.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The flag without dashes in front, e.g. `node-name`.
    pub flag: &'static str,
    /// What its value stands for in help.
    pub value: &'static str,
    /// What it holds when nobody says anything, as text or in words.
    pub default: &'static str,
    /// What a person reads.
    pub help: &'static str,
}

impl Setting {
    /// Its environment variable, e.g. `WARREN_NODE_NAME`.
    pub fn env(&self) -> String {
        format!(
            "WARREN_{}",
            self.flag.replace('-', "_").to_ascii_uppercase()
        )
    }

    /// Its key in the file, e.g. `nodeName`.
    pub fn key(&self) -> String {
        let mut parts = self.flag.split('-');
        let mut key = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (first, rest) = part.split_at(1);
            key.push_str(&first.to_ascii_uppercase());
            key.push_str(rest);
        }
        key
    }
}

const fn row(
    flag: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        flag,
        value,
        default,
        help,
    }
}

/// Every setting.
pub const SETTINGS: &[Setting] = &[
    row(
        "node-name",
        "NAME",
        "the host's name",
        "Name of this node in the cluster",
    ),
    row(
        "node-ip",
        "IP",
        "address of the default route's interface",
        "Address of this node; metrics listen there",
    ),
    row(
        "instance",
        "NAME",
        "the node's name",
        "Name of this agent among those that share the kernel",
    ),
    row(
        "pod-namespace",
        "NAME",
        "none",
        "Namespace of the pod that a waypoint is",
    ),
    row(
        "pod-name",
        "NAME",
        "the host's name, when there is --pod-namespace",
        "Name of the pod that a waypoint is",
    ),
    row(
        "pod-ips",
        "IP,...",
        "--node-ip",
        "Addresses of the pod that a waypoint is",
    ),
    row(
        "service-account",
        "NAME",
        "default",
        "Service account of the pod that a waypoint is",
    ),
    row(
        "cluster-id",
        "NAME",
        "Kubernetes",
        "Cluster that the node belongs to",
    ),
    row(
        "controller",
        "URL",
        "https://mesh-ctl.warren-system.svc:15012",
        "Where the controller serves configuration and certificates",
    ),
    row(
        "controller-ca",
        "FILE",
        "/var/run/warren/ca.pem",
        "PEM roots that the controller's certificate must chain to",
    ),
    row(
        "token-file",
        "FILE",
        "/var/run/secrets/tokens/warren-token",
        "Join token or projected service-account token that proves this node",
    ),
    row(
        "pods-cgroup",
        "DIR",
        "found: kubepods* above the agent's own cgroup",
        "Cgroup under which the pods live",
    ),
    row(
        "pod-scan",
        "on|off",
        "on",
        "Whether pods that run already are looked for and registered; off: only the registration socket counts",
    ),
    row(
        "cni",
        "on|off",
        "off",
        "Whether the CNI plugin is installed and kept in the container runtime's configuration",
    ),
    row(
        "cni-conf-dir",
        "DIR",
        "found: /etc/cni/net.d, or where the distribution has it, under /host first",
        "Where the container runtime's network configurations are",
    ),
    row(
        "cni-bin-dir",
        "DIR",
        "found: /opt/cni/bin, or where the distribution has it, under /host first",
        "Where the container runtime's network programs are",
    ),
    row(
        "cni-fail-open",
        "on|off",
        "off",
        "Whether enrolled pods start without their capture when the node proxy is away or refuses them",
    ),
    row(
        "cni-plugin",
        "FILE",
        "/warren-cni",
        "The plugin's program, linked statically",
    ),
    row(
        "kubelet-cgroup",
        "DIR",
        "found: that of the process that listens on port 10250",
        "Cgroup of kubelet, whose probes pass under STRICT to the ports that pods declare",
    ),
    row(
        "tc",
        "auto|tcx|clsact",
        "auto: TCX where the kernel has it, else clsact",
        "How programs are attached to the pods' interfaces",
    ),
    row(
        "edition",
        "N",
        "0",
        "Begins with maps and programs of its own where it differs from the node proxy's before, as a new layout of them does",
    ),
    row(
        "threads",
        "N",
        "number of CPUs, at most 16",
        "Threads that carry traffic",
    ),
    row(
        "log-format",
        "text|json",
        "text",
        "How log lines are written",
    ),
    row(
        "log",
        "FILTER",
        "info",
        "Which log lines are written, e.g. info,mesh_node::dial=debug",
    ),
    row(
        "access-log",
        "on|off",
        "on",
        "Whether every flow is written to the access log",
    ),
    row(
        "drain",
        "TIME",
        "30s",
        "How long live flows may go on after SIGTERM or a hand-over",
    ),
    row(
        "takeover",
        "auto|never",
        "auto",
        "Whether to take over from a running instance when there is one",
    ),
    row(
        "after-handover",
        "exit|wait",
        "exit",
        "What to do once a successor has taken over and the last flow has ended; wait: stay, idle, until told to stop",
    ),
    row(
        "run-dir",
        "DIR",
        "/run/warren",
        "Where sockets and keys live, in a folder named after the instance",
    ),
    row(
        "state-dir",
        "DIR",
        "/var/lib/warren",
        "Where the last good configuration lives, in a folder named after the instance",
    ),
    row(
        "connect-timeout",
        "TIME",
        "10s",
        "How long all attempts to reach a destination may take together",
    ),
    row(
        "handshake-timeout",
        "TIME",
        "10s",
        "How long a TLS handshake may take",
    ),
    row(
        "max-handshakes",
        "N",
        "2048",
        "TLS handshakes under way at once",
    ),
    row(
        "max-handshakes-per-source",
        "N",
        "256",
        "TLS handshakes under way at once from one address",
    ),
    row("max-flows", "N", "200000", "Flows at once"),
    row(
        "tunnel-idle",
        "TIME",
        "5m",
        "How long a tunnel without flows stays open",
    ),
    row(
        "waypoint-age",
        "TIME",
        "10m",
        "How long a waypoint takes something new on one tunnel, and on one connection of requests",
    ),
    row(
        "xds-timeout",
        "TIME",
        "5s",
        "How long connecting to the controller may take",
    ),
    row(
        "xds-backoff",
        "TIME",
        "15s",
        "Longest pause between attempts to reach the controller",
    ),
    row(
        "certificate-lifetime",
        "TIME",
        "24h",
        "How long a certificate is asked to be valid; it is renewed at half of what was granted",
    ),
    row(
        "resolvers",
        "IP[:PORT],...",
        "those of /etc/resolv.conf",
        "Whom the node asks for the addresses of endpoints that are known by host name only",
    ),
    row(
        "name-ttl-min",
        "TIME",
        "5s",
        "How long such an address is kept at least, and the pause after a failure",
    ),
    row(
        "name-ttl-max",
        "TIME",
        "5m",
        "How long such an address is kept at most",
    ),
    row(
        "metrics-port",
        "PORT",
        "15020",
        "Port of /metrics, /readyz and /livez on the node's address",
    ),
];
