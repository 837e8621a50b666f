//! One HTTP/2 connection for CONNECT streams, either side, without I/O: bytes in, events out, frames into
//! the outgoing buffer.
//!
//! Invariants: a stream counts against concurrency until both its directions ended or it was reset; its
//! entry lives until the owner removes it; after an error the connection is only good for sending GOAWAY.

mod flow;
mod frames;
mod head;
mod receive;
mod streams;

pub use flow::Fill;

use std::time::Instant;

use super::{
    abuse::{Counter, Kind},
    error::{Code, ConnError},
    frame::{self, setting},
    headers::Headers,
    hpack,
    limits::Limits,
    out::Outgoing,
};
use receive::Parser;
use streams::{Flags, Streams};

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Serves streams.
    Server,
}

/// What the peer did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A CONNECT that waits for [`Conn::respond`].
    Request {
        /// The stream.
        id: u32,
        /// What it asks for.
        request: Box<Request>,
    },
    /// The answer to our CONNECT. Bytes may flow if the status is 200.
    Response {
        /// The stream.
        id: u32,
        /// The answer.
        response: Box<Response>,
    },
    /// Content, at this place of the buffer that was received.
    Data {
        /// The stream.
        id: u32,
        /// First octet.
        start: usize,
        /// Behind the last octet.
        end: usize,
    },
    /// The peer sends nothing more on this stream.
    End {
        /// The stream.
        id: u32,
    },
    /// The stream was reset, by the peer or by us because of the peer.
    Reset {
        /// The stream.
        id: u32,
        /// Why.
        code: Code,
    },
    /// The stream may send again.
    Window {
        /// The stream.
        id: u32,
    },
    /// Every stream may send again.
    Windows,
    /// Our PING was answered.
    Pong,
    /// The peer takes no further streams.
    GoAway {
        /// Why.
        code: Code,
    },
}

/// A CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `:authority`.
    pub authority: String,
    /// Further fields.
    pub headers: Headers,
}

/// The answer to a CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// `:status`.
    pub status: u16,
    /// Further fields.
    pub headers: Headers,
}

/// What the peer's SETTINGS say.
#[derive(Clone, Copy, Debug)]
struct Peer {
    streams: u32,
    initial_window: u32,
}

/// The state of a connection; `S` is what the owner keeps for each stream.
#[derive(Debug)]
pub struct Conn<S> {
    role: Role,
    limits: Limits,
    /// Where frames go.
    pub out: Outgoing,
    streams: Streams<S>,
    peer: Peer,
    /// What we may send on the connection.
    send_window: i64,
    /// What the peer may send on the connection, and what we have not credited yet.
    receive_left: i64,
    receive_owed: u32,
    next_id: u32,
    last_peer_id: u32,
    decoder: hpack::Decoder,
    parser: Parser,
    counter: Counter,
    now: Instant,
    greeted: bool,
    sent_block: bool,
    /// The peer's GOAWAY: no further streams.
    peer_away: bool,
    /// Our GOAWAY: `Announced` until the peer certainly saw it.
    away: Away,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    No,
    Announced,
    Final,
}

impl<S: Default> Conn<S> {
    /// A connection; its greeting is in `out`.
    pub fn new(role: Role, limits: Limits, out: Outgoing, now: Instant) -> Self {
        let connection_window = limits.connection_window.max(frame::DEFAULT_WINDOW);
        let mut conn = Self {
            role,
            out,
            streams: Streams::default(),
            peer: Peer {
                streams: limits.streams,
                initial_window: frame::DEFAULT_WINDOW,
            },
            send_window: i64::from(frame::DEFAULT_WINDOW),
            receive_left: i64::from(connection_window),
            receive_owed: 0,
            next_id: 1,
            last_peer_id: 0,
            decoder: hpack::Decoder::default(),
            parser: Parser::new(role),
            counter: Counter::new(),
            now,
            greeted: false,
            sent_block: false,
            peer_away: false,
            away: Away::No,
            limits,
        };
        conn.greet(connection_window);
        conn
    }

    fn greet(&mut self, connection_window: u32) {
        let mut settings = vec![
            (setting::INITIAL_WINDOW_SIZE, self.stream_window()),
            (
                setting::MAX_FRAME_SIZE,
                self.limits.max_frame.max(frame::MIN_MAX_FRAME),
            ),
            (setting::MAX_HEADER_LIST_SIZE, self.limits.header_list),
        ];
        if self.role == Role::Client {
            self.out.put(frame::PREFACE);
            settings.push((setting::ENABLE_PUSH, 0));
        } else {
            settings.push((setting::MAX_CONCURRENT_STREAMS, self.limits.streams));
        }
        self.out
            .put(&frame::header(settings.len() * 6, frame::SETTINGS, 0, 0));
        for (id, value) in settings {
            self.out.put(&id.to_be_bytes());
            self.out.put(&value.to_be_bytes());
        }
        let more = connection_window - frame::DEFAULT_WINDOW;
        if more > 0 {
            self.out.put(&frame::number(frame::WINDOW_UPDATE, 0, more));
        }
    }

    /// The window that we give each stream. A smaller one than the default could not be enforced at once.
    fn stream_window(&self) -> u32 {
        self.limits
            .stream_window
            .clamp(frame::DEFAULT_WINDOW, frame::MAX_WINDOW)
    }

    /// What the owner keeps for a stream.
    pub fn get(&mut self, id: u32) -> Option<&mut S> {
        self.streams.get(id).map(|entry| &mut entry.user)
    }

