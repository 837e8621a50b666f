//! The task that owns a tunnel's socket: it reads, decrypts and delivers, and writes what streams prepared.
//!
//! Invariants: data goes from the record where it was decrypted straight to the application's socket; one
//! write carries what all streams prepared since the last; a poll does a bounded amount of work; a tunnel
//! that nobody needs ends by itself.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::{
    deliver::deliver,
    error::TunnelError,
    shared::{Inner, Shared, Turn, watch},
    spin,
};
use crate::wire::{
    Limits,
    abuse::Kind,
    conn::Event,
    error::{Code, ConnError},
    tls::{Record, Session},
};

/// What one read asks for.
const READ: usize = 256 << 10;
/// A record that was cut stays in front of the next read.
const KEEP: usize = 17 << 10;
/// Reads in one poll, so that other tasks of the thread get their turn. A full one is the last.
const READS: usize = 2;
/// Below this fill of the outgoing buffer, streams that wait get their turn.
const LOW: usize = 96 << 10;

thread_local! {
    /// The thread's read buffer and event list: nothing of them is kept between polls.
    static SCRATCH: RefCell<(Vec<u8>, Vec<Event>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    /// Drivers of this thread that have not ended.
    static OPEN: Cell<usize> = const { Cell::new(0) };
}

/// How many tunnels of this thread still have something to send or to hear. A thread that ends before they do
/// loses what their peers have not read yet.
pub fn open_tunnels() -> usize {
    OPEN.get()
}

/// The task.
pub struct Driver {
    tcp: TcpStream,
    shared: Rc<Shared>,
    session: Session,
    /// A record that was cut.
    partial: Vec<u8>,
    limits: Limits,
    timer: Pin<Box<Sleep>>,
    last_received: Instant,
    ping_sent: Option<Instant>,
    idle_since: Option<Instant>,
    phase: Phase,
    is_client: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// GOAWAY and close_notify are queued.
    Closing,
    /// Everything is sent; the peer may still acknowledge.
    Lingering,
}

impl Driver {
    /// A driver for a tunnel after its handshake. `early` is content that came with it, `partial` a cut record.
    pub fn new(
        tcp: TcpStream,
        shared: Rc<Shared>,
        session: Session,
        partial: Vec<u8>,
        limits: Limits,
        is_client: bool,
    ) -> Self {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now + limits.ping_every));
        OPEN.set(OPEN.get() + 1);
        Self {
            tcp,
            shared,
            session,
            partial,
            limits,
            timer,
            last_received: now,
            ping_sent: None,
            idle_since: None,
            phase: Phase::Open,
            is_client,
        }
    }

    /// Takes content that came with the handshake.
    pub fn early(&mut self, early: &[u8]) -> Result<(), TunnelError> {
        if early.is_empty() && self.partial.is_empty() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let mut inner = shared.inner.borrow_mut();
        let mut events = Vec::new();
        let now = Instant::now().into_std();
        if !early.is_empty() {
            inner
                .conn
                .receive(now, early, 0..early.len(), &mut events)
                .map_err(protocol)?;
            deliver(&mut inner, early, &mut events);
        }
        let mut rest = std::mem::take(&mut self.partial);
        let len = rest.len();
        let taken = self.open_records(&mut inner, &mut rest, len, &mut events);
        deliver(&mut inner, &rest, &mut events);
        self.partial = rest.split_off(taken?);
        Ok(())
    }

    /// Opens the complete records in `buf[..len]` and gives them to the codec; tells how much that was.
    fn open_records(
        &mut self,
        inner: &mut Inner,
        buf: &mut [u8],
        len: usize,
        events: &mut Vec<Event>,
    ) -> Result<usize, TunnelError> {
        let now = self.last_received.into_std();
        let mut at = 0;
        while let Some(record) = self.session.open(&mut buf[..len], &mut at)? {
            match record {
                Record::Data(range) => inner
                    .conn
                    .receive(now, buf, range, events)
                    .map_err(protocol)?,
                Record::KeyUpdate { reply } => {
                    inner.conn.count(Kind::KeyUpdate).map_err(protocol)?;
                    if reply && inner.conn.out.may_rekey() {
                        let next = self.session.next_sealer()?;
                        inner.conn.out.rekey(next);
                    }
                }
                Record::Other => inner.conn.count(Kind::KeyUpdate).map_err(protocol)?,
                Record::Closed => return Err(TunnelError::Eof),
            }
        }
        Ok(at)
    }

    /// Reads what has arrived. `true` if there may be more.
    fn read(&mut self, inner: &mut Inner, cx: &mut Context<'_>) -> Result<bool, TunnelError> {
        let (mut buf, mut events) = SCRATCH.take();
        buf.resize(KEEP + READ, 0);
        let result = self.read_into(inner, &mut buf, &mut events, cx);
        events.clear();
        SCRATCH.set((buf, events));
        result
    }

    fn read_into(
        &mut self,
        inner: &mut Inner,
        buf: &mut [u8],
        events: &mut Vec<Event>,
        cx: &mut Context<'_>,
    ) -> Result<bool, TunnelError> {
        for _ in 0..READS {
            let kept = self.partial.len();
            buf[..kept].copy_from_slice(&self.partial);
            let mut space = ReadBuf::new(&mut buf[kept..kept + READ]);
            let n = match Pin::new(&mut self.tcp).poll_read(cx, &mut space) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(e)) => return Err(TunnelError::Io(e.to_string())),
                Poll::Ready(Ok(())) => space.filled().len(),
            };
            if n == 0 {
                return Err(TunnelError::Eof);
            }
            self.last_received = Instant::now();
            self.ping_sent = None;
            spin::event(self.last_received.into_std(), self.limits.spin, n);
            let len = kept + n;
            let taken = self.open_records(inner, buf, len, events);
            deliver(inner, buf, events);
            let taken = taken?;
            self.partial.clear();
            self.partial.extend_from_slice(&buf[taken..len]);
            if self.partial.is_empty() {
                self.partial = Vec::new();
            }
            if n == READ {
                break;
            }
        }
        Ok(true)
    }

    /// Sends what is prepared. `true` once nothing is left.
    fn flush(&mut self, inner: &mut Inner, cx: &mut Context<'_>) -> Result<bool, TunnelError> {
        if inner.conn.out.wants_rekey() {
            let next = self.session.next_sealer()?;
            inner.conn.out.rekey(next);
        }
        loop {
            let ready = inner.conn.out.sendable();
            if ready.is_empty() {
                return Ok(inner.conn.out.is_empty());
            }
            match Pin::new(&mut self.tcp).poll_write(cx, ready) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(e)) => return Err(TunnelError::Io(e.to_string())),
                Poll::Ready(Ok(n)) => {
                    inner.conn.out.sent(n);
                    if !self.limits.spin.is_zero() {
                        spin::event(Instant::now().into_std(), self.limits.spin, n);
                    }
                }
            }
        }
    }

    fn run(&mut self, inner: &mut Inner, cx: &mut Context<'_>) -> Result<Poll<()>, TunnelError> {
        watch(&mut inner.driver, cx);
        if inner.abort {
            return Err(TunnelError::Closed);
        }
        let more = self.read(inner, cx)?;
        let flushed = self.flush(inner, cx)?;
        if inner.conn.out.used() <= LOW {
            grant(inner);
        }
        if self.phase == Phase::Open && self.is_unneeded(inner) {
            inner.conn.go_away(Code::NO_ERROR, "");
            inner.conn.out.alert(1, 0);
            self.phase = Phase::Closing;
            return self.run_closing(inner, cx);
        }
        if self.phase != Phase::Open {
            return self.closing(flushed, cx);
        }
        self.tick(inner, cx)?;
        if more {
            cx.waker().wake_by_ref();
        }
        Ok(Poll::Pending)
    }

    fn run_closing(
        &mut self,
        inner: &mut Inner,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, TunnelError> {
        inner.close(TunnelError::Closed);
        let flushed = self.flush(inner, cx)?;
        self.closing(flushed, cx)
    }

    /// Waits until all is sent and the peer closed, but not for long.
    fn closing(&mut self, flushed: bool, cx: &mut Context<'_>) -> Result<Poll<()>, TunnelError> {
        if self.phase == Phase::Closing {
            if flushed && let Poll::Ready(result) = Pin::new(&mut self.tcp).poll_shutdown(cx) {
                result.map_err(|e| TunnelError::Io(e.to_string()))?;
                self.phase = Phase::Lingering;
            }
            self.timer
                .as_mut()
                .reset(Instant::now() + self.limits.linger);
        }
        // The end of the peer's direction is found by `read`, as an error.
        Ok(self.timer.as_mut().poll(cx))
    }

    /// Whether no stream is left and none can come.
    fn is_unneeded(&mut self, inner: &mut Inner) -> bool {
        if inner.conn.entries() > 0 || !inner.incoming.is_empty() {
            self.idle_since = None;
            return false;
        }
        if self.shared.handles.get() == 0 || inner.conn.is_finished() {
            return true;
        }
        if !self.is_client {
            return false;
        }
        let deadline = match self.idle_since {
            Some(since) => since + self.limits.idle,
            None => {
                let now = Instant::now();
                self.idle_since = Some(now);
                let deadline = now + self.limits.idle;
                if deadline < self.timer.deadline() {
                    self.timer.as_mut().reset(deadline);
                }
                deadline
            }
        };
        Instant::now() >= deadline
    }

    /// Sends and expects pings, and wakes for the idle deadline.
    fn tick(&mut self, inner: &mut Inner, cx: &mut Context<'_>) -> Result<(), TunnelError> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let mut next = self.last_received + self.limits.ping_every;
            if let Some(sent) = self.ping_sent {
                next = sent + self.limits.ping_timeout;
                if now >= next {
                    return Err(TunnelError::PingTimeout);
                }
            } else if now >= next {
                inner.conn.ping();
                self.ping_sent = Some(now);
                next = now + self.limits.ping_timeout;
                self.flush(inner, cx)?;
            }
            if let Some(since) = self.idle_since.filter(|_| self.is_client) {
                next = next.min(since + self.limits.idle);
            }
            self.timer.as_mut().reset(next);
        }
        Ok(())
    }

    /// Tells the peer why, as far as the socket takes it, and everyone here.
    fn fail(&mut self, inner: &mut Inner, error: TunnelError, code: Code, cx: &mut Context<'_>) {
        if self.phase == Phase::Open && !matches!(error, TunnelError::Io(_)) {
            inner.conn.go_away(code, "");
            inner.conn.out.alert(1, 0);
            let _ = self.flush(inner, cx);
        }
        inner.close(error);
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let shared = this.shared.clone();
        let mut inner = shared.inner.borrow_mut();
        match this.run(&mut inner, cx) {
            Ok(poll) => poll,
            Err(error) => {
                let code = error.code();
                this.fail(&mut inner, error, code, cx);
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        OPEN.set(OPEN.get() - 1);
        // The runtime may be going away: whoever waits must learn that nothing comes any more.
        if let Ok(mut inner) = self.shared.inner.try_borrow_mut() {
            inner.close(TunnelError::Closed);
        }
    }
}

fn protocol(error: ConnError) -> TunnelError {
    TunnelError::Protocol {
        code: error.code.0,
        what: error.to_string(),
    }
}

/// Lets streams that wait for room try again, in order.
fn grant(inner: &mut Inner) {
    // Two at a time keep the socket busy; each that is done wakes the driver, which grants the next.
    let mut grants = 0;
    while grants < 2
        && let Some(id) = inner.waiting.pop_front()
    {
        if let Some(slot) = inner.conn.get(id)
            && slot.turn == Turn::Waiting
        {
            slot.turn = Turn::Granted;
            slot.wake();
            grants += 1;
        }
    }
}
