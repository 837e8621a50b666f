//! Reading frames from a stream of bytes that may be cut anywhere.
//!
//! Invariants: only frames other than DATA are ever collected, at most `limits.header_block` and a little of
//! each; header blocks are always decoded, whatever becomes of their stream, so that both tables agree;
//! between HEADERS and END_HEADERS only CONTINUATION of the same stream may come.

use std::time::Instant;

use super::{Conn, Event, Role, streams::Flags};
use crate::wire::{
    abuse::Kind,
    error::{Code, ConnError},
    frame::{self, Header},
};

/// Padding and priority of a HEADERS frame.
const HEADERS_EXTRA: usize = 1 + 5 + 255;
/// The largest SETTINGS or GOAWAY frame that we look at.
const SMALL_FRAME: usize = 16 << 10;

/// Where in the stream of bytes we are.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// A frame's header, or the preface, as far as it was received.
    have: usize,
    header: [u8; 9],
    /// The payload of a frame that was cut.
    payload: Vec<u8>,
    /// A header block that is not complete.
    pub(super) block: Option<Block>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Preface,
    Header,
    /// The next octet is the length of padding.
    PadLength(Header),
    Data {
        id: u32,
        left: usize,
        pad: usize,
        end: bool,
    },
    Skip(usize),
    Payload(Header),
}

/// A header block that is not complete.
#[derive(Debug)]
pub(super) struct Block {
    pub id: u32,
    pub end_stream: bool,
    pub continuations: u32,
    pub bytes: Vec<u8>,
}

impl Parser {
    pub fn new(role: Role) -> Self {
        let state = if role == Role::Server {
            State::Preface
        } else {
            State::Header
        };
        Self {
            state,
            have: 0,
            header: [0; 9],
            payload: Vec::new(),
            block: None,
        }
    }
}

pub(super) const fn protocol(what: &'static str) -> ConnError {
    ConnError::new(Code::PROTOCOL_ERROR, what)
}

pub(super) const fn wrong_size(what: &'static str) -> ConnError {
    ConnError::new(Code::FRAME_SIZE_ERROR, what)
}

impl<S: Default> Conn<S> {
    /// Takes the bytes `buf[start..end]`. Events that name places name places in `buf`.
    pub fn receive(
        &mut self,
        now: Instant,
        buf: &[u8],
        range: std::ops::Range<usize>,
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        self.now = now;
        let mut at = range.start;
        if range.is_empty() {
            return self.count(Kind::Empty);
        }
        while at < range.end {
            at += self.step(&buf[at..range.end], at, events)?;
        }
        if self.out.waiting() > self.limits.control_queue {
            return Err(ConnError::new(
                Code::ENHANCE_YOUR_CALM,
                "too many answers wait for a peer that does not read",
            ));
        }
        Ok(())
    }

    /// Takes some of `rest` (which begins at `at`); tells how much.
    fn step(
        &mut self,
        rest: &[u8],
        at: usize,
        events: &mut Vec<Event>,
    ) -> Result<usize, ConnError> {
        match self.parser.state {
            State::Preface => self.preface(rest),
            State::Header => {
                let have = self.parser.have;
                let n = rest.len().min(9 - have);
                self.parser.header[have..have + n].copy_from_slice(&rest[..n]);
                self.parser.have += n;
                if self.parser.have == 9 {
                    self.parser.have = 0;
                    self.frame_begins(Header::parse(&self.parser.header), events)?;
                }
                Ok(n)
            }
            State::PadLength(header) => {
                let pad = usize::from(rest[0]);
                let left = header
                    .len
                    .checked_sub(1 + pad)
                    .ok_or(protocol("padding longer than its frame"))?;
                self.drained(header.id, 1 + pad);
                if left == 0 && !header.has(frame::END_STREAM) {
                    self.count(Kind::Empty)?;
                }
                self.data_goes_on(header.id, left, pad, header.has(frame::END_STREAM), events);
                Ok(1)
            }
            State::Data { id, left, pad, end } => {
                let n = rest.len().min(left);
                if self
                    .streams
                    .get_live(id)
                    .is_some_and(|e| !e.flags.has(Flags::RECEIVED_END))
                {
                    events.push(Event::Data {
                        id,
                        start: at,
                        end: at + n,
                    });
                }
                self.data_goes_on(id, left - n, pad, end, events);
                Ok(n)
            }
            State::Skip(left) => {
                let n = rest.len().min(left);
                self.parser.state = if n == left {
                    State::Header
                } else {
                    State::Skip(left - n)
                };
                Ok(n)
            }
            State::Payload(header) => self.payload(header, rest, events),
        }
    }

    fn preface(&mut self, rest: &[u8]) -> Result<usize, ConnError> {
        let have = self.parser.have;
        let n = rest.len().min(frame::PREFACE.len() - have);
        if rest[..n] != frame::PREFACE[have..have + n] {
            return Err(protocol("not the preface of HTTP/2"));
        }
        self.parser.have += n;
        if self.parser.have == frame::PREFACE.len() {
            self.parser.have = 0;
            self.parser.state = State::Header;
        }
        Ok(n)
    }

