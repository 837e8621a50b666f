//! The relay between an application's socket and a tunnel stream.
//!
//! Invariants: bytes are read from the application straight into the tunnel's outgoing record; half-close
//! travels as half-close, a reset as a reset; a relay that is dropped resets both sides.

use std::{
    future::{Future, poll_fn},
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use mesh_model::reason::Reason;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::{
    CutSignal, End, Meter, Side,
    ends::Stream,
    flow::is_orderly,
    shared::{Inner, Turn},
};
use crate::wire::{conn::Fill, error::Code, out::CAPACITY};

/// What one stream may send before others get their turn.
pub(super) const QUANTUM: usize = 128 << 10;
/// A stream whose last read was larger than this waits its turn.
pub(super) const GREEDY: usize = 8 << 10;
/// Greedy streams fill the outgoing buffer only to here, so that there is always room for the others.
const HIGH: usize = CAPACITY - (80 << 10);
/// What no single read may fill, for the same reason.
const SPARE: usize = 16 << 10;

/// Moves bytes between `app` and `stream` until both directions have ended. `meter.forward` counts what came
/// from `app`. The future is small: what a connection needs lies in its tunnel.
pub fn splice(
    app: TcpStream,
    stream: Stream,
    meter: &Meter,
    cut: CutSignal,
) -> impl Future<Output = End> + Unpin + use<> {
    let mut splice = Splice::new(app, stream, meter, cut);
    poll_fn(move |cx| splice.poll(cx))
}

struct Splice {
    app: Rc<TcpStream>,
    stream: Stream,
    meter: Meter,
    cut: CutSignal,
    /// While nothing is read from the application, only this notices that it is gone.
    gone: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// The application sends nothing more, and the far side was told.
    app_ended: bool,
    /// The far side sends nothing more, and the application was told.
    shut: bool,
    /// Both sides ended in order: nothing to reset.
    done: bool,
}

impl Splice {
    fn new(app: TcpStream, mut stream: Stream, meter: &Meter, cut: CutSignal) -> Self {
        stream.forget_response();
        // A failure here shows again at the first read or write.
        let _ = app.set_nodelay(true);
        let app = Rc::new(app);
        if let Some(slot) = stream.shared.inner.borrow_mut().conn.get(stream.id) {
            slot.sink = Some(app.clone());
            slot.meter = Some(meter.clone());
        }
        Self {
            app,
            stream,
            meter: meter.clone(),
            cut,
            gone: None,
            app_ended: false,
            shut: false,
            done: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let cut = self.cut.poll(cx);
        if let Poll::Ready(reason) = cut
            && !is_orderly(reason)
        {
            return Poll::Ready(End::cut(reason));
        }
        let shared = self.stream.shared.clone();
        let mut inner = shared.inner.borrow_mut();
        let inner = &mut *inner;
        if let Poll::Ready(reason) = cut {
            inner.conn.finish(self.stream.id);
            self.stream_ends(inner, Code::NO_ERROR);
            self.done = true;
            return Poll::Ready(End::cut(reason));
        }
        if let Some(end) = self.failed(inner, cx) {
            return Poll::Ready(end);
        }
        if let Some(end) = self.deliver(inner, cx) {
            self.stream_ends(inner, Code::CONNECT_ERROR);
            return Poll::Ready(end);
        }
        if let Some(end) = self.collect(inner, cx) {
            self.stream_ends(inner, Code::CONNECT_ERROR);
            return Poll::Ready(end);
        }
        if self.app_ended && self.shut {
            self.done = true;
            self.stream_ends(inner, Code::NO_ERROR);
            return Poll::Ready(End::clean());
        }
        if self.app_ended
            && let Some(end) = self.is_gone(cx)
        {
            self.stream_ends(inner, Code::CONNECT_ERROR);
            return Poll::Ready(end);
        }
        Poll::Pending
    }

    fn stream_ends(&self, inner: &mut Inner, code: Code) {
        inner.conn.remove(self.stream.id, code);
        inner.wake_driver();
    }

    /// Whether the tunnel, the stream or the application's socket failed.
    fn failed(&mut self, inner: &mut Inner, cx: &Context<'_>) -> Option<End> {
        let closed = inner.closed.clone();
        let Some(slot) = inner.conn.get(self.stream.id) else {
            return Some(End::early(
                Reason::Internal,
                Side::Proxy,
                "the stream is gone",
            ));
        };
        slot.watch(cx);
        if let Some(kind) = slot.failed {
            let end = End::early(
                Reason::PeerReset,
                Side::First,
                format!("writing to the application: {kind}"),
            );
            self.stream_ends(inner, Code::CONNECT_ERROR);
            return Some(end);
        }
        // A stream that ended in both directions needs its tunnel no more; what came is still delivered.
        let complete = self.app_ended && slot.ended && slot.reset.is_none();
        if let Some(error) = closed.filter(|_| !complete) {
            return Some(End::early(error.reason(), Side::Second, error.to_string()));
        }
        let code = slot.reset?;
        if code == Code::NO_ERROR && slot.ended {
            // The far side had sent everything and only stopped to listen: what it sent still counts.
            if slot.is_drained() {
                let _ = SockRef::from(&*self.app).shutdown(std::net::Shutdown::Write);
                self.done = true;
                return Some(End::clean());
            }
            return None;
        }
        Some(End::early(
            Reason::PeerReset,
            Side::Second,
            format!("the far side reset the stream: {code:?}"),
        ))
    }

    /// Content that the driver could not write at once, then the end of the far side's data.
    fn deliver(&mut self, inner: &mut Inner, cx: &mut Context<'_>) -> Option<End> {
        let id = self.stream.id;
        loop {
            let slot = inner.conn.get(id)?;
            let Some(pending) = &mut slot.pending else {
                break;
            };
            match self.app.poll_write_ready(cx) {
                Poll::Pending => return None,
                Poll::Ready(Err(e)) => return Some(app_failed(&e)),
                Poll::Ready(Ok(())) => {}
            }
            let (a, b) = pending.as_slices();
            match self
                .app
                .try_write_vectored(&[IoSlice::new(a), IoSlice::new(b)])
            {
                Ok(n) => {
                    pending.drain(..n);
                    if pending.is_empty() {
                        slot.pending = None;
                    }
                    self.meter.add_backward(n);
                    inner.conn.drained(id, n);
                    inner.wake_driver();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Some(app_failed(&e)),
            }
        }
        let ended = inner.conn.get(id)?.ended;
        if ended && !self.shut {
            // When the application has ended too, closing the socket says the same.
            if !self.app_ended
                && let Err(e) = SockRef::from(&*self.app).shutdown(std::net::Shutdown::Write)
            {
                return Some(app_failed(&e));
            }
            self.shut = true;
        }
        None
    }

    /// Content from the application, straight into the outgoing record.
    fn collect(&mut self, inner: &mut Inner, cx: &mut Context<'_>) -> Option<End> {
        let id = self.stream.id;
        while !self.app_ended {
            match self.app.poll_read_ready(cx) {
                Poll::Pending => {
                    self.pass_turn(inner);
                    return None;
                }
                Poll::Ready(Err(e)) => return Some(app_failed(&e)),
                Poll::Ready(Ok(())) => {}
            }
            if !take_turn(inner, id) {
                return None;
            }
            let (fill, asked) = self.read(inner);
            match fill {
                Fill::Taken(0) => {
                    self.app_ended = true;
                    inner.conn.finish(id);
                    self.pass_turn(inner);
                    inner.wake_driver();
                }
                Fill::Taken(n) => {
                    self.gone = None;
                    self.meter.add_forward(n);
                    inner.wake_driver();
                    if let Some(slot) = inner.conn.get(id) {
                        slot.greedy = n > GREEDY;
                        slot.turn = Turn::None;
                    }
                    if n == asked {
                        // There may be more: after the others.
                        cx.waker().wake_by_ref();
                        return None;
                    }
                    // The socket is drained; say so without asking it again.
                    let _ = self.app.try_io(Interest::READABLE, || {
                        Err::<(), _>(ErrorKind::WouldBlock.into())
                    });
                }
                Fill::NoRoom => {
                    queue(inner, id);
                    return None;
                }
                Fill::NoWindow => {
                    self.pass_turn(inner);
                    return self.is_gone(cx);
                }
                Fill::Closed => return None,
                Fill::Failed(e) if e.kind() == ErrorKind::WouldBlock => {}
                Fill::Failed(e) => return Some(app_failed(&e)),
            }
        }
        None
    }

    /// One read from the application; also tells how much it asked for.
    fn read(&self, inner: &mut Inner) -> (Fill, usize) {
        let (id, app) = (self.stream.id, &self.app);
        let greedy = inner.conn.get(id).is_some_and(|slot| slot.greedy);
        let room = (CAPACITY - SPARE).saturating_sub(inner.conn.out.used());
        let mut asked = 0;
        let read = |slices: &mut [IoSliceMut<'_>]| match slices {
            // A vector costs the kernel more than a plain buffer, and most reads are small.
            [first, ..] if !greedy => {
                asked = first.len();
                app.try_read(first)
            }
            _ => {
                asked = slices.iter().map(|s| s.len()).sum();
                app.try_read_vectored(slices)
            }
        };
        let fill = inner.conn.fill(id, QUANTUM.min(room.max(GREEDY)), read);
        (fill, asked)
    }

    /// Whether the application reset its connection while nothing is read from it.
    fn is_gone(&mut self, cx: &mut Context<'_>) -> Option<End> {
        let app = &self.app;
        let gone = self.gone.get_or_insert_with(|| {
            let app = app.clone();
            Box::pin(async move { drop(app.ready(Interest::ERROR).await) })
        });
        if gone.as_mut().poll(cx).is_pending() {
            return None;
        }
        self.gone = None;
        let error = self.app.take_error().ok().flatten();
        Some(app_failed(
            &error.unwrap_or_else(|| ErrorKind::ConnectionReset.into()),
        ))
    }

    /// A turn that is not used goes to the next.
    fn pass_turn(&self, inner: &mut Inner) {
        if let Some(slot) = inner.conn.get(self.stream.id)
            && slot.turn != Turn::None
        {
            slot.turn = Turn::None;
            inner.wake_driver();
        }
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        if !self.done {
            reset(&self.app);
            self.stream.end(Code::CONNECT_ERROR);
        }
    }
}

/// Whether the stream may send now; otherwise it waits for its turn.
pub(super) fn take_turn(inner: &mut Inner, id: u32) -> bool {
    let (used, others) = (inner.conn.out.used(), !inner.waiting.is_empty());
    let Some(slot) = inner.conn.get(id) else {
        return true;
    };
    let free = match slot.turn {
        Turn::Granted => used < HIGH,
        Turn::Waiting => return false,
        Turn::None => !slot.greedy || (used < HIGH && !others),
    };
    if !free {
        queue(inner, id);
    }
    free
}

/// Waits for the next turn.
pub(super) fn queue(inner: &mut Inner, id: u32) {
    if let Some(slot) = inner.conn.get(id) {
        slot.turn = Turn::Waiting;
        inner.waiting.push_back(id);
        inner.wake_driver();
    }
}

fn app_failed(error: &io::Error) -> End {
    End::early(
        Reason::PeerReset,
        Side::First,
        format!("the application's connection failed: {error}"),
    )
}

/// Makes the close of a socket a reset.
pub(super) fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}
