//! Tunnels over sockets: `connect` for the side that opens streams, `accept` for the side that serves them.
//!
//! Invariants: a tunnel and all its streams live on the thread that made it (call inside a `LocalSet`);
//! no byte of a stream leaves before its request was answered with 200.

use std::{marker::PhantomData, rc::Rc, sync::Arc};

use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;

pub use super::error::{OpenError, REASON_HEADER, TunnelError};
use crate::wire::{Headers, Limits};

/// A CONNECT to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// `address:port` or `host:port`.
    pub authority: String,
    /// Further headers, such as baggage, forwarded, traceparent.
    pub headers: Headers,
}

/// The opening side of a tunnel. Clones are handles to the same tunnel; it closes by itself when the last
/// handle is dropped and its last stream has ended, or after `Limits::idle` without streams.
#[derive(Clone, Debug)]
pub struct ClientTunnel(PhantomData<Rc<()>>);

/// Makes a tunnel on a connected socket. Cancel-safe: dropping the future closes the socket. No deadline of its own.
pub async fn connect(_tcp: TcpStream, _tls: Arc<rustls::ClientConfig>, _limits: Limits) -> Result<ClientTunnel, TunnelError> {
    Err(TunnelError::Closed)
}

impl ClientTunnel {
    /// Opens a stream and waits until the far side answered 200.
    pub async fn open(&self, _request: ConnectRequest) -> Result<Stream, OpenError> {
        Err(OpenError::Saturated)
    }
    /// How many further streams may be opened now; zero once it closes.
    pub fn capacity(&self) -> usize {
        0
    }
    /// Streams that are open.
    pub fn streams(&self) -> usize {
        0
    }
    /// Whether it takes no further streams, ever.
    pub fn is_closed(&self) -> bool {
        true
    }
    /// Takes no further streams; ends when those open have ended.
    pub fn go_away(&self) {}
    /// The chain that the peer proved.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &[]
    }
}

/// The serving side of a tunnel. Dropping it refuses further streams and lets those open end.
#[derive(Debug)]
pub struct ServerTunnel(PhantomData<Rc<()>>);

/// Accepts a tunnel on an accepted socket. Cancel-safe; no deadline of its own.
pub async fn accept(_tcp: TcpStream, _tls: Arc<rustls::ServerConfig>, _limits: Limits) -> Result<ServerTunnel, TunnelError> {
    Err(TunnelError::Closed)
}

impl ServerTunnel {
    /// The next request; `None` once the tunnel has ended and no request is left.
    pub async fn next(&mut self) -> Option<Incoming> {
        None
    }
    /// Sends GOAWAY and lets open streams end; `next` then gives what had arrived before, and then `None`.
    pub fn drain(&self) {}
    /// Ends the tunnel at once: every stream is reset.
    pub fn abort(&self) {}
    /// Streams that are open.
    pub fn streams(&self) -> usize {
        0
    }
    /// Why the tunnel ended, once it has.
    pub fn error(&self) -> Option<TunnelError> {
        None
    }
    /// The chain that the client proved.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &[]
    }
}

/// A request that waits for its answer. Dropped unanswered, it is refused with 503.
#[derive(Debug)]
pub struct Incoming(PhantomData<Rc<()>>);

impl Incoming {
    /// The authority as it was sent.
    pub fn authority(&self) -> &str {
        ""
    }
    /// The further headers.
    pub fn headers(&self) -> &Headers {
        const { &Headers::new() }
    }
    /// Answers 200; from now on bytes flow.
    pub fn accept(self, _headers: Headers) -> Stream {
        Stream(PhantomData)
    }
    /// Answers with another status and ends the stream.
    pub fn refuse(self, _status: u16, _headers: Headers) {}
    /// Waits until the client gave the request up (or the tunnel ended), so that a dial for it can stop.
    pub async fn cancelled(&mut self) {}
}

/// An open stream of a tunnel. Dropped before it ended, it is reset (CANCEL).
#[derive(Debug)]
pub struct Stream(PhantomData<Rc<()>>);

impl Stream {
    /// The headers of the far side's 200 (client side only).
    pub fn response_headers(&self) -> &Headers {
        const { &Headers::new() }
    }
    /// Ends the stream as a TCP reset would.
    pub fn reset(self) {}
}
