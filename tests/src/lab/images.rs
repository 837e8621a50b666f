//! Which program stands in for which container image: the user's own map first, then the sample applications.
//!
//! Invariants: a map is taken whole or not at all; an error names file, line and image; programs are found once,
//! when the map is read, so that a lab does not depend on the directory it was started from.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_saphyr::Spanned;

/// Image names with the programs that run in their place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Images(BTreeMap<String, Vec<String>>);

impl Images {
    /// Reads a map: YAML, image name to program with arguments (a list, or words in one string). The tag `*`
    /// stands for any tag or digest. `own` is a directory of programs besides those of `PATH`.
    pub fn read(file: &Path, own: Option<&Path>) -> Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text, &file.display().to_string(), |name| {
            let near = file.parent().unwrap_or(Path::new("")).join(name);
            let path = if name.contains('/') {
                Some(near)
            } else {
                super::podspec::find_program(name).or_else(|| Some(own?.join(name)))
            };
            path.filter(|p| p.is_file())
                .and_then(|p| std::path::absolute(p).ok())
        })
    }

    fn parse(text: &str, file: &str, find: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let entries: BTreeMap<String, Spanned<Value>> =
            serde_saphyr::from_str(text).map_err(|e| {
                let line = e.location().map_or(1, |l| l.line());
                anyhow!(
                    "{file}:{line}: not a map of image names to programs: {}",
                    e.without_snippet()
                )
            })?;
        let mut images = BTreeMap::new();
        for (pattern, entry) in entries {
            let at = format!("{file}:{}: image `{pattern}`", entry.referenced.line());
            let mut program = words(&entry.value).with_context(|| {
                format!("{at}: wanted a program with its arguments, as a list or in one string")
            })?;
            let (name, tag) = split(&pattern);
            if name.contains('*') || (tag != "*" && tag.contains('*')) {
                bail!(
                    "{at}: `*` may only stand for a whole tag, as in `{}:*`",
                    name.replace('*', "NAME")
                );
            }
            let found = find(&program[0])
                .with_context(|| format!("{at}: this machine has no program `{}`", program[0]))?;
            program[0] = found.display().to_string();
            if images.insert(format!("{name}:{tag}"), program).is_some() {
                bail!("{at}: named twice, in two ways of writing");
            }
        }
        Ok(Self(images))
    }

    /// The program that the user's map gives to an image: that of exactly its tag, else that of any tag.
    pub fn program(&self, image: &str) -> Option<Vec<String>> {
        let (name, tag) = split(image);
        let of = |tag: &str| self.0.get(&format!("{name}:{tag}")).cloned();
        of(tag).or_else(|| of("*"))
    }
}

/// An image's name, without what every container tool adds by itself, and its tag or digest.
pub(super) fn split(image: &str) -> (&str, &str) {
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    let image = image.strip_prefix("library/").unwrap_or(image);
    if let Some((name, digest)) = image.split_once('@') {
        return (split(name).0, digest);
    }
    // A colon before the last slash is that of a registry's port.
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

fn words(value: &Value) -> Option<Vec<String>> {
    let words: Vec<String> = match value {
        Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        Value::Array(list) => list
            .iter()
            .map(|w| match w {
                Value::String(text) => Some(text.clone()),
                Value::Number(n) => Some(n.to_string()),
                Value::Bool(b) => Some(b.to_string()),
                Value::Null | Value::Array(_) | Value::Object(_) => None,
            })
            .collect::<Option<_>>()?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
    };
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Images> {
        Images::parse(text, "i.yaml", |name| {
            (name != "missing").then(|| PathBuf::from("/bin").join(name))
        })
    }

    #[test]
    fn names_tags_and_digests() {
        let images = parse(
            "reg.test:5000/shop/web:*: [serve, -p, 80]\nredis: redis-server --port 1\nredis:7: old\n",
        )
        .expect("a good map");
        let check = |image: &str, expect: Option<&str>| {
            let got = images.program(image).map(|p| p.join(" "));
            assert_eq!(got.as_deref(), expect, "{image}");
        };
        check("reg.test:5000/shop/web:v3", Some("/bin/serve -p 80"));
        check("reg.test:5000/shop/web", Some("/bin/serve -p 80"));
        check(
            "reg.test:5000/shop/web:v3@sha256:00",
            Some("/bin/serve -p 80"),
        );
        check("shop/web:v3", None);
        check(
            "docker.io/library/redis:latest",
            Some("/bin/redis-server --port 1"),
        );
        check("redis:7", Some("/bin/old"));
        check("redis:8", None);
    }

    #[test]
    fn a_bad_map_is_refused_with_its_line() {
        for (text, expect) in [
            (
                "a: b\nc: missing\n",
                "i.yaml:2: image `c`: this machine has no program `missing`",
            ),
            (
                "a: b\n\nc: {d: e}\n",
                "i.yaml:3: image `c`: wanted a program",
            ),
            ("a: []\n", "i.yaml:1: image `a`: wanted a program"),
            (
                "'x/*': b\n",
                "i.yaml:1: image `x/*`: `*` may only stand for a whole tag",
            ),
            ("a: b\nlibrary/a: b\n", "named twice"),
            ("a: b\na: c\n", "i.yaml:2: not a map"),
            ("- a\n- b\n", "i.yaml:1: not a map"),
            ("a: [b\n", "i.yaml:"),
        ] {
            let e = format!("{:#}", parse(text).expect_err(text));
            assert!(e.contains(expect), "{text:?}: {e}");
        }
    }
}
