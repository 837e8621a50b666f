//! How long a client's connection of HTTP/1 is waited for: while it is idle, and while the head of a request comes.
//!
//! Invariant: what has begun to come has less time than what may still begin. A head whose first bytes came together with
//! the request before it counts as not begun until more of it comes.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};
use tokio::io::{AsyncRead, ReadBuf};

use super::side::{Reads, Side};
use crate::tunnel::Io;

/// The clock that a connection's waiting for heads goes by.
#[derive(Clone, Debug)]
pub(super) struct Patient {
    begun: Arc<AtomicBool>,
    head: Duration,
}

impl Patient {
    /// One that gives so much time to a head that has begun.
    pub fn new(head: Duration) -> Self {
        Self {
            begun: Arc::default(),
            head,
        }
    }

    /// A client's side whose bytes this clock notices.
    pub fn watch(&self, io: Io) -> Side<Noticed> {
        let begun = self.begun.clone();
        Side::new(io, Noticed { begun })
    }
}

impl Timer for Patient {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    /// Begins to wait for a head.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.begun.store(false, Relaxed);
        Box::pin(Wait {
            sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
            clock: self.clone(),
            comes: false,
        })
    }
}

struct Wait {
    sleep: Pin<Box<tokio::time::Sleep>>,
    clock: Patient,
    comes: bool,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.comes && this.clock.begun.load(Relaxed) {
            this.comes = true;
            let until = tokio::time::Instant::now() + this.clock.head;
            if until < this.sleep.deadline() {
                this.sleep.as_mut().reset(until);
            }
        }
        this.sleep.as_mut().poll(cx)
    }
}

impl Sleep for Wait {}

/// Has a clock notice what comes.
pub(super) struct Noticed {
    begun: Arc<AtomicBool>,
}

impl Reads for Noticed {
    fn poll(
        &mut self,
        io: Pin<&mut Io>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(io.poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.begun.store(true, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}
