//! Tunnels over sockets: `connect` for the side that opens streams, `accept` for the side that serves them.
//!
//! Invariants: a tunnel and all its streams live on the thread that made it (call inside a `LocalSet`);
//! no byte of a stream leaves before its request was answered with 200.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub use super::error::{OpenError, TunnelError};
use super::{
    driver::Driver,
    shared::{Inner, Shared, Slot, watch},
};
use crate::wire::{
    Headers, Limits,
    conn::{Conn, Request, Response, Role},
    error::Code,
    out::{Outgoing, Protect},
    tls::{Established, Handshake, Step},
};

/// Unsent bytes that the kernel takes before a tunnel's socket is full: what waits there cannot be overtaken.
const NOT_SENT: u32 = 256 << 10;
/// What one read of a handshake takes.
const HANDSHAKE_READ: usize = 16 << 10;

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
#[derive(Debug)]
pub struct ClientTunnel(Rc<Shared>);

/// Makes a tunnel on a connected socket. Cancel-safe: dropping the future closes the socket. No deadline of its own.
pub async fn connect(
    tcp: TcpStream,
    tls: Arc<rustls::ClientConfig>,
    limits: Limits,
) -> Result<ClientTunnel, TunnelError> {
    let peer = tcp.peer_addr().map_err(io)?.ip();
    let handshake = Handshake::client(tls, ServerName::IpAddress(peer.into()))?;
    Ok(ClientTunnel(
        establish(tcp, handshake, Role::Client, limits).await?,
    ))
}

impl ClientTunnel {
    /// Opens a stream and waits until the far side answered 200.
    pub async fn open(&self, request: ConnectRequest) -> Result<Stream, OpenError> {
        let valid = !request.authority.is_empty()
            && request.authority.bytes().all(|b| b.is_ascii_graphic());
        if !valid {
            return Err(OpenError::BadRequest {
                authority: request.authority,
            });
        }
        let mut stream = {
            let mut inner = self.0.inner.borrow_mut();
            if let Some(error) = &inner.closed {
                return Err(OpenError::Tunnel(error.clone()));
            }
            if inner.conn.is_going_away() {
                return Err(OpenError::Tunnel(TunnelError::Closed));
            }
            if inner.conn.capacity() == 0 {
                return Err(OpenError::Saturated);
            }
            let id = inner
                .conn
                .connect(&request.authority, &request.headers, Slot::default());
            inner.wake_driver();
            Stream {
                shared: self.0.clone(),
                id,
                response: None,
            }
        };
        let response = poll_fn(|cx| {
            let mut inner = stream.shared.inner.borrow_mut();
            let inner = &mut *inner;
            let Some(slot) = inner.conn.get(stream.id) else {
                return Poll::Ready(Err(TunnelError::Closed.into()));
            };
            if let Some(response) = slot.response.take() {
                return Poll::Ready(Ok(response));
            }
            if let Some(code) = slot.reset {
                return Poll::Ready(Err(OpenError::Reset { code: code.0 }));
            }
            if let Some(error) = &inner.closed {
                return Poll::Ready(Err(error.clone().into()));
            }
            slot.watch(cx);
            Poll::Pending
        })
        .await?;
        if response.status != 200 {
            let Response { status, headers } = *response;
            return Err(OpenError::Refused { status, headers });
        }
        stream.response = (!response.headers.is_empty()).then_some(response);
        Ok(stream)
    }

    /// How many further streams may be opened now; zero once it closes.
    pub fn capacity(&self) -> usize {
        let inner = self.0.inner.borrow();
        if inner.closed.is_some() {
            0
        } else {
            inner.conn.capacity()
        }
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.0.inner.borrow().conn.open_streams()
    }

    /// Whether it takes no further streams, ever.
    pub fn is_closed(&self) -> bool {
        let inner = self.0.inner.borrow();
        inner.closed.is_some() || inner.conn.is_going_away()
    }

    /// Takes no further streams; ends when those open have ended.
    pub fn go_away(&self) {
        let mut inner = self.0.inner.borrow_mut();
        inner.conn.drain();
        inner.wake_driver();
    }

