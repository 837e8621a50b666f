//! Who may use whom, through any number of crates in between.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::step;

/// Which crates of ours a crate may use, itself or through others of ours.
pub const MAY_USE: &[(&str, &[&str])] = &[
    ("mesh-abi", &[]),
    ("mesh-loader", &["mesh-abi"]),
    ("mesh-model", &[]),
    ("mesh-api", &["mesh-model"]),
    ("mesh-cni", &[]),
    (
        "mesh-node",
        &[
            "mesh-abi",
            "mesh-loader",
            "mesh-model",
            "mesh-api",
            "mesh-cni",
        ],
    ),
    ("mesh-k8s", &[]),
    ("mesh-translate", &["mesh-k8s", "mesh-model"]),
    (
        "mesh-ctl",
        &[
            "mesh-cni",
            "mesh-api",
            "mesh-k8s",
            "mesh-model",
            "mesh-translate",
        ],
    ),
    ("xtask", &[]),
];

/// Which crates of others a crate must not use, through any number of crates in between.
const NEVER: &[(&str, &[&str])] = &[
    ("mesh-abi", &["tokio", "aya", "serde"]),
    (
        "mesh-model",
        &[
            "tokio", "prost", "kube", "aya", "hyper", "tonic", "libc", "nix", "mio",
        ],
    ),
    (
        "mesh-translate",
        &[
            "tokio", "prost", "kube", "aya", "hyper", "tonic", "nix", "mio",
        ],
    ),
    (
        "mesh-k8s",
        &["tokio", "prost", "kube", "aya", "hyper", "tonic"],
    ),
    ("mesh-api", &["aya", "kube"]),
    ("mesh-cni", &["tokio", "aya", "kube", "prost", "hyper"]),
    ("mesh-node", &["kube"]),
    ("mesh-ctl", &["aya"]),
];

/// Crates that only one of ours may name as a dependency.
const ONLY: &[(&str, &str)] = &[
    ("aya", "mesh-loader"),
    ("aya-obj", "mesh-loader"),
    ("kube", "mesh-ctl"),
];

/// What cargo knows of all crates.
pub fn metadata() -> Result<Value> {
    let mut command = step::cargo()?;
    command.args(["metadata", "--locked", "--format-version", "1"]);
    let out = command.output().context("starting cargo metadata")?;
    if !out.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    serde_json::from_slice(&out.stdout).context("reading cargo metadata")
}

/// Crates and what each uses outside its own tests.
struct Graph<'a> {
    names: BTreeMap<&'a str, &'a str>,
    uses: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Graph<'a> {
    fn read(metadata: &'a Value) -> Result<Self> {
        let names = list(&metadata["packages"])
            .iter()
            .map(|p| (text(&p["id"]), text(&p["name"])))
            .collect();
        let normal = |d: &&'a Value| list(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null());
        let nodes = list(&metadata["resolve"]["nodes"]);
        if nodes.is_empty() {
            bail!("cargo metadata resolved nothing");
        }
        let uses = nodes
            .iter()
            .map(|n| {
                (
                    text(&n["id"]),
                    list(&n["deps"])
                        .iter()
                        .filter(normal)
                        .map(|d| text(&d["pkg"]))
                        .collect(),
                )
            })
            .collect();
        Ok(Self { names, uses })
    }

    fn id(&self, name: &str) -> Option<&'a str> {
        self.names
            .iter()
            .find(|(_, n)| **n == name)
            .map(|(id, _)| *id)
    }

    fn name(&self, id: &str) -> &'a str {
        self.names.get(id).copied().unwrap_or("?")
    }

    /// Every crate that `from` uses, with the shortest chain to it.
    fn reach(&self, from: &'a str) -> BTreeMap<&'a str, Vec<&'a str>> {
        let mut chains = BTreeMap::from([(from, vec![self.name(from)])]);
        let mut queue = VecDeque::from([from]);
        while let Some(id) = queue.pop_front() {
            for next in self.uses.get(id).into_iter().flatten() {
                if !chains.contains_key(next) {
                    let mut chain = chains[id].clone();
                    chain.push(self.name(next));
                    chains.insert(next, chain);
                    queue.push_back(next);
                }
            }
        }
        chains
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What breaks the rules.
pub fn dependencies(metadata: &Value, found: &mut Vec<String>) -> Result<()> {
    let graph = Graph::read(metadata)?;
    for (name, allowed) in MAY_USE {
        let Some(id) = graph.id(name) else {
            found.push(format!("{name}: no such crate, but tidy has a rule for it"));
            continue;
        };
        for chain in graph.reach(id).values() {
            let last = chain.last().copied().unwrap_or_default();
            let ours = last.starts_with("mesh-") && last != *name;
            if ours && !allowed.contains(&last) {
                found.push(format!(
                    "{name} must not use {last}: {}",
                    chain.join(" -> ")
                ));
            }
        }
    }
    for (name, banned) in NEVER {
        let Some(id) = graph.id(name) else { continue };
        for chain in graph.reach(id).values() {
            let last = chain.last().copied().unwrap_or_default();
            if banned.contains(&last) {
                found.push(format!(
                    "{name} must not use {last}: {}",
                    chain.join(" -> ")
                ));
            }
        }
    }
    for (dependency, only) in ONLY {
        let Some(id) = graph.id(dependency) else {
            continue;
        };
        let users = graph
            .uses
            .iter()
            .filter(|(_, uses)| uses.contains(&id))
            .map(|(user, _)| graph.name(user));
        found.extend(
            users
                .filter(|u| u.starts_with("mesh-") && u != only)
                .map(|u| format!("{u} must not name {dependency}: only {only} does")),
        );
    }
    Ok(())
}
