//! OCI images as tar files, without a container daemon: one layer, one platform.
//!
//! Invariant: the same files give the same bytes; nothing of the machine, the time or the user goes in.
//! Source: the OCI image specification, version 1.1 (layout, manifest, config).

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Something in an image.
pub struct Content {
    /// Its path, without a leading slash.
    path: String,
    kind: Kind,
}

enum Kind {
    File { bytes: Vec<u8>, mode: u32 },
    Link(String),
    Dir { mode: u32 },
}

impl Content {
    /// A file of this machine, executable where it is so here.
    pub fn file(path: &str, from: &Path) -> Result<Self> {
        let about = || format!("the image's {path}, {}", from.display());
        let bytes = fs::read(from).with_context(about)?;
        let executable = fs::metadata(from).with_context(about)?.permissions().mode() & 0o111 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        Ok(Self {
            path: path.to_owned(),
            kind: Kind::File { bytes, mode },
        })
    }

    /// A symbolic link.
    pub fn link(path: &str, to: &str) -> Self {
        Self {
            path: path.to_owned(),
            kind: Kind::Link(to.to_owned()),
        }
    }

    fn text(path: &str, text: &str) -> Self {
        let kind = Kind::File {
            bytes: text.as_bytes().to_vec(),
            mode: 0o644,
        };
        Self {
            path: path.to_owned(),
            kind,
        }
    }
}

/// An image for this machine's architecture.
pub struct Image<'a> {
    /// Its name and tag.
    pub reference: &'a str,
    /// What runs in it.
    pub entrypoint: &'a [&'a str],
    /// As whom, by number; root when absent. Needs no entry in its passwd.
    pub user: Option<u32>,
    /// What is in it.
    pub content: Vec<Content>,
}

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the tar file, in bytes.
    pub size: usize,
    /// Of the manifest, by which registries and container runtimes name an image.
    pub digest: String,
}

impl Image<'_> {
    /// Writes it to a file.
    pub fn write(self, out: &Path) -> Result<Written> {
        let (bytes, digest) = layout(self)?;
        fs::write(out, &bytes).with_context(|| format!("writing {}", out.display()))?;
        let size = bytes.len();
        Ok(Written { size, digest })
    }
}

/// Writes an image whose program runs as root.
pub fn write(
    out: &Path,
    reference: &str,
    entrypoint: &[&str],
    content: Vec<Content>,
) -> Result<()> {
    let image = Image {
        reference,
        entrypoint,
        user: None,
        content,
    };
    image.write(out).map(drop)
}

/// A reference as container runtimes keep it: one without a host means Docker's, by every one's convention.
fn in_full(reference: &str) -> String {
    let host = reference.split_once('/').map(|(first, _)| first);
    match host {
        Some(host) if host.contains(['.', ':']) || host == "localhost" => reference.to_owned(),
        Some(_) => format!("docker.io/{reference}"),
        None => format!("docker.io/library/{reference}"),
    }
}

