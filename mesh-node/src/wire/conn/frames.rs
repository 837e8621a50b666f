//! What each complete frame means.
//!
//! Invariants: a mistake that concerns one stream ends that stream, any other ends the connection; every
//! frame that makes us answer or work is counted.

use super::{
    Away, Conn, Event, Role,
    head::{Asked, Head},
    receive::{Block, protocol, wrong_size},
    streams::Flags,
};
use crate::wire::{
    abuse::Kind,
    error::{Code, ConnError},
    frame::{self, Header, setting},
    headers::Headers,
    hpack::HpackError,
};

impl<S: Default> Conn<S> {
    /// A frame other than DATA is complete.
    pub(super) fn frame_ends(
        &mut self,
        header: Header,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        let word = |at: usize| {
            payload[at..]
                .first_chunk()
                .map_or(0, |b| u32::from_be_bytes(*b))
        };
        match header.kind {
            frame::HEADERS => self.headers(header, payload, events),
            frame::CONTINUATION => self.continuation(header, payload, events),
            frame::RST_STREAM => self.reset_received(header.id, Code(word(0)), events),
            frame::SETTINGS => self.settings(header, payload, events),
            frame::PING => self.pinged(header, payload, events),
            frame::GOAWAY => {
                self.go_away_received(word(0) & frame::MAX_WINDOW, Code(word(4)), events);
                self.count(Kind::Settings)
            }
            _ => {
                if header.id != 0 {
                    self.known(header.id, "WINDOW_UPDATE on a stream that was never opened")?;
                }
                self.count(Kind::WindowUpdate)?;
                self.window_update(header.id, word(0) & frame::MAX_WINDOW, events)
            }
        }
    }

    fn headers(
        &mut self,
        header: Header,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        let mut part = payload;
        let mut pad = 0;
        if header.has(frame::PADDED) {
            let (&length, rest) = part
                .split_first()
                .ok_or(wrong_size("padding without a length"))?;
            (pad, part) = (usize::from(length), rest);
        }
        if header.has(frame::HAS_PRIORITY) {
            part = part
                .get(5..)
                .ok_or(wrong_size("HEADERS without its priority"))?;
        }
        let kept = part
            .len()
            .checked_sub(pad)
            .ok_or(protocol("padding longer than its frame"))?;
        let end_stream = header.has(frame::END_STREAM);
        if header.has(frame::END_HEADERS) {
            return self.block_complete(header.id, end_stream, &part[..kept], events);
        }
        let bytes = part[..kept].to_vec();
        self.parser.block = Some(Block {
            id: header.id,
            end_stream,
            continuations: 0,
            bytes,
        });
        Ok(())
    }

    fn continuation(
        &mut self,
        header: Header,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        let Some(mut block) = self.parser.block.take() else {
            return Ok(());
        };
        block.continuations += 1;
        let too_many = block.continuations > self.limits.continuations;
        if too_many || block.bytes.len() + payload.len() > self.limits.header_block {
            return Err(ConnError::new(
                Code::ENHANCE_YOUR_CALM,
                "a header block larger than we accept",
            ));
        }
        block.bytes.extend_from_slice(payload);
        if header.has(frame::END_HEADERS) {
            return self.block_complete(block.id, block.end_stream, &block.bytes, events);
        }
        self.parser.block = Some(block);
        Ok(())
    }

    fn block_complete(
        &mut self,
        id: u32,
        end: bool,
        block: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        let mut head = Head::default();
        let limit = self.limits.header_list as usize;
        self.decoder
            .decode(block, limit, |name, value| head.field(name, value))
            .map_err(|e| match e {
                HpackError::Malformed(what) => ConnError::new(Code::COMPRESSION_ERROR, what),
                HpackError::TooLarge(_) => ConnError::new(
                    Code::ENHANCE_YOUR_CALM,
                    "a header list larger than we accept",
                ),
            })?;
        if self.role == Role::Server && id > self.last_peer_id {
            return self.request(id, end, head, events);
        }
        self.known(id, "HEADERS on a stream that may not be opened")?;
        let Some(entry) = self.streams.get_live(id) else {
            return self.count(Kind::Stray);
        };
        if entry.flags.has(Flags::RECEIVED_END) {
            return self.stream_error(id, Code::STREAM_CLOSED, events);
        }
        if self.role == Role::Client && !entry.flags.has(Flags::ANSWERED) {
            return self.response(id, end, head, events);
        }
        if !end || !head.trailers() {
            return self.stream_error(id, Code::PROTOCOL_ERROR, events);
        }
        self.end_received(id, events);
        Ok(())
    }

