//! `cargo xtask tidy`: what the compiler does not check.
//!
//! Invariants: dependency rules hold through any number of crates in between; every finding names the file
//! or the chain of crates, and all findings are shown at once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{step, workspace};

/// Which crates of ours a crate may use, itself or through others of ours.
const MAY_USE: &[(&str, &[&str])] = &[
    ("mesh-abi", &[]),
    ("mesh-loader", &["mesh-abi"]),
    ("mesh-model", &[]),
    ("mesh-api", &["mesh-model"]),
    (
        "mesh-node",
        &["mesh-abi", "mesh-loader", "mesh-model", "mesh-api"],
    ),
    ("mesh-k8s", &[]),
    ("mesh-translate", &["mesh-k8s", "mesh-model"]),
    (
        "mesh-ctl",
        &["mesh-api", "mesh-k8s", "mesh-model", "mesh-translate"],
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
    ("mesh-node", &["kube"]),
    ("mesh-ctl", &["aya"]),
];

/// Crates that only one of ours may name as a dependency.
const ONLY: &[(&str, &str)] = &[
    ("aya", "mesh-loader"),
    ("aya-obj", "mesh-loader"),
    ("kube", "mesh-ctl"),
];

/// The steps of a connection: none imports a later one. Observing is done by all.
const STEPS: &[&str] = &["accept", "identify", "authorize", "route", "dial", "relay"];

const LONG: usize = 500;
const TOO_LONG: usize = 700;

/// Names that say nothing about what is in the file.
const EMPTY_NAMES: &[&str] = &[
    "utils", "util", "common", "helpers", "helper", "manager", "misc",
];

/// Places of one developer's machine. Put together here so that this file does not hold them.
const PLACES: &[&str] = &[
    concat!("/wo", "rk/main"),
    concat!("/wo", "rk/shared"),
    concat!("/tm", "p/w/"),
];

/// Folders that hold nothing written by hand.
const NOT_OURS: &[&str] = &["target", "out", "node_modules", "gen"];

/// Checks everything, and fails when anything was found.
pub fn run() -> Result<()> {
    let root = workspace()?;
    let mut found = Vec::new();
    dependencies(&metadata()?, &mut found)?;
    let files = files(&root)?;
    let sources: Vec<Source> = files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "rs"))
        .map(|f| Source::read(&root, f))
        .collect::<Result<_>>()?;
    for source in &sources {
        found.extend(source.findings());
    }
    found.extend(orphans(&sources));
    found.extend(imports(&sources));
    for file in files.iter().filter(|f| is_text(f)) {
        found.extend(places(&root, file));
    }
    let long = sources
        .iter()
        .filter(|s| s.lines() > LONG && s.lines() <= TOO_LONG);
    for source in long {
        println!(
            "tidy: note: {} has {} lines; {LONG} is the aim",
            source.path.display(),
            source.lines()
        );
    }
    if !found.is_empty() {
        found.sort();
        bail!("tidy found {}:\n  {}", found.len(), found.join("\n  "));
    }
    println!("tidy: {} files, nothing found", sources.len());
    Ok(())
}

fn metadata() -> Result<Value> {
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

fn dependencies(metadata: &Value, found: &mut Vec<String>) -> Result<()> {
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

/// A Rust file of ours.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self {
            path: path.strip_prefix(root).unwrap_or(path).to_owned(),
            text,
        })
    }

    fn lines(&self) -> usize {
        self.text.lines().count()
    }

    fn stem(&self) -> &str {
        self.path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default()
    }

    fn findings(&self) -> Vec<String> {
        let path = self.path.display();
        let mut found = Vec::new();
        if !self.text.trim_start().starts_with("//! ") {
            found.push(format!(
                "{path}: says nothing at its top: open it with `//!` and what it is for"
            ));
        }
        if self.lines() > TOO_LONG {
            found.push(format!(
                "{path}: {} lines; {TOO_LONG} is the limit, {LONG} the aim: take it apart",
                self.lines()
            ));
        }
        if EMPTY_NAMES.contains(&self.stem()) {
            found.push(format!(
                "{path}: this name says nothing; name it after what is in it"
            ));
        }
        found
    }
}

