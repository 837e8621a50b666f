//! The last good configuration on disk: the resources as they came, with their versions.
//!
//! Format: magic with a version, SHA-256 of the rest, then for each resource kind, name and body with their
//! lengths, then the marker of completeness. Invariants: replaced by rename after fsync; anything that does
//! not check out is refused whole; every length is checked before it is used.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use mesh_api::resource::{Kind, Resource};
use sha2::{Digest, Sha256};

use super::kept::{Kept, Reader, Written};

/// Says what the file is and how it is laid out.
const MAGIC: &[u8; 8] = b"WRNCFG\x00\x01";
/// A file larger than this was not written by us.
const LARGEST: u64 = 1 << 30;

/// Where the content begins: behind magic and checksum.
const CONTENT: u64 = 40;
/// How much of an earlier file is read at once.
const COPY: usize = 64 << 10;

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
///
/// # Errors
/// When it cannot be written, or the last one, which most of it is copied from, is not what was written then.
pub fn save(path: &Path, kept: &Kept) -> io::Result<Written> {
    let (temporary, file) = begin(path)?;
    let written = write(file, kept).and_then(|written| {
        publish(path, &temporary, &written.file)?;
        Ok(written)
    });
    if written.is_err() {
        // Half a file is of no use; one that cannot be removed is begun anew next time.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write(file: File, kept: &Kept) -> io::Result<Written> {
    let mut out = Hashing {
        file: BufWriter::new(file),
        hash: Sha256::new(),
    };
    out.file.write_all(MAGIC)?;
    out.file.write_all(&[0; 32])?;
    if let Some(earlier) = kept.file() {
        copy(earlier, kept, &mut out)?;
    }
    for (kind, name, body) in kept.came() {
        out.put_resource(kind, name, body)?;
    }
    let checksum: [u8; 32] = out.hash.finalize().into();
    let mut file = out.file.into_inner()?;
    file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
    file.write_all(&checksum)?;
    Ok(Written { file, checksum })
}

/// Copies what is still kept of an earlier file.
fn copy(earlier: &Written, kept: &Kept, out: &mut Hashing) -> io::Result<()> {
    let damaged = || io::Error::other("the earlier file was damaged on disk");
    let length = earlier.file.metadata()?.len();
    let mut from = Checking {
        file: BufReader::with_capacity(COPY, earlier.reader(CONTENT)),
        hash: Sha256::new(),
        left: length.checked_sub(CONTENT).ok_or_else(damaged)?,
    };
    let (mut name, mut body) = (Vec::new(), Vec::new());
    while from.left > 0 {
        let mut number = [0];
        from.fill(&mut number).ok_or_else(damaged)?;
        let kind = Kind::from_number(number[0]).ok_or_else(damaged)?;
        from.counted(&mut name).ok_or_else(damaged)?;
        from.counted(&mut body).ok_or_else(damaged)?;
        let name = std::str::from_utf8(&name).map_err(|_| damaged())?;
        if !kept.overrules(kind, name) {
            out.put_resource(kind, name, &body)?;
        }
    }
    if from.hash.finalize()[..] == earlier.checksum {
        Ok(())
    } else {
        Err(damaged())
    }
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
    let mut resources = Vec::new();
    while !body.is_empty() {
        resources.push(take_resource(&mut body).ok_or(DiskError::Content)?);
    }
    let checksum = content[8..40].try_into().expect("as long as it says");
    Ok(Some((resources, Written { file, checksum })))
}

/// A file that is being written, and the checksum of what was.
struct Hashing {
    file: BufWriter<File>,
    hash: Sha256,
}

impl Hashing {
    fn put(&mut self, part: &[u8]) -> io::Result<()> {
        self.file.write_all(part)?;
        self.hash.update(part);
        Ok(())
    }

    fn put_resource(&mut self, kind: Kind, name: &str, body: &[u8]) -> io::Result<()> {
        self.put(&[kind.number()])?;
        self.put_counted(name.as_bytes())?;
        self.put_counted(body)
    }

    fn put_counted(&mut self, part: &[u8]) -> io::Result<()> {
        let length = u32::try_from(part.len())
            .map_err(|_| io::Error::other("a resource is too large to be kept"))?;
        self.put(&length.to_be_bytes())?;
        self.put(part)
    }
}

/// A file that is being read, and the checksum of what was. `None` is for what cannot have been written so.
struct Checking<'a> {
    file: BufReader<Reader<'a>>,
    hash: Sha256,
    left: u64,
}

impl Checking<'_> {
    fn fill(&mut self, part: &mut [u8]) -> Option<()> {
        self.left = self.left.checked_sub(part.len() as u64)?;
        self.file.read_exact(part).ok()?;
        self.hash.update(&part);
        Some(())
    }

    fn counted(&mut self, part: &mut Vec<u8>) -> Option<()> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_be_bytes(length);
        if u64::from(length) > self.left {
            return None;
        }
        part.resize(length as usize, 0);
        self.fill(part)
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
