//! HTTP/2 frames: their header, types, flags and the settings that we know.
//!
//! Invariant: numbers are those of RFC 9113; nothing here keeps state.

/// DATA.
pub const DATA: u8 = 0;
/// HEADERS.
pub const HEADERS: u8 = 1;
/// PRIORITY.
pub const PRIORITY: u8 = 2;
/// RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PUSH_PROMISE.
pub const PUSH_PROMISE: u8 = 5;
/// PING.
pub const PING: u8 = 6;
/// GOAWAY.
pub const GOAWAY: u8 = 7;
/// WINDOW_UPDATE.
pub const WINDOW_UPDATE: u8 = 8;
/// CONTINUATION.
pub const CONTINUATION: u8 = 9;

/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
pub const END_STREAM: u8 = 0x1;
/// ACK of SETTINGS and PING.
pub const ACK: u8 = 0x1;
/// END_HEADERS.
pub const END_HEADERS: u8 = 0x4;
/// PADDED.
pub const PADDED: u8 = 0x8;
/// PRIORITY of HEADERS.
pub const HAS_PRIORITY: u8 = 0x20;

/// What a client sends first.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that every peer accepts.
pub const MIN_MAX_FRAME: u32 = 16 << 10;
/// The largest window.
pub const MAX_WINDOW: u32 = (1 << 31) - 1;
/// The window before SETTINGS or WINDOW_UPDATE say otherwise.
pub const DEFAULT_WINDOW: u32 = 65_535;

/// Identifiers of settings.
pub mod setting {
    /// SETTINGS_HEADER_TABLE_SIZE.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// SETTINGS_ENABLE_PUSH.
    pub const ENABLE_PUSH: u16 = 2;
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    /// SETTINGS_MAX_FRAME_SIZE.
    pub const MAX_FRAME_SIZE: u16 = 5;
    /// SETTINGS_MAX_HEADER_LIST_SIZE.
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL.
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// A frame's header, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the payload.
    pub len: usize,
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Stream, without the reserved bit.
    pub id: u32,
}

impl Header {
    /// From the nine octets on the wire.
    pub fn parse(b: &[u8; 9]) -> Self {
        Self {
            len: u32::from_be_bytes([0, b[0], b[1], b[2]]) as usize,
            kind: b[3],
            flags: b[4],
            id: u32::from_be_bytes([b[5] & 0x7f, b[6], b[7], b[8]]),
        }
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A frame's header on the wire.
pub fn header(len: usize, kind: u8, flags: u8, id: u32) -> [u8; 9] {
    let (l, i) = ((len as u32).to_be_bytes(), id.to_be_bytes());
    [l[1], l[2], l[3], kind, flags, i[0], i[1], i[2], i[3]]
}

/// A frame whose payload is one 32-bit number: WINDOW_UPDATE, RST_STREAM.
pub fn number(kind: u8, id: u32, number: u32) -> [u8; 13] {
    let mut frame = [0; 13];
    frame[..9].copy_from_slice(&header(4, kind, 0, id));
    frame[9..].copy_from_slice(&number.to_be_bytes());
    frame
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_header_parses_as_it_was_written() {
        let check = |len, kind, flags, id| {
            let parsed = Header::parse(&header(len, kind, flags, id));
            assert_eq!(
                parsed,
                Header {
                    len,
                    kind,
                    flags,
                    id
                }
            );
        };
        check(0, DATA, END_STREAM, 1);
        check(16 << 10, HEADERS, END_HEADERS, MAX_WINDOW);
        check((1 << 24) - 1, 0xfe, 0xff, 0);
    }
}
