//! Our plugin in a node's directories: the program, and its place in the runtime's configuration.
//!
//! Invariants: the program is there before a configuration names it and goes after none does; each file changes in
//! one step (written beside its place, synced, renamed) and keeps its owner and mode; nothing is written when nothing
//! changes, so that whoever watches the directory comes to rest. Safe to repeat, also after a crash in between.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process,
};

use serde_json::Value;

use crate::{
    PLUGIN,
    conflist::{self, Malformed},
};

/// What a single plugin's file is called while a list stands in for it; no runtime reads this ending.
const ASIDE: &str = ".warren-aside";

/// Where a node's runtime looks.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its network configurations, `/etc/cni/net.d` unless the runtime was told otherwise.
    pub conf_dir: PathBuf,
    /// Its plugins, `/opt/cni/bin` unless the runtime was told otherwise.
    pub bin_dir: PathBuf,
}

/// Why something could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// No network provider is there yet.
    #[error(
        "{0} has no file that a container runtime reads: install the cluster's network provider, or name its directory"
    )]
    NoConfiguration(PathBuf),
    /// The file that the runtime uses makes no sense.
    #[error("{file}: {source}; the container runtime cannot use it either: repair or remove it")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: Malformed,
    },
    /// Not JSON.
    #[error("{file} is not JSON: {source}; repair or remove it")]
    NotJson {
        /// The file.
        file: PathBuf,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// A list has the name that a single plugin's would get.
    #[error("{list} would stand in for {single}, but is somebody else's: remove one of the two")]
    Taken {
        /// The list.
        list: PathBuf,
        /// The single plugin.
        single: PathBuf,
    },
    /// The file system said no.
    #[error("{doing} {file}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        file: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

fn at(doing: &'static str, file: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let file = file.to_owned();
    move |source| InstallError::Io {
        doing,
        file,
        source,
    }
}

impl Node {
    /// Installs the program found at `from`, then chains `plugin` (an object of our type) into the configuration.
    /// Says whether anything was changed.
    pub fn install(&self, from: &Path, plugin: &Value) -> Result<bool, InstallError> {
        let program = fs::read(from).map_err(at("reading", from))?;
        let to = self.bin_dir.join(PLUGIN);
        let same = fs::read(&to).is_ok_and(|there| there == program)
            && fs::metadata(&to).is_ok_and(|m| m.mode() & 0o111 == 0o111);
        if !same {
            let mode = Permissions::from_mode(0o755);
            replace(&to, &program, mode, None).map_err(at("writing", &to))?;
        }
        Ok(self.keep(plugin)? || !same)
    }

    /// Chains `plugin` into the configuration that the runtime uses now, when it is not the last there already: to
    /// be called whenever the directory changes. Says whether anything was changed.
    pub fn keep(&self, plugin: &Value) -> Result<bool, InstallError> {
        let names = self.names()?;
        let name = conflist::chosen(names.iter().map(String::as_str))
            .ok_or_else(|| InstallError::NoConfiguration(self.conf_dir.clone()))?;
        let file = self.conf_dir.join(name);
        let found = read(&file)?;
        if conflist::is_list(name) {
            let chained = conflist::chain(&found, plugin).map_err(malformed(&file))?;
            if chained == found {
                return Ok(false);
            }
            write(&file, &file, &chained)?;
            return Ok(true);
        }
        let list = file.with_extension("conflist");
        if list.exists() && !conflist::is_chained(&read(&list)?) {
            return Err(InstallError::Taken { list, single: file });
        }
        let chained = conflist::from_single(&found)
            .and_then(|l| conflist::chain(&l, plugin))
            .map_err(malformed(&file))?;
        write(&list, &file, &chained)?;
        // Until here the runtime goes on with the single plugin.
        fs::rename(&file, aside(&file)).map_err(at("moving aside", &file))?;
        Ok(true)
    }

    /// The configuration that the runtime uses now, if there is one.
    pub fn in_use(&self) -> Result<Option<(PathBuf, Value)>, InstallError> {
        let names = self.names()?;
        let name = conflist::chosen(names.iter().map(String::as_str));
        let file = name.map(|name| self.conf_dir.join(name));
        file.map(|file| Ok((file.clone(), read(&file)?)))
            .transpose()
    }

    /// Takes our plugin out of every configuration, then removes the program. Says whether anything was changed.
    pub fn uninstall(&self) -> Result<bool, InstallError> {
        let names = self.names()?;
        let mut changed = false;
        for name in names.iter().filter(|n| conflist::is_list(n)) {
            changed |= self.release(&self.conf_dir.join(name), &names)?;
        }
        let program = self.bin_dir.join(PLUGIN);
        match fs::remove_file(&program) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(changed),
            Err(e) => Err(at("removing", &program)(e)),
        }
    }

    /// Takes our plugin out of a list. A list of somebody else's that makes no sense is theirs to repair.
    fn release(&self, list: &Path, names: &[String]) -> Result<bool, InstallError> {
        let found = match read(list) {
            Ok(found) if conflist::is_chained(&found) => found,
            Ok(_) | Err(InstallError::NotJson { .. }) => return Ok(false),
            Err(e) => return Err(e),
        };
        let without = conflist::unchain(&found).map_err(malformed(list))?;
        let singles = ["conf", "json"].map(|e| list.with_extension(e));
        let Some(single) = singles.iter().find(|s| named(&aside(s), names)) else {
            write(list, list, &without)?;
            return Ok(true);
        };
        let back = aside(single);
        let unchanged = conflist::from_single(&read(&back)?).is_ok_and(|l| l == without);
        match (named(single, names), unchanged) {
            // Its owner wrote it again since: that one counts.
            (true, _) => fs::remove_file(&back).map_err(at("removing", &back))?,
            (false, true) => fs::rename(&back, single).map_err(at("moving back", &back))?,
            // The list was worked on since: it stays, as a list.
            (false, false) => {
                write(list, list, &without)?;
                fs::remove_file(&back).map_err(at("removing", &back))?;
                return Ok(true);
            }
        }
        fs::remove_file(list).map_err(at("removing", list))?;
        Ok(true)
    }

    fn names(&self) -> Result<Vec<String>, InstallError> {
        let dir = &self.conf_dir;
        let entries = fs::read_dir(dir).map_err(at("listing", dir))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at("listing", dir))?;
            // A name that is not UTF-8 has none of the endings that matter.
            names.extend(entry.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }
}

