//! A folder of manifests, watched.
//!
//! Invariants: a file is read when its writer has closed it or renamed it into place, or after it has been quiet
//! for a while, so that half a file is not taken for the whole. Whatever the system's notices miss, a comparison
//! of the whole folder finds within half a minute.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind},
};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

use super::{Delta, Folder, Source, WatchError};

/// How long a file that its writer is done with waits for others. While files are read, further ones gather anyway.
const DEBOUNCE: Duration = Duration::from_millis(2);
/// How long a file must be left alone when nobody said that its writer is done.
const QUIET: Duration = Duration::from_millis(250);
/// How often the whole folder is compared.
const COMPARE: Duration = Duration::from_secs(30);
/// How many changed files are remembered one by one; beyond that the whole folder is compared.
const MANY: usize = 4096;
/// The largest file that is read.
const LARGEST: u64 = 256 << 20;

/// A folder of manifests as a source of objects.
pub struct Manifests {
    root: PathBuf,
    state: State,
    /// File work on another thread, kept here so that nothing is lost when a wait for it is given up.
    working: Option<JoinHandle<(State, Vec<Delta>)>>,
    pending: Arc<Pending>,
    compare_at: Option<Instant>,
    /// Whether the first batch has been told.
    told: bool,
    /// Kept for its life: dropping it ends the notices.
    _watcher: RecommendedWatcher,
}

/// What is known of the folder.
#[derive(Default)]
struct State {
    folder: Folder,
    seen: HashMap<PathBuf, Stamp>,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file that cannot be read; no file has it.
    const UNREADABLE: Self = Self {
        device: 0,
        inode: 0,
        length: 0,
        changed: (0, 0),
    };

    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[derive(Default)]
struct Pending {
    touched: Mutex<Touched>,
    wake: Notify,
}

#[derive(Default)]
struct Touched {
    /// When each file was last touched, and whether its writer is done.
    files: BTreeMap<PathBuf, (Instant, bool)>,
    /// Whether the whole folder is to be compared.
    all: bool,
}

impl Manifests {
    /// Watches a folder.
    pub fn new(root: &Path) -> Result<Self, WatchError> {
        let fail = |reason: String| WatchError::Folder {
            path: root.display().to_string(),
            reason,
        };
        is_folder(root)?;
        let pending = Arc::new(Pending::default());
        let notices = Arc::clone(&pending);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            notices.take(event, Instant::now())
        })
        .map_err(|e| fail(e.to_string()))?;
        watcher
            .watch(root, RecursiveMode::Recursive)
            .map_err(|e| fail(e.to_string()))?;
        let (root, state) = (root.to_owned(), State::default());
        Ok(Self {
            root,
            state,
            working: None,
            pending,
            compare_at: None,
            told: false,
            _watcher: watcher,
        })
    }

    /// Begins file work off the runtime's threads.
    fn work(&mut self, run: impl FnOnce(&mut State, &Path) -> Vec<Delta> + Send + 'static) {
        let mut state = std::mem::take(&mut self.state);
        let root = self.root.clone();
        self.working = Some(tokio::task::spawn_blocking(move || {
            let deltas = run(&mut state, &root);
            (state, deltas)
        }));
    }

    /// Waits for file work to end.
    async fn done(&mut self) -> Vec<Delta> {
        let Some(working) = &mut self.working else {
            return Vec::new();
        };
        let done = working.await;
        self.working = None;
        match done {
            Ok((state, deltas)) => {
                self.state = state;
                deltas
            }
            // Only a bug gets here. The state begins anew, which says everything again.
            Err(error) => {
                tracing::error!(%error, "reading manifests failed");
                Vec::new()
            }
        }
    }
}

impl Source for Manifests {
    async fn next(&mut self) -> Result<Vec<Delta>, WatchError> {
        if self.compare_at.is_none() {
            self.compare_at = Some(Instant::now() + COMPARE);
            self.work(State::compare);
        }
        loop {
            let worked = self.working.is_some();
            let deltas = self.done().await;
            if !deltas.is_empty() || worked && !self.told {
                self.told = true;
                return Ok(deltas);
            }
            let compare = self.compare_at.unwrap_or_else(Instant::now);
            if Instant::now() >= compare {
                self.compare_at = Some(Instant::now() + COMPARE);
                self.pending.all();
            }
            match self.pending.due(Instant::now()) {
                Due::All => self.work(State::compare),
                Due::Files(files) => self.work(move |state, root| state.read_all(root, &files)),
                Due::At(at) => tokio::select! {
                    () = self.pending.wake.notified() => {}
                    () = tokio::time::sleep_until(at.unwrap_or(compare).min(compare)) => {}
                },
            }
        }
    }
}

/// Reads a folder once, without watching it.
pub fn read_folder(root: &Path) -> Result<Vec<Delta>, WatchError> {
    is_folder(root)?;
    Ok(State::default().compare(root))
}

fn is_folder(root: &Path) -> Result<(), WatchError> {
    let reason = match fs::metadata(root) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => "is not a folder".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(WatchError::Folder {
        path: root.display().to_string(),
        reason,
    })
}

/// What is to be done now.
enum Due {
    All,
    Files(BTreeSet<PathBuf>),
    /// Nothing before this time; `None` when nothing is waiting.
    At(Option<Instant>),
}