    fn request(
        &mut self,
        id: u32,
        end: bool,
        head: Head,
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        if id.is_multiple_of(2) {
            return Err(protocol("a client's stream with an even number"));
        }
        if self.away == Away::Final {
            // Streams behind our GOAWAY do not exist for us.
            return self.count(Kind::Stray);
        }
        self.last_peer_id = id;
        let limit = self.limits.streams as usize;
        if self.streams.live() >= limit || self.streams.len() >= 2 * limit {
            self.out.put(&frame::number(
                frame::RST_STREAM,
                id,
                Code::REFUSED_STREAM.0,
            ));
            return self.count(Kind::LocalReset);
        }
        let window = self.stream_window();
        self.streams
            .insert(id, self.peer.initial_window, window, S::default());
        match head.request() {
            Asked::Connect(request) => {
                events.push(Event::Request {
                    id,
                    request: Box::new(request),
                });
                if end {
                    self.end_received(id, events);
                }
                Ok(())
            }
            Asked::Other => {
                if end {
                    self.streams.end_receive(id);
                }
                self.respond(id, 400, &Headers::new(), true);
                self.streams.remove(id);
                self.count(Kind::LocalReset)
            }
            Asked::Malformed => {
                self.reset(id, Code::PROTOCOL_ERROR);
                self.streams.remove(id);
                self.count(Kind::LocalReset)
            }
        }
    }

    fn response(
        &mut self,
        id: u32,
        end: bool,
        head: Head,
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        let Some(response) = head.response() else {
            return self.stream_error(id, Code::PROTOCOL_ERROR, events);
        };
        if response.status < 200 {
            if end || response.status == 101 {
                return self.stream_error(id, Code::PROTOCOL_ERROR, events);
            }
            return self.count(Kind::Stray);
        }
        if let Some(entry) = self.streams.get(id) {
            entry.flags.set(Flags::ANSWERED);
        }
        events.push(Event::Response {
            id,
            response: Box::new(response),
        });
        if end {
            self.end_received(id, events);
        }
        Ok(())
    }

    fn reset_received(
        &mut self,
        id: u32,
        code: Code,
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        self.known(id, "RST_STREAM on a stream that was never opened")?;
        let Some(entry) = self.streams.get(id) else {
            return self.count(Kind::Stray);
        };
        let answered = entry.flags.has(Flags::ANSWERED);
        if self.streams.kill(id) {
            events.push(Event::Reset { id, code });
        }
        let early = self.role == Role::Server && !answered;
        self.count(if early { Kind::EarlyReset } else { Kind::Reset })
    }

    /// Resets a stream because of the peer's mistake.
    pub(super) fn stream_error(
        &mut self,
        id: u32,
        code: Code,
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        self.reset(id, code);
        events.push(Event::Reset { id, code });
        self.count(Kind::LocalReset)
    }

    fn settings(
        &mut self,
        header: Header,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        self.greeted = true;
        self.count(Kind::Settings)?;
        if header.has(frame::ACK) {
            return Ok(());
        }
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
            match id {
                setting::ENABLE_PUSH if value > 1 => {
                    return Err(protocol("ENABLE_PUSH is neither 0 nor 1"));
                }
                setting::MAX_CONCURRENT_STREAMS => self.peer.streams = value,
                setting::INITIAL_WINDOW_SIZE if value > frame::MAX_WINDOW => {
                    return Err(ConnError::new(
                        Code::FLOW_CONTROL_ERROR,
                        "a setting makes a window larger than 2^31-1",
                    ));
                }
                setting::INITIAL_WINDOW_SIZE => self.initial_window(value, events)?,
                setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                    return Err(protocol("MAX_FRAME_SIZE is out of its range"));
                }
                // Our frames are as small as every peer accepts, and we use no dynamic table; the rest does
                // not concern CONNECT or is unknown.
                _ => {}
            }
        }
        events.push(Event::Windows);
        self.out
            .put(&frame::header(0, frame::SETTINGS, frame::ACK, 0));
        Ok(())
    }

    fn pinged(
        &mut self,
        header: Header,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        self.count(Kind::Ping)?;
        if !header.has(frame::ACK) {
            self.out.put(&frame::header(8, frame::PING, frame::ACK, 0));
            self.out.put(payload);
            return Ok(());
        }
        events.push(Event::Pong);
        if self.away == Away::Announced {
            self.go_away(Code::NO_ERROR, "");
        }
        Ok(())
    }

    fn go_away_received(&mut self, last: u32, code: Code, events: &mut Vec<Event>) {
        self.peer_away = true;
        if self.role == Role::Client {
            let refused: Vec<u32> = self
                .streams
                .each()
                .map(|(id, _)| id)
                .filter(|&id| id > last)
                .collect();
            for id in refused {
                if self.streams.kill(id) {
                    events.push(Event::Reset {
                        id,
                        code: Code::REFUSED_STREAM,
                    });
                }
            }
        }
        events.push(Event::GoAway { code });
    }
}