    /// Every stream's identifier and what the owner keeps for it.
    pub fn each(&mut self) -> impl Iterator<Item = (u32, &mut S)> {
        self.streams.each().map(|(id, entry)| (id, &mut entry.user))
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.streams.live()
    }

    /// Streams that still have an entry.
    pub fn entries(&self) -> usize {
        self.streams.len()
    }

    /// How many further streams may be opened now.
    pub fn capacity(&self) -> usize {
        if self.peer_away || self.away != Away::No || self.next_id > frame::MAX_WINDOW - 2 {
            return 0;
        }
        (self.limits.streams.min(self.peer.streams) as usize).saturating_sub(self.streams.live())
    }

    /// Whether no further stream can ever be opened or accepted.
    pub fn is_going_away(&self) -> bool {
        self.peer_away || self.away != Away::No || self.next_id > frame::MAX_WINDOW - 2
    }

    /// Whether no further stream can come, from either side, and both know it.
    pub fn is_finished(&self) -> bool {
        self.peer_away || self.away == Away::Final
    }

    /// Opens a stream; the caller made sure of `capacity`. Nothing may be sent on it before the answer.
    pub fn connect(&mut self, authority: &str, headers: &Headers, user: S) -> u32 {
        let id = self.next_id;
        self.next_id += 2;
        self.streams
            .insert(id, self.peer.initial_window, self.stream_window(), user);
        let mut block = self.block();
        hpack::encode_connect(authority, &mut block);
        self.put_block(id, block, headers, false);
        id
    }

    /// Answers a request; `end` also ends the stream, in both directions.
    pub fn respond(&mut self, id: u32, status: u16, headers: &Headers, end: bool) {
        let Some(entry) = self.streams.get(id) else {
            return;
        };
        if entry.flags.has(Flags::RESET) || entry.flags.has(Flags::ANSWERED) {
            return;
        }
        entry.flags.set(Flags::ANSWERED);
        let half_closed = entry.flags.has(Flags::RECEIVED_END);
        let mut block = self.block();
        hpack::encode_status(status, &mut block);
        self.put_block(id, block, headers, end);
        if end {
            self.streams.end_send(id);
            if !half_closed {
                // The answer is complete; what the client still sends is not wanted.
                self.reset(id, Code::NO_ERROR);
            }
        }
    }

    /// Ends our direction.
    pub fn finish(&mut self, id: u32) {
        if self.streams.may_send(id) {
            self.out
                .put(&frame::header(0, frame::DATA, frame::END_STREAM, id));
            self.streams.end_send(id);
        }
    }

    /// Resets a stream unless it has ended.
    pub fn reset(&mut self, id: u32, code: Code) {
        if self.streams.kill(id) {
            self.out.put(&frame::number(frame::RST_STREAM, id, code.0));
        }
    }

    /// Forgets a stream; resets it first if it has not ended.
    pub fn remove(&mut self, id: u32, code: Code) -> Option<S> {
        self.reset(id, code);
        self.streams.remove(id)
    }

    /// Asks for a sign of life.
    pub fn ping(&mut self) {
        self.out.put(&frame::header(8, frame::PING, 0, 0));
        self.out.put(b"warren!!");
    }

    /// Takes no further streams. The peer is told at once, and told which streams count once it has seen that.
    pub fn drain(&mut self) {
        if self.away == Away::No {
            if self.role == Role::Client {
                self.go_away(Code::NO_ERROR, "");
            } else {
                self.away = Away::Announced;
                self.put_go_away(frame::MAX_WINDOW, Code::NO_ERROR, "");
                self.ping();
            }
        }
    }

    /// Takes no further streams, finally.
    pub fn go_away(&mut self, code: Code, why: &str) {
        if self.away != Away::Final {
            self.away = Away::Final;
            self.put_go_away(self.last_peer_id, code, why);
        }
    }

    fn put_go_away(&mut self, last: u32, code: Code, why: &str) {
        self.out
            .put(&frame::header(8 + why.len(), frame::GOAWAY, 0, 0));
        self.out.put(&last.to_be_bytes());
        self.out.put(&code.0.to_be_bytes());
        self.out.put(why.as_bytes());
    }

    /// A header block's beginning: the first one says that we use no dynamic table, which holds for any
    /// table size that the peer may set.
    fn block(&mut self) -> Vec<u8> {
        const TABLE_SIZE_ZERO: u8 = 0x20;
        let mut block = Vec::with_capacity(256);
        if !self.sent_block {
            self.sent_block = true;
            block.push(TABLE_SIZE_ZERO);
        }
        block
    }

    fn put_block(&mut self, id: u32, mut block: Vec<u8>, headers: &Headers, end: bool) {
        for (name, value) in headers.iter() {
            hpack::encode_field(name, value, &mut block);
        }
        let max = frame::MIN_MAX_FRAME as usize;
        let parts = block.chunks(max).count();
        for (i, part) in block.chunks(max).enumerate() {
            let kind = if i == 0 {
                frame::HEADERS
            } else {
                frame::CONTINUATION
            };
            let mut flags = if i + 1 == parts {
                frame::END_HEADERS
            } else {
                0
            };
            if i == 0 && end {
                flags |= frame::END_STREAM;
            }
            self.out.put(&frame::header(part.len(), kind, flags, id));
            self.out.put(part);
        }
    }

    /// Counts what costs us work; too much of it ends the connection.
    pub fn count(&mut self, kind: Kind) -> Result<(), ConnError> {
        self.counter
            .count(kind, self.now, self.limits.abuse_window, &self.limits.abuse)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
