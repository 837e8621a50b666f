//! The messages of `pods.sock` (CONTRACTS.md section 4), checked as they are read.
//!
//! Invariant: a registration that was parsed has a usable identity and at most one address of each family.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use mesh_model::name::{ClusterId, WorkloadUid};
use serde::{Deserialize, Serialize};

/// The longest packet.
pub const PACKET: usize = 64 << 10;
/// How long an `add` waits for configuration when it does not say.
const DEFAULT_TIMEOUT: u64 = 10_000;
/// The longest that an `add` may wait.
const LONGEST: u64 = 120_000;

/// What a peer asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase")]
pub enum Request {
    /// Register a pod; its network namespace comes with the packet.
    #[serde(rename_all = "camelCase")]
    Add {
        /// The pod.
        pod: Registration,
        /// How long to wait for configuration, in milliseconds.
        #[serde(default = "default_timeout")]
        timeout_ms: u64,
    },
    /// A pod is being deleted.
    Del {
        /// Its uid.
        uid: String,
    },
    /// Show the registered pods in the order of their uids, as many as fit into an answer.
    List {
        /// Only those behind this uid.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
}

fn default_timeout() -> u64 {
    DEFAULT_TIMEOUT
}

/// A pod, as whoever runs it describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account; empty when whoever registers it does not know it, as no CNI plugin does. The
    /// configuration's is taken then, once.
    #[serde(default)]
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The host side of its veth; 0 when it has none.
    #[serde(default)]
    pub veth_ifindex: u32,
    /// Its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Ports that the kubelet probes.
    #[serde(default)]
    pub probe_ports: Vec<u16>,
}

impl Registration {
    /// The workload's name in the mesh.
    pub fn workload(&self, cluster: &ClusterId) -> WorkloadUid {
        WorkloadUid::new(format!("{cluster}//Pod/{}/{}", self.namespace, self.name))
    }

    /// How people call it.
    pub fn title(&self) -> String {
        format!("{}/{} ({})", self.namespace, self.name, self.uid)
    }

    /// The registration, if it can be used.
    pub fn check(mut self) -> Result<Self, String> {
        let title = self.title();
        if self.uid.is_empty()
            || self.uid.len() > mesh_abi::MAX_UID
            || !self.uid.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
        {
            return Err(format!(
                "pod {title:?}: its uid must have 1 to {} printable characters and no slash",
                mesh_abi::MAX_UID
            ));
        }
        for (field, text) in [
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("serviceAccount", &self.service_account),
        ] {
            let plain =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
            let unknown = text.is_empty() && field == "serviceAccount";
            if (text.is_empty() && !unknown)
                || text.len() > 253
                || !text.bytes().all(plain)
                || text.starts_with(['.', '-'])
            {
                return Err(format!(
                    "pod {title:?}: its {field} is not a Kubernetes name"
                ));
            }
        }
        self.addresses
            .iter_mut()
            .for_each(|ip| *ip = ip.to_canonical());
        let v4 = self.addresses.iter().filter(|ip| ip.is_ipv4()).count();
        if self.addresses.is_empty() || v4 > 1 || self.addresses.len() - v4 > 1 {
            return Err(format!(
                "pod {title}: it must have one address, or one of each family"
            ));
        }
        if let Some(ip) = self
            .addresses
            .iter()
            .find(|ip| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
        {
            return Err(format!("pod {title}: {ip} cannot be a pod's address"));
        }
        Ok(self)
    }
}

/// What became of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodState {
    /// Waits for configuration.
    Waiting,
    /// Captured.
    Captured,
    /// Left alone.
    Out,
    /// To be captured, but it cannot be.
    Refused,
    /// Deleted.
    Gone,
}

impl PodState {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            PodState::Waiting => "waiting",
            PodState::Captured => "captured",
            PodState::Out => "out",
            PodState::Refused => "refused",
            PodState::Gone => "gone",
        }
    }

    /// Every state.
    pub const ALL: [PodState; 5] = [
        Self::Waiting,
        Self::Captured,
        Self::Out,
        Self::Refused,
        Self::Gone,
    ];
}