/// Files that no other file declares as a module, so that nobody compiles them.
fn orphans(sources: &[Source]) -> Vec<String> {
    let by_path: BTreeMap<&Path, &Source> = sources.iter().map(|s| (s.path.as_path(), s)).collect();
    let declares = |parent: &Path, module: &str| {
        by_path
            .get(parent)
            .is_some_and(|s| declared(&s.text, module))
    };
    let by_attribute: BTreeSet<String> = sources.iter().flat_map(path_attributes).collect();
    let is_root = |path: &Path| {
        let stem = path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        let dirs: Vec<&str> = path
            .parent()
            .into_iter()
            .flat_map(Path::components)
            .filter_map(|c| c.as_os_str().to_str())
            .collect();
        // Cargo finds these by itself: programs in src/bin, and tests, examples and benchmarks beside src.
        let found_by_cargo = dirs.ends_with(&["src", "bin"])
            || (!dirs.contains(&"src")
                && ["tests", "examples", "benches"].contains(dirs.last().unwrap_or(&"")));
        ["main", "lib", "build"].contains(&stem) || found_by_cargo
    };
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| !is_root(&s.path)) {
        let dir = source.path.parent().unwrap_or(Path::new(""));
        let (module, home) = if source.stem() == "mod" {
            (
                dir.file_name().and_then(|f| f.to_str()).unwrap_or_default(),
                dir.parent().unwrap_or(Path::new("")),
            )
        } else {
            (source.stem(), dir)
        };
        let parents = [
            home.join("mod.rs"),
            home.join("lib.rs"),
            home.join("main.rs"),
            home.with_extension("rs"),
        ];
        // A test or binary of one file may have modules beside it.
        let beside = sources
            .iter()
            .filter(|s| s.path.parent() == Some(home) && is_root(&s.path))
            .map(|s| s.path.clone());
        let known = parents
            .iter()
            .cloned()
            .chain(beside)
            .any(|p| p != source.path && declares(&p, module));
        if !known && !by_attribute.contains(&source.path.display().to_string()) {
            found.push(format!(
                "{}: no file declares it as a module: declare it or remove it",
                source.path.display()
            ));
        }
    }
    found
}

fn declared(text: &str, module: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim();
        let rest = line
            .split_once("mod ")
            .filter(|(before, _)| before.is_empty() || before.ends_with(' '))
            .map(|(_, rest)| rest);
        rest.and_then(|r| {
            r.strip_suffix(';')
                .or_else(|| r.split_once(';').map(|(m, _)| m))
        })
        .is_some_and(|m| m.trim() == module)
    })
}

fn path_attributes(source: &Source) -> Vec<String> {
    let dir = source.path.parent().unwrap_or(Path::new(""));
    let named = source
        .text
        .lines()
        .filter_map(|l| l.trim().strip_prefix("#[path = \"")?.split('"').next());
    named
        .map(|n| normal(&dir.join(n)).display().to_string())
        .collect()
}

fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut done, part| {
        match part {
            std::path::Component::ParentDir => {
                done.pop();
            }
            std::path::Component::CurDir => {}
            other => done.push(other),
        }
        done
    })
}

/// Steps of a connection that import a later step.
fn imports(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, step) in STEPS.iter().enumerate() {
        let folder = Path::new("mesh-node/src").join(step);
        let file = folder.with_extension("rs");
        for source in sources
            .iter()
            .filter(|s| s.path.starts_with(&folder) || s.path == file)
        {
            // Tests may look ahead.
            let code = source.text.split("#[cfg(test)]").next().unwrap_or_default();
            if source.path.components().any(|c| c.as_os_str() == "tests")
                || source.stem().ends_with("tests")
            {
                continue;
            }
            for later in &STEPS[index + 1..] {
                if code.contains(&format!("crate::{later}::"))
                    || code.contains(&format!("use crate::{later}"))
                {
                    found.push(format!(
                        "{}: `{step}` imports the later step `{later}`",
                        source.path.display()
                    ));
                }
            }
        }
    }
    found
}

fn places(root: &Path, file: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(file) else {
        return Vec::new();
    };
    let path = file.strip_prefix(root).unwrap_or(file).display();
    let lines = text.lines().enumerate().flat_map(|(n, line)| {
        PLACES
            .iter()
            .filter(move |p| line.contains(**p))
            .map(move |p| (n, p))
    });
    lines
        .map(|(n, place)| {
            format!(
                "{path}:{}: `{place}` is a place on one developer's machine",
                n + 1
            )
        })
        .collect()
}