    /// Waits until it takes no further streams and has none, or has failed. For one waiter at a time.
    pub fn closed(&self) -> impl Future<Output = TunnelError> + 'static {
        let shared = self.0.clone();
        poll_fn(move |cx| {
            let mut inner = shared.inner.borrow_mut();
            if let Some(error) = &inner.closed {
                return Poll::Ready(error.clone());
            }
            watch(&mut inner.acceptor, cx);
            Poll::Pending
        })
    }

    /// Whether both are handles to one tunnel.
    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Why the tunnel ended, once it has.
    pub fn error(&self) -> Option<TunnelError> {
        self.0.inner.borrow().closed.clone()
    }

    /// The chain that the peer proved.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }
}

impl Clone for ClientTunnel {
    fn clone(&self) -> Self {
        self.0.hold();
        Self(self.0.clone())
    }
}

impl Drop for ClientTunnel {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The serving side of a tunnel. Dropping it refuses further streams and lets those open end.
#[derive(Debug)]
pub struct ServerTunnel(Rc<Shared>);

/// Accepts a tunnel on an accepted socket. Cancel-safe; no deadline of its own.
pub async fn accept(
    tcp: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    limits: Limits,
) -> Result<ServerTunnel, TunnelError> {
    let handshake = Handshake::server(tls)?;
    Ok(ServerTunnel(
        establish(tcp, handshake, Role::Server, limits).await?,
    ))
}

impl ServerTunnel {
    /// The next request; `None` once the tunnel has ended or drained and no request is left.
    pub async fn next(&mut self) -> Option<Incoming> {
        poll_fn(|cx| {
            let mut inner = self.0.inner.borrow_mut();
            if let Some((id, request)) = inner.incoming.pop_front() {
                let stream = Stream {
                    shared: self.0.clone(),
                    id,
                    response: None,
                };
                return Poll::Ready(Some(Incoming {
                    stream: Some(stream),
                    request,
                }));
            }
            if inner.closed.is_some() || inner.conn.is_finished() {
                return Poll::Ready(None);
            }
            watch(&mut inner.acceptor, cx);
            Poll::Pending
        })
        .await
    }

    /// Sends GOAWAY and lets open streams end; `next` then gives what had arrived before, and then `None`.
    pub fn drain(&self) {
        let mut inner = self.0.inner.borrow_mut();
        inner.conn.drain();
        inner.wake_driver();
    }

    /// Ends the tunnel at once: every stream is reset.
    pub fn abort(&self) {
        let mut inner = self.0.inner.borrow_mut();
        inner.abort = true;
        inner.wake_driver();
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.0.inner.borrow().conn.open_streams()
    }

    /// Why the tunnel ended, once it has.
    pub fn error(&self) -> Option<TunnelError> {
        self.0.inner.borrow().closed.clone()
    }

    /// The chain that the client proved.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }
}

impl Drop for ServerTunnel {
    fn drop(&mut self) {
        if let Ok(mut inner) = self.0.inner.try_borrow_mut() {
            while let Some((id, _)) = inner.incoming.pop_front() {
                inner.conn.remove(id, Code::REFUSED_STREAM);
            }
            inner.unattended = true;
            inner.conn.drain();
            inner.wake_driver();
        }
        self.0.release();
    }
}

/// A request that waits for its answer. Dropped unanswered, it is refused with 503.
#[derive(Debug)]
pub struct Incoming {
    /// Present until it was answered.
    stream: Option<Stream>,
    request: Box<Request>,
}

impl Incoming {
    /// The authority as it was sent.
    pub fn authority(&self) -> &str {
        &self.request.authority
    }

    /// The further headers.
    pub fn headers(&self) -> &Headers {
        &self.request.headers
    }

    /// Answers 200; from now on bytes flow.
    pub fn accept(mut self, headers: Headers) -> Stream {
        let stream = self.stream.take().expect("a request is answered once");
        let mut inner = stream.shared.inner.borrow_mut();
        inner.conn.respond(stream.id, 200, &headers, false);
        inner.wake_driver();
        drop(inner);
        stream
    }

    /// Answers with another status and ends the stream.
    pub fn refuse(mut self, status: u16, headers: Headers) {
        self.answer(status, &headers);
    }

