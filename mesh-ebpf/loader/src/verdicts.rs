//! What the proxy tells the kernel ahead: verdicts with epochs, the slots of VIPs, and failed dials.
//!
//! Invariants: a pod has at most its quota of verdicts, and a new one displaces the oldest of the same pod,
//! never another pod's; a verdict is written with the epoch that was read before it was decided.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_abi::maps::size;
use mesh_abi::{self as abi, Addr, Endpoint, MAX_SLOTS, Slot, Verdict, VerdictKey, Vip};

use crate::datapath::{Datapath, GENERATION};
use crate::{LoadError, sys};

/// What the kernel does with a connection by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Native TCP to the pod.
    Direct,
    /// Through the proxy.
    Proxy,
    /// `connect` fails, for the reason with this number.
    Refuse(u16),
}

/// One slot of a VIP. Weights are repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VipSlot {
    /// An endpoint on this node, that the hook may choose when the verdict says direct.
    Local(SocketAddr),
    /// The proxy chooses.
    Proxy,
}

/// Which verdicts each source has, oldest first.
pub(crate) type Ledger = Mutex<HashMap<u64, VecDeque<VerdictKey>>>;

impl Datapath {
    /// The epoch of a destination. Read it before deciding; a verdict with an older one says nothing.
    pub fn epoch(&self, destination: IpAddr) -> u32 {
        let bucket = Endpoint::epoch_bucket(&Addr::from(destination));
        let own = self.epochs.word(bucket, 0).load(Ordering::Acquire);
        Endpoint::epoch(own, self.state.word(0, GENERATION).load(Ordering::Acquire))
    }

    /// Makes every verdict about a destination void (and about those few that share its bucket). Bump first,
    /// then decide again.
    pub fn bump_epoch(&self, destination: IpAddr) {
        let bucket = Endpoint::epoch_bucket(&Addr::from(destination));
        self.epochs.word(bucket, 0).fetch_add(1, Ordering::AcqRel);
    }

    /// Makes every verdict void.
    pub fn bump_all(&self) {
        self.state
            .word(0, GENERATION)
            .fetch_add(1, Ordering::AcqRel);
    }

    /// Installs a verdict on connections of the pod with this namespace cookie to a destination, decided in
    /// `epoch`; `lasting`: for how long, or until the epoch moves.
    pub fn set_verdict(
        &self,
        cookie: u64,
        destination: SocketAddr,
        outcome: Outcome,
        epoch: u32,
        lasting: Option<Duration>,
    ) -> Result<(), LoadError> {
        let until = lasting.map_or(0, |d| {
            sys::now_ns().saturating_add(d.as_nanos() as u64).max(1)
        });
        let (action, reason) = match outcome {
            Outcome::Direct => (abi::VERDICT_DIRECT, 0),
            Outcome::Proxy => (abi::VERDICT_PROXY, 0),
            Outcome::Refuse(reason) => (abi::VERDICT_REFUSE, reason),
        };
        let key = VerdictKey::new(cookie, destination.ip().into(), destination.port());
        let mut ledger = self
            .ledger
            .lock()
            .expect("no panic while the ledger is held");
        let mine = ledger.entry(cookie).or_default();
        if self.verdicts.get(&key)?.is_none() {
            while mine.len() >= size::VERDICTS_QUOTA as usize {
                let Some(oldest) = mine.pop_front() else {
                    break;
                };
                self.verdicts.delete(&oldest)?;
            }
            mine.push_back(key);
        }
        self.verdicts
            .set(&key, &Verdict::new(until, epoch, action, reason))
    }

    /// Forgets what is known about a pod's connections to a destination.
    pub fn remove_verdict(&self, cookie: u64, destination: SocketAddr) -> Result<(), LoadError> {
        let key = VerdictKey::new(cookie, destination.ip().into(), destination.port());
        let mut ledger = self
            .ledger
            .lock()
            .expect("no panic while the ledger is held");
        if self.verdicts.delete(&key)?
            && let Some(mine) = ledger.get_mut(&cookie)
        {
            mine.retain(|k| *k != key);
        }
        Ok(())
    }

    pub(crate) fn forget_source(&self, cookie: u64) -> Result<(), LoadError> {
        let mine = self
            .ledger
            .lock()
            .expect("no panic while the ledger is held")
            .remove(&cookie);
        for key in mine.unwrap_or_default() {
            self.verdicts.delete(&key)?;
        }
        Ok(())
    }

    /// Sets the slots of a VIP; more than fit are thinned out evenly. No slots: the VIP is removed, and goes
    /// to the proxy.
    pub fn set_vip(&self, vip: SocketAddr, slots: &[VipSlot]) -> Result<(), LoadError> {
        if slots.is_empty() {
            return self.remove_vip(vip);
        }
        let used = slots.len().min(MAX_SLOTS);
        let mut table = [Slot::new(Addr::NONE, 0, 0); MAX_SLOTS];
        for (i, to) in table.iter_mut().take(used).enumerate() {
            if let VipSlot::Local(pod) = slots[i * slots.len() / used] {
                *to = Slot::new(pod.ip().into(), pod.port(), 1);
            }
        }
        self.vips
            .set(&endpoint(vip), &Vip::new(used as u32, 0, table))
    }

    /// Makes `connect` to a VIP fail, for the reason with this number: no endpoints, no such port.
    pub fn refuse_vip(&self, vip: SocketAddr, reason: u16) -> Result<(), LoadError> {
        let none = [Slot::new(Addr::NONE, 0, 0); MAX_SLOTS];
        self.vips
            .set(&endpoint(vip), &Vip::new(0, reason.into(), none))
    }

    /// Leaves a VIP to the proxy.
    pub fn remove_vip(&self, vip: SocketAddr) -> Result<(), LoadError> {
        self.vips.delete(&endpoint(vip)).map(drop)
    }

    /// Every VIP that has slots or is refused.
    pub fn vips(&self) -> Result<Vec<SocketAddr>, LoadError> {
        let keys = self.vips.keys()?;
        Ok(keys
            .iter()
            .map(|k| crate::events::socket_addr(k.addr(), k.port()))
            .collect())
    }
}

pub(crate) fn endpoint(a: SocketAddr) -> Endpoint {
    Endpoint::new(a.ip().into(), a.port())
}