    fn payload(
        &mut self,
        header: Header,
        rest: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<usize, ConnError> {
        let missing = header.len - self.parser.payload.len();
        let n = rest.len().min(missing);
        if n < missing {
            self.parser.payload.extend_from_slice(&rest[..n]);
            return Ok(n);
        }
        self.parser.state = State::Header;
        if self.parser.payload.is_empty() {
            self.frame_ends(header, &rest[..n], events)?;
        } else {
            let mut payload = std::mem::take(&mut self.parser.payload);
            payload.extend_from_slice(&rest[..n]);
            self.frame_ends(header, &payload, events)?;
        }
        Ok(n)
    }

    /// After a part of a DATA frame: on to the next part, the padding, or the next frame.
    fn data_goes_on(
        &mut self,
        id: u32,
        left: usize,
        pad: usize,
        end: bool,
        events: &mut Vec<Event>,
    ) {
        if left > 0 {
            self.parser.state = State::Data { id, left, pad, end };
            return;
        }
        if end {
            self.end_received(id, events);
        }
        self.parser.state = if pad > 0 {
            State::Skip(pad)
        } else {
            State::Header
        };
    }

    pub(super) fn end_received(&mut self, id: u32, events: &mut Vec<Event>) {
        if self
            .streams
            .get_live(id)
            .is_some_and(|e| !e.flags.has(Flags::RECEIVED_END))
        {
            self.streams.end_receive(id);
            events.push(Event::End { id });
        }
    }

    /// A frame's header is complete: its size and stream are checked before anything of it is kept.
    fn frame_begins(&mut self, header: Header, events: &mut Vec<Event>) -> Result<(), ConnError> {
        if header.len > self.limits.max_frame.max(frame::MIN_MAX_FRAME) as usize {
            return Err(wrong_size("a frame larger than we accept"));
        }
        if !self.greeted && (header.kind != frame::SETTINGS || header.has(frame::ACK)) {
            return Err(protocol("the first frame is not SETTINGS"));
        }
        let block = self.parser.block.as_ref().map(|block| block.id);
        if let Some(id) = block
            && (header.kind != frame::CONTINUATION || header.id != id)
        {
            return Err(protocol("a header block was interrupted"));
        }
        if block.is_none() && header.kind == frame::CONTINUATION {
            return Err(protocol("CONTINUATION without HEADERS"));
        }
        match header.kind {
            frame::DATA => self.data_begins(header, events),
            frame::PRIORITY | 10.. => {
                self.count(Kind::Stray)?;
                if header.len > 0 {
                    self.parser.state = State::Skip(header.len);
                }
                Ok(())
            }
            _ => {
                self.check_shape(header)?;
                if header.len == 0 {
                    return self.frame_ends(header, &[], events);
                }
                self.parser.state = State::Payload(header);
                Ok(())
            }
        }
    }

    /// Whether a frame that will be kept may have this size and stream.
    fn check_shape(&self, header: Header) -> Result<(), ConnError> {
        const LARGE: ConnError = ConnError::new(
            Code::ENHANCE_YOUR_CALM,
            "a header block larger than we accept",
        );
        let (len, on_stream) = (header.len, header.id != 0);
        let acknowledges = header.has(frame::ACK);
        let error = match header.kind {
            frame::HEADERS if !on_stream => protocol("HEADERS on no stream"),
            frame::HEADERS if len > self.limits.header_block + HEADERS_EXTRA => LARGE,
            frame::CONTINUATION if len > self.limits.header_block => LARGE,
            frame::RST_STREAM if !on_stream => protocol("RST_STREAM on no stream"),
            frame::RST_STREAM if len != 4 => wrong_size("RST_STREAM of a wrong size"),
            frame::SETTINGS if on_stream => protocol("SETTINGS on a stream"),
            frame::SETTINGS if acknowledges && len > 0 => wrong_size("SETTINGS of a wrong size"),
            frame::SETTINGS if len > SMALL_FRAME || !len.is_multiple_of(6) => {
                wrong_size("SETTINGS of a wrong size")
            }
            frame::PUSH_PROMISE => protocol("PUSH_PROMISE, which we do not allow"),
            frame::PING if on_stream => protocol("PING on a stream"),
            frame::PING if len != 8 => wrong_size("PING of a wrong size"),
            frame::GOAWAY if on_stream => protocol("GOAWAY on a stream"),
            frame::GOAWAY if !(8..=SMALL_FRAME).contains(&len) => {
                wrong_size("GOAWAY of a wrong size")
            }
            frame::WINDOW_UPDATE if len != 4 => wrong_size("WINDOW_UPDATE of a wrong size"),
            _ => return Ok(()),
        };
        Err(error)
    }

    fn data_begins(&mut self, header: Header, events: &mut Vec<Event>) -> Result<(), ConnError> {
        self.known(header.id, "DATA on a stream that was never opened")?;
        self.received(header.len)?;
        let (len, role) = (header.len, self.role);
        if len == 0 && !header.has(frame::END_STREAM) {
            self.count(Kind::Empty)?;
        }
        if let Some(entry) = self.streams.get_live(header.id) {
            entry.receive_left -= len as i32;
            if entry.receive_left < 0 {
                self.stream_error(header.id, Code::FLOW_CONTROL_ERROR, events)?;
            } else if entry.flags.has(Flags::RECEIVED_END) {
                self.stream_error(header.id, Code::STREAM_CLOSED, events)?;
            } else if role == Role::Client && !entry.flags.has(Flags::ANSWERED) {
                // Content before the answer would be forwarded before the far side decided.
                self.stream_error(header.id, Code::PROTOCOL_ERROR, events)?;
            }
        } else {
            self.count(Kind::Stray)?;
        }
        if header.has(frame::PADDED) {
            if len == 0 {
                return Err(wrong_size("padding without a length"));
            }
            self.parser.state = State::PadLength(header);
        } else {
            self.data_goes_on(header.id, len, 0, header.has(frame::END_STREAM), events);
        }
        Ok(())
    }

    /// Whether a stream was ever opened, by the side that may.
    pub(super) fn known(&self, id: u32, what: &'static str) -> Result<(), ConnError> {
        let opened = match self.role {
            Role::Client => id < self.next_id,
            Role::Server => id <= self.last_peer_id,
        };
        if opened && id % 2 == 1 {
            Ok(())
        } else {
            Err(protocol(what))
        }
    }
}
