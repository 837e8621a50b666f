//! The last good configuration on disk: the resources as they came, with their versions.
//!
//! Format: magic with a version, SHA-256 of the rest, then for each resource kind, name and body with their
//! lengths, then the marker of completeness. Invariants: replaced by rename after fsync; anything that does
//! not check out is refused whole; every length is checked before it is used.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use mesh_api::resource::{Kind, Resource, Version};
use sha2::{Digest, Sha256};

use super::kept::{Kept, Written};

/// Says what the file is and how it is laid out.
const MAGIC: &[u8; 8] = b"WRNCFG\x00\x01";
/// A file larger than this was not written by us.
const LARGEST: u64 = 1 << 30;

/// Where the content begins: behind magic and checksum.
const CONTENT: u64 = 40;

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

/// Writes the configuration in place of the last one, piece by piece: it is never in memory as a whole.
pub fn save(path: &Path, kept: &Kept) -> io::Result<Written> {
    let (temporary, file) = begin(path)?;
    let mut out = Hashing {
        file: BufWriter::new(file),
        hash: Sha256::new(),
        at: CONTENT,
    };
    out.file.write_all(MAGIC)?;
    out.file.write_all(&[0; 32])?;
    let mut places = Vec::with_capacity(kept.len());
    for key in kept.keys() {
        let body = kept.body(key)?;
        out.put(&[key.0.number()])?;
        out.put_counted(key.1.as_bytes())?;
        places.push((key.clone(), out.at, Version::of(&body)));
        out.put_counted(&body)?;
    }
    let checksum = out.hash.finalize();
    let mut file = out.file.into_inner()?;
    file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
    file.write_all(&checksum)?;
    publish(path, &temporary, &file)?;
    Ok(Written { file, places })
}

/// Reads the configuration; `None` when there is no file.
pub fn load(path: &Path) -> Result<Option<(Vec<Resource>, Written)>, DiskError> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
        Ok(file) => file,
    };
    if file.metadata()?.len() > LARGEST {
        return Err(DiskError::Magic);
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    let content = Bytes::from(content);
    if content.len() < 40 || content[..8] != MAGIC[..] {
        return Err(DiskError::Magic);
    }
    let mut body = content.slice(40..);
    if Sha256::digest(&body)[..] != content[8..40] {
        return Err(DiskError::Checksum);
    }
    let (mut resources, mut places) = (Vec::new(), Vec::new());
    while !body.is_empty() {
        let resource = take_resource(&mut body).ok_or(DiskError::Content)?;
        let at = content.len() - body.len() - resource.body.len() - 4;
        let key = (resource.kind, resource.name.clone());
        places.push((key, at as u64, resource.version));
        resources.push(resource);
    }
    Ok(Some((resources, Written { file, places })))
}

/// A file that is being written, and the checksum of what was.
struct Hashing {
    file: BufWriter<File>,
    hash: Sha256,
    at: u64,
}

impl Hashing {
    fn put(&mut self, part: &[u8]) -> io::Result<()> {
        self.file.write_all(part)?;
        self.hash.update(part);
        self.at += part.len() as u64;
        Ok(())
    }

    fn put_counted(&mut self, part: &[u8]) -> io::Result<()> {
        let length = u32::try_from(part.len())
            .map_err(|_| io::Error::other("a resource is too large to be kept"))?;
        self.put(&length.to_be_bytes())?;
        self.put(part)
    }
}

fn take_resource(body: &mut Bytes) -> Option<Resource> {
    let kind = Kind::from_number(body.split_to(1)[0])?;
    let name = take(body)?;
    let name: Arc<str> = std::str::from_utf8(&name).ok()?.into();
    Some(Resource::new(kind, name, take(body)?))
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
    let (temporary, mut file) = begin(path)?;
    file.write_all(content)?;
    publish(path, &temporary, &file)
}

/// A new file beside the one that it is to replace.
fn begin(path: &Path) -> io::Result<(PathBuf, File)> {
    fs::create_dir_all(directory(path)?)?;
    // Of this process alone: during a hand-over another one writes its own.
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(true);
    let file = file.open(&temporary)?;
    Ok((temporary, file))
}

/// Puts a file that was written whole in its place.
fn publish(path: &Path, temporary: &Path, file: &File) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(temporary, path)?;
    File::open(directory(path)?)?.sync_all()
}

fn directory(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::other("the path has no directory"))
}
