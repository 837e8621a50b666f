//! Who owns an address: one claimant, or none while several claim it.
//!
//! Invariant: an address that two claim resolves to neither, and does again as soon as one is left.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{Service, known::Known, shard::Sharded};
use crate::name::{ServiceName, WorkloadUid};

/// Something that claims addresses.
pub(crate) trait Claimant: Clone {
    type Id: PartialEq;
    fn id(&self) -> &Self::Id;
}

impl Claimant for Arc<Known> {
    type Id = WorkloadUid;
    fn id(&self) -> &WorkloadUid {
        self.uid()
    }
}

impl Claimant for Arc<Service> {
    type Id = ServiceName;
    fn id(&self) -> &ServiceName {
        &self.name
    }
}

/// Owners by address.
#[derive(Clone, Debug)]
pub(crate) struct Claims<K, V> {
    sole: Sharded<K, V>,
    several: Arc<BTreeMap<K, Vec<V>>>,
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self {
            sole: Sharded::default(),
            several: Arc::default(),
        }
    }
}

impl<K: Hash + Ord + Clone, V: Claimant> Claims<K, V> {
    /// The only claimant.
    pub fn owner(&self, key: &K) -> Option<&V> {
        self.sole.get(key)
    }

    /// The claimants when there are several.
    pub fn contested(&self, key: &K) -> Option<&[V]> {
        self.several.get(key).map(Vec::as_slice)
    }

    pub fn add(&mut self, key: K, claimant: V) {
        if self.several.contains_key(&key) {
            let list = Arc::make_mut(&mut self.several).entry(key).or_default();
            list.retain(|c| c.id() != claimant.id());
            list.push(claimant);
            return;
        }
        match self.sole.get(&key) {
            Some(other) if other.id() != claimant.id() => {
                let pair = vec![other.clone(), claimant];
                self.sole.remove(&key);
                Arc::make_mut(&mut self.several).insert(key, pair);
            }
            Some(_) | None => self.sole.insert(key, claimant),
        }
    }

    pub fn remove(&mut self, key: &K, id: &V::Id) {
        if self.sole.get(key).is_some_and(|c| c.id() == id) {
            self.sole.remove(key);
        } else if self.several.contains_key(key) {
            let several = Arc::make_mut(&mut self.several);
            let list = several.get_mut(key).expect("just found");
            list.retain(|c| c.id() != id);
            if let [last] = list.as_slice() {
                self.sole.insert(key.clone(), last.clone());
                several.remove(key);
            }
        }
    }
}

/// What is known of one network's addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    // One map per family: a key of 4 bytes is what most pods cost.
    pods4: Claims<std::net::Ipv4Addr, Arc<Known>>,
    pods6: Claims<std::net::Ipv6Addr, Arc<Known>>,
    vips: Claims<IpAddr, Arc<Service>>,
    ranges: Arc<Ranges>,
}

/// Address ranges by prefix length.
#[derive(Clone, Debug, Default)]
struct Ranges {
    by_length: BTreeMap<u8, HashMap<IpNet, Vec<Arc<Service>>>>,
}

impl Network {
    pub fn add_workload(&mut self, ip: IpAddr, known: &Arc<Known>) {
        match ip {
            IpAddr::V4(ip) => self.pods4.add(ip, Arc::clone(known)),
            IpAddr::V6(ip) => self.pods6.add(ip, Arc::clone(known)),
        }
    }

    pub fn remove_workload(&mut self, ip: IpAddr, uid: &WorkloadUid) {
        match ip {
            IpAddr::V4(ip) => self.pods4.remove(&ip, uid),
            IpAddr::V6(ip) => self.pods6.remove(&ip, uid),
        }
    }

    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<Known>> {
        match ip {
            IpAddr::V4(ip) => self.pods4.owner(&ip),
            IpAddr::V6(ip) => self.pods6.owner(&ip),
        }
    }

    /// The workloads that share an address; empty when there is at most one.
    pub fn rivals(&self, ip: IpAddr) -> &[Arc<Known>] {
        match ip {
            IpAddr::V4(ip) => self.pods4.contested(&ip),
            IpAddr::V6(ip) => self.pods6.contested(&ip),
        }
        .unwrap_or_default()
    }

    pub fn add_vip(&mut self, ip: IpAddr, service: &Arc<Service>) {
        self.vips.add(ip, Arc::clone(service));
    }

    pub fn remove_vip(&mut self, ip: IpAddr, name: &ServiceName) {
        self.vips.remove(&ip, name);
    }

    pub fn add_range(&mut self, range: IpNet, service: &Arc<Service>) {
        let nets = Arc::make_mut(&mut self.ranges)
            .by_length
            .entry(range.prefix_len())
            .or_default();
        let list = nets.entry(range.trunc()).or_default();
        list.retain(|s| s.name != service.name);
        list.push(Arc::clone(service));
    }

    pub fn remove_range(&mut self, range: IpNet, name: &ServiceName) {
        let ranges = Arc::make_mut(&mut self.ranges);
        let Some(nets) = ranges.by_length.get_mut(&range.prefix_len()) else {
            return;
        };
        if let Some(list) = nets.get_mut(&range.trunc()) {
            list.retain(|s| s.name != *name);
            if list.is_empty() {
                nets.remove(&range.trunc());
            }
        }
        if nets.is_empty() {
            ranges.by_length.remove(&range.prefix_len());
        }
    }

    /// The services that share a virtual address; empty when there is at most one.
    pub fn vip_rivals(&self, ip: IpAddr) -> &[Arc<Service>] {
        self.vips.contested(&ip).unwrap_or_default()
    }

    /// The services that share the very same range; empty when there is at most one.
    pub fn range_rivals(&self, range: IpNet) -> &[Arc<Service>] {
        let same = self
            .ranges
            .by_length
            .get(&range.prefix_len())
            .and_then(|nets| nets.get(&range.trunc()));
        same.filter(|list| list.len() > 1)
            .map_or(&[], Vec::as_slice)
    }

    /// The services that claim an address: by exact address, else by the longest range.
    pub fn services(&self, ip: IpAddr) -> &[Arc<Service>] {
        if let Some(owner) = self.vips.owner(&ip) {
            return std::slice::from_ref(owner);
        }
        if let Some(rivals) = self.vips.contested(&ip) {
            return rivals;
        }
        for (length, nets) in self.ranges.by_length.iter().rev() {
            let net = IpNet::new(ip, *length).ok().map(|n| n.trunc());
            if let Some(list) = net.and_then(|n| nets.get(&n)) {
                return list;
            }
        }
        &[]
    }
}
