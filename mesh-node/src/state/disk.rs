//! The last good configuration on disk: the resources as they came, with their versions.
//!
//! Format: magic with a version, SHA-256 of the rest, then for each resource kind, name and body with their
//! lengths, then the marker of completeness. Invariants: replaced by rename after fsync; anything that does
//! not check out is refused whole; every length is checked before it is used.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use mesh_api::resource::{Kind, Resource};
use sha2::{Digest, Sha256};

/// Says what the file is and how it is laid out.
const MAGIC: &[u8; 8] = b"WRNCFG\x00\x01";
/// A file larger than this was not written by us.
const LARGEST: u64 = 1 << 30;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Every resource that was in use.
    pub resources: Vec<Arc<Resource>>,
}

/// Why the file is not used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not such a file, or one of another version.
    #[error("it is not a configuration of this version")]
    Magic,
    /// Its checksum is wrong.
    #[error("its checksum is wrong; it was damaged or cut short")]
    Checksum,
    /// It checks out but cannot be taken apart.
    #[error("its content cannot be taken apart")]
    Content,
}

/// Writes the configuration in place of the last one.
pub fn save(path: &Path, saved: &Saved) -> io::Result<()> {
    let mut body = Vec::new();
    for r in &saved.resources {
        let kind = Kind::ALL
            .iter()
            .position(|k| *k == r.kind)
            .expect("ALL holds every kind");
        body.push(u8::try_from(kind).expect("there are few kinds"));
        put(&mut body, r.name.as_bytes())?;
        put(&mut body, &r.body)?;
    }
    let mut file = Vec::with_capacity(body.len() + 40);
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&Sha256::digest(&body));
    file.extend_from_slice(&body);
    replace(path, &file)
}

/// Reads the configuration; `None` when there is no file.
pub fn load(path: &Path) -> Result<Option<Saved>, DiskError> {
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
        Ok(meta) if meta.len() > LARGEST => return Err(DiskError::Magic),
        Ok(_) => {}
    }
    let file = Bytes::from(fs::read(path)?);
    if file.len() < 40 || file[..8] != MAGIC[..] {
        return Err(DiskError::Magic);
    }
    let mut body = file.slice(40..);
    if Sha256::digest(&body)[..] != file[8..40] {
        return Err(DiskError::Checksum);
    }
    let mut resources = Vec::new();
    while !body.is_empty() {
        let resource = take_resource(&mut body).ok_or(DiskError::Content)?;
        resources.push(Arc::new(resource));
    }
    Ok(Some(Saved { resources }))
}

fn take_resource(body: &mut Bytes) -> Option<Resource> {
    let kind = *Kind::ALL.get(usize::from(body.split_to(1)[0]))?;
    let name = take(body)?;
    let name: Arc<str> = std::str::from_utf8(&name).ok()?.into();
    Some(Resource::new(kind, name, take(body)?))
}

fn put(body: &mut Vec<u8>, part: &[u8]) -> io::Result<()> {
    let length = u32::try_from(part.len())
        .map_err(|_| io::Error::other("a resource is too large to be kept"))?;
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(part);
    Ok(())
}

fn take(body: &mut Bytes) -> Option<Bytes> {
    let length = body.get(..4)?.try_into().ok().map(u32::from_be_bytes)?;
    let length = usize::try_from(length).ok()?;
    (body.len() - 4 >= length).then_some(())?;
    let _ = body.split_to(4);
    Some(body.split_to(length))
}

/// Replaces a file whole: a reader sees the old or the new one, also after a crash.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path
        .parent()
        .ok_or_else(|| io::Error::other("the path has no directory"))?;
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(directory)?.sync_all()
}
