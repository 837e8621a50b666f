//! The resources that are in use, as they came: what the copy on disk is made of.
//!
//! Invariants: in memory is only what the file on disk does not say; the file stays open, so that nobody can replace
//! it under what is not in memory; whoever copies from it checks it whole before the copy counts.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::Bytes;
use mesh_api::resource::{Kind, Resource};

/// What came since the file was written, by name; `None` for what went.
type Changed = HashMap<Arc<str>, Option<Bytes>>;

/// The resources. A clone shares bodies and file: it is what a writer takes along.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    changed: BTreeMap<Kind, Changed>,
    file: Option<Arc<Written>>,
}

/// A file that holds all that was kept when it was written.
#[derive(Debug)]
pub struct Written {
    /// The file, open for reading.
    pub file: File,
    /// The checksum of its content, which tells whether somebody changed it since.
    pub checksum: [u8; 32],
}

impl Kept {
    /// Adds or replaces one. Its octets stay where they came in, until they are on disk: thousands of small copies
    /// between what stays for good would leave as many gaps.
    pub fn insert(&mut self, resource: &Resource) {
        let body = Some(resource.body.clone());
        self.of_kind(resource.kind)
            .insert(resource.name.clone(), body);
    }

    /// Removes one, if it is there.
    pub fn remove(&mut self, kind: Kind, name: Arc<str>) {
        self.of_kind(kind).insert(name, None);
    }

    /// The file that says the rest.
    pub fn file(&self) -> Option<&Written> {
        self.file.as_deref()
    }

    /// Whether what the file says of a resource does not count any more.
    pub fn overrules(&self, kind: Kind, name: &str) -> bool {
        self.changed
            .get(&kind)
            .is_some_and(|c| c.contains_key(name))
    }

    /// What came since the file was written.
    pub fn came(&self) -> impl Iterator<Item = (Kind, &str, &[u8])> {
        self.changed.iter().flat_map(|(kind, changed)| {
            let came = changed.iter();
            came.filter_map(|(name, body)| Some((*kind, &**name, body.as_deref()?)))
        })
    }

    /// All of it was written: `saved` is what the writer took along. What has changed since stays in memory.
    pub fn settle(&mut self, saved: &Self, written: Written) {
        for (kind, then) in &saved.changed {
            let now = self.of_kind(*kind);
            now.retain(|name, body| match (body, then.get(name)) {
                (Some(now), Some(Some(then))) => !is_same(now, then),
                (None, Some(None)) => false,
                (_, None) | (Some(_), Some(None)) | (None, Some(Some(_))) => true,
            });
            now.shrink_to_fit();
        }
        self.file = Some(Arc::new(written));
    }

    /// What a file holds, all of it.
    pub fn of(written: Written) -> Self {
        Self {
            changed: BTreeMap::new(),
            file: Some(Arc::new(written)),
        }
    }

    fn of_kind(&mut self, kind: Kind) -> &mut Changed {
        self.changed.entry(kind).or_default()
    }
}

/// Whether two are the same octets at the same place; whoever holds one keeps anything else from getting there.
fn is_same(a: &Bytes, b: &Bytes) -> bool {
    a.as_ptr() == b.as_ptr() && a.len() == b.len()
}

impl Written {
    /// Reads it from an octet on, whoever else reads it at the same time.
    pub(super) fn reader(&self, at: u64) -> Reader<'_> {
        Reader {
            file: &self.file,
            at,
        }
    }
}

/// A place in a file.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buf, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Write};

    use super::*;
    use crate::state::disk::{load, save};

    fn resource(name: &str, body: &[u8]) -> Resource {
        Resource::new(Kind::Address, name, body.to_vec())
    }

    #[test]
    fn what_is_on_disk_is_what_is_kept_whatever_changes_while_it_is_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.bin");
        let (mut kept, mut expect) = (Kept::default(), BTreeMap::<String, Vec<u8>>::new());
        let mut dice = fastrand::Rng::with_seed(7);
        for round in 0..200 {
            let mut change = |kept: &mut Kept| {
                let name = format!("r{}", dice.u8(..24));
                if dice.bool() {
                    let body = vec![dice.u8(..); dice.usize(..40)];
                    kept.insert(&resource(&name, &body));
                    expect.insert(name, body);
                } else {
                    kept.remove(Kind::Address, name.as_str().into());
                    expect.remove(&name);
                }
            };
            (0..5).for_each(|_| change(&mut kept));
            let saved = kept.clone();
            let written = save(&path, &saved).expect("writable");
            if round % 2 == 0 {
                (0..3).for_each(|_| change(&mut kept));
            }
            kept.settle(&saved, written);
            let memory: usize = kept.changed.values().map(HashMap::len).sum();
            assert!(memory <= 3, "{:?}", kept.changed);
            let again = dir.path().join("again.bin");
            save(&again, &kept).expect("writable");
            let (loaded, _) = load(&again).expect("readable").expect("a file");
            let count = loaded.len();
            let loaded: BTreeMap<String, Vec<u8>> = loaded
                .into_iter()
                .map(|r| (r.name.to_string(), r.body.to_vec()))
                .collect();
            assert_eq!((&loaded, loaded.len()), (&expect, count), "round {round}");
        }
    }

    #[test]
    fn what_was_damaged_is_not_copied_and_nothing_is_written_over_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.bin");
        let mut first = Kept::default();
        first.insert(&resource("a", b"the body"));
        first.insert(&resource("b", b"another"));
        save(&path, &first).expect("writable");
        let good = std::fs::read(&path).expect("readable");
        let damage = |content: &[u8]| {
            let (_, written) = load(&path).expect("readable").expect("a file");
            let mut kept = Kept::of(written);
            kept.insert(&resource("b", b"has changed"));
            let mut file = File::options().write(true).open(&path).expect("ours");
            file.write_all(content).expect("writable");
            file.set_len(content.len() as u64).expect("writable");
            let error = save(&path, &kept).expect_err("nothing good to write");
            assert!(error.to_string().contains("damaged"), "{error}");
            assert_eq!(std::fs::read(&path).expect("still there"), content);
            let left = std::fs::read_dir(dir.path()).expect("readable").count();
            assert_eq!(left, 1, "a file that was begun is gone");
            file.set_len(0).expect("writable");
            std::fs::write(&path, &good).expect("writable");
        };
        for at in 40..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x81;
            damage(&bad);
        }
        for cut in 40..good.len() {
            damage(&good[..cut]);
        }
    }
}
