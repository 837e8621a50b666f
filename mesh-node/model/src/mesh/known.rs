//! How the snapshot keeps a workload: what differs from pod to pod, and a share in what does not.
//!
//! Invariants: `workload()` gives back exactly what `new` was given; the whole form is made when it is first
//! asked for, so that a pod nobody talks to stays small.

use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{
    Workload, WorkloadExtra,
    shard::Sharded,
    workload::{Canonical, Locality},
};
use crate::name::{NodeName, WorkloadUid};

/// A workload in its compact form.
pub(crate) struct Known {
    uid: WorkloadUid,
    place: Arc<Place>,
    shape: Arc<Shape>,
    /// What few workloads have.
    odd: Option<Box<Odd>>,
    whole: OnceLock<Arc<Workload>>,
    addresses: Addresses,
    /// How much of the uid's end is the name.
    name: u16,
    flags: Flags,
}

// At 100,000 pods every word of it is a megabyte.
const _: () = assert!(size_of::<Known>() <= 80);

impl Known {
    pub fn new(mut whole: Workload, shared: &Shared) -> Self {
        let place = Place {
            node: std::mem::replace(&mut whole.node, "".into()),
            locality: std::mem::take(&mut whole.locality),
        };
        let mut odd = Odd::default();
        let name = suffix(&whole.uid, &whole.name).unwrap_or_else(|| {
            odd.name = Some(Arc::clone(&whole.name));
            0
        });
        let flags = Flags::take(&mut whole);
        whole.name = "".into();
        let list = std::mem::take(&mut whole.addresses);
        let addresses = Addresses::new(&list).unwrap_or_else(|| {
            odd.addresses = list;
            Addresses::Odd
        });
        let odd = (odd != Odd::default()).then(|| Box::new(odd));
        let uid = std::mem::replace(&mut whole.uid, "".into());
        Self {
            uid,
            place: shared.places.share(place),
            shape: shared.shapes.share(Shape(whole)),
            odd,
            whole: OnceLock::new(),
            addresses,
            name,
            flags,
        }
    }

    pub fn uid(&self) -> &WorkloadUid {
        &self.uid
    }

    pub fn node(&self) -> &NodeName {
        &self.place.node
    }

    /// What all pods of the same kind have in common; the fields that differ are blank in it.
    pub fn shape(&self) -> &Workload {
        &self.shape.0
    }

    /// The addresses, IPv4-mapped ones unwrapped, none twice.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut list = self.listed();
        list.iter_mut().for_each(|ip| *ip = ip.to_canonical());
        list.sort_unstable();
        list.dedup();
        list
    }

    fn listed(&self) -> Vec<IpAddr> {
        match (&self.addresses, &self.odd) {
            (Addresses::V4(a), _) => vec![IpAddr::V4(*a)],
            (Addresses::V6(a), _) => vec![IpAddr::V6(*a)],
            (Addresses::Both(a, b), _) => vec![IpAddr::V4(*a), IpAddr::V6(*b)],
            (Addresses::Odd, Some(odd)) => odd.addresses.to_vec(),
            (Addresses::Odd, None) => Vec::new(),
        }
    }

    fn own_name(&self) -> Arc<str> {
        match self.odd.as_ref().and_then(|o| o.name.as_ref()) {
            Some(name) => Arc::clone(name),
            None => self.uid.as_str()[self.uid.as_str().len() - usize::from(self.name)..].into(),
        }
    }

    /// The whole workload.
    pub fn workload(&self) -> &Arc<Workload> {
        self.whole.get_or_init(|| {
            let mut whole = Workload {
                uid: self.uid.clone(),
                name: self.own_name(),
                addresses: self.listed().into(),
                node: self.place.node.clone(),
                locality: self.place.locality.clone(),
                ..self.shape.0.clone()
            };
            self.flags.put(&mut whole);
            Arc::new(whole)
        })
    }
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.uid)
    }
}

// `Eq` lets `Arc` compare by pointer first.
impl Eq for Known {}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.name == other.name
            && self.addresses == other.addresses
            && self.odd == other.odd
            && self.flags == other.flags
            && (Arc::ptr_eq(&self.place, &other.place) || self.place == other.place)
            && (Arc::ptr_eq(&self.shape, &other.shape) || self.shape == other.shape)
    }
}

