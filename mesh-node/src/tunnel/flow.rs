//! What a relay is given and what it gives back: a byte meter, a signal that cuts the flow, and its end.
//!
//! Invariant: a cut is final and carries one reason; the first cut wins.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

use mesh_model::reason::Reason;

/// Bytes that a flow has moved so far. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Meter(Rc<Counts>);

/// The counts of a [`Meter`].
#[derive(Debug, Default)]
struct Counts {
    forward: Cell<u64>,
    backward: Cell<u64>,
}

impl Meter {
    /// A meter at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes from the relay's first argument to its second.
    pub fn forward(&self) -> u64 {
        self.0.forward.get()
    }

    /// Bytes from the relay's second argument to its first.
    pub fn backward(&self) -> u64 {
        self.0.backward.get()
    }

    pub(super) fn add_forward(&self, n: usize) {
        self.0.forward.set(self.0.forward.get() + n as u64);
    }

    pub(super) fn add_backward(&self, n: usize) {
        self.0.backward.set(self.0.backward.get() + n as u64);
    }
}

/// Ends a flow from outside. Dropping it without a cut leaves the flow alone.
#[derive(Debug)]
pub struct Cutter(Rc<Cut>);

/// The flow's side of a [`Cutter`].
#[derive(Debug, Default)]
pub struct CutSignal(Option<Rc<Cut>>);

#[derive(Debug, Default)]
struct Cut {
    reason: Cell<Option<Reason>>,
    waker: RefCell<Option<Waker>>,
}

impl Cutter {
    /// A cutter and the signal that it gives.
    pub fn new() -> (Self, CutSignal) {
        let cut = Rc::new(Cut::default());
        (Self(cut.clone()), CutSignal(Some(cut)))
    }

    /// Ends the flow with `reason`; both its sides are reset, or closed where the reason is an orderly one.
    pub fn cut(&self, reason: Reason) {
        self.0.cut(reason);
    }

    /// A further hand on it, for whoever looks after the flow from its own task.
    pub fn hand(&self) -> Hand {
        Hand(Rc::downgrade(&self.0))
    }

    /// Whether the flow has ended, so that the cutter may be dropped.
    pub fn is_over(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}

/// A hand on a [`Cutter`] that does not keep it.
#[derive(Debug)]
pub struct Hand(Weak<Cut>);

impl Hand {
    /// As [`Cutter::cut`], as long as there is a flow.
    pub fn cut(&self, reason: Reason) {
        if let Some(cut) = self.0.upgrade() {
            cut.cut(reason);
        }
    }
}

impl Cut {
    fn cut(&self, reason: Reason) {
        if self.reason.get().is_none() {
            self.reason.set(Some(reason));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

/// Whether a flow that is cut for this reason is closed as its own ends would close it, not reset: its time was up, and
/// nobody did wrong.
pub(super) fn is_orderly(reason: Reason) -> bool {
    matches!(reason, Reason::IdleTimeout | Reason::MaxDuration)
}

impl CutSignal {
    /// A signal that never comes.
    pub const fn never() -> Self {
        Self(None)
    }

    /// The reason, if the flow has been cut.
    pub fn reason(&self) -> Option<Reason> {
        self.0.as_ref()?.reason.get()
    }

    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        let Some(cut) = &self.0 else {
            return Poll::Pending;
        };
        if let Some(reason) = cut.reason.get() {
            return Poll::Ready(reason);
        }
        let mut slot = cut.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *slot = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Which side of a relay ended the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first argument of the relay.
    First,
    /// The second argument of the relay.
    Second,
    /// The proxy itself: a cut, or a failure of its own.
    Proxy,
}

/// How a flow ended. `reason` is absent when both sides closed in the ordinary way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Why it ended early.
    pub reason: Option<Reason>,
    /// The same for people.
    pub error: Option<String>,
    /// Who ended it early.
    pub side: Option<Side>,
}

impl End {
    /// Both sides closed in the ordinary way.
    pub const fn clean() -> Self {
        Self {
            reason: None,
            error: None,
            side: None,
        }
    }

    /// It ended early.
    pub fn early(reason: Reason, side: Side, error: impl Into<String>) -> Self {
        Self {
            reason: Some(reason),
            error: Some(error.into()),
            side: Some(side),
        }
    }

    pub(super) fn cut(reason: Reason) -> Self {
        Self::early(reason, Side::Proxy, format!("cut: {}", reason.shown().text))
    }
}
