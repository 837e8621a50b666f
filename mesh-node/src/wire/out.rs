//! The outgoing buffer of a tunnel: frames are written straight into the open TLS record, and a record is
//! encrypted where it lies.
//!
//! Invariants: `head <= open <= end <= CAPACITY`; `buf[head..open]` is sealed and may be sent;
//! `buf[open..end]` is the open record (nothing, or its gap for the header and at least one byte);
//! while control frames wait in `overflow`, no data is taken, so that order is kept. The buffer is held only
//! while something is in it; the rest of the time it lies in the thread's pool.

use std::{
    cell::RefCell,
    io::{self, IoSliceMut},
};

use super::tls::Sealer;

/// The content of a TLS record.
pub const RECORD: usize = 16 << 10;
/// A TLS record's header.
const PREFIX: usize = 5;
/// A TLS 1.3 record's content type and tag.
const SUFFIX: usize = 17;
/// An HTTP/2 frame's header.
const FRAME: usize = 9;
/// Records that the buffer holds.
const RECORDS: usize = 16;
/// Size of the buffer.
pub const CAPACITY: usize = RECORDS * (PREFIX + RECORD + SUFFIX);
/// Records that one read from an application may fill.
const SLOTS: usize = 8;
/// Less room than this in the open record is not worth a frame.
const WORTH: usize = 2048;
/// Buffers that a thread keeps for reuse.
const POOLED: usize = 8;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// How the records are protected.
#[derive(Debug)]
pub enum Protect {
    /// TLS 1.3.
    Tls(Box<Sealer>),
    /// Not at all: the codec's tests.
    Plain,
}

/// The buffer.
#[derive(Debug)]
pub struct Outgoing {
    buf: Vec<u8>,
    head: usize,
    open: usize,
    end: usize,
    overflow: Vec<u8>,
    protect: Protect,
    prefix: usize,
    suffix: usize,
    /// Set when the next record must be a key update with this key to follow.
    rekey: Option<Box<Sealer>>,
}

impl Outgoing {
    /// An empty buffer.
    pub fn new(protect: Protect) -> Self {
        let (prefix, suffix) = match protect {
            Protect::Tls(_) => (PREFIX, SUFFIX),
            Protect::Plain => (0, 0),
        };
        Self {
            buf: Vec::new(),
            head: 0,
            open: 0,
            end: 0,
            overflow: Vec::new(),
            protect,
            prefix,
            suffix,
            rekey: None,
        }
    }

    /// Appends a control frame. It waits in `overflow` when there is no room.
    pub fn put(&mut self, bytes: &[u8]) {
        if !self.overflow.is_empty() || !self.put_now(bytes) {
            self.overflow.extend_from_slice(bytes);
        }
    }

    /// Bytes of control frames that wait for room.
    pub fn waiting(&self) -> usize {
        self.overflow.len()
    }

    /// Bytes in the buffer, sent or not.
    pub fn used(&self) -> usize {
        self.end
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.end == self.head && self.overflow.is_empty() && self.rekey.is_none()
    }