/// All workloads by uid, each with its extra part. The uid is kept once, in the workload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    known: Sharded<ByUid, Option<Arc<Extra>>>,
    /// Extra parts that came before their workloads.
    early: Sharded<WorkloadUid, Arc<Extra>>,
}

#[derive(Clone)]
struct ByUid(Arc<Known>);

impl Directory {
    pub fn get(&self, uid: &WorkloadUid) -> Option<&Arc<Known>> {
        self.known.entry(uid).map(|(key, _)| &key.0)
    }

    pub fn insert(&mut self, known: Arc<Known>) {
        // A map keeps the key it has: the old one must go first.
        let extra = self
            .known
            .remove(known.uid())
            .unwrap_or_else(|| self.early.remove(known.uid()));
        self.known.insert(ByUid(known), extra);
    }

    /// Removes a workload with its extra part.
    pub fn remove(&mut self, uid: &WorkloadUid) -> Option<Arc<Known>> {
        let known = Arc::clone(self.get(uid)?);
        self.known.remove(uid);
        Some(known)
    }

    pub fn extra(&self, uid: &WorkloadUid) -> Option<&Arc<WorkloadExtra>> {
        self.known
            .get(uid)
            .map_or_else(|| self.early.get(uid), Option::as_ref)
            .map(|e| &e.0)
    }

    pub fn set_extra(&mut self, uid: &WorkloadUid, extra: Arc<Extra>) {
        match self.get(uid).cloned() {
            Some(known) => self.known.insert(ByUid(known), Some(extra)),
            None => self.early.insert(uid.clone(), extra),
        }
    }

    /// Says whether there was one.
    pub fn remove_extra(&mut self, uid: &WorkloadUid) -> bool {
        match self
            .known
            .entry(uid)
            .map(|(key, extra)| (key.clone(), extra.is_some()))
        {
            Some((key, true)) => self.known.insert(key, None),
            Some((_, false)) => return false,
            None => return self.early.remove(uid).is_some(),
        }
        true
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<Known>> {
        self.known.iter().map(|(key, _)| &key.0)
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }
}

impl std::borrow::Borrow<WorkloadUid> for ByUid {
    fn borrow(&self) -> &WorkloadUid {
        self.0.uid()
    }
}

impl Hash for ByUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.uid().hash(state);
    }
}

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.uid() == other.0.uid()
    }
}

impl Eq for ByUid {}

/// What a workload says in a bit each.
#[derive(Clone, Copy, PartialEq)]
struct Flags(u8);

impl Flags {
    const HEALTHY: u8 = 1;
    /// Its canonical name is its own, as it is where nothing made it: what others share would not be shared.
    const CANONICAL: u8 = 2;
    /// So is the name of what made it.
    const MADE_BY: u8 = 4;

    /// Blanks what it remembers.
    fn take(whole: &mut Workload) -> Self {
        let mut flags = 0;
        if std::mem::replace(&mut whole.healthy, true) {
            flags |= Self::HEALTHY;
        }
        let Canonical {
            name,
            workload_name,
            ..
        } = &mut whole.canonical;
        for (named, flag) in [(name, Self::CANONICAL), (workload_name, Self::MADE_BY)] {
            if *named == whole.name {
                *named = "".into();
                flags |= flag;
            }
        }
        Self(flags)
    }

    /// Puts it back; the workload has its own name already.
    fn put(self, whole: &mut Workload) {
        let Self(flags) = self;
        whole.healthy = flags & Self::HEALTHY != 0;
        let canonical = &mut whole.canonical;
        if flags & Self::CANONICAL != 0 {
            canonical.name = Arc::clone(&whole.name);
        }
        if flags & Self::MADE_BY != 0 {
            canonical.workload_name = Arc::clone(&whole.name);
        }
    }
}

/// What does not fit the short form.
#[derive(Default, PartialEq)]
struct Odd {
    /// A name that the uid does not end with.
    name: Option<Arc<str>>,
    /// No address, or several of a family.
    addresses: Box<[IpAddr]>,
}

/// The name is mostly the last part of the uid: its length, if so.
fn suffix(uid: &WorkloadUid, name: &str) -> Option<u16> {
    u16::try_from(name.len())
        .ok()
        .filter(|_| uid.as_str().ends_with(name))
}

