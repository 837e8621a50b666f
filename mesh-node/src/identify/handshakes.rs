//! A bound on TLS handshakes under way: in all, and from one address.
//!
//! Invariant: a slot is given back when it is dropped, however the handshake ended.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// The count of handshakes under way, shared by all data threads.
#[derive(Debug)]
pub struct Handshakes {
    most: usize,
    most_per_source: usize,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// The right to one handshake.
#[derive(Debug)]
pub struct HandshakeSlot {
    owner: Arc<Handshakes>,
    source: IpAddr,
}

impl Handshakes {
    /// Allows so many at once, in all and from one address.
    pub fn new(most: usize, most_per_source: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_per_source,
            under_way: Mutex::default(),
        })
    }

    /// A slot for a handshake with `source`, unless a bound is reached.
    pub fn begin(self: &Arc<Self>, source: IpAddr) -> Option<HandshakeSlot> {
        let mut now = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let from_source = now.by_source.get(&source).copied().unwrap_or(0);
        if now.total >= self.most || from_source >= self.most_per_source {
            return None;
        }
        now.total += 1;
        now.by_source.insert(source, from_source + 1);
        Some(HandshakeSlot {
            owner: self.clone(),
            source,
        })
    }
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        let mut now = self
            .owner
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        now.total -= 1;
        match now.by_source.get_mut(&self.source) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(now.by_source.remove(&self.source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_given_back() {
        let caps = Handshakes::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = caps.begin(a).expect("free");
        let _second = caps.begin(a).expect("free");
        assert!(caps.begin(a).is_none(), "one source has its bound");
        let _third = caps.begin(b).expect("free");
        assert!(caps.begin(b).is_none(), "all have a bound");
        drop(first);
        assert!(caps.begin(b).is_some());
        assert!(caps.begin(a).is_some());
    }
}
