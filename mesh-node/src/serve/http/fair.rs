//! A client's connection of HTTP/2 beside others on its thread: however fast it sends, they have their turns.
//!
//! Invariant: after so many reads in a row that found something, everybody else of the thread runs before the next one.
//! Frames cost far more than their bytes: without this a flood of SETTINGS holds up all that the thread carries.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    task::yield_now,
};

use super::side::Reads;
use crate::tunnel::Io;

/// Reads in a row: of the smallest frames that is about a millisecond of work.
const READS: u32 = 4;

/// Lets others have their turns between reads.
#[derive(Default)]
pub(super) struct Fair {
    reads: u32,
}

impl Reads for Fair {
    fn poll(
        &mut self,
        io: Pin<&mut Io>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.reads == READS {
            self.reads = 0;
            // Polled once it has us woken when the others have run, those whose sockets became ready among them.
            return pin!(yield_now()).poll(cx).map(Ok);
        }
        let read = io.poll_read(cx, buf);
        self.reads = if read.is_ready() { self.reads + 1 } else { 0 };
        read
    }
}
