//! Programs from Go modules, built as they are pinned.
//!
//! Invariant: what is built is kept under the hash of the modules that it was built from, and appears there only whole.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{provision, root, workspace};

/// A module below `tests`, by its folder.
pub struct Module(pub &'static str);

impl Module {
    /// Its sources.
    pub fn source(&self) -> Result<PathBuf> {
        Ok(workspace()?.join("tests").join(self.0))
    }

    /// Where what is built from it is kept.
    pub fn kept(&self) -> Result<PathBuf> {
        let source = self.source()?;
        let mut hash = Sha256::new();
        for file in ["go.mod", "go.sum"] {
            let path = source.join(file);
            hash.update(fs::read(&path).with_context(|| path.display().to_string())?);
        }
        let name: String = hash
            .finalize()
            .iter()
            .take(8)
            .map(|b| format!("{b:02x}"))
            .collect();
        let own = Path::new(self.0).file_name().unwrap_or_default();
        let folder = provision::cache()?.join(own).join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    /// A program from one of its packages, built when it is not there yet; `how` are the words for `go`, such as
    /// `build`.
    pub fn program(&self, how: &[&str], package: &str, name: &str) -> Result<PathBuf> {
        let kept = self.kept()?;
        let program = kept.join(name);
        if program.is_file() {
            return Ok(program);
        }
        if !root::on_path("go") {
            bail!("Go is missing, from which {name} is built: install Go 1.24 or newer");
        }
        let unfinished = kept.join(format!("{name}.unfinished"));
        let build = || {
            let mut go = Command::new("go");
            go.current_dir(self.source()?)
                .env("CGO_ENABLED", "0")
                .env_remove("GOFLAGS")
                .args(how)
                .args(["-mod=readonly", "-ldflags", "-s -w", "-o"])
                .arg(&unfinished)
                .arg(package);
            Ok(go.status().context("starting go")?.success())
        };
        provision::retry(build, "go build")?;
        fs::rename(&unfinished, &program).with_context(|| program.display().to_string())?;
        Ok(program)
    }

    /// The folder of a module that it is built with.
    pub fn dependency(&self, module: &str) -> Result<PathBuf> {
        let out = Command::new("go")
            .current_dir(self.source()?)
            .env_remove("GOFLAGS")
            .args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module])
            .output()
            .context("starting go")?;
        let path = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        if path.is_empty() || !Path::new(&path).is_dir() {
            let why = String::from_utf8_lossy(&out.stderr).into_owned();
            bail!("the Go module {module} is not there: {}", why.trim());
        }
        Ok(path.into())
    }
}
