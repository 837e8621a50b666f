//! Peers of HTTP/2 that say whatever a test gives them, frame by frame.
//!
//! Invariant: nothing here is looked at before it is sent; what no library would send is what it is for.

use super::*;
use crate::wire::{frame, hpack};

/// The code of a stream that its peer does not want any more (RFC 9113, 7).
pub(super) const CANCEL: u32 = 8;

/// A frame: type, flags, stream, what is in it.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = frame::header(body.len(), kind, flags, stream).to_vec();
    frame.extend(body);
    frame
}

/// A frame of SETTINGS.
pub(super) fn settings(all: &[(u16, u32)]) -> Vec<u8> {
    let each = all.iter();
    let each =
        each.flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(frame::SETTINGS, 0, 0, &each.collect::<Vec<_>>())
}

/// Header fields as they are, none of them indexed.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // More would need a second byte.
            assert!(text.len() < 127, "{text:?} is too long");
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A frame of HEADERS that is a whole request's.
pub(super) fn headers(stream: u32, fields: &[(&str, &str)], ends: bool) -> Vec<u8> {
    let flags = frame::END_HEADERS | if ends { frame::END_STREAM } else { 0 };
    frame(frame::HEADERS, flags, stream, &block(fields))
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was answered with this status, and in whole.
    Answered(u16),
    /// It was reset, alone, with this code.
    Reset(u32),
    /// The connection ended, with this code where one was given.
    Ended(Option<u32>),
}

/// A connection from the client to the service.
pub(super) struct Raw {
    pub tcp: TcpStream,
    decoder: hpack::Decoder,
}

impl Raw {
    /// Dials, and begins as every client does.
    pub async fn dial(w: &World, from: &Home) -> Self {
        let mut tcp = w.node.dial(from, w.vip).await;
        let begin = [&frame::PREFACE[..], &settings(&[])].concat();
        tcp.write_all(&begin).await.expect("sent");
        let decoder = hpack::Decoder::default();
        Self { tcp, decoder }
    }

    /// Sends what the peer may not want to hear to its end.
    pub async fn say(&mut self, bytes: &[u8]) {
        let _ = self.tcp.write_all(bytes).await;
    }

    /// Reads until it is known what became of a stream.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        let read = tokio::time::timeout(Duration::from_secs(10), self.read(stream)).await;
        read.unwrap_or_else(|_| panic!("nothing became of stream {stream}"))
            .unwrap_or(Outcome::Ended(None))
    }

    /// The same; an error is an end without a word.
    async fn read(&mut self, stream: u32) -> io::Result<Outcome> {
        let mut status = 0;
        loop {
            let mut head = [0; 9];
            self.tcp.read_exact(&mut head).await?;
            let head = frame::Header::parse(&head);
            let mut body = vec![0; head.len];
            self.tcp.read_exact(&mut body).await?;
            let code = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().expect("four"));
            match head.kind {
                frame::HEADERS => {
                    let decoded = self.decoder.decode(&body, 64 << 10, |name, value| {
                        if name == b":status" && head.id == stream {
                            let text = std::str::from_utf8(value).expect("digits");
                            status = text.parse().expect("a number");
                        }
                    });
                    decoded.expect("good");
                }
                frame::RST_STREAM if head.id == stream => return Ok(Outcome::Reset(code(0))),
                // One without an error is a goodbye, after which streams are answered.
                frame::GOAWAY if code(4) != 0 => return Ok(Outcome::Ended(Some(code(4)))),
                _ => {}
            }
            let ends = matches!(head.kind, frame::HEADERS | frame::DATA)
                && head.has(frame::END_STREAM)
                && head.id == stream;
            if ends {
                return Ok(Outcome::Answered(status));
            }
        }
    }
}
