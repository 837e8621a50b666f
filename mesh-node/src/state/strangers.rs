//! Addresses beside captured pods that stayed unknown although they were waited for: they are nobody's of the mesh.
//!
//! Invariant: memory is bounded; what does not fit is waited for again, never taken for known.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use mesh_model::name::{NetworkAddress, NetworkId};

/// How long an address is not waited for again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// At most so many are remembered: a scan of the pods' range fills it, and then waits.
const MOST: usize = 4096;

/// The memory.
#[derive(Debug, Default)]
pub struct Strangers(Mutex<HashMap<NetworkAddress, Instant>>);

impl Strangers {
    /// Nobody of the mesh turned up at this address.
    pub fn remember(&self, network: &NetworkId, ip: IpAddr, now: Instant) {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= MOST {
            until.retain(|_, until| now < *until);
        }
        if until.len() < MOST {
            until.insert(at(network, ip), now + REMEMBERED);
        }
    }

    /// Whether nobody turned up at this address a moment ago.
    pub fn knows(&self, network: &NetworkId, ip: IpAddr, now: Instant) -> bool {
        let until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !until.is_empty() && until.get(&at(network, ip)).is_some_and(|u| now < *u)
    }
}

fn at(network: &NetworkId, ip: IpAddr) -> NetworkAddress {
    NetworkAddress {
        network: network.clone(),
        ip: ip.to_canonical(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_remembered_for_its_time_and_within_a_bound() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let network = NetworkId::from("");
        let ip = |n: usize| IpAddr::from(u32::try_from(n).expect("small").to_be_bytes());
        assert!(!strangers.knows(&network, ip(1), now));
        (0..MOST + 1).for_each(|n| strangers.remember(&network, ip(n), now));
        let knows = |n, at| strangers.knows(&network, ip(n), at);
        assert!(knows(0, now) && knows(MOST - 1, now) && !knows(MOST, now));
        let later = now + REMEMBERED;
        assert!(!knows(0, later));
        strangers.remember(&network, ip(MOST), later);
        assert!(knows(MOST, later), "what is over makes room");
    }
}