impl Pending {
    fn all(&self) {
        self.lock().all = true;
        self.wake.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Touched> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the system says. Runs on the watcher's thread and never waits for files.
    fn take(&self, event: notify::Result<Event>, now: Instant) {
        let Ok(event) = event else { return self.all() };
        // Whether the file is whole: its writer closed it, or it was moved into or out of place.
        let done = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
            EventKind::Access(_) => return,
            EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => {
                return self.all();
            }
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => true,
            EventKind::Create(_) | EventKind::Modify(_) => false,
            EventKind::Any | EventKind::Other => return self.all(),
        };
        if event.need_rescan() {
            return self.all();
        }
        let mut touched = self.lock();
        for path in event.paths {
            if is_manifest(&path) {
                touched.files.insert(path, (now, done));
            } else if done && !matches!(event.kind, EventKind::Access(_)) && may_be_folder(&path) {
                // Anything below it may have changed.
                touched.all = true;
            }
        }
        if touched.files.len() > MANY {
            touched.all = true;
        }
        drop(touched);
        self.wake.notify_one();
    }

    fn due(&self, now: Instant) -> Due {
        let mut touched = self.lock();
        if touched.all {
            *touched = Touched::default();
            return Due::All;
        }
        let at = |(since, done): &(Instant, bool)| *since + if *done { DEBOUNCE } else { QUIET };
        let ripe: BTreeSet<_> = touched
            .files
            .iter()
            .filter(|(_, touch)| at(touch) <= now)
            .map(|(path, _)| path.clone())
            .collect();
        if ripe.is_empty() {
            return Due::At(touched.files.values().map(at).min());
        }
        touched.files.retain(|path, _| !ripe.contains(path));
        Due::Files(ripe)
    }
}

impl State {
    /// Compares the whole folder with what is known of it.
    fn compare(&mut self, root: &Path) -> Vec<Delta> {
        let mut found = BTreeSet::new();
        let complete = list(root, 0, &mut found);
        if complete {
            // What could not be listed is not gone.
            found.extend(self.seen.keys().cloned());
        }
        self.read_all(root, &found)
    }

    fn read_all(&mut self, root: &Path, files: &BTreeSet<PathBuf>) -> Vec<Delta> {
        files
            .iter()
            .flat_map(|path| self.read(root, path))
            .collect()
    }

    fn read(&mut self, root: &Path, path: &Path) -> Vec<Delta> {
        let name = path.to_string_lossy();
        let known = self.seen.get(path).copied();
        if known.is_some() && fs::metadata(path).is_ok_and(|meta| known == Some(Stamp::of(&meta))) {
            return Vec::new();
        }
        match read_file(path) {
            Ok(None) => {
                self.seen.remove(path);
                if known.is_none() {
                    Vec::new()
                } else {
                    self.forget(&name)
                }
            }
            Ok(Some((stamp, text))) => {
                let first_unreadable = known == Some(Stamp::UNREADABLE);
                self.seen.insert(path.to_owned(), stamp);
                let mut deltas = self.folder.update(&name, Some(&text));
                if first_unreadable {
                    deltas.push(Delta::Removed(mesh_k8s::ObjectRef::new(
                        "Document", "", &name,
                    )));
                }
                deltas
            }
            Err(reason) => {
                tracing::warn!(file = %name, root = %root.display(), %reason, "a manifest cannot be read");
                self.seen.insert(path.to_owned(), Stamp::UNREADABLE);
                self.folder.unreadable(&name, &reason)
            }
        }
    }

    fn forget(&mut self, name: &str) -> Vec<Delta> {
        let mut deltas = self.folder.update(name, None);
        deltas.push(Delta::Removed(mesh_k8s::ObjectRef::new(
            "Document", "", name,
        )));
        deltas
    }
}

/// Reads a file whole, with the stamp it had before. `None` when it is not there.
fn read_file(path: &Path) -> Result<Option<(Stamp, String)>, String> {
    // A pipe with nobody at its other end must not be waited for.
    let mut open = fs::OpenOptions::new();
    let open = open.read(true).custom_flags(libc::O_NONBLOCK);
    let mut file = match open.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be opened: {error}")),
    };
    let meta = file
        .metadata()
        .map_err(|error| format!("cannot be examined: {error}"))?;
    if !meta.is_file() {
        return Ok(None);
    }
    if meta.len() > LARGEST {
        return Err(format!(
            "is {} bytes long; at most {LARGEST} are read",
            meta.len()
        ));
    }
    let stamp = Stamp::of(&meta);
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
    (&mut file)
        .take(LARGEST)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| format!("is not UTF-8 text: {}", error.utf8_error()))?;
    Ok(Some((stamp, text)))
}

/// Collects manifests below a folder. Hidden names are left out: editors and mounts keep their own files there.
fn list(folder: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return depth > 0 && !folder.exists();
    };
    let mut complete = true;
    for path in entries.flatten().map(|entry| entry.path()) {
        if is_hidden(&path) {
            continue;
        }
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => complete &= depth < 16 && list(&path, depth + 1, found),
            Ok(_) if is_manifest(&path) => {
                found.insert(path);
            }
            // Links that lead in a circle, folders that may not be entered: reading it says what is wrong.
            Err(error) if is_manifest(&path) && error.kind() != io::ErrorKind::NotFound => {
                found.insert(path);
            }
            Ok(_) | Err(_) => {}
        }
    }
    complete
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Whether a renamed or removed path may have been a folder, or a mount's link to one (`..data`).
fn may_be_folder(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b"..") || !name.contains(&b'.')
}

fn is_manifest(path: &Path) -> bool {
    let known = path
        .extension()
        .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
    known && !is_hidden(path)
}

#[cfg(test)]
mod tests;