/// A pod and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// The pod.
    #[serde(flatten)]
    pub pod: Registration,
    /// What became of it.
    pub state: PodState,
    /// Why, where that is not plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Whether the request was carried out.
    pub ok: bool,
    /// To `add` and `del`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PodState>,
    /// Why that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// To `list`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Vec<PodReport>>,
    /// To `list`, when there are more: what to ask for next, as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// What happened, to which pod, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reply {
    /// A pod's state.
    pub fn state(state: PodState, reason: Option<String>) -> Self {
        Self {
            ok: true,
            state: Some(state),
            reason,
            ..Self::default()
        }
    }

    /// A failure.
    pub fn error(text: impl Into<String>) -> Self {
        Self {
            ok: false,
            error: Some(text.into()),
            ..Self::default()
        }
    }
}

/// Reads a packet.
pub fn parse(packet: &[u8]) -> Result<Request, String> {
    let request = serde_json::from_slice(packet).map_err(|e| {
        format!("the request is not understood: {e}; CONTRACTS.md section 4 has its form")
    })?;
    match request {
        Request::Add { pod, timeout_ms } => Ok(Request::Add {
            pod: pod.check()?,
            timeout_ms: timeout_ms.min(LONGEST),
        }),
        other @ (Request::Del { .. } | Request::List { .. }) => Ok(other),
    }
}

/// The time an `add` may wait.
pub fn patience(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = r#"{"uid":"u-1","namespace":"shop","name":"web-1","serviceAccount":"web","addresses":["10.1.1.5","fd00::5"],
        "vethIfindex":7,"cgroup":"/sys/fs/cgroup/unified/x/podu-1","probePorts":[8080]}"#;

    fn check(packet: &str, expect: Result<(), &str>) {
        match (parse(packet.as_bytes()), expect) {
            (Ok(_), Ok(())) => {}
            (Err(e), Err(part)) => assert!(e.contains(part), "{e} does not say {part}"),
            (got, _) => panic!("{packet}: {got:?}"),
        }
    }

    #[test]
    fn requests_are_read_and_checked() {
        let add = |pod: &str| format!(r#"{{"op":"add","pod":{pod},"timeoutMs":50}}"#);
        check(&add(POD), Ok(()));
        // As the CNI plugin writes it.
        check(
            r#"{"op":"add","pod":{"uid":"u-1","namespace":"shop","name":"web-1","addresses":["10.1.1.5"],"vethIfindex":9},"timeoutMs":50}"#,
            Ok(()),
        );
        check(r#"{"op":"del","uid":"u-1"}"#, Ok(()));
        check(r#"{"op":"list"}"#, Ok(()));
        check(r#"{"op":"list","after":"u-1"}"#, Ok(()));
        check("{", Err("not understood"));
        check(r#"{"op":"burn"}"#, Err("not understood"));
        check(&add(&POD.replace("u-1", "../../etc")), Err("uid"));
        check(
            &add(&POD.replace("\"web\"", "\"we/b\"")),
            Err("serviceAccount"),
        );
        check(
            &add(&POD.replace("fd00::5", "10.1.1.6")),
            Err("one of each family"),
        );
        check(
            &add(&POD.replace("fd00::5", "::ffff:10.1.1.6")),
            Err("one of each family"),
        );
        check(
            &add(&POD.replace("10.1.1.5", "127.0.0.1")),
            Err("cannot be a pod's address"),
        );
    }

    #[test]
    fn a_report_is_the_pod_and_its_state_in_one_object() {
        let Ok(Request::Add { pod, timeout_ms }) =
            parse(format!(r#"{{"op":"add","pod":{POD}}}"#).as_bytes())
        else {
            panic!()
        };
        assert_eq!(timeout_ms, DEFAULT_TIMEOUT);
        let report = PodReport {
            pod,
            state: PodState::Captured,
            reason: None,
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (&json["uid"], &json["state"], &json["vethIfindex"]),
            (&"u-1".into(), &"captured".into(), &7.into())
        );
        assert_eq!(serde_json::from_value::<PodReport>(json).unwrap(), report);
    }
}
