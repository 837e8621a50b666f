//! A request's body on its way to an endpoint, kept for another try and for mirrors as far as that is allowed.
//!
//! Invariants: there is one reading at a time, and what began before it fails; what is kept is bounded, and beyond the
//! bound nothing is kept and nothing read ahead; a body that fails on the client's side fails on the other.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::{Failure, grpc::Messages};

/// A request's body, as far as it came, for another try. Clones share it.
#[derive(Clone, Debug)]
pub struct Kept(Rc<RefCell<Keep>>);

#[derive(Debug)]
struct Keep {
    source: Incoming,
    hint: SizeHint,
    empty: bool,
    /// What came: all of it while it is kept, else what nobody has read yet.
    frames: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    size: usize,
    limit: usize,
    /// Everything that came so far is here.
    whole: bool,
    /// Which reading is the present one; none began at 0.
    turn: u64,
    /// The frame that it reads next.
    at: usize,
    /// Whether it was told the trailers.
    told: bool,
    /// When the last of it came.
    ended: Option<Instant>,
    failed: Option<Failure>,
    bytes: u64,
    messages: Option<Messages>,
    /// Whether the source tells whoever reads ahead when there is more.
    ahead: bool,
    /// The present reading, where it waits.
    reader: Option<Waker>,
    /// Who waits for the end.
    watcher: Option<Waker>,
}

impl Kept {
    /// Keeps at most `limit` bytes; `grpc` says whether there are messages of gRPC in it, which are counted.
    pub fn new(source: Incoming, limit: usize, grpc: bool) -> Self {
        let empty = source.is_end_stream();
        Self(Rc::new(RefCell::new(Keep {
            hint: source.size_hint(),
            empty,
            source,
            frames: VecDeque::new(),
            trailers: None,
            size: 0,
            limit,
            whole: true,
            turn: 0,
            at: 0,
            told: false,
            ended: empty.then(Instant::now),
            failed: None,
            bytes: 0,
            messages: grpc.then(Messages::default),
            ahead: false,
            reader: None,
            watcher: None,
        })))
    }

    /// Whether the body can be read from its beginning.
    pub fn is_there(&self) -> bool {
        let keep = self.0.borrow();
        keep.whole || keep.turn == 0
    }

    /// The body from its beginning; `None` when that is gone. Earlier readings fail from now on.
    pub fn begin(&self) -> Option<Outgoing> {
        if !self.is_there() {
            return None;
        }
        let mut keep = self.0.borrow_mut();
        keep.turn += 1;
        (keep.at, keep.told) = (0, false);
        let turn = keep.turn;
        wake(&mut keep.reader);
        drop(keep);
        Some(Outgoing::Kept(Replay {
            kept: self.clone(),
            turn,
        }))
    }

    /// Nobody is to read it any more: what reads it fails.
    pub fn give_up(&self) {
        let mut keep = self.0.borrow_mut();
        keep.turn += 1;
        wake(&mut keep.reader);
    }

    /// A copy for somebody else, once all of it came; `None` when it did not, or was not kept.
    pub fn copy(&self) -> Option<Outgoing> {
        let keep = self.0.borrow();
        if !(keep.empty || keep.ended.is_some() && keep.whole) {
            return None;
        }
        let mut all = BytesMut::with_capacity(keep.size);
        keep.frames.iter().for_each(|f| all.extend_from_slice(f));
        Some(Outgoing::Full {
            bytes: Some(all.freeze()).filter(|b| !b.is_empty()),
            trailers: keep.trailers.clone(),
        })
    }

    /// Waits until all of it came, and says when that was. It is read ahead of whoever reads it, as far as it may be kept.
    pub async fn received(&self) -> Instant {
        let _ahead = Ahead(self);
        poll_fn(|cx| self.0.borrow_mut().poll_ahead(cx)).await
    }

    /// The same without reading ahead: somebody else reads.
    pub fn poll_received(&self, cx: &mut Context<'_>) -> Poll<Instant> {
        let mut keep = self.0.borrow_mut();
        keep.watcher = Some(cx.waker().clone());
        keep.ended.map_or(Poll::Pending, Poll::Ready)
    }

    /// Bytes that came.
    pub fn bytes(&self) -> u64 {
        self.0.borrow().bytes
    }

