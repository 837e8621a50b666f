//! The relay between two sockets.
//!
//! Invariants: as for tunnel streams: half-close travels as half-close, a reset as a reset; at most one
//! buffer per direction waits, and only while the other side is slow.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io::{self, ErrorKind},
    task::{Context, Poll},
};

use mesh_model::reason::Reason;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::{CutSignal, End, Meter, Side, flow::is_orderly, splice::reset};

/// What one read asks for.
const CHUNK: usize = 128 << 10;
/// Reads of one direction before other tasks get their turn.
const ROUNDS: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Moves bytes between two sockets until both directions have ended. `meter.forward` counts what came from `a`.
pub fn copy(
    a: TcpStream,
    b: TcpStream,
    meter: &Meter,
    cut: CutSignal,
) -> impl Future<Output = End> + Unpin + use<> {
    let _ = (a.set_nodelay(true), b.set_nodelay(true));
    let mut copy = Copy {
        a,
        b,
        forward: Way::default(),
        backward: Way::default(),
        meter: meter.clone(),
        cut,
        done: false,
    };
    poll_fn(move |cx| copy.poll(cx))
}

struct Copy {
    a: TcpStream,
    b: TcpStream,
    forward: Way,
    backward: Way,
    meter: Meter,
    cut: CutSignal,
    done: bool,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// What the receiver did not take yet, from `at`.
    waiting: Vec<u8>,
    at: usize,
    ended: bool,
    shut: bool,
}

/// Which of a direction's two sockets failed.
enum Failed {
    Source(io::Error),
    Sink(io::Error),
}

impl Copy {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Poll::Ready(reason) = self.cut.poll(cx) {
            self.done = is_orderly(reason);
            return Poll::Ready(End::cut(reason));
        }
        let meter = &self.meter;
        if let Err(failed) = self
            .forward
            .poll(&self.a, &self.b, |n| meter.add_forward(n), cx)
        {
            return Poll::Ready(failed.end(Side::First, Side::Second));
        }
        if let Err(failed) = self
            .backward
            .poll(&self.b, &self.a, |n| meter.add_backward(n), cx)
        {
            return Poll::Ready(failed.end(Side::Second, Side::First));
        }
        if self.forward.shut && self.backward.shut {
            self.done = true;
            return Poll::Ready(End::clean());
        }
        Poll::Pending
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.done {
            reset(&self.a);
            reset(&self.b);
        }
    }
}

impl Failed {
    fn end(self, source: Side, sink: Side) -> End {
        match self {
            Self::Source(e) => {
                End::early(Reason::PeerReset, source, format!("reading failed: {e}"))
            }
            Self::Sink(e) => End::early(Reason::PeerReset, sink, format!("writing failed: {e}")),
        }
    }
}

impl Way {
    fn poll(
        &mut self,
        source: &TcpStream,
        sink: &TcpStream,
        count: impl Fn(usize),
        cx: &mut Context<'_>,
    ) -> Result<(), Failed> {
        for _ in 0..ROUNDS {
            if !self.drain(sink, &count, cx)? {
                return Ok(());
            }
            if self.ended {
                if !self.shut {
                    SockRef::from(sink)
                        .shutdown(std::net::Shutdown::Write)
                        .map_err(Failed::Sink)?;
                    self.shut = true;
                }
                return Ok(());
            }
            match source.poll_read_ready(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(result) => result.map_err(Failed::Source)?,
            }
            SCRATCH.with_borrow_mut(|scratch| self.read(source, sink, scratch, &count))?;
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Writes what waits; `false` if some of it still does.
    fn drain(
        &mut self,
        sink: &TcpStream,
        count: &impl Fn(usize),
        cx: &mut Context<'_>,
    ) -> Result<bool, Failed> {
        while self.at < self.waiting.len() {
            match sink.poll_write_ready(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(result) => result.map_err(Failed::Sink)?,
            }
            match sink.try_write(&self.waiting[self.at..]) {
                Ok(n) => {
                    self.at += n;
                    count(n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(Failed::Sink(e)),
            }
        }
        (self.waiting, self.at) = (Vec::new(), 0);
        Ok(true)
    }

    /// One read, and its write.
    fn read(
        &mut self,
        source: &TcpStream,
        sink: &TcpStream,
        scratch: &mut Vec<u8>,
        count: &impl Fn(usize),
    ) -> Result<(), Failed> {
        scratch.resize(CHUNK, 0);
        let n = match source.try_read(scratch) {
            Ok(0) => {
                self.ended = true;
                return Ok(());
            }
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(Failed::Source(e)),
        };
        if n < CHUNK {
            // The socket is drained; say so without asking it again.
            let _ = source.try_io(Interest::READABLE, || {
                Err::<(), _>(ErrorKind::WouldBlock.into())
            });
        }
        let taken = match sink.try_write(&scratch[..n]) {
            Ok(taken) => taken,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(e) => return Err(Failed::Sink(e)),
        };
        count(taken);
        self.waiting.extend_from_slice(&scratch[taken..n]);
        Ok(())
    }
}