    /// Lets `read` fill DATA frames of stream `id` in place, at most `max` bytes. `None` without room.
    pub fn fill(
        &mut self,
        id: u32,
        max: usize,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        self.flush_overflow();
        if !self.overflow.is_empty() || !self.start(FRAME + WORTH.min(max)) {
            return None;
        }
        let mut layout = [(0usize, 0usize); SLOTS];
        let slots = self.layout(max, &mut layout);
        let result = {
            let mut slices: [IoSliceMut<'_>; SLOTS] =
                std::array::from_fn(|_| IoSliceMut::new(&mut []));
            let (mut rest, mut at) = (self.buf.as_mut_slice(), 0);
            for (slice, &(start, len)) in slices.iter_mut().zip(&layout[..slots]) {
                let (found, tail) = rest.split_at_mut(start - at).1.split_at_mut(len);
                *slice = IoSliceMut::new(found);
                (rest, at) = (tail, start + len);
            }
            read(&mut slices[..slots])
        };
        match result {
            Ok(n) => self.commit(id, &layout[..slots], n),
            Err(_) => self.unstart(),
        }
        Some(result)
    }

    /// Seals what is open and gives what may be sent.
    pub fn sendable(&mut self) -> &[u8] {
        self.flush_overflow();
        self.seal();
        &self.buf[self.head..self.open]
    }

    /// The first `n` bytes of `sendable` were sent.
    pub fn sent(&mut self, n: usize) {
        self.head += n;
        if self.head == self.end {
            (self.head, self.open, self.end) = (0, 0, 0);
            self.flush_overflow();
            self.seal();
            if self.end == 0 {
                give_back(std::mem::take(&mut self.buf));
            }
        }
    }

    /// The next record tells the peer of a new key, and the records after it use that key.
    pub fn rekey(&mut self, next: Box<Sealer>) {
        self.rekey = Some(next);
        self.start_rekey();
    }

    /// Whether the key should be changed.
    pub fn wants_rekey(&self) -> bool {
        matches!(&self.protect, Protect::Tls(sealer) if sealer.is_worn()) && self.rekey.is_none()
    }

    /// Whether no key update is waiting already.
    pub fn may_rekey(&self) -> bool {
        self.rekey.is_none()
    }

    /// Seals an alert as a record of its own, if there is room: it is the last thing to be sent.
    pub fn alert(&mut self, level: u8, description: u8) {
        self.flush_overflow();
        self.seal();
        self.special(21, &[level, description]);
    }

    fn capacity(&self) -> usize {
        CAPACITY - self.suffix
    }

    fn put_now(&mut self, mut bytes: &[u8]) -> bool {
        let records = bytes.len() / RECORD + 2;
        if self.end + bytes.len() + records * (self.prefix + self.suffix) > self.capacity() {
            return false;
        }
        while !bytes.is_empty() {
            if !self.start(1) {
                return false;
            }
            let room = self.open + self.prefix + RECORD - self.end;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buf[self.end..self.end + now.len()].copy_from_slice(now);
            self.end += now.len();
            bytes = later;
        }
        true
    }

    fn flush_overflow(&mut self) {
        while !self.overflow.is_empty() {
            let n = self.overflow.len().min(RECORD);
            let waiting = std::mem::take(&mut self.overflow);
            let done = self.put_now(&waiting[..n]);
            self.overflow = waiting;
            if !done {
                return;
            }
            self.overflow.drain(..n);
        }
        self.overflow.shrink_to(0);
    }

    /// Makes sure that a record is open with room for `min` bytes.
    fn start(&mut self, min: usize) -> bool {
        if self.end > self.open && self.open + self.prefix + RECORD - self.end < min {
            self.seal();
        }
        if self.end == self.open {
            if !self.start_rekey() || self.open + self.prefix + min > self.capacity() {
                return false;
            }
            self.take_buffer();
            self.end = self.open + self.prefix;
        }
        self.end + min <= self.capacity()
    }

    /// Takes back a record that `start` opened and nothing was written to.
    fn unstart(&mut self) {
        if self.end == self.open + self.prefix {
            self.end = self.open;
            if self.end == 0 {
                give_back(std::mem::take(&mut self.buf));
            }
        }
    }

    fn take_buffer(&mut self) {
        if self.buf.is_empty() {
            self.buf = POOL
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| vec![0; CAPACITY]);
        }
    }

    /// Where the payloads of the next frames lie: the rest of the open record, then whole records.
    fn layout(&self, max: usize, layout: &mut [(usize, usize); SLOTS]) -> usize {
        let (mut start, mut record, mut left, mut n) = (self.end + FRAME, self.open, max, 0);
        while n < SLOTS && left > 0 {
            let limit = (record + self.prefix + RECORD).min(self.capacity());
            let Some(len) = limit
                .checked_sub(start)
                .map(|len| len.min(left))
                .filter(|&len| len > 0)
            else {
                break;
            };
            layout[n] = (start, len);
            left -= len;
            n += 1;
            record += self.prefix + RECORD + self.suffix;
            start = record + self.prefix + FRAME;
        }
        n
    }

    fn commit(&mut self, id: u32, layout: &[(usize, usize)], mut n: usize) {
        if n == 0 {
            return self.unstart();
        }
        for (i, &(start, len)) in layout.iter().enumerate() {
            let here = n.min(len);
            if here == 0 {
                return;
            }
            if i > 0 {
                self.seal();
                self.end = self.open + self.prefix;
            }
            let header = super::frame::header(here, super::frame::DATA, 0, id);
            self.buf[start - FRAME..start].copy_from_slice(&header);
            self.end = start + here;
            n -= here;
        }
    }

    fn seal(&mut self) {
        if self.end > self.open {
            if let Protect::Tls(sealer) = &mut self.protect {
                self.end += self.suffix;
                sealer.seal(23, &mut self.buf[self.open..self.end]);
            }
            self.open = self.end;
        }
    }

    /// Emits a pending key update between two records; `false` if there is no room for it yet.
    fn start_rekey(&mut self) -> bool {
        const KEY_UPDATE_NOT_REQUESTED: [u8; 5] = [24, 0, 0, 1, 0];
        if self.rekey.is_none() {
            return true;
        }
        self.seal();
        if !self.special(22, &KEY_UPDATE_NOT_REQUESTED) {
            return false;
        }
        if let Some(next) = self.rekey.take() {
            self.protect = Protect::Tls(next);
        }
        true
    }

    fn special(&mut self, content_type: u8, content: &[u8]) -> bool {
        let Protect::Tls(sealer) = &mut self.protect else {
            return true;
        };
        let total = PREFIX + content.len() + SUFFIX;
        if self.open + total > CAPACITY {
            return false;
        }
        if self.buf.is_empty() {
            self.buf = POOL
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| vec![0; CAPACITY]);
        }
        let record = &mut self.buf[self.open..self.open + total];
        record[PREFIX..PREFIX + content.len()].copy_from_slice(content);
        sealer.seal(content_type, record);
        self.open += total;
        self.end = self.open;
        true
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.buf));
    }
}

fn give_back(buf: Vec<u8>) {
    if buf.len() == CAPACITY {
        // After the thread's storage is gone there is no pool to give back to.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < POOLED {
                pool.push(buf);
            }
        });
    }
}
