//! A client's side whose reads are looked at by whoever has a say in them; writes go straight through.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tunnel::Io;

/// Who has a say in reads.
pub(super) trait Reads: Unpin {
    /// Reads from `io`, or has it wait.
    fn poll(
        &mut self,
        io: Pin<&mut Io>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>>;
}

/// A client's side.
pub(super) struct Side<R> {
    io: Io,
    reads: R,
}

impl<R> Side<R> {
    /// That of `io`, in whose reads `reads` has a say.
    pub fn new(io: Io, reads: R) -> Self {
        Self { io, reads }
    }

    /// The side itself.
    pub fn into_inner(self) -> Io {
        self.io
    }
}

impl<R: Reads> AsyncRead for Side<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, reads } = self.get_mut();
        reads.poll(Pin::new(io), cx, buf)
    }
}

impl<R: Reads> AsyncWrite for Side<R> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
