//! The Secret of a cluster holds other keys than are in use: what is trusted and what signs from now on.
//!
//! Another replica may have taken a step of a rotation, or somebody may have put another CA in its place, as
//! cert-manager does when it renews one, and as a restored backup does.
//!
//! Invariants: a root that was trusted stays trusted until `finish`; by a root that was not trusted before nothing is
//! signed until nodes had time to hear of it.

use std::time::{Duration, SystemTime};

use super::{
    authority::seconds,
    keep::{Kept, Signer},
};

/// How long a root that came unannounced is trusted before it signs. Nodes hear of roots within some ten seconds.
pub(super) const HOLD: Duration = Duration::from_secs(30);

/// A root that came unannounced, and when it may sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    root: String,
    from: SystemTime,
}

/// What becomes of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Followed {
    /// What is in use from now on.
    pub in_use: Kept,
    /// What the Secret lacks: the roots of before.
    pub owed: Option<Kept>,
    /// The root that may not sign yet.
    pub held: Option<Held>,
}

/// Follows from `mine`, what is in use, to `theirs`, what the Secret holds. `ttl` is the longest life of what was signed
/// so far.
pub(super) fn follow(
    mine: &Kept,
    theirs: Kept,
    held: Option<Held>,
    now: SystemTime,
    ttl: Duration,
) -> Followed {
    let whole = with_roots_of(mine, theirs.clone(), now, ttl);
    let signing = whole.active.root();
    let held = match held {
        Some(held) if held.root == signing => Some(held).filter(|held| now < held.from),
        _ if mine.roots().contains(&signing) => None,
        _ => Some(Held {
            root: signing.to_owned(),
            from: now + HOLD,
        }),
    };
    let in_use = match held {
        Some(_) => waiting(mine.active.clone(), whole.clone()),
        None => whole.clone(),
    };
    Followed {
        in_use,
        owed: Some(whole).filter(|whole| *whole != theirs),
        held,
    }
}

/// What the Secret holds, with every root of before when the one that signed is no longer trusted. No step of a rotation
/// takes that one away.
fn with_roots_of(mine: &Kept, theirs: Kept, now: SystemTime, ttl: Duration) -> Kept {
    if theirs.roots().contains(&mine.active.root()) {
        return theirs;
    }
    let mut whole = theirs;
    let lost: Vec<String> = {
        let trusted = whole.roots();
        let lost = mine.roots().into_iter().filter(|r| !trusted.contains(r));
        lost.map(str::to_owned).collect()
    };
    whole.old_roots.extend(lost);
    whole.old_until = whole.old_until.max(mine.old_until).max(seconds(now + ttl));
    whole
}

/// The signer of before goes on, and the new one is trusted beside it.
fn waiting(signer: Signer, whole: Kept) -> Kept {
    let old_roots = whole.old_roots.into_iter();
    Kept {
        old_roots: old_roots.filter(|r| r != signer.root()).collect(),
        active: signer,
        next: Some(whole.active),
        old_until: whole.old_until,
    }
}
