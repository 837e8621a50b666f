//! Typed views of the kernel maps.
//!
//! Invariant: a view is made only by name from the table in `mesh_abi::MAPS`, after the sizes that the kernel
//! reports were compared with it.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_abi::maps::MapKind;
use mesh_abi::{MAPS, MapRow, Plain};

use crate::LoadError;
use crate::sys;

/// A hash or array map.
#[derive(Debug)]
pub struct Map<K, V> {
    name: &'static str,
    capacity: u32,
    fd: OwnedFd,
    /// How often it was too full.
    full: AtomicU64,
    _types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Opens the pin of this name.
    pub fn open(folder: &Path, name: &'static str) -> Result<Self, LoadError> {
        let (row, fd) = open(folder, name)?;
        let socket = matches!(row.kind, MapKind::SockHash | MapKind::SkStorage);
        assert!(
            row.key == K::LAYOUT && (socket || row.value == V::LAYOUT),
            "{name} is used with other types than the table says"
        );
        Ok(Self {
            name,
            capacity: row.capacity,
            fd,
            full: AtomicU64::new(0),
            _types: PhantomData,
        })
    }

    /// Its name, and how often it was too full for what we wanted to write.
    pub fn fullness(&self) -> (&'static str, u64) {
        (self.name, self.full.load(Ordering::Relaxed))
    }

    /// The value.
    pub fn get(&self, key: &K) -> Result<Option<V>, LoadError> {
        self.read(key, false)
    }

    /// The value, which is deleted.
    pub fn take(&self, key: &K) -> Result<Option<V>, LoadError> {
        self.read(key, true)
    }

    fn read(&self, key: &K, take: bool) -> Result<Option<V>, LoadError> {
        // SAFETY: V is Plain: zero is one of its values.
        let mut value: V = unsafe { std::mem::zeroed() };
        // SAFETY: `open` compared the map's types with K and V.
        let found = unsafe { sys::lookup(self.fd.as_fd(), key, &mut value, take) };
        found
            .map(|f| f.then_some(value))
            .map_err(self.failed("read"))
    }

    /// Writes.
    pub fn set(&self, key: &K, value: &V) -> Result<(), LoadError> {
        sys::update(self.fd.as_fd(), key, value, 0).map_err(|e| self.refused(e))
    }

    fn refused(&self, error: io::Error) -> LoadError {
        // What a hash says when it has no room left.
        if error.raw_os_error() == Some(libc::E2BIG) {
            self.full.fetch_add(1, Ordering::Relaxed);
            return LoadError::Full {
                what: format!("entries of the kernel map {}", self.name),
                limit: self.capacity,
            };
        }
        self.failed("write")(error)
    }

    /// Deletes; false when it was not there.
    pub fn delete(&self, key: &K) -> Result<bool, LoadError> {
        sys::delete(self.fd.as_fd(), key).map_err(self.failed("delete"))
    }

    /// All keys. Those that come or go meanwhile may be missing.
    pub fn keys(&self) -> Result<Vec<K>, LoadError> {
        let limit = sys::map_info(self.fd.as_fd())
            .map_err(self.failed("ask"))?
            .max_entries as usize;
        let mut keys: Vec<K> = Vec::new();
        // SAFETY: K is Plain: zero is one of its values.
        let mut next: K = unsafe { std::mem::zeroed() };
        // A walk over a map that changes may start over: it is bounded by what the map can hold.
        while keys.len() <= limit {
            // SAFETY: `open` compared the map's key type with K.
            let more = unsafe { sys::next_key(self.fd.as_fd(), keys.last(), &mut next) };
            if !more.map_err(self.failed("walk"))? {
                break;
            }
            keys.push(next);
        }
        Ok(keys)
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<(K, V)>, LoadError> {
        let mut all = Vec::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                all.push((key, value));
            }
        }
        Ok(all)
    }

    /// Keeps entries for which `keep` is true; says what was deleted.
    pub fn retain(&self, mut keep: impl FnMut(&K, &V) -> bool) -> Result<Vec<(K, V)>, LoadError> {
        let mut gone = Vec::new();
        for (key, value) in self.entries()? {
            if !keep(&key, &value) && self.delete(&key)? {
                gone.push((key, value));
            }
        }
        Ok(gone)
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> LoadError {
        let map = self.name;
        move |error| LoadError::Map { map, what, error }
    }
}