/// The tar file's bytes and the manifest's digest.
fn layout(image: Image<'_>) -> Result<(Vec<u8>, String)> {
    let Image {
        reference,
        entrypoint,
        user,
        content,
    } = image;
    let layer = tar(with_parents(content))?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut process = json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": entrypoint, "WorkingDir": "/"});
    if let Some(id) = user {
        process["User"] = json!(format!("{id}:{id}"));
    }
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    }))?;
    let part = |kind: &str, bytes: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest(bytes),
            "size": bytes.len(),
        })
    };
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": part("config.v1+json", &config),
        "layers": [part("layer.v1.tar", &layer)],
    }))?;
    let mut listed = part("manifest.v1+json", &manifest);
    listed["platform"] = json!({"architecture": architecture, "os": "linux"});
    listed["annotations"] = json!({
        "io.containerd.image.name": in_full(reference),
        "org.opencontainers.image.ref.name": reference.rsplit(':').next(),
    });
    let name = digest(&manifest);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [listed],
    });
    let blob = |bytes: Vec<u8>| {
        let path = format!("blobs/{}", digest(&bytes).replace(':', "/"));
        Content {
            path,
            kind: Kind::File { bytes, mode: 0o644 },
        }
    };
    let whole = tar(vec![
        Content::text("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        Content::text("index.json", &index.to_string()),
        blob(layer),
        blob(config),
        blob(manifest),
    ])?;
    Ok((whole, name))
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Adds what every image has and the directories that paths lie in, in the order of their names.
fn with_parents(mut content: Vec<Content>) -> Vec<Content> {
    content.push(Content::text(
        "etc/passwd",
        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    ));
    content.push(Content::text("etc/group", "root:x:0:\nnobody:x:65534:\n"));
    content.push(Content {
        path: "tmp".into(),
        kind: Kind::Dir { mode: 0o1777 },
    });
    let mut dirs: Vec<String> = content
        .iter()
        .flat_map(|c| {
            c.path
                .match_indices('/')
                .map(|(at, _)| c.path[..at].to_owned())
        })
        .collect();
    dirs.sort_unstable();
    dirs.dedup();
    content.extend(dirs.into_iter().map(|path| Content {
        path,
        kind: Kind::Dir { mode: 0o755 },
    }));
    content.sort_by(|a, b| a.path.cmp(&b.path));
    content
}

fn tar(content: Vec<Content>) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for Content { path, kind } in content {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let (entry, mode, bytes) = match &kind {
            Kind::File { bytes, mode } => (tar::EntryType::Regular, *mode, &bytes[..]),
            Kind::Link(_) => (tar::EntryType::Symlink, 0o777, &[][..]),
            Kind::Dir { mode } => (tar::EntryType::Directory, *mode, &[][..]),
        };
        header.set_entry_type(entry);
        header.set_mode(mode);
        header.set_size(u64::try_from(bytes.len())?);
        match &kind {
            Kind::Link(to) => tar.append_link(&mut header, &path, to)?,
            Kind::File { .. } | Kind::Dir { .. } => tar.append_data(&mut header, &path, bytes)?,
        }
    }
    Ok(tar.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Vec<Content> {
        vec![
            Content::text("usr/share/b", "b"),
            Content::link("bin/a", "b"),
        ]
    }

    fn image(reference: &str, user: Option<u32>, content: Vec<Content>) -> (Vec<u8>, String) {
        let entrypoint = &["/bin/a"];
        layout(Image {
            reference,
            entrypoint,
            user,
            content,
        })
        .expect("an image")
    }

    fn has(bytes: &[u8], text: &str) -> bool {
        bytes.windows(text.len()).any(|w| w == text.as_bytes())
    }

    #[test]
    fn a_reference_is_kept_as_runtimes_look_it_up() {
        for (short, full) in [
            ("warren/mesh-node:dev", "docker.io/warren/mesh-node:dev"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("warren.test/pause:1", "warren.test/pause:1"),
            ("localhost/pause:1", "localhost/pause:1"),
        ] {
            assert_eq!(in_full(short), full);
        }
    }

    #[test]
    fn the_user_is_in_the_config_and_root_is_not_named() {
        let (bytes, digest) = image("warren/a:1", Some(65532), content());
        assert!(has(&bytes, r#""User":"65532:65532""#));
        let (root, of_root) = image("warren/a:1", None, content());
        assert!(!has(&root, r#""User""#));
        assert_ne!(digest, of_root);
    }

    #[test]
    fn the_digest_is_the_one_that_the_index_lists() {
        let (bytes, digest) = image("warren/a:1", None, content());
        assert!(has(&bytes, &format!(r#""digest":"{digest}""#)));
        assert!(has(&bytes, &format!("blobs/{}", digest.replace(':', "/"))));
    }

    #[test]
    fn the_same_files_give_the_same_image_whatever_their_order() {
        let once = image("warren/a:1", None, content());
        let mut turned = content();
        turned.reverse();
        assert_eq!(once, image("warren/a:1", None, turned));
        assert_ne!(once, image("warren/a:2", None, content()));
    }

    #[test]
    fn every_directory_comes_before_what_is_in_it() {
        let paths: Vec<String> = with_parents(content())
            .into_iter()
            .map(|c| c.path)
            .collect();
        let expected = "bin bin/a etc etc/group etc/passwd tmp usr usr/share usr/share/b";
        assert_eq!(paths.join(" "), expected);
    }
}