/// Nearly every pod has one address, or one of each family.
#[derive(PartialEq)]
enum Addresses {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Both(Ipv4Addr, Ipv6Addr),
    /// A list kept apart.
    Odd,
}

impl Addresses {
    fn new(list: &[IpAddr]) -> Option<Self> {
        match *list {
            [IpAddr::V4(a)] => Some(Self::V4(a)),
            [IpAddr::V6(a)] => Some(Self::V6(a)),
            [IpAddr::V4(a), IpAddr::V6(b)] => Some(Self::Both(a, b)),
            _ => None,
        }
    }
}

/// Where a workload is.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    node: NodeName,
    locality: Locality,
}

/// What pods of one Deployment share.
#[derive(PartialEq, Eq)]
struct Shape(Workload);

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Shape(w) = self;
        (
            &w.namespace,
            &w.identity,
            &w.canonical.name,
            &w.canonical.revision,
            &w.canonical.workload_name,
        )
            .hash(state);
        w.policies.hash(state);
        for membership in &w.services {
            membership.service.hash(state);
        }
    }
}

/// What many workloads have in common, kept once. A cache: it changes no decision.
#[derive(Default)]
pub(crate) struct Shared {
    places: Interner<Place>,
    shapes: Interner<Shape>,
    extras: Interner<Extra>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub fn extra(&self, extra: WorkloadExtra) -> Arc<Extra> {
        self.extras.share(Extra(Arc::new(extra)))
    }
}

/// A shared `WorkloadExtra`.
#[derive(PartialEq, Eq)]
pub(crate) struct Extra(pub Arc<WorkloadExtra>);

impl Hash for Extra {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let WorkloadExtra {
            probe_ports,
            cut_existing,
            allow_forwarded,
            guarded,
            features,
            pod_uid,
            ..
        } = &*self.0;
        (
            probe_ports,
            cut_existing,
            allow_forwarded,
            guarded,
            features,
            pod_uid,
        )
            .hash(state);
    }
}

/// Keeps equal values once for as long as somebody uses them.
struct Interner<T> {
    held: Mutex<Held<T>>,
}

struct Held<T> {
    set: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            held: Mutex::new(Held {
                set: HashSet::new(),
                sweep_at: 1024,
            }),
        }
    }
}

impl<T: Hash + Eq> Interner<T> {
    fn share(&self, value: T) -> Arc<T> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = held.set.get(&value) {
            return Arc::clone(known);
        }
        if held.set.len() >= held.sweep_at {
            held.set.retain(|v| Arc::strong_count(v) > 1);
            held.sweep_at = (held.set.len() * 2).max(1024);
        }
        let value = Arc::new(value);
        held.set.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compact_form_gives_back_what_it_was_given() {
        use crate::testing::cast::pod;
        let shared = Shared::default();
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        for addresses in [
            vec![],
            vec![ip("10.0.0.1")],
            vec![ip("fd00::1")],
            vec![ip("10.0.0.1"), ip("fd00::1")],
            vec![ip("fd00::1"), ip("10.0.0.1")],
            vec![ip("10.0.0.1"), ip("10.0.0.2")],
        ] {
            for name in ["web", "", "another"] {
                let mut whole = pod("shop", "web", "n1", "10.9.9.9");
                (whole.name, whole.addresses) = (name.into(), addresses.clone().into());
                whole.healthy = name.is_empty();
                if addresses.len() == 1 {
                    (whole.canonical.name, whole.canonical.workload_name) =
                        ("web".into(), "another".into());
                }
                let known = Known::new(whole.clone(), &shared);
                assert_eq!(**known.workload(), whole);
                assert!(known == Known::new(whole.clone(), &shared));
                whole.name = "third".into();
                assert!(known != Known::new(whole, &shared));
            }
        }
    }

    #[test]
    fn values_are_shared_and_forgotten() {
        let interner: Interner<String> = Interner::default();
        let (a, b) = (interner.share("x".into()), interner.share("x".into()));
        assert!(Arc::ptr_eq(&a, &b));
        for i in 0..5_000 {
            interner.share(i.to_string());
        }
        let held = interner.held.lock().expect("not poisoned");
        assert!(
            held.set.len() <= 1_100 && held.set.contains(&*a),
            "{}",
            held.set.len()
        );
    }
}
