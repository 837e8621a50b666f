//! A tunnel's stream as something to read from and write to, for whoever looks at the bytes: HTTP, and joining two.
//!
//! Invariants: what is not read waits in the stream's slot, bounded by its window; writing waits for its turn like
//! every stream of the tunnel; dropped after it was shut down it ends in order, before that as a reset. One task at
//! a time reads and writes: a stream has one waker.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{
    ends::Stream,
    shared::{Inner, Turn},
    splice::{GREEDY, QUANTUM, queue, reset, take_turn},
};
use crate::wire::{conn::Fill, error::Code};

/// A stream of a tunnel, to read and write.
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    /// What was read before and is to be read again.
    before: Bytes,
    /// Our direction has ended in order.
    finished: bool,
}

impl Io {
    /// Wraps an open stream.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            before: Bytes::new(),
            finished: false,
        }
    }

    /// Puts back what was read, to be read again first.
    pub fn unread(&mut self, bytes: Bytes) {
        debug_assert!(
            self.before.is_empty(),
            "only what was read last is put back"
        );
        self.before = bytes;
    }

    fn write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let (shared, id) = (self.stream.shared.clone(), self.stream.id);
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut inner = shared.inner.borrow_mut();
        let inner = &mut *inner;
        let closed = inner.closed.clone();
        let Some(slot) = inner.conn.get(id) else {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        };
        slot.watch(cx);
        if let Some(code) = slot.reset {
            return Poll::Ready(Err(was_reset(code)));
        }
        if let Some(error) = closed {
            return Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionAborted, error)));
        }
        slot.greedy = total > GREEDY;
        if !take_turn(inner, id) {
            return Poll::Pending;
        }
        match inner
            .conn
            .fill(id, QUANTUM.min(total), |into| Ok(copy(bufs, into)))
        {
            Fill::Taken(n) => {
                pass_turn(inner, id);
                inner.wake_driver();
                Poll::Ready(Ok(n))
            }
            Fill::NoRoom => {
                queue(inner, id);
                Poll::Pending
            }
            Fill::NoWindow => {
                pass_turn(inner, id);
                Poll::Pending
            }
            Fill::Closed => Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
            Fill::Failed(error) => Poll::Ready(Err(error)),
        }
    }
}

/// A turn that is used up or cannot be used goes to the next.
fn pass_turn(inner: &mut Inner, id: u32) {
    if let Some(slot) = inner.conn.get(id)
        && slot.turn != Turn::None
    {
        slot.turn = Turn::None;
        inner.wake_driver();
    }
}

/// As much of `from` as fits.
fn copy(from: &[IoSlice<'_>], into: &mut [IoSliceMut<'_>]) -> usize {
    let mut source = from.iter().filter(|s| !s.is_empty());
    let mut rest: &[u8] = &[];
    let mut copied = 0;
    for target in into {
        let mut at = 0;
        while at < target.len() {
            if rest.is_empty() {
                match source.next() {
                    Some(next) => rest = next,
                    None => return copied,
                }
            }
            let n = rest.len().min(target.len() - at);
            target[at..at + n].copy_from_slice(&rest[..n]);
            (at, copied, rest) = (at + n, copied + n, &rest[n..]);
        }
    }
    copied
}

fn was_reset(code: Code) -> io::Error {
    match code {
        Code::NO_ERROR => io::Error::new(ErrorKind::BrokenPipe, "the peer listens no more"),
        code => io::Error::new(
            ErrorKind::ConnectionReset,
            format!("the peer reset the stream: {code:?}"),
        ),
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.before.has_remaining() {
            let n = this.before.len().min(buf.remaining());
            buf.put_slice(&this.before.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let (shared, id) = (this.stream.shared.clone(), this.stream.id);
        let mut inner = shared.inner.borrow_mut();
        let inner = &mut *inner;
        let closed = inner.closed.clone();
        let Some(slot) = inner.conn.get(id) else {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        };
        slot.watch(cx);
        if let Some(code) = slot.reset
            && !(code == Code::NO_ERROR && slot.ended)
        {
            return Poll::Ready(Err(was_reset(code)));
        }
        if let Some(pending) = &mut slot.pending {
            let (front, _) = pending.as_slices();
            let n = front.len().min(buf.remaining());
            buf.put_slice(&front[..n]);
            pending.drain(..n);
            if pending.is_empty() {
                slot.pending = None;
            }
            inner.conn.drained(id, n);
            inner.wake_driver();
            return Poll::Ready(Ok(()));
        }
        match (slot.ended, closed) {
            (true, _) => Poll::Ready(Ok(())),
            (false, Some(error)) => {
                Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionAborted, error)))
            }
            (false, None) => Poll::Pending,
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The tunnel's driver sends by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.finished {
            this.finished = true;
            let mut inner = this.stream.shared.inner.borrow_mut();
            inner.conn.finish(this.stream.id);
            inner.wake_driver();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.stream.end(match self.finished {
            true => Code::NO_ERROR,
            false => Code::CONNECT_ERROR,
        });
    }
}

/// A connection to read and write, however it was made.
#[derive(Debug)]
pub enum Link {
    /// In a tunnel.
    Tunnel(Io),
    /// Plain TCP, and what was read of it before.
    Plain(TcpStream, Bytes),
    /// TLS to a server that is no part of the mesh, over one of the others.
    Tls(Box<TlsStream<Link>>, Bytes),
}

impl Link {
    /// The connection with what was read of it before.
    pub fn after(self, first: Bytes) -> Self {
        match self {
            Self::Tunnel(mut io) => {
                io.unread(first);
                Self::Tunnel(io)
            }
            Self::Plain(tcp, _) => Self::Plain(tcp, first),
            Self::Tls(tls, _) => Self::Tls(tls, first),
        }
    }

    /// Ends it with a reset.
    pub fn reset(self) {
        match self {
            // Dropped before its end, a stream is reset.
            Self::Tunnel(_) => {}
            Self::Plain(tcp, _) => reset(&tcp),
            Self::Tls(tls, _) => tls.into_inner().0.reset(),
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_read(cx, buf),
            Self::Plain(_, before) | Self::Tls(_, before) if before.has_remaining() => {
                let n = before.len().min(buf.remaining());
                buf.put_slice(&before.split_to(n));
                Poll::Ready(Ok(()))
            }
            Self::Plain(tcp, _) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls, _) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_write(cx, buf),
            Self::Plain(tcp, _) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls, _) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Plain(tcp, _) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls, _) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_flush(cx),
            Self::Plain(tcp, _) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls, _) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
            Self::Plain(tcp, _) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls, _) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