impl<V: Plain> Map<u32, V> {
    /// The sum over all CPUs of a per-CPU counter.
    pub fn sum(&self, key: u32, cpus: usize) -> Result<u64, LoadError> {
        let mut values = vec![0u64; cpus];
        sys::lookup_slice(self.fd.as_fd(), &key, &mut values).map_err(self.failed("read"))?;
        Ok(values.iter().sum())
    }
}

impl<V: Plain> Map<i32, V> {
    /// Writes the storage of a socket.
    pub fn set_socket(&self, socket: BorrowedFd<'_>, value: &V) -> Result<(), LoadError> {
        sys::update(self.fd.as_fd(), &socket.as_raw_fd(), value, 0)
            .map_err(self.failed("write socket storage"))
    }
}

impl<K: Plain> Map<K, u32> {
    /// Puts a socket into a socket map.
    pub fn put_socket(&self, key: &K, socket: BorrowedFd<'_>) -> Result<(), LoadError> {
        let value = socket.as_raw_fd() as u32;
        sys::update(self.fd.as_fd(), key, &value, 0).map_err(self.failed("take socket"))
    }
}

/// An array whose pages are shared with the kernel.
#[derive(Debug)]
pub struct Shared<V> {
    at: NonNull<u8>,
    bytes: usize,
    stride: usize,
    _value: PhantomData<V>,
}

// SAFETY: the pages are shared with the kernel anyway; every access is a 64-bit atomic.
unsafe impl<V> Send for Shared<V> {}
// SAFETY: as above.
unsafe impl<V> Sync for Shared<V> {}

impl<V: Plain> Shared<V> {
    /// Maps the array of this name.
    pub fn open(folder: &Path, name: &'static str) -> Result<Self, LoadError> {
        let (row, fd) = open(folder, name)?;
        assert!(
            row.value == V::LAYOUT && row.kind == MapKind::SharedArray,
            "{name} is used with another type than the table says"
        );
        let stride = row.value_size.next_multiple_of(8);
        let bytes = stride * row.capacity as usize;
        let at = pages(fd.as_fd(), bytes).map_err(|error| LoadError::Map {
            map: name,
            what: "share pages",
            error,
        })?;
        Ok(Self {
            at,
            bytes,
            stride,
            _value: PhantomData,
        })
    }

    /// The 64-bit word at a byte offset into an entry.
    pub fn word(&self, index: u32, offset: usize) -> &AtomicU64 {
        let at = index as usize * self.stride + offset;
        assert!(
            at + 8 <= self.bytes && offset.is_multiple_of(8),
            "a word outside of the array"
        );
        // SAFETY: within the mapping, which lives as long as self; aligned to 8, since entries are.
        unsafe { AtomicU64::from_ptr(self.at.as_ptr().add(at).cast()) }
    }
}

impl<V> Drop for Shared<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it outlives self.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

/// Maps the pages of a shared array.
pub fn pages(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a fresh mapping anywhere, over no memory of ours.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Subtracts one, never below zero.
pub fn subtract(word: &AtomicU64) {
    // The value only ever falls by those who deleted an entry, so this loop ends at once.
    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
}

fn open(folder: &Path, name: &'static str) -> Result<(&'static MapRow, OwnedFd), LoadError> {
    let row = MAPS
        .iter()
        .find(|r| r.name == name)
        .expect("every map is in the table");
    let fd = sys::get(&folder.join(name)).map_err(|error| LoadError::Map {
        map: name,
        what: "open pin",
        error,
    })?;
    let info = sys::map_info(fd.as_fd()).map_err(|error| LoadError::Map {
        map: name,
        what: "ask",
        error,
    })?;
    let ring = row.kind == MapKind::Ring;
    let sizes = ring
        || (info.key_size as usize == row.key_size && info.value_size as usize == row.value_size);
    if !sizes || info.max_entries != row.capacity {
        return Err(LoadError::Layout(format!(
            "map {name} is {} -> {} bytes, {} entries; {} -> {} bytes, {} entries are wanted",
            info.key_size,
            info.value_size,
            info.max_entries,
            row.key_size,
            row.value_size,
            row.capacity
        )));
    }
    Ok((row, fd))
}

/// Checks all maps against the table.
pub fn check_all(folder: &Path) -> Result<(), LoadError> {
    for row in MAPS {
        open(folder, row.name)?;
    }
    Ok(())
}