fn is_text(file: &Path) -> bool {
    let kinds = [
        "rs", "toml", "md", "yaml", "yml", "proto", "sh", "json", "html", "js", "css", "go",
    ];
    file.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| kinds.contains(&e))
        || file.ends_with(".ci/run")
}

/// All files written by hand.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir()
                && !NOT_OURS.contains(&name.as_str())
                && (!name.starts_with('.') || name == ".ci")
            {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn world(edges: &[(&str, &str, Value)]) -> Value {
        let names: BTreeSet<&str> = edges
            .iter()
            .flat_map(|(a, b, _)| [*a, *b])
            .chain(MAY_USE.iter().map(|(n, _)| *n))
            .collect();
        let deps = |from: &str| {
            edges
                .iter()
                .filter(|(a, ..)| *a == from)
                .map(|(_, b, kind)| json!({"pkg": b, "dep_kinds": [{"kind": kind}]}))
                .collect::<Vec<_>>()
        };
        json!({
            "packages": names.iter().map(|n| json!({"id": n, "name": n})).collect::<Vec<_>>(),
            "resolve": {"nodes": names.iter().map(|n| json!({"id": n, "deps": deps(n)})).collect::<Vec<_>>()},
        })
    }

    fn check(edges: &[(&str, &str, Value)]) -> Vec<String> {
        let mut found = Vec::new();
        dependencies(&world(edges), &mut found).expect("a readable graph");
        found
    }

    #[test]
    fn bans_hold_through_other_crates_but_not_for_tests() {
        let chain = [
            ("mesh-model", "middle", Value::Null),
            ("middle", "tokio", Value::Null),
        ];
        assert_eq!(
            check(&chain),
            ["mesh-model must not use tokio: mesh-model -> middle -> tokio"]
        );
        assert_eq!(
            check(&[("mesh-model", "tokio", json!("dev"))]),
            [] as [&str; 0]
        );
    }

    #[test]
    fn our_crates_use_only_what_is_theirs() {
        assert_eq!(
            check(&[("mesh-api", "mesh-loader", Value::Null)]),
            ["mesh-api must not use mesh-loader: mesh-api -> mesh-loader"]
        );
        assert_eq!(
            check(&[("mesh-node", "aya", Value::Null)]),
            ["mesh-node must not name aya: only mesh-loader does"]
        );
    }

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.into(),
            text: text.into(),
        }
    }

    #[test]
    fn finds_orphans_only() {
        let files = [
            source(
                "a/src/lib.rs",
                "//! x\npub mod known;\nmod folder;\n#[path = \"odd/name.rs\"]\nmod odd;",
            ),
            source("a/src/known.rs", "#[cfg(test)] mod tests;"),
            source("a/src/known/tests.rs", ""),
            source("a/src/folder/mod.rs", "pub(crate) mod inner;"),
            source("a/src/folder/inner.rs", ""),
            source("a/src/odd/name.rs", ""),
            source("a/src/bin/tool.rs", ""),
            source("a/tests/whole.rs", ""),
            source("a/src/lost.rs", ""),
            source("a/src/folder/lost.rs", "// mod lost;"),
        ];
        let found = orphans(&files);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("a/src/lost.rs") && found[1].starts_with("a/src/folder/lost.rs")
        );
    }

    #[test]
    fn steps_look_back_only() {
        let good = source(
            "mesh-node/src/dial/mod.rs",
            "use crate::accept::Accepted;\n#[cfg(test)]\nuse crate::relay::X;",
        );
        let bad = source("mesh-node/src/accept/mod.rs", "use crate::dial::Dialer;");
        let found = imports(&[good, bad]);
        assert_eq!(
            found,
            ["mesh-node/src/accept/mod.rs: `accept` imports the later step `dial`"]
        );
    }

    #[test]
    fn headers_and_names() {
        let found = source("x/utils.rs", "use a;").findings();
        assert!(
            found[0].contains("//!") && found[1].contains("name"),
            "{found:?}"
        );
        assert!(source("x/good.rs", "//! Good.\n").findings().is_empty());
    }
}
