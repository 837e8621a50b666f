//! A client's connection of HTTP/2 beside others on its thread: however fast it sends, they have their turns.
//!
//! Invariant: after so many reads in a row that found something, everybody else of the thread runs before the next one.
//! Frames cost far more than their bytes: without this a flood of SETTINGS holds up all that the thread carries.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::yield_now,
};

use crate::tunnel::Io;

/// Reads in a row: of the smallest frames that is about a millisecond of work.
const READS: u32 = 4;

/// A client's side.
pub(super) struct Fair {
    io: Io,
    reads: u32,
}

impl Fair {
    /// That of `io`.
    pub fn new(io: Io) -> Self {
        Self { io, reads: 0 }
    }
}

impl AsyncRead for Fair {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.reads == READS {
            self.reads = 0;
            // Polled once it has us woken when the others have run, those whose sockets became ready among them.
            return pin!(yield_now()).poll(cx).map(Ok);
        }
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.reads = if read.is_ready() { self.reads + 1 } else { 0 };
        read
    }
}

impl AsyncWrite for Fair {
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
