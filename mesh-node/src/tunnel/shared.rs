//! What a tunnel's driver and the holders of its streams share, on one thread.
//!
//! Invariants: nobody holds the borrow across an await; whoever puts something into the outgoing buffer
//! wakes the driver; a tunnel that failed keeps its error, and every stream sees it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Context, Waker},
};

use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;

use super::{Meter, error::TunnelError};
use crate::wire::{
    conn::{Conn, Request, Response},
    error::Code,
};

/// A tunnel on one thread.
#[derive(Debug)]
pub struct Shared {
    /// The state.
    pub inner: RefCell<Inner>,
    /// Handles that may open or accept streams.
    pub handles: Cell<usize>,
    /// The chain that the peer proved.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// The state of a tunnel.
#[derive(Debug)]
pub struct Inner {
    /// The HTTP/2 connection.
    pub conn: Conn<Slot>,
    /// Wakes the driver.
    pub driver: Option<Waker>,
    /// Wakes whoever waits for requests.
    pub acceptor: Option<Waker>,
    /// Requests that were not taken yet; the codec bounds their number.
    pub incoming: VecDeque<(u32, Box<Request>)>,
    /// Streams that wait for room in the outgoing buffer.
    pub waiting: VecDeque<u32>,
    /// Why the tunnel ended.
    pub closed: Option<TunnelError>,
    /// Nobody takes requests any more.
    pub unattended: bool,
    /// End at once.
    pub abort: bool,
}

/// What is kept for one stream beside the codec's state.
#[derive(Debug, Default)]
pub struct Slot {
    /// Wakes the stream's task.
    pub waker: Option<Waker>,
    /// The application's socket while it is spliced: the driver writes to it.
    pub sink: Option<Rc<TcpStream>>,
    /// Content that the application did not take yet; the stream's window bounds it.
    #[allow(clippy::box_collection)]
    // Nothing waits most of the time, and this keeps the slot small.
    pub pending: Option<Box<VecDeque<u8>>>,
    /// Counts what the driver writes to the application.
    pub meter: Option<Meter>,
    /// The answer to our request.
    pub response: Option<Box<Response>>,
    /// The stream was reset.
    pub reset: Option<Code>,
    /// Writing to the application failed.
    pub failed: Option<std::io::ErrorKind>,
    /// The peer sends nothing more.
    pub ended: bool,
    /// Its place in the queue for room.
    pub turn: Turn,
    /// Its last read was large: it waits its turn behind streams that send little.
    pub greedy: bool,
}

/// A stream's place in the queue for room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// Not in it.
    #[default]
    None,
    /// In it.
    Waiting,
    /// It may send now.
    Granted,
}

impl Slot {
    /// Whether the application took everything.
    pub fn is_drained(&self) -> bool {
        self.pending.is_none()
    }

    /// Wakes the stream's task.
    pub fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Keeps the waker of the stream's task.
    pub fn watch(&mut self, cx: &Context<'_>) {
        watch(&mut self.waker, cx);
    }
}

impl Inner {
    /// Makes the driver run.
    pub fn wake_driver(&self) {
        if let Some(waker) = &self.driver {
            waker.wake_by_ref();
        }
    }

    /// Ends the tunnel for all.
    pub fn close(&mut self, error: TunnelError) {
        if self.closed.is_none() {
            self.closed = Some(error);
        }
        self.incoming.clear();
        for (_, slot) in self.conn.each() {
            slot.wake();
        }
        if let Some(waker) = self.acceptor.take() {
            waker.wake();
        }
    }
}

impl Shared {
    /// One handle more.
    pub fn hold(&self) {
        self.handles.set(self.handles.get() + 1);
    }

    /// One handle less; the last one lets the tunnel end.
    pub fn release(&self) {
        self.handles.set(self.handles.get() - 1);
        if self.handles.get() == 0
            && let Ok(inner) = self.inner.try_borrow()
        {
            inner.wake_driver();
        }
    }
}

/// Keeps the waker of a task.
pub fn watch(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot
        .as_ref()
        .is_some_and(|waker| waker.will_wake(cx.waker()))
    {
        *slot = Some(cx.waker().clone());
    }
}
