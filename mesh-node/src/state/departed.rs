//! Addresses that the mesh gave up a moment ago.
//!
//! Who dials one still means the captured pod that had it. Without this memory such a connection would leave in the
//! clear as one to the outside, and somebody who got the address since, or a load balancer that still knows the
//! service, would be talked to without anyone having been asked.
//!
//! Invariants: an address is here before the snapshot without it is published; memory is bounded, and what does not
//! fit pushes out what has been here longest.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use mesh_model::name::{NetworkAddress, NetworkId};

/// How long an address without an owner is refused. A cluster hands addresses out again after seconds, and tells of
/// the new owner within moments; a client that remembers an address longer than this has not looked for a minute.
const REFUSED: Duration = Duration::from_secs(60);
/// At most this many are remembered: all pods of the largest cluster that this is made for.
const MOST: usize = 100_000;

/// The memory.
#[derive(Debug, Default)]
pub struct Departed(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    until: HashMap<NetworkAddress, Instant>,
    order: VecDeque<(Instant, NetworkAddress)>,
}

impl Departed {
    /// These addresses have just lost their owner.
    pub fn remember(&self, addresses: Vec<NetworkAddress>, now: Instant) {
        if addresses.is_empty() {
            return;
        }
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = now + REFUSED;
        for address in addresses {
            memory.until.insert(address.clone(), until);
            memory.order.push_back((until, address));
        }
        memory.forget(now);
    }

    /// Whether an address lost its owner a moment ago. It may have a new one: that is for the snapshot to say.
    pub fn lately(&self, network: &NetworkId, ip: IpAddr, now: Instant) -> bool {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.until.is_empty() {
            return false;
        }
        let address = NetworkAddress {
            network: network.clone(),
            ip: ip.to_canonical(),
        };
        let until = memory.until.get(&address);
        until.is_some_and(|until| now < *until)
    }
}

impl Memory {
    fn forget(&mut self, now: Instant) {
        while self.order.len() > MOST || self.order.front().is_some_and(|(until, _)| *until <= now)
        {
            let Some((until, address)) = self.order.pop_front() else {
                return;
            };
            // It may have been given up again since.
            if self.until.get(&address) == Some(&until) {
                self.until.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: &str) -> NetworkAddress {
        NetworkAddress {
            network: NetworkId::from(""),
            ip: ip.parse().expect("an address"),
        }
    }

    #[test]
    fn an_address_is_remembered_for_its_time_from_when_it_was_last_given_up() {
        let (departed, start) = (Departed::default(), Instant::now());
        let is_here = |ip: &str, now| {
            let NetworkAddress { network, ip } = at(ip);
            departed.lately(&network, ip, now)
        };
        assert!(!is_here("10.0.0.1", start));
        departed.remember(vec![at("10.0.0.1"), at("10.0.0.2")], start);
        departed.remember(vec![at("10.0.0.2")], start + REFUSED / 2);
        let first = start + REFUSED;
        assert!(!is_here("10.0.0.1", first));
        assert!(is_here("::ffff:10.0.0.2", first));
        departed.remember(vec![at("10.0.0.3")], first);
        assert!(is_here("10.0.0.2", first), "only the first time is over");
        departed.remember(vec![at("10.0.0.4")], first + REFUSED);
        let memory = departed.0.lock().expect("not poisoned");
        assert_eq!((memory.until.len(), memory.order.len()), (1, 1));
    }

    #[test]
    fn the_oldest_makes_room() {
        let (departed, now) = (Departed::default(), Instant::now());
        let ip = |n: usize| IpAddr::from(u32::try_from(n).expect("small").to_be_bytes());
        let many = (0..MOST + 10).map(|n| NetworkAddress {
            network: NetworkId::from(""),
            ip: ip(n),
        });
        departed.remember(many.collect(), now);
        let knows = |n| departed.lately(&NetworkId::from(""), ip(n), now);
        assert!(!knows(9) && knows(10) && knows(MOST + 9));
    }
}
