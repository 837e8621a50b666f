//! Where an instance's pins are, and what earlier layouts left beside them.
//!
//! Invariant: an earlier layout keeps its pods captured until it is told to retire, and that only once every
//! pod is enrolled in the present one: at no moment is a pod in neither; it goes with the last socket it may serve.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::{fs, io};

use crate::datapath::Datapath;
use crate::elders::Elders;
use crate::iface::{purge_filters, tags};
use crate::links::remove_tree;
use crate::maps::pages;
use crate::{LoadError, abi, sys};

impl Datapath {
    /// The layouts of earlier versions that are still pinned beside this one.
    pub fn previous(&self) -> Result<Vec<PathBuf>, LoadError> {
        let instance = self
            .folder
            .parent()
            .expect("the folder is below the instance's");
        let mut all = Vec::new();
        for entry in fs::read_dir(instance).map_err(LoadError::io("list layouts"))? {
            let path = entry.map_err(LoadError::io("list layouts"))?.path();
            if path != self.folder {
                all.push(path);
            }
        }
        Ok(all)
    }

    /// Tells the programs of earlier layouts to take no new flows. To be called when every pod is enrolled
    /// here: until then the earlier programs are what keeps the pods captured.
    pub fn retire_previous(&self) -> Result<usize, LoadError> {
        let previous = self.previous()?;
        for folder in &previous {
            set_bits(folder, RETIRED)
                .map_err(LoadError::io(format!("retire {}", folder.display())))?;
        }
        if !previous.is_empty() {
            let seen = self.sockets();
            if let Err(error) = &seen {
                tracing::warn!(%error, "which connections an earlier layout serves could not be seen; all that are there at the next try count");
            }
            *self.elders() = seen.map_or(Elders::Unseen, Elders::Seen);
        }
        Ok(previous.len())
    }

    /// Removes what earlier layouts left, if they were retired and none of the sockets that were in the pods then is
    /// left; says how many are. Without its programs such a socket would lose its peer's address, and a direct flow
    /// its report.
    pub fn purge_previous(&self) -> Result<usize, LoadError> {
        let previous = self.previous()?;
        let mut elders = self.elders();
        if previous.is_empty() || matches!(*elders, Elders::Serving) {
            return Ok(0);
        }
        let left = elders.left(self.sockets()?);
        if left > 0 {
            return Ok(left);
        }
        for folder in previous {
            let layout = folder.file_name().unwrap_or_default().to_string_lossy();
            let tag = format!("{}{layout}", tags(&self.instance));
            self.within(|| purge_filters(&tag))
                .map_err(LoadError::io("remove classifiers"))?;
            remove_tree(&folder).map_err(LoadError::io(format!("remove {}", folder.display())))?;
            tracing::info!(%layout, "programs of an earlier layout served nothing any more and were removed");
        }
        Ok(0)
    }

