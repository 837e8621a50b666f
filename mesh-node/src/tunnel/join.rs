//! The relay between a tunnel's stream and another connection, where neither is an application's own socket.
//!
//! Invariants: half-close travels as half-close, a failure of one side resets the other; what one side does not take
//! waits, and nothing more is read for it meanwhile; an idle flow holds no buffer.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use mesh_model::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{CutSignal, End, Link, Meter, Side, flow::is_orderly};

/// What is read at once.
const CHUNK: usize = 64 << 10;
/// Reads of one direction before others get their turn.
const ROUNDS: usize = 4;

thread_local! {
    /// What is read goes on from here at once; nothing of it is kept between polls.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Moves bytes between both until both directions have ended. `meter.forward` counts what came from `first`.
pub fn join<F: AsyncRead + AsyncWrite + Unpin>(
    first: F,
    second: Link,
    meter: &Meter,
    cut: CutSignal,
) -> impl Future<Output = End> + Unpin + use<F> {
    let meter = meter.clone();
    let mut ends = Some((first, second));
    let (mut forward, mut backward) = (Way::default(), Way::default());
    poll_fn(move |cx| {
        let Some((first, second)) = &mut ends else {
            return Poll::Pending;
        };
        let end = if let Poll::Ready(reason) = cut.poll(cx) {
            if is_orderly(reason) {
                // Said as far as there is room; whoever reads no more is closed all the same.
                let _ = Pin::new(&mut *first).poll_shutdown(cx);
                let _ = Pin::new(&mut *second).poll_shutdown(cx);
            }
            End::cut(reason)
        } else {
            let there = forward.poll(cx, first, second, |n| meter.add_forward(n));
            let back = backward.poll(cx, second, first, |n| meter.add_backward(n));
            match (there, back) {
                (Poll::Ready(Err(failed)), _) => failed.end(Side::First, Side::Second),
                (_, Poll::Ready(Err(failed))) => failed.end(Side::Second, Side::First),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => End::clean(),
                (Poll::Pending, _) | (_, Poll::Pending) => return Poll::Pending,
            }
        };
        if let Some((_first, second)) = ends.take()
            && end.reason.is_some_and(|reason| !is_orderly(reason))
        {
            second.reset();
        }
        Poll::Ready(end)
    })
}

/// Why a direction failed: its source or its sink.
enum Failed {
    Source(io::Error),
    Sink(io::Error),
}

impl Failed {
    fn end(self, source: Side, sink: Side) -> End {
        let (side, error) = match self {
            Self::Source(error) => (source, error),
            Self::Sink(error) => (sink, error),
        };
        End::early(Reason::PeerReset, side, error.to_string())
    }
}

/// One direction.
#[derive(Default)]
struct Way {
    waiting: Vec<u8>,
    at: usize,
    ended: bool,
    shut: bool,
}

impl Way {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        sink: &mut (impl AsyncWrite + Unpin),
        count: impl Fn(usize),
    ) -> Poll<Result<(), Failed>> {
        for _ in 0..ROUNDS {
            while self.at < self.waiting.len() {
                let written = Pin::new(&mut *sink).poll_write(cx, &self.waiting[self.at..]);
                let n = ready!(written).map_err(Failed::Sink)?;
                self.at += n;
                count(n);
            }
            (self.waiting, self.at) = (Vec::new(), 0);
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Failed::Sink)?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            ready!(SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(CHUNK, 0);
                self.read(cx, source, sink, scratch, &count)
            }))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read, and its write.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        sink: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
        count: &impl Fn(usize),
    ) -> Poll<Result<(), Failed>> {
        let mut space = ReadBuf::new(scratch);
        let Poll::Ready(read) = Pin::new(source).poll_read(cx, &mut space) else {
            // What TLS could not send yet goes on while nothing comes.
            ready!(Pin::new(sink).poll_flush(cx)).map_err(Failed::Sink)?;
            return Poll::Pending;
        };
        read.map_err(Failed::Source)?;
        let read = space.filled();
        if read.is_empty() {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        let taken = match Pin::new(sink).poll_write(cx, read) {
            Poll::Pending => 0,
            Poll::Ready(written) => written.map_err(Failed::Sink)?,
        };
        count(taken);
        self.waiting.extend_from_slice(&read[taken..]);
        Poll::Ready(Ok(()))
    }
}