    /// Waits until the client gave the request up (or the tunnel ended), so that a dial for it can stop.
    pub async fn cancelled(&mut self) {
        let Some(stream) = &self.stream else { return };
        poll_fn(|cx| {
            let mut inner = stream.shared.inner.borrow_mut();
            let closed = inner.closed.is_some();
            match inner.conn.get(stream.id) {
                Some(slot) if slot.reset.is_none() && !closed => {
                    slot.watch(cx);
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    fn answer(&mut self, status: u16, headers: &Headers) {
        if let Some(stream) = self.stream.take() {
            let mut inner = stream.shared.inner.borrow_mut();
            inner.conn.respond(stream.id, status, headers, true);
            inner.wake_driver();
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.answer(503, &Headers::new());
    }
}

/// An open stream of a tunnel. Dropped before it ended, it is reset (CANCEL).
#[derive(Debug)]
pub struct Stream {
    pub(super) shared: Rc<Shared>,
    pub(super) id: u32,
    response: Option<Box<Response>>,
}

impl Stream {
    /// The headers of the far side's 200 (client side only).
    pub fn response_headers(&self) -> &Headers {
        const NONE: &Headers = &Headers::new();
        self.response
            .as_ref()
            .map_or(NONE, |response| &response.headers)
    }

    /// Lets go of them: they are as large as all the rest that an idle flow holds here.
    pub(super) fn forget_response(&mut self) {
        self.response = None;
    }

    /// Ends the stream as a TCP reset would.
    pub fn reset(self) {
        self.end(Code::CONNECT_ERROR);
    }

    pub(super) fn end(&self, code: Code) {
        // During the thread's teardown the driver may hold the state; then the tunnel ends anyway.
        if let Ok(mut inner) = self.shared.inner.try_borrow_mut() {
            inner.conn.remove(self.id, code);
            inner.wake_driver();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end(Code::CANCEL);
    }
}

fn io(error: std::io::Error) -> TunnelError {
    TunnelError::Io(error.to_string())
}

/// Handshake, then a driver of its own task.
async fn establish(
    mut tcp: TcpStream,
    mut handshake: Handshake,
    role: Role,
    limits: Limits,
) -> Result<Rc<Shared>, TunnelError> {
    tcp.set_nodelay(true).map_err(io)?;
    let _ = socket2::SockRef::from(&tcp).set_tcp_notsent_lowat(NOT_SENT);
    let mut early = Vec::new();
    let mut incoming = Vec::new();
    shake(&mut tcp, &mut handshake, &mut incoming, &mut early).await?;
    let Established {
        sealer,
        session,
        certificates,
    } = handshake.finish(&incoming)?;
    let out = Outgoing::new(Protect::Tls(sealer));
    let now = tokio::time::Instant::now().into_std();
    let inner = Inner {
        conn: Conn::new(role, limits.clone(), out, now),
        driver: None,
        acceptor: None,
        incoming: VecDeque::new(),
        waiting: VecDeque::new(),
        closed: None,
        unattended: false,
        abort: false,
    };
    let shared = Rc::new(Shared {
        inner: RefCell::new(inner),
        handles: Cell::new(1),
        certificates,
    });
    let mut driver = Driver::new(
        tcp,
        shared.clone(),
        session,
        incoming,
        limits,
        role == Role::Client,
    );
    driver.early(&early)?;
    tokio::task::spawn_local(driver);
    Ok(shared)
}

async fn shake(
    tcp: &mut TcpStream,
    handshake: &mut Handshake,
    incoming: &mut Vec<u8>,
    early: &mut Vec<u8>,
) -> Result<(), TunnelError> {
    let mut outgoing = Vec::new();
    loop {
        let step = match handshake.advance(incoming, &mut outgoing, early) {
            Ok(step) => step,
            Err(error) => {
                // The peer should learn why; it is no loss if it cannot.
                let _ = tcp.try_write(&outgoing);
                return Err(error.into());
            }
        };
        if !outgoing.is_empty() {
            tcp.write_all(&outgoing).await.map_err(io)?;
            outgoing.clear();
        }
        match step {
            Step::Write => {}
            Step::Done => return Ok(()),
            Step::Read => {
                incoming.reserve(HANDSHAKE_READ);
                if tcp.read_buf(incoming).await.map_err(io)? == 0 {
                    return Err(TunnelError::Eof);
                }
            }
        }
    }
}
