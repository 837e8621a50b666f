//! Bodies: what goes to an endpoint, kept for another try as far as that is allowed, and what goes back to a client.
//!
//! Invariants: a body is read only as fast as it is taken; what is kept is bounded, and beyond the bound nothing is kept
//! and nothing tried again; a body that fails on one side fails on the other.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::{Local, cluster::Taken};
use crate::observe::RequestGuard;

/// Why a body ended early.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A request's body, as far as it came, for another try. Clones share it.
#[derive(Clone, Debug)]
pub struct Kept(Rc<RefCell<Keep>>);

#[derive(Debug)]
struct Keep {
    source: Incoming,
    hint: SizeHint,
    empty: bool,
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    size: usize,
    limit: usize,
    /// Everything that came so far is here.
    whole: bool,
    begun: bool,
    ended: bool,
    bytes: u64,
}

impl Kept {
    /// Keeps at most `limit` bytes.
    pub fn new(source: Incoming, limit: usize) -> Self {
        Self(Rc::new(RefCell::new(Keep {
            hint: source.size_hint(),
            empty: source.is_end_stream(),
            source,
            frames: Vec::new(),
            trailers: None,
            size: 0,
            limit,
            whole: true,
            begun: false,
            ended: false,
            bytes: 0,
        })))
    }

    /// The body from its beginning; `None` when that is gone.
    pub fn begin(&self) -> Option<Outgoing> {
        let keep = self.0.borrow();
        let there = keep.whole || !keep.begun;
        there.then(|| {
            Outgoing::Kept(Replay {
                kept: self.clone(),
                at: 0,
                told: false,
            })
        })
    }

    /// A copy for somebody else, once all of it came; `None` when it did not, or was not kept.
    pub fn copy(&self) -> Option<Outgoing> {
        let keep = self.0.borrow();
        if !(keep.empty || keep.ended && keep.whole) {
            return None;
        }
        let mut all = BytesMut::with_capacity(keep.size);
        keep.frames.iter().for_each(|f| all.extend_from_slice(f));
        Some(Outgoing::Full(Some(all.freeze()).filter(|b| !b.is_empty())))
    }

    /// Bytes that came.
    pub fn bytes(&self) -> u64 {
        self.0.borrow().bytes
    }
}

/// A body on its way to an endpoint.
#[derive(Debug)]
pub enum Outgoing {
    /// All of it, or nothing.
    Full(Option<Bytes>),
    /// A client's.
    Kept(Replay),
}

/// One reading of a kept body.
#[derive(Debug)]
pub struct Replay {
    kept: Kept,
    at: usize,
    told: bool,
}

impl Replay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let keep = &mut *self.kept.0.borrow_mut();
        keep.begun = true;
        if keep.whole && self.at < keep.frames.len() {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(keep.frames[self.at - 1].clone()))));
        }
        if keep.ended {
            let trailers = keep.trailers.clone().filter(|_| !self.told);
            self.told = true;
            return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
        }
        let frame = match ready!(Pin::new(&mut keep.source).poll_frame(cx)) {
            Some(frame) => frame?,
            None => {
                keep.ended = true;
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            keep.bytes += data.len() as u64;
            keep.size += data.len();
            if keep.size > keep.limit {
                (keep.whole, keep.frames) = (false, Vec::new());
            } else if keep.whole {
                keep.frames.push(data.clone());
                self.at = keep.frames.len();
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            keep.trailers = Some(trailers.clone());
            (keep.ended, self.told) = (true, true);
        }
        // Nobody asks again for a body whose announced length has come.
        keep.ended |= keep.source.is_end_stream();
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Kept(replay) => replay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Kept(replay) => {
                let keep = replay.kept.0.borrow();
                let read = !keep.whole || replay.at >= keep.frames.len();
                let told = keep.trailers.is_none() || replay.told;
                keep.empty || keep.ended && read && told
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Kept(replay) if replay.at == 0 => replay.kept.0.borrow().hint,
            Self::Kept(_) => SizeHint::default(),
        }
    }
}

/// A response's body on its way to a client; when it is dropped the request is reported.
#[derive(Debug)]
pub struct Reply {
    inner: Inner,
    guard: Option<Box<RequestGuard>>,
    request: Option<Kept>,
    /// Until when all of it must have come.
    deadline: Option<Pin<Box<Sleep>>>,
    _taken: Option<Taken>,
}

#[derive(Debug)]
enum Inner {
    Full(Option<Bytes>),
    Incoming(Incoming),
}

impl Reply {
    /// A body of our own.
    pub fn of(bytes: Bytes) -> Self {
        Self {
            inner: Inner::Full(Some(bytes).filter(|b| !b.is_empty())),
            guard: None,
            request: None,
            deadline: None,
            _taken: None,
        }
    }

    /// Leaves a body of our own out of a response that has none, such as the answer to `HEAD`; gives what its length
    /// would have been.
    pub fn leave_out(&mut self) -> Option<usize> {
        match &mut self.inner {
            Inner::Full(bytes) => bytes.take().map(|b| b.len()),
            Inner::Incoming(_) => None,
        }
    }

    /// An endpoint's body; the endpoint counts as busy until it is dropped.
    pub fn from_endpoint(body: Incoming, taken: Taken, deadline: Option<Sleep>) -> Self {
        Self {
            inner: Inner::Incoming(body),
            guard: None,
            request: None,
            deadline: deadline.map(Box::pin),
            _taken: Some(taken),
        }
    }

    /// Reports the request when this is dropped.
    pub fn report(&mut self, guard: RequestGuard, request: Option<Kept>) {
        if self.is_end_stream() {
            return end(guard, request.as_ref());
        }
        (self.guard, self.request) = (Some(Box::new(guard)), request);
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(guard) = &mut self.guard else { return };
        if let Some(data) = frame.data_ref() {
            guard.sent(data.len() as u64);
        }
        if let Some(trailers) = frame.trailers_ref() {
            guard.grpc(trailers);
        }
    }

    fn finish(&mut self) {
        if let Some(guard) = self.guard.take() {
            end(*guard, self.request.as_ref());
        }
    }
}

fn end(mut guard: RequestGuard, request: Option<&Kept>) {
    guard.received(request.map_or(0, Kept::bytes));
    guard.complete();
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            if let Some(guard) = &mut this.guard {
                guard.flag(Local::TIMEOUT.flag);
            }
            return Poll::Ready(Some(Err("the response took too long".into())));
        }
        let frame = match &mut this.inner {
            Inner::Full(bytes) => bytes.take().map(|b| Ok(Frame::data(b))),
            Inner::Incoming(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|f| f.map_err(Failure::from))
            }
        };
        match &frame {
            Some(Ok(frame)) => this.note(frame),
            Some(Err(_)) => {
                if let Some(guard) = &mut this.guard {
                    guard.flag(Local::TERMINATED.flag);
                }
            }
            None => this.finish(),
        }
        if this.is_end_stream() {
            this.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Incoming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Inner::Incoming(body) => body.size_hint(),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // Dropped before its end: the guard says that the client went away, unless something else was said.
        if let (Some(guard), Some(request)) = (&mut self.guard, &self.request) {
            guard.received(request.bytes());
        }
    }
}
