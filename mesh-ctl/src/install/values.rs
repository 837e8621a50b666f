//! What can be set about an installation, as one value.
//!
//! Invariants: every field has its default and its description in `deploy/chart/values.yaml`; an unknown field is an
//! error, never ignored.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Values {
    /// The images.
    pub image: Image,
    /// The trust domain of the identities that are signed.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    pub trust_domain: String,
    /// Whether the controller takes the taint `warren.dev/not-ready` off nodes whose node proxy is ready.
    pub taint: bool,
    /// Logs of controller and node proxies.
    pub log: Log,
    /// The controller.
    pub controller: Controller,
    /// The node proxy.
    pub node: Node,
    /// The chained CNI plugin.
    pub cni: Cni,
    /// CustomResourceDefinitions.
    pub crds: Crds,
}

/// Where images come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Registry and folder.
    pub repository: String,
    /// The tag; this program's version when empty.
    pub tag: String,
    /// When a node fetches them.
    #[schemars(extend("enum" = ["IfNotPresent", "Always", "Never"]))]
    pub pull_policy: String,
    /// Names of Secrets with which they may be fetched.
    pub pull_secrets: Vec<String>,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Log {
    /// What is logged.
    pub level: String,
    /// How.
    #[schemars(extend("enum" = ["text", "json"]))]
    pub format: String,
}

/// The controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Controller {
    /// How many run.
    #[schemars(range(min = 1, max = 16))]
    pub replicas: u32,
    /// How long certificates live: a number with a unit, such as `24h`.
    #[schemars(regex(pattern = r"^[0-9]+[smhd]$"))]
    pub leaf_ttl: String,
    /// Whether evictions are held to one at a time.
    pub disruption_budget: bool,
    /// What it asks for and may use.
    pub resources: Resources,
    /// Its priority class; none when empty.
    pub priority_class: String,
    /// Labels of the nodes that it may run on.
    pub node_selector: BTreeMap<String, String>,
    /// Further taints that it tolerates.
    pub tolerations: Vec<BTreeMap<String, Value>>,
}

/// The node proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// All privileges instead of the capabilities that it needs.
    pub privileged: bool,
    /// The cgroup below which all pods live; found when empty.
    pub pods_cgroup: String,
    /// The cgroup of kubelet; found when empty.
    pub kubelet_cgroup: String,
    /// How programs get on the pods' interfaces.
    #[schemars(extend("enum" = ["auto", "tcx", "clsact"]))]
    pub tc: String,
    /// How many seconds live connections may go on when it ends.
    #[schemars(range(max = 86400))]
    pub drain: u32,
    /// Whether every connection is logged.
    pub access_log: bool,
    /// The port of metrics on the node's address.
    #[schemars(range(min = 1))]
    pub metrics_port: u16,
    /// On how many nodes at once an upgrade starts the new one beside the old one: a number or a percentage.
    #[schemars(extend("type" = ["integer", "string"]))]
    pub max_surge: Value,
    /// Further settings, by their names in the environment.
    pub env: BTreeMap<String, String>,
    /// What it asks for and may use.
    pub resources: Resources,
    /// Its priority class; none when empty.
    pub priority_class: String,
    /// Labels of the nodes that it runs on.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that it tolerates.
    pub tolerations: Vec<BTreeMap<String, Value>>,
}

/// What a container asks for and may use, as quantities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// What is set aside for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
    /// What it may not exceed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
}

/// The chained CNI plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cni {
    /// Whether the node proxy installs it.
    pub enabled: bool,
    /// Where the container runtime looks for plugins.
    #[schemars(regex(pattern = r"^/."))]
    pub bin_dir: String,
    /// Where it looks for network configurations.
    #[schemars(regex(pattern = r"^/."))]
    pub conf_dir: String,
    /// Whether pods start uncaptured while no node proxy runs.
    pub fail_open: bool,
}

/// CustomResourceDefinitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Crds {
    /// Those of Warren's own kinds.
    pub install: bool,
    /// Those of Istio's kinds that are read, where nobody has defined them.
    pub istio: bool,
}

impl Values {
    /// What types do not say; the chart's schema says the same.
    pub(super) fn check(&self) -> Result<(), String> {
        let one_of = |path: &str, value: &str, all: &[&str]| match all.contains(&value) {
            true => Ok(()),
            false => Err(format!(
                "{path} is {value:?}, and is one of {}",
                all.join(", ")
            )),
        };
        one_of(
            "image.pullPolicy",
            &self.image.pull_policy,
            &["IfNotPresent", "Always", "Never"],
        )?;
        one_of("log.format", &self.log.format, &["text", "json"])?;
        one_of("node.tc", &self.node.tc, &["auto", "tcx", "clsact"])?;
        let domain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.trust_domain.is_empty() || !self.trust_domain.chars().all(domain) {
            return Err(format!(
                "trustDomain is {:?}, and has letters, digits, '.', '_' and '-' only",
                self.trust_domain
            ));
        }
        let ttl = &self.controller.leaf_ttl;
        let digits = ttl.trim_end_matches(['s', 'm', 'h', 'd']);
        if ttl.len() != digits.len() + 1
            || digits.is_empty()
            || !digits.chars().all(|c| c.is_ascii_digit())
        {
            return Err(format!(
                "controller.leafTtl is {ttl:?}, and is a number with a unit, such as 24h"
            ));
        }
        if !(1..=16).contains(&self.controller.replicas) {
            return Err("controller.replicas is between 1 and 16".to_owned());
        }
        if self.node.drain > 86_400 {
            return Err("node.drain is at most 86400 seconds".to_owned());
        }
        if self.node.metrics_port == 0 {
            return Err("node.metricsPort is no port".to_owned());
        }
        if !(self.node.max_surge.is_u64() || self.node.max_surge.is_string()) {
            return Err("node.maxSurge is a number or a percentage".to_owned());
        }
        for (path, value) in [
            ("cni.binDir", &self.cni.bin_dir),
            ("cni.confDir", &self.cni.conf_dir),
        ] {
            if !value.starts_with('/') || value.len() < 2 {
                return Err(format!("{path} is {value:?}, and is a path from the root"));
            }
        }
        Ok(())
    }
}
