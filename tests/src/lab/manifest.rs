//! Manifests as users write them: documents split apart, named, and kept word for word where possible.
//!
//! Invariants: a document the lab cannot read is handed to the controller untouched, with a warning, never
//! dropped; every object has its own file, replaced by an atomic rename.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Kinds without a namespace.
const CLUSTER_SCOPED: &[&str] = &[
    "Namespace",
    "Node",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "GatewayClass",
    "PersistentVolume",
    "StorageClass",
    "PriorityClass",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
];

/// What an object is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// API group without version; empty for the core group.
    pub group: String,
    /// `Deployment`, `Service`, ...
    pub kind: String,
    /// Empty for cluster-wide objects.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl Key {
    /// An object of the core group.
    pub fn core(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            group: String::new(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The name of the file that holds the object; different objects never share one.
    pub fn file(&self) -> String {
        let group = if self.group.is_empty() {
            "core"
        } else {
            &self.group
        };
        format!(
            "{}.{group}_{}_{}.yaml",
            self.kind.to_lowercase(),
            self.namespace,
            self.name
        )
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.to_lowercase();
        if self.namespace.is_empty() {
            write!(f, "{kind}/{}", self.name)
        } else {
            write!(f, "{kind}/{} -n {}", self.name, self.namespace)
        }
    }
}

/// One object of a user's file.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it is called.
    pub key: Key,
    /// Its content.
    pub value: Value,
    /// The text that the controller gets to see.
    pub text: String,
}

/// One document of a user's file.
#[derive(Clone, Debug)]
pub enum Document {
    /// The lab can name it.
    Object(Box<Object>),
    /// The lab cannot read it: only the controller shall judge it.
    Opaque {
        /// The file it is kept in.
        file: String,
        /// Its text.
        text: String,
        /// Why it cannot be read.
        why: String,
    },
}

/// A file with its text, as the command line hands it to the lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// Where it came from.
    pub path: String,
    /// What it says.
    pub text: String,
}

impl Source {
    /// Reads a file, or all manifests of a directory in order of their names, or standard input for `-`.
    pub fn read(path: &Path) -> Result<Vec<Source>> {
        if path == Path::new("-") {
            return Ok(vec![Self {
                path: "stdin".into(),
                text: std::io::read_to_string(std::io::stdin())?,
            }]);
        }
        let meta = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
        let mut files = vec![path.to_owned()];
        if meta.is_dir() {
            files = fs::read_dir(path)?
                .map(|e| Ok(e?.path()))
                .collect::<Result<Vec<PathBuf>>>()?;
            files.retain(|f| {
                f.extension()
                    .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
            });
            files.sort();
            if files.is_empty() {
                bail!("{} holds no .yaml, .yml or .json file", path.display());
            }
        }
        let read = |f: &PathBuf| {
            let text = fs::read_to_string(f).with_context(|| format!("reading {}", f.display()))?;
            Ok(Self {
                path: f.display().to_string(),
                text,
            })
        };
        files.iter().map(read).collect()
    }

    /// The documents of this file; objects without a namespace get `namespace`.
    pub fn documents(&self, namespace: &str) -> Vec<Document> {
        let stem = Path::new(&self.path)
            .file_stem()
            .map_or_else(|| "manifest".into(), |s| s.to_string_lossy().into_owned());
        let mut found = Vec::new();
        for (index, text) in split(&self.text).into_iter().enumerate() {
            match read_objects(&text, namespace) {
                Ok(objects) => {
                    found.extend(objects.into_iter().map(|o| Document::Object(Box::new(o))))
                }
                Err(e) => found.push(Document::Opaque {
                    file: format!("unreadable_{stem}_{index}.yaml"),
                    text,
                    why: format!("{e:#}"),
                }),
            }
        }
        found
    }
}

/// Text of an object made by the lab. JSON is YAML, and needs no quoting rules.
pub fn render(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value can be written");
    text.push('\n');
    text
}

