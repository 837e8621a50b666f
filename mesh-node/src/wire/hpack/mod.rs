//! Header compression of HTTP/2 (RFC 7541): a complete decoder and an encoder that keeps no state.
//!
//! Invariants: the decoder's table never exceeds the size we advertised; the sizes of decoded fields count
//! against a limit before they are kept, so that a small block cannot become large memory.

mod fixed;
mod huffman;

use std::collections::VecDeque;

/// The table size that we advertise: the protocol's default, which is small.
pub const TABLE_SIZE: usize = 4096;

/// What RFC 7541 adds to each entry's size.
const ENTRY_OVERHEAD: usize = 32;

/// Why a header block could not be decoded. Both end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// The block is not valid HPACK.
    #[error("the header block is malformed: {0}")]
    Malformed(&'static str),
    /// The decoded list is larger than allowed.
    #[error("the header list is larger than {0} bytes")]
    TooLarge(usize),
}

/// A name and its value.
type Entry = (Box<[u8]>, Box<[u8]>);

/// The decoding side's state: the dynamic table.
#[derive(Debug)]
pub struct Decoder {
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max: TABLE_SIZE,
            name: Vec::new(),
            value: Vec::new(),
        }
    }
}

impl Decoder {
    /// Decodes one complete header block; `field` sees each name and value in order.
    pub fn decode(
        &mut self,
        block: &[u8],
        limit: usize,
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let (mut rest, mut total, mut first) = (block, 0usize, true);
        while let Some(&octet) = rest.first() {
            if octet & 0xe0 == 0x20 {
                if !first {
                    return Err(HpackError::Malformed("a table size update after a field"));
                }
                let size = integer(&mut rest, 5)?;
                self.resize(size)?;
                continue;
            }
            first = false;
            let insert = self.field(octet, &mut rest)?;
            total += self.name.len() + self.value.len() + ENTRY_OVERHEAD;
            if total > limit {
                return Err(HpackError::TooLarge(limit));
            }
            field(&self.name, &self.value);
            if insert {
                self.insert();
            }
        }
        self.name.shrink_to(256);
        self.value.shrink_to(256);
        Ok(())
    }

    /// Reads one field into `name` and `value`; tells whether it enters the table.
    fn field(&mut self, octet: u8, rest: &mut &[u8]) -> Result<bool, HpackError> {
        if octet & 0x80 != 0 {
            let index = integer(rest, 7)?;
            self.load(index, true)?;
            return Ok(false);
        }
        let insert = octet & 0xc0 == 0x40;
        let index = integer(rest, if insert { 6 } else { 4 })?;
        if index == 0 {
            text(rest, &mut self.name)?;
        } else {
            self.load(index, false)?;
        }
        text(rest, &mut self.value)?;
        Ok(insert)
    }

    fn load(&mut self, index: usize, with_value: bool) -> Result<(), HpackError> {
        const BAD: HpackError = HpackError::Malformed("an index outside the tables");
        let at = index.checked_sub(1).ok_or(BAD)?;
        let (name, value): (&[u8], &[u8]) = match fixed::TABLE.get(at) {
            Some((name, value)) => (name.as_bytes(), value.as_bytes()),
            None => {
                let (name, value) = self.entries.get(at - fixed::TABLE.len()).ok_or(BAD)?;
                (name, value)
            }
        };
        self.name.clear();
        self.name.extend_from_slice(name);
        self.value.clear();
        if with_value {
            self.value.extend_from_slice(value);
        }
        Ok(())
    }

    fn insert(&mut self) {
        let size = self.name.len() + self.value.len() + ENTRY_OVERHEAD;
        self.evict(self.max.saturating_sub(size));
        if size <= self.max {
            self.entries
                .push_front((self.name.as_slice().into(), self.value.as_slice().into()));
            self.size += size;
        }
    }

    fn resize(&mut self, size: usize) -> Result<(), HpackError> {
        if size > TABLE_SIZE {
            return Err(HpackError::Malformed("a table larger than we allow"));
        }
        self.max = size;
        self.evict(size);
        Ok(())
    }

    fn evict(&mut self, keep: usize) {
        while self.size > keep {
            let Some((name, value)) = self.entries.pop_back() else {
                return;
            };
            self.size -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
        }
    }
}

/// An integer with a prefix of `bits`; at most four further octets, so that it cannot overflow.
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, HpackError> {
    const CUT: HpackError = HpackError::Malformed("it ends inside a field");
    let (&first, tail) = rest.split_first().ok_or(CUT)?;
    *rest = tail;
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(first) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (&octet, tail) = rest.split_first().ok_or(CUT)?;
        *rest = tail;
        value += usize::from(octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HpackError::Malformed("an integer that is too large"))
}

fn text(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let huffman = rest.first().is_some_and(|octet| octet & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, tail) = rest
        .split_at_checked(length)
        .ok_or(HpackError::Malformed("it ends inside a text"))?;
    *rest = tail;
    out.clear();
    if huffman {
        huffman::decode(text, out).ok_or(HpackError::Malformed("a Huffman text that is not one"))
    } else {
        out.extend_from_slice(text);
        Ok(())
    }
}

/// Appends `:method CONNECT` and the authority.
pub fn encode_connect(authority: &str, out: &mut Vec<u8>) {
    out.push(fixed::METHOD);
    put_text(b"CONNECT", out);
    out.push(fixed::AUTHORITY);
    put_text(authority.as_bytes(), out);
}

/// Appends `:status`.
pub fn encode_status(status: u16, out: &mut Vec<u8>) {
    if status == 200 {
        out.push(0x80 | fixed::STATUS);
    } else {
        out.push(fixed::STATUS);
        let digits = [status / 100 % 10, status / 10 % 10, status % 10];
        put_text(&digits.map(|d| b'0' + d as u8), out);
    }
}

/// Appends a field as literals that enter no table.
pub fn encode_field(name: &str, value: &str, out: &mut Vec<u8>) {
    out.push(0);
    put_text(name.as_bytes(), out);
    put_text(value.as_bytes(), out);
}

fn put_text(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text.len();
    if rest < 127 {
        out.push(rest as u8);
    } else {
        out.push(127);
        rest -= 127;
        while rest >= 128 {
            out.push(0x80 | (rest & 0x7f) as u8);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(text);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
