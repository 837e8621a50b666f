//! A call of the runtime: its command, the pod that it is about, and our configuration.
//!
//! Invariants: pure; a call that was parsed is one that its version of the specification has. Follows the CNI
//! specification up to 1.1.0; what differs between its versions is the form of results, which are passed through.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    PLUGIN,
    failure::{Code, Failure},
};

/// The versions of the specification that are spoken, oldest first.
pub const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// What a configuration without a version is written in.
const OLDEST: &str = VERSIONS[0];

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod's network was made.
    Add,
    /// A pod's network is about to go.
    Del,
    /// Is a pod's network as it should be?
    Check,
    /// Some pods are gone for good.
    Gc,
    /// Could a pod be added?
    Status,
}

impl Command {
    /// The command of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "ADD" => Some(Self::Add),
            "DEL" => Some(Self::Del),
            "CHECK" => Some(Self::Check),
            "GC" => Some(Self::Gc),
            "STATUS" => Some(Self::Status),
            _ => None,
        }
    }

    /// The version that brought it.
    const fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del => "0.1.0",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }
}

/// Our entry in the configuration, and what the runtime adds to it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// The version that the runtime speaks.
    #[serde(default)]
    pub cni_version: Option<String>,
    /// The node proxy's registration socket.
    pub socket: PathBuf,
    /// The list of enrolled namespaces, one a line; it has to survive a restart of the node.
    pub enrolled: PathBuf,
    /// Whether enrolled pods start without their capture when the node proxy is away or refuses them.
    #[serde(default)]
    pub fail_open: bool,
    /// How long the node proxy may wait for what it has to know of a pod, in milliseconds; at most 120000 count.
    #[serde(default = "timeout")]
    pub timeout_ms: u64,
    /// What the plugins before us made; of the form of its version.
    #[serde(default)]
    pub prev_result: Option<Value>,
}

const fn timeout() -> u64 {
    10_000
}

impl Configuration {
    /// Reads it and checks that its version is spoken and has the command.
    pub fn read(input: &[u8], command: Command) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(input).map_err(|e| {
            let text = format!("the input of {PLUGIN} is not JSON: {e}");
            Failure::new(Code::Decode, "the configuration cannot be decoded", text)
        })?;
        let conf = Self::deserialize(&value).map_err(|e| {
            let text =
                format!("the entry of type {PLUGIN}: {e}; let the node proxy write it again");
            Failure::new(Code::Configuration, "the configuration is not valid", text)
        })?;
        let place = |version: &str| VERSIONS.iter().position(|v| *v == version);
        match (place(conf.version()), place(command.since())) {
            (Some(spoken), Some(least)) if spoken >= least => Ok(conf),
            _ => Err(Failure::new(
                Code::Version,
                "incompatible CNI version",
                format!(
                    "{command:?} under version {} is not supported; {PLUGIN} speaks {}, and this command since {}",
                    conf.version(),
                    VERSIONS.join(", "),
                    command.since()
                ),
            )),
        }
    }

    /// The version that the runtime speaks.
    pub fn version(&self) -> &str {
        self.cni_version.as_deref().unwrap_or(OLDEST)
    }

    /// How long an answer of the node proxy is waited for: what it may wait, and the time of its own work.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.min(120_000)) + Duration::from_secs(10)
    }
}

/// The version named in an input, for answers that must not fail.
pub fn version_of(input: &[u8]) -> String {
    let value: Value = serde_json::from_slice(input).unwrap_or_default();
    let known = VERSIONS
        .iter()
        .find(|v| value["cniVersion"].as_str() == Some(**v));
    known.unwrap_or(&VERSIONS[VERSIONS.len() - 1]).to_string()
}

/// The answer to VERSION.
pub fn versions(input: &[u8]) -> Value {
    json!({"cniVersion": version_of(input), "supportedVersions": VERSIONS})
}

/// Who the pod is, as runtimes of Kubernetes say it in `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; older runtimes do not tell it.
    pub uid: Option<String>,
}

impl PodName {
    /// Reads `CNI_ARGS`. `None`: not a pod of Kubernetes.
    pub fn read(args: &str) -> Option<Self> {
        let value = |key: &str| {
            let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
            let mut found = pairs.filter(|(k, v)| k.trim() == key && !v.trim().is_empty());
            found.next().map(|(_, v)| v.trim().to_owned())
        };
        Some(Self {
            namespace: value("K8S_POD_NAMESPACE")?,
            name: value("K8S_POD_NAME")?,
            uid: value("K8S_POD_UID"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str =
        r#"{"cniVersion":"1.0.0","name":"x","type":"warren-cni","socket":"/s","enrolled":"/e"}"#;

    #[test]
    fn commands_need_a_version_that_has_them() {
        let read = |version: &str, command| {
            let text = ENTRY.replace("1.0.0", version);
            Configuration::read(text.as_bytes(), command).map_err(|f| f.code)
        };
        for (version, command, ok) in [
            ("0.3.1", Command::Add, true),
            ("0.3.1", Command::Check, false),
            ("0.4.0", Command::Check, true),
            ("1.0.0", Command::Status, false),
            ("1.1.0", Command::Status, true),
            ("1.1.0", Command::Gc, true),
            ("7.0.0", Command::Add, false),
        ] {
            match read(version, command) {
                Ok(conf) => assert!(ok && conf.version() == version, "{version} {command:?}"),
                Err(code) => assert!(!ok && code == Code::Version, "{version} {command:?}"),
            }
        }
        let none =
            Configuration::read(br#"{"socket":"/s","enrolled":"/e"}"#, Command::Add).unwrap();
        assert_eq!((none.version(), none.fail_open), ("0.1.0", false));
        let of = |text: &[u8]| Configuration::read(text, Command::Add).unwrap_err().code;
        assert_eq!((of(b"{"), of(b"{}")), (Code::Decode, Code::Configuration));
    }

    #[test]
    fn a_pod_is_named_by_the_runtimes_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1";
        let pod = PodName::read(args).unwrap();
        assert_eq!(
            (
                pod.namespace.as_str(),
                pod.name.as_str(),
                pod.uid.as_deref()
            ),
            ("shop", "web-1", Some("u-1"))
        );
        assert_eq!(
            PodName::read("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=")
                .unwrap()
                .uid,
            None
        );
        for none in ["", "K8S_POD_NAMESPACE=shop", "FOO=BAR;;="] {
            assert_eq!(PodName::read(none), None);
        }
    }

    #[test]
    fn versions_are_told_under_the_one_that_was_asked_in() {
        assert_eq!(
            versions(br#"{"cniVersion":"0.4.0"}"#)["cniVersion"],
            "0.4.0"
        );
        assert_eq!(versions(b"")["cniVersion"], "1.1.0");
        assert_eq!(
            versions(b"")["supportedVersions"].as_array().unwrap().len(),
            7
        );
    }
}
