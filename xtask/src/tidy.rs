//! `cargo xtask tidy`: what the compiler does not check.
//!
//! Invariants: dependency rules hold through any number of crates in between; every finding names the file
//! or the chain of crates, and all findings are shown at once.

mod crates;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::workspace;

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
    crates::dependencies(&crates::metadata()?, &mut found)?;
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
mod tests;
