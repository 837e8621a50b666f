//! The resources that are in use, as they came: what the copy on disk is made of.
//!
//! Invariants: a body is in memory only until it is on disk; whoever reads one back checks it first; the file that
//! bodies were left in stays open, so that nobody can replace it under them.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::Arc,
};

use mesh_api::resource::{Kind, Resource, Version};

/// A resource's kind and name.
pub type Key = (Kind, Arc<str>);

/// The resources. A clone shares the bodies: it is what a writer takes along.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    bodies: HashMap<Key, Body>,
    file: Option<Arc<File>>,
}

/// Where a body is.
#[derive(Clone, Debug)]
enum Body {
    Memory(Arc<[u8]>),
    /// In the file, from this octet on, behind its length.
    Disk {
        at: u64,
        version: Version,
    },
}

impl Kept {
    /// Adds or replaces one. Its octets are copied: the message that they came in is let go.
    pub fn insert(&mut self, resource: &Resource) {
        let key = (resource.kind, resource.name.clone());
        let body = Body::Memory(resource.body[..].into());
        self.bodies.insert(key, body);
    }

    /// Removes one, if it is there.
    pub fn remove(&mut self, key: &Key) {
        self.bodies.remove(key);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bodies.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// Their names.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.bodies.keys()
    }

    /// A resource as it came, from memory or from disk.
    ///
    /// # Errors
    /// When it is not there, or the file cannot be read or was changed by somebody.
    pub fn body(&self, key: &Key) -> io::Result<Arc<[u8]>> {
        let lost = |what: &str| io::Error::other(format!("{} {:?} {what}", key.0, key.1));
        match self.bodies.get(key) {
            Some(Body::Memory(body)) => Ok(body.clone()),
            Some(Body::Disk { at, version }) => {
                let file = self.file.as_ref().ok_or_else(|| lost("has no file"))?;
                let mut length = [0; 4];
                file.read_exact_at(&mut length, *at)?;
                let end = u64::from(u32::from_be_bytes(length)) + 4 + at;
                if end > file.metadata()?.len() {
                    return Err(lost("was damaged on disk"));
                }
                let mut body = vec![0; u32::from_be_bytes(length) as usize];
                file.read_exact_at(&mut body, at + 4)?;
                match Version::of(&body) == *version {
                    true => Ok(body.into()),
                    false => Err(lost("was damaged on disk")),
                }
            }
            None => Err(lost("is not kept")),
        }
    }

    /// What was written: `saved` is what the writer took along, and `written` the file with the place of each.
    /// What has changed since stays in memory.
    pub fn settle(&mut self, saved: &Self, written: Written) {
        for (key, at, version) in written.places {
            let Entry::Occupied(mut now) = self.bodies.entry(key) else {
                continue;
            };
            let is_same = match (now.get(), saved.bodies.get(now.key())) {
                (Body::Memory(a), Some(Body::Memory(b))) => Arc::ptr_eq(a, b),
                // Nothing gets into a file but here, and only what the writer had: it is the same one.
                (Body::Disk { .. }, _) => true,
                (Body::Memory(_), _) => false,
            };
            if is_same {
                now.insert(Body::Disk { at, version });
            }
        }
        self.file = Some(Arc::new(written.file));
    }

    /// What a file holds, all of it.
    pub fn of(written: Written) -> Self {
        let places = written.places.into_iter();
        Self {
            bodies: places
                .map(|(key, at, version)| (key, Body::Disk { at, version }))
                .collect(),
            file: Some(Arc::new(written.file)),
        }
    }
}

/// A file, and where in it each body is.
#[derive(Debug)]
pub struct Written {
    /// The file, open for reading.
    pub file: File,
    /// What, from which octet on, with what content.
    pub places: Vec<(Key, u64, Version)>,
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::state::disk::save;

    fn resource(name: &str, body: &[u8]) -> Resource {
        Resource::new(Kind::Address, name, body.to_vec())
    }

    fn key(name: &str) -> Key {
        (Kind::Address, name.into())
    }

    #[test]
    fn bodies_go_to_disk_and_what_changed_meanwhile_stays_in_memory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.bin");
        let mut kept = Kept::default();
        for name in ["a", "b", "c"] {
            kept.insert(&resource(name, name.as_bytes()));
        }
        for round in 0..3 {
            let saved = kept.clone();
            let written = save(&path, &saved).expect("writable");
            kept.insert(&resource("b", format!("changed {round}").as_bytes()));
            kept.remove(&key("c"));
            kept.settle(&saved, written);
            assert!(matches!(kept.bodies[&key("a")], Body::Disk { .. }));
            assert!(matches!(kept.bodies[&key("b")], Body::Memory(_)));
            assert_eq!(&*kept.body(&key("a")).expect("on disk"), b"a");
            let changed = format!("changed {round}");
            assert_eq!(&*kept.body(&key("b")).expect("kept"), changed.as_bytes());
            assert!(kept.body(&key("c")).is_err(), "it was removed");
        }
    }

    #[test]
    fn what_was_damaged_is_not_read_back_and_nothing_is_written_over_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.bin");
        let mut kept = Kept::default();
        kept.insert(&resource("a", b"the body"));
        let saved = kept.clone();
        kept.settle(&saved, save(&path, &saved).expect("writable"));
        let mut content = std::fs::read(&path).expect("readable");
        let last = content.last_mut().expect("a body");
        *last ^= 1;
        let mut file = File::options().write(true).open(&path).expect("ours");
        file.write_all(&content).expect("writable");
        let error = kept.body(&key("a")).expect_err("damaged").to_string();
        assert!(error.contains("damaged"), "{error}");
        save(&path, &kept).expect_err("nothing good to write");
        assert_eq!(std::fs::read(&path).expect("still there"), content);
    }
}