    /// Messages of gRPC that came whole, where they are counted.
    pub fn messages(&self) -> Option<u64> {
        self.0.borrow().messages.as_ref().map(Messages::whole)
    }
}

/// Reading ahead, until this is dropped.
struct Ahead<'a>(&'a Kept);

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        let mut keep = self.0.0.borrow_mut();
        keep.ahead = false;
        // The source does not know of the reader, which has to ask it again.
        wake(&mut keep.reader);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Keep {
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        self.watcher = Some(cx.waker().clone());
        self.ahead = false;
        loop {
            if let Some(ended) = self.ended {
                wake(&mut self.reader);
                return Poll::Ready(ended);
            }
            if !self.whole || self.size >= self.limit || self.failed.is_some() {
                wake(&mut self.reader);
                return Poll::Pending;
            }
            match self.poll_source(cx) {
                Poll::Ready(()) => wake(&mut self.reader),
                Poll::Pending => {
                    self.ahead = true;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Takes what comes next, whatever it is.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
            None => self.ended = Some(Instant::now()),
            Some(Err(error)) => self.failed = Some(error.into()),
            Some(Ok(frame)) => {
                match frame.into_data() {
                    Ok(data) => self.take(data),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.trailers = Some(trailers);
                            self.ended = Some(Instant::now());
                        }
                    }
                }
                // Nobody asks again for a body whose announced length has come.
                if self.ended.is_none() && self.source.is_end_stream() {
                    self.ended = Some(Instant::now());
                }
            }
        }
        if self.ended.is_some() {
            wake(&mut self.watcher);
        }
        Poll::Ready(())
    }

    fn take(&mut self, data: Bytes) {
        self.bytes += data.len() as u64;
        self.size += data.len();
        if let Some(messages) = &mut self.messages {
            messages.read(&data);
        }
        if self.whole && self.size > self.limit {
            self.whole = false;
            self.frames.drain(..self.at);
            self.at = 0;
        }
        self.frames.push_back(data);
    }

    fn next(&mut self) -> Option<Bytes> {
        if !self.whole {
            return self.frames.pop_front();
        }
        let frame = self.frames.get(self.at).cloned()?;
        self.at += 1;
        Some(frame)
    }

    fn poll(
        &mut self,
        turn: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if turn != self.turn {
            return Poll::Ready(Some(Err("another try has begun".into())));
        }
        loop {
            if let Some(data) = self.next() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if self.ended.is_some() {
                let trailers = self.trailers.clone().filter(|_| !self.told);
                self.told = true;
                return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
            }
            if let Some(failed) = self.failed.take() {
                return Poll::Ready(Some(Err(failed)));
            }
            self.reader = Some(cx.waker().clone());
            if self.ahead {
                return Poll::Pending;
            }
            ready!(self.poll_source(cx));
        }
    }
}

/// A body on its way to an endpoint.
#[derive(Debug)]
pub enum Outgoing {
    /// All of it, or nothing.
    Full {
        /// Its bytes.
        bytes: Option<Bytes>,
        /// What comes after them.
        trailers: Option<HeaderMap>,
    },
    /// A client's.
    Kept(Replay),
}

/// One reading of a kept body.
#[derive(Debug)]
pub struct Replay {
    kept: Kept,
    turn: u64,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.get_mut() {
            Self::Full { bytes, trailers } => {
                let data = bytes.take().map(Frame::data);
                let frame = data.or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Self::Kept(replay) => replay.kept.0.borrow_mut().poll(replay.turn, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full { bytes, trailers } => bytes.is_none() && trailers.is_none(),
            Self::Kept(replay) => {
                let keep = replay.kept.0.borrow();
                let read = match keep.whole {
                    true => keep.at >= keep.frames.len(),
                    false => keep.frames.is_empty(),
                };
                let told = keep.trailers.is_none() || keep.told;
                keep.empty || replay.turn == keep.turn && keep.ended.is_some() && read && told
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // What has trailers is sent in chunks, as it came.
            Self::Full {
                trailers: Some(_), ..
            } => SizeHint::default(),
            Self::Full { bytes, .. } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::Kept(replay) => {
                let keep = replay.kept.0.borrow();
                match keep.whole && keep.at == 0 {
                    true => keep.hint,
                    false => SizeHint::default(),
                }
            }
        }
    }
}