/// Writes a file so that a reader sees either the old or the new content. Hidden names are not read by anyone.
pub fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let (dir, name) = (
        path.parent().context("a file has a directory")?,
        path.file_name().context("a file has a name")?,
    );
    let temporary = dir.join(format!(".{}.new", name.to_string_lossy()));
    fs::write(&temporary, text).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("replacing {}", path.display()))
}

/// The documents of a multi-document text, without the empty ones.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") || line.starts_with("---\t") {
            documents.push(String::new());
            continue;
        }
        let current = documents
            .last_mut()
            .expect("there is always a current document");
        current.push_str(line);
        current.push('\n');
    }
    documents.retain(|d| {
        d.lines()
            .any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
    });
    documents
}

fn read_objects(text: &str, namespace: &str) -> Result<Vec<Object>> {
    let value: Value = serde_saphyr::from_str(text).context("this is not YAML")?;
    if value["kind"].as_str().is_some_and(|k| k.ends_with("List")) && value["items"].is_array() {
        let items = value["items"].as_array().cloned().unwrap_or_default();
        return items
            .into_iter()
            .map(|item| name_object(item, None, namespace))
            .collect();
    }
    Ok(vec![name_object(value, Some(text), namespace)?])
}

fn name_object(mut value: Value, text: Option<&str>, default_namespace: &str) -> Result<Object> {
    let kind = value["kind"]
        .as_str()
        .context("it has no `kind`")?
        .to_owned();
    let name = value["metadata"]["name"]
        .as_str()
        .context("it has no `metadata.name`")?
        .to_owned();
    let version = value["apiVersion"]
        .as_str()
        .context("it has no `apiVersion`")?;
    let group = version
        .split_once('/')
        .map_or("", |(group, _)| group)
        .to_owned();
    if [&kind, &name]
        .iter()
        .any(|s| s.contains('/') || s.starts_with('.'))
    {
        bail!("`{kind}/{name}` is not a name");
    }
    let mut text = text.map(str::to_owned);
    let namespace = if CLUSTER_SCOPED.contains(&kind.as_str()) {
        String::new()
    } else if let Some(given) = value["metadata"]["namespace"].as_str() {
        if given.contains('/') {
            bail!("`{given}` is not a namespace");
        }
        given.to_owned()
    } else {
        if default_namespace != "default" {
            text = None;
        }
        value["metadata"]["namespace"] = default_namespace.into();
        default_namespace.to_owned()
    };
    let text = text.unwrap_or_else(|| render(&value));
    Ok(Object {
        key: Key {
            group,
            kind,
            namespace,
            name,
        },
        value,
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docs(text: &str, namespace: &str) -> Vec<Document> {
        Source {
            path: "a/web.yaml".into(),
            text: text.into(),
        }
        .documents(namespace)
    }

    #[test]
    fn keeps_what_it_cannot_read() {
        let found = docs(
            "kind: [\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n",
            "default",
        );
        assert!(
            matches!(&found[0], Document::Opaque { file, text, .. } if file == "unreadable_web_0.yaml" && text == "kind: [\n")
        );
        assert!(
            matches!(&found[1], Document::Object(o) if o.key == Key::core("Service", "default", "web"))
        );
    }

    #[test]
    fn fills_in_the_namespace_asked_for() {
        let Document::Object(o) = &docs(
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n",
            "shop",
        )[0] else {
            panic!("an object")
        };
        assert_eq!(o.key.namespace, "shop");
        assert!(
            o.text.contains(r#""namespace": "shop""#),
            "the controller must see it too: {}",
            o.text
        );
    }

    #[test]
    fn expands_lists_and_skips_empty_documents() {
        let text = "# nothing\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}\n";
        let keys: Vec<String> = docs(text, "x")
            .iter()
            .map(|d| match d {
                Document::Object(o) => o.key.file(),
                Document::Opaque { why, .. } => panic!("{why}"),
            })
            .collect();
        assert_eq!(keys, ["namespace.core__a.yaml", "deployment.apps_x_b.yaml"]);
    }
}
