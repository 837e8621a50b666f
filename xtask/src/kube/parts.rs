//! What a cluster is made of: Kubernetes from its Go modules, a container runtime from Debian's packages, and the
//! images of what runs in it.
//!
//! Invariants: nothing is installed on the machine; what is built is kept under the hash of what it was built from,
//! and appears there only whole.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::image::{self, Content};
use crate::{provision, root, step, workspace};

/// The version that the Go module holds; a binary built outside Kubernetes' own tree has to be told.
const VERSION: &str = "v1.34.4";
/// What the one Kubernetes binary is called by.
const NAMES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];
/// Debian packages that are unpacked, not installed: a node has a container runtime of its own.
const UNPACKED: [&str; 6] = [
    "containerd",
    "runc",
    "containernetworking-plugins",
    "conntrack",
    "ethtool",
    "busybox-static",
];
/// What is taken out of them for the nodes.
const PROGRAMS: [&str; 6] = [
    "usr/bin/containerd",
    "usr/bin/containerd-shim-runc-v2",
    "usr/bin/ctr",
    "usr/sbin/runc",
    "usr/sbin/conntrack",
    "sbin/ethtool",
];
/// The CNI plugins of the nodes' network.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// What the scripts call.
const CALLED: [&str; 4] = ["iproute2", "iptables", "openssl", "procps"];
/// What a test may call in a pod of the busybox image.
const APPLETS: [&str; 12] = [
    "sh", "cat", "ls", "nc", "wget", "sleep", "ip", "ping", "hostname", "env", "id", "nslookup",
];

/// Where the parts are, or will be.
pub fn directory() -> Result<PathBuf> {
    let module = workspace()?.join("tests/kube");
    let mut hash = Sha256::new();
    for file in [
        "go.mod",
        "go.sum",
        "main.go",
        "coredns/go.mod",
        "coredns/go.sum",
        "coredns/main.go",
        "pause/main.go",
    ] {
        let path = module.join(file);
        hash.update(fs::read(&path).with_context(|| path.display().to_string())?);
    }
    hash.update(include_str!("parts.rs"));
    let name: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect();
    Ok(provision::cache()?.join("kube").join(name))
}

/// Builds what is not there yet.
pub fn build() -> Result<()> {
    let done = directory()?;
    if done.is_dir() {
        return Ok(());
    }
    if !root::on_path("go") {
        bail!(
            "Go is missing, from which Kubernetes is built: install Go 1.24 or newer (any that your distribution has fetches it)"
        );
    }
    provision::packages(&CALLED)?;
    let work = done.with_extension("unfinished");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    for dir in ["bin", "cni", "images", "packages/root"] {
        fs::create_dir_all(work.join(dir))?;
    }
    step::timed("unpacking a container runtime", || unpack(&work))?;
    step::timed("building Kubernetes (minutes, once)", || compile(&work))?;
    images(&work)?;
    fs::remove_dir_all(work.join("packages"))?;
    fs::rename(&work, &done).context("putting the parts in their place")
}

fn unpack(work: &Path) -> Result<()> {
    let packages = work.join("packages");
    let download = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(&packages)
            .args(["download", "-q"])
            .args(UNPACKED);
        Ok(apt
            .status()
            .context("starting apt-get, which Debian and Ubuntu have")?
            .success())
    };
    provision::retry(download, "apt-get download")?;
    let root = packages.join("root");
    for entry in packages.read_dir()?.flatten() {
        if entry.path().extension().is_some_and(|e| e == "deb") {
            step::run(Command::new("dpkg").arg("-x").arg(entry.path()).arg(&root))?;
        }
    }
    let take = |from: PathBuf, to: &str| -> Result<()> {
        let name = from.file_name().context("a file")?;
        let to = work.join(to).join(name);
        fs::copy(&from, &to).with_context(|| format!("taking {}", from.display()))?;
        Ok(())
    };
    for program in PROGRAMS {
        take(root.join(program), "bin")?;
    }
    for plugin in PLUGINS {
        take(root.join("usr/lib/cni").join(plugin), "cni")?;
    }
    take(root.join("bin/busybox"), "bin")
}

fn compile(work: &Path) -> Result<()> {
    let module = workspace()?.join("tests/kube");
    let bin = work.join("bin");
    let go = |dir: &Path, package: &str, flags: &str, out: &str| {
        let mut go = Command::new("go");
        go.current_dir(dir)
            .env("CGO_ENABLED", "0")
            .env_remove("GOFLAGS")
            .args(["build", "-mod=readonly", "-ldflags"])
            .arg(format!("-s -w {flags}"))
            .arg("-o")
            .arg(bin.join(out))
            .arg(package);
        provision::retry(
            || Ok(go.status().context("starting go")?.success()),
            "go build",
        )
    };
    let set = "-X k8s.io/component-base/version";
    let minor = VERSION.split('.').nth(1).unwrap_or_default();
    let version = format!("{set}.gitVersion={VERSION} {set}.gitMajor=1 {set}.gitMinor={minor}");
    go(&module, ".", &version, "kubernetes")?;
    for name in NAMES {
        std::os::unix::fs::symlink("kubernetes", bin.join(name))?;
    }
    go(&module, "./pause", "", "pause")?;
    go(&module.join("coredns"), ".", "", "coredns")
}

fn images(work: &Path) -> Result<()> {
    let (bin, images) = (work.join("bin"), work.join("images"));
    for name in ["pause", "coredns"] {
        let content = vec![Content::file(name, &bin.join(name))?];
        image::write(
            &images.join(format!("{name}.tar")),
            &format!("warren.test/{name}:1"),
            &[&format!("/{name}")],
            content,
        )?;
    }
    let mut content = vec![Content::file("bin/busybox", &bin.join("busybox"))?];
    content.extend(APPLETS.map(|a| Content::link(&format!("bin/{a}"), "busybox")));
    image::write(
        &images.join("busybox.tar"),
        "warren.test/busybox:1",
        &["/bin/sh"],
        content,
    )
}
