//! What goes back to a client.
//!
//! Invariants: a body is read only as fast as it is taken; one that fails on one side fails on the other; a request is
//! reported when its answer has ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::{Kept, Local, Waiting, cluster::Taken, grpc::Messages};
use crate::observe::RequestGuard;

/// Why a body ended early.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A response's body on its way to a client; when it is dropped the request is reported.
#[derive(Debug)]
pub struct Reply {
    inner: Inner,
    guard: Option<Box<RequestGuard>>,
    request: Option<Kept>,
    /// Until when all of it must have come.
    deadline: Option<Deadline>,
    /// Counts messages of gRPC.
    messages: Option<Messages>,
    _taken: Option<Taken>,
}

struct Deadline(Waiting);

impl std::fmt::Debug for Deadline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deadline")
    }
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
            messages: None,
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
    pub fn from_endpoint(body: Incoming, taken: Taken, deadline: Option<Waiting>) -> Self {
        Self {
            inner: Inner::Incoming(body),
            guard: None,
            request: None,
            deadline: deadline.map(Deadline),
            messages: None,
            _taken: Some(taken),
        }
    }

    /// Reports the request when this is dropped.
    pub fn report(&mut self, guard: RequestGuard, request: Option<Kept>) {
        self.messages = guard.record.grpc.then(Messages::default);
        if self.is_end_stream() {
            return end(guard, request.as_ref());
        }
        (self.guard, self.request) = (Some(Box::new(guard)), request);
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(guard) = &mut self.guard else { return };
        if let Some(data) = frame.data_ref() {
            guard.sent(data.len() as u64);
            if let Some(messages) = &mut self.messages {
                messages.read(data);
                guard.record.messages_sent = messages.whole();
            }
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
    came(&mut guard, request);
    guard.complete();
}

/// Says in the report what came of the request's body.
fn came(guard: &mut RequestGuard, request: Option<&Kept>) {
    guard.record.received = request.map_or(0, Kept::bytes);
    guard.record.messages_received = request.and_then(Kept::messages).unwrap_or(0);
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
            && deadline.0.as_mut().poll(cx).is_ready()
        {
            this.deadline = None;
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
        if let Some(guard) = &mut self.guard {
            came(guard, self.request.as_ref());
        }
    }
}