    fn elders(&self) -> MutexGuard<'_, Elders> {
        self.elders
            .lock()
            .expect("no panic while the elders are held")
    }

    /// Begins to take an instance's pods out of the mesh, whether or not a process of it runs, which keeps the flows that
    /// it has and is told by `is_leaving`. A process that opens the instance later takes the pods in again. Says whether
    /// there was anything to do.
    pub fn leave(bpffs: &Path, instance: &str, step: Leave) -> Result<bool, LoadError> {
        let folder = instance_folder(bpffs, instance)?;
        let layouts = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            layouts => layouts.map_err(LoadError::io("list layouts"))?,
        };
        let mut any = false;
        for layout in layouts {
            let path = layout.map_err(LoadError::io("list layouts"))?.path();
            match step {
                // Where an earlier layout keeps its flags is not known; it was retired, or its pods are in no other.
                Leave::Open if !is_known(&path) => continue,
                Leave::Open => set_bits(&path, OPEN),
                Leave::Release => set_bits(&path, RETIRED),
            }
            .map_err(LoadError::io(format!("tell {}", path.display())))?;
            any = true;
        }
        Ok(any)
    }

    /// Whether somebody has begun to take the pods out of the mesh.
    pub fn is_leaving(&self) -> bool {
        self.state.word(0, 0).load(Ordering::Acquire) & (RETIRED | OPEN) != 0
    }

    /// Takes up a layout again that had retired, or an instance that was leaving. What such a layout knew of pods is old:
    /// each has to be enrolled again, before whatever keeps them captured meanwhile is told to retire.
    pub(crate) fn begin_anew(&self) -> Result<(), LoadError> {
        let word = self.state.word(0, 0);
        if word.load(Ordering::Acquire) & RETIRED != 0 {
            let mut pods = self.lock();
            for known in pods.values() {
                self.uninstall(&known.info)?;
            }
            pods.clear();
        }
        word.fetch_and(!(RETIRED | OPEN), Ordering::AcqRel);
        Ok(())
    }

    /// Removes everything of an instance from the kernel, filters from the interfaces of the calling thread's
    /// namespace. Pods are then no longer captured.
    pub fn purge(bpffs: &Path, instance: &str) -> Result<(), LoadError> {
        let folder = instance_folder(bpffs, instance)?;
        purge_filters(&tags(instance)).map_err(LoadError::io("remove classifiers"))?;
        remove_tree(&folder).map_err(LoadError::io(format!("remove {}", folder.display())))
    }
}

/// A step of taking pods out of the mesh without a moment in which they reach nobody. All nodes have to have taken one
/// before the first takes the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// What comes in reaches the application as it is, and is not asked who sent it; what goes out is still captured.
    Open,
    /// Nothing is captured any more.
    Release,
}

/// The first word of `STATE` is the retired flag in every layout, the next the flags in this one; both in one.
const RETIRED: u64 = 1;
const OPEN: u64 = (abi::STATE_OPEN as u64) << 32;

/// Sets bits in the first two words of a layout's `STATE`.
fn set_bits(folder: &Path, bits: u64) -> io::Result<()> {
    let map = sys::get(&folder.join("maps/STATE"))?;
    let at = pages(map.as_fd(), 8)?;
    // SAFETY: the mapping is at least one page, aligned, and shared with the kernel; the programs are little-endian.
    let word = unsafe { std::sync::atomic::AtomicU64::from_ptr(at.as_ptr().cast()) };
    word.fetch_or(bits, Ordering::AcqRel);
    // SAFETY: the mapping was made above and `word` is not used any more.
    unsafe { libc::munmap(at.as_ptr().cast(), 8) };
    Ok(())
}

/// Where the present layout is pinned, in an edition of it. No name begins with another.
pub(crate) fn layout_folder(instance: &Path, edition: u8) -> PathBuf {
    let hash = abi::layout_hash();
    instance.join(match edition {
        0 => format!("{hash:08x}"),
        n => format!("{n}-{hash:08x}"),
    })
}

/// Whether a layout is the present one, in whichever edition.
fn is_known(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(&format!("{:08x}", abi::layout_hash()))
}

pub(crate) fn instance_folder(bpffs: &Path, instance: &str) -> Result<PathBuf, LoadError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if instance.is_empty()
        || instance.len() > 128
        || !instance.chars().all(|c| good(c) || c == '.')
        || instance.starts_with('.')
    {
        let error = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(LoadError::Io {
            what: format!("instance name {instance:?}: use letters, digits, '-', '_' and '.'"),
            error,
        });
    }
    // bpffs refuses names with dots.
    Ok(bpffs.join("warren").join(instance.replace('.', "_")))
}

pub(crate) fn check_bpffs(path: &Path) -> Result<(), LoadError> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    match nix::sys::statfs::statfs(path) {
        Ok(s) if s.filesystem_type().0 == BPF_FS_MAGIC => Ok(()),
        _ => Err(LoadError::NoBpffs(path.to_owned())),
    }
}
