//! All published resources as one immutable value in shared shards: a change copies one shard, and two views are
//! compared shard by shard, by pointer first.
//!
//! Invariant: the shard of a name is the same on both ends of a stream, because digests are per shard.

use std::{collections::HashMap, sync::Arc};

use sha2::{Digest, Sha256};

use crate::resource::{Kind, Resource, Update, Version};

/// The number of shards of each kind.
pub(super) const SHARDS: usize = 256;

pub(super) type Shard = HashMap<Arc<str>, Arc<Resource>>;
type Aliases = HashMap<Arc<str>, Vec<Arc<str>>>;

/// Every published resource at one moment. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct View {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    companions: Shards<Shard>,
    authorizations: Shards<Shard>,
    destinations: Shards<Shard>,
    routes: Shards<Shard>,
    addresses: Shards<Shard>,
    aliases: Shards<Aliases>,
}

#[derive(Clone, Debug)]
struct Shards<T>(Box<[Arc<T>]>);

impl<T: Default> Default for Shards<T> {
    fn default() -> Self {
        let empty = Arc::new(T::default());
        Self((0..SHARDS).map(|_| empty.clone()).collect())
    }
}

impl View {
    /// The view after these updates; an update that changes nothing leaves its shard shared.
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) -> View {
        let mut inner = Inner::clone(&self.inner);
        let mut changed = false;
        for update in updates {
            changed |= inner.apply(update);
        }
        if changed {
            View {
                inner: Arc::new(inner),
            }
        } else {
            self.clone()
        }
    }

    /// The updates that lead from this view to one that has exactly these resources.
    pub fn replaced_by(&self, resources: Vec<Resource>) -> Vec<Update> {
        let mut wanted: HashMap<(Kind, Arc<str>), Resource> =
            HashMap::with_capacity(resources.len());
        for r in resources {
            wanted.insert((r.kind, r.name.clone()), r);
        }
        let gone = self
            .iter()
            .filter(|r| !wanted.contains_key(&(r.kind, r.name.clone())));
        let mut updates: Vec<_> = gone
            .map(|r| Update::Remove(r.kind, r.name.clone()))
            .collect();
        updates.extend(wanted.into_values().map(Update::Set));
        updates
    }

    /// The resource with this name.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Resource>> {
        self.shard(kind, shard_of(name)).get(name)
    }

    /// The resources that a name or an alias stands for; an address can be claimed by several.
    pub fn resolve<'a>(
        &'a self,
        kind: Kind,
        name: &str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        let own = self.get(kind, name);
        let known = if kind == Kind::Address {
            self.inner.aliases.0[shard_of(name)].get(name)
        } else {
            None
        };
        own.into_iter().chain(
            known
                .into_iter()
                .flatten()
                .filter_map(move |n| self.get(kind, n)),
        )
    }

    /// All resources.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        Kind::ALL
            .into_iter()
            .flat_map(move |kind| (0..SHARDS).flat_map(move |i| self.shard(kind, i).values()))
    }

    /// How many resources of a kind there are.
    pub fn len(&self, kind: Kind) -> usize {
        (0..SHARDS).map(|i| self.shard(kind, i).len()).sum()
    }

    /// Whether two views are the same one.
    pub fn same(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(super) fn shard(&self, kind: Kind, index: usize) -> &Arc<Shard> {
        &self.inner.kind(kind).0[index]
    }
}

impl Inner {
    fn kind(&self, kind: Kind) -> &Shards<Shard> {
        match kind {
            Kind::Companion => &self.companions,
            Kind::Authorization => &self.authorizations,
            Kind::Destination => &self.destinations,
            Kind::Routes => &self.routes,
            Kind::Address => &self.addresses,
        }
    }

    fn shard_mut(&mut self, kind: Kind, name: &str) -> &mut Shard {
        let shards = match kind {
            Kind::Companion => &mut self.companions,
            Kind::Authorization => &mut self.authorizations,
            Kind::Destination => &mut self.destinations,
            Kind::Routes => &mut self.routes,
            Kind::Address => &mut self.addresses,
        };
        Arc::make_mut(&mut shards.0[shard_of(name)])
    }

    fn apply(&mut self, update: Update) -> bool {
        let (kind, name) = update.key();
        let old = self.kind(kind).0[shard_of(name)].get(name).cloned();
        match update {
            Update::Set(new) => {
                if old.as_deref() == Some(&new) {
                    return false;
                }
                if let Some(old) = &old {
                    self.unalias(old);
                }
                for alias in &new.aliases {
                    let shard = Arc::make_mut(&mut self.aliases.0[shard_of(alias)]);
                    shard
                        .entry(alias.clone())
                        .or_default()
                        .push(new.name.clone());
                }
                self.shard_mut(new.kind, &new.name)
                    .insert(new.name.clone(), Arc::new(new));
            }
            Update::Remove(kind, name) => {
                let Some(old) = old else { return false };
                self.unalias(&old);
                self.shard_mut(kind, &name).remove(&name);
            }
        }
        true
    }

    fn unalias(&mut self, old: &Resource) {
        for alias in &old.aliases {
            let shard = Arc::make_mut(&mut self.aliases.0[shard_of(alias)]);
            if let Some(names) = shard.get_mut(alias) {
                names.retain(|n| *n != old.name);
                if names.is_empty() {
                    shard.remove(alias);
                }
            }
        }
    }
}

/// The shard of a name: FNV-1a, folded.
pub(super) fn shard_of(name: &str) -> usize {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for b in name.bytes() {
        hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    ((hash ^ (hash >> 32) ^ (hash >> 16)) & 0xff) as usize
}

/// The digest of a shard's content: SHA-256 over its names and versions in order, so that nobody can steer a collision.
pub(super) fn digest<'a>(entries: impl Iterator<Item = (&'a str, Version)>) -> u64 {
    let mut entries: Vec<_> = entries.collect();
    if entries.is_empty() {
        return 0;
    }
    entries.sort_unstable();
    let mut hash = Sha256::new();
    for (name, version) in entries {
        hash.update(u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
        hash.update(name);
        hash.update(version.number().to_le_bytes());
    }
    u64::from_le_bytes(
        hash.finalize()[..8]
            .try_into()
            .expect("SHA-256 has 32 bytes"),
    )
}