fn malformed(file: &Path) -> impl FnOnce(Malformed) -> InstallError {
    let file = file.to_owned();
    move |source| InstallError::Malformed { file, source }
}

fn aside(single: &Path) -> PathBuf {
    let mut name = single.as_os_str().to_owned();
    name.push(ASIDE);
    name.into()
}

fn named(file: &Path, names: &[String]) -> bool {
    file.file_name()
        .is_some_and(|name| names.iter().any(|n| name == n.as_str()))
}

fn read(file: &Path) -> Result<Value, InstallError> {
    let bytes = fs::read(file).map_err(at("reading", file))?;
    serde_json::from_slice(&bytes).map_err(|source| InstallError::NotJson {
        file: file.to_owned(),
        source,
    })
}

/// Writes a configuration with the owner and mode of `like`.
fn write(file: &Path, like: &Path, value: &Value) -> Result<(), InstallError> {
    let meta = fs::metadata(like).map_err(at("looking at", like))?;
    let text = format!("{value:#}\n");
    let owner = Some((meta.uid(), meta.gid()));
    // A link to the file stays one.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    replace(&target, text.as_bytes(), meta.permissions(), owner).map_err(at("writing", file))
}

/// Puts a file in its place in one step.
fn replace(
    file: &Path,
    bytes: &[u8],
    mode: Permissions,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let next = dir.join(format!(
        ".{}.warren-{}",
        name.to_string_lossy(),
        process::id()
    ));
    let written = fill(&next, bytes, mode, owner).and_then(|()| fs::rename(&next, file));
    if written.is_err() {
        // The first failure is the one to tell of.
        let _ = fs::remove_file(&next);
    }
    written?;
    File::open(dir)?.sync_all()
}

fn fill(next: &Path, bytes: &[u8], mode: Permissions, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(next)?;
    file.write_all(bytes)?;
    if let Some((uid, gid)) = owner {
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (uid, gid) {
            match chown(next, Some(uid), Some(gid)) {
                // In its container the node proxy may not give files away; whoever reads this one is the runtime, root.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                done => done?,
            }
        }
    }
    file.set_permissions(mode)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
