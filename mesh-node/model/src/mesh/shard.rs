//! A hash map in shards, so that the next snapshot copies only the shards a change falls into.
//!
//! Invariants: a clone shares every shard; a change copies one shard of one map, the first time in a batch.
//! Hashing is deterministic: two snapshots with the same history have the same shards.

use std::{
    borrow::Borrow,
    collections::{HashMap, hash_map::DefaultHasher},
    fmt,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

/// Shards per map: at 100,000 entries a change copies about 400 of them.
const SHARDS: usize = 256;

/// The ordinary hash.
pub(crate) type Sip = BuildHasherDefault<DefaultHasher>;

/// For keys that are hashes already.
pub(crate) type Hashed = BuildHasherDefault<AsIs>;

/// Hands a 64-bit key through.
#[derive(Default)]
pub(crate) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only 64-bit keys are meant to come here; others are folded, so that the result stays right.
        bytes
            .iter()
            .for_each(|b| self.0 = (self.0.rotate_left(8)) ^ u64::from(*b));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// The map.
pub(crate) struct Sharded<K, V, S = Sip> {
    shards: Arc<[Arc<HashMap<K, V, S>>]>,
}

impl<K, V, S> Clone for Sharded<K, V, S> {
    fn clone(&self) -> Self {
        Self {
            shards: Arc::clone(&self.shards),
        }
    }
}

impl<K, V, S: Default> Default for Sharded<K, V, S> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::default());
        Self {
            shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(),
        }
    }
}

impl<K, V, S> fmt::Debug for Sharded<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.len())
    }
}

impl<K, V, S> Sharded<K, V, S> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.len()).sum()
    }

    /// All entries, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|s| s.iter())
    }

    /// All values, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, v)| v)
    }

    /// How many shards two maps do not share.
    #[cfg(test)]
    pub fn unshared(&self, other: &Self) -> usize {
        self.shards
            .iter()
            .zip(other.shards.iter())
            .filter(|(a, b)| !Arc::ptr_eq(a, b))
            .count()
    }
}

impl<K: Hash + Eq + Clone, V: Clone, S: BuildHasher + Clone + Default> Sharded<K, V, S> {
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[shard_of::<_, S>(key)].get(key)
    }

    /// The entry with its stored key, so that equal keys can share one allocation.
    pub fn entry<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.shards[shard_of::<_, S>(key)].get_key_value(key)
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.table(&key).insert(key, value);
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        let table = self.table(key);
        let gone = table.remove(key);
        if table.len() * 4 < table.capacity() {
            table.shrink_to_fit();
        }
        gone
    }

    /// Changes the value in place, made by `new` when absent; the entry goes when `change` returns false.
    pub fn update(
        &mut self,
        key: &K,
        new: impl FnOnce() -> V,
        change: impl FnOnce(&mut V) -> bool,
    ) {
        let table = self.table(key);
        if !table.contains_key(key) {
            table.insert(key.clone(), new());
        }
        let value = table
            .get_mut(key)
            .expect("inserted above when it was absent");
        if !change(value) {
            table.remove(key);
        }
    }

    fn table<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut HashMap<K, V, S> {
        let shards = Arc::make_mut(&mut self.shards);
        Arc::make_mut(&mut shards[shard_of::<_, S>(key)])
    }
}

/// The middle bits choose the shard: the table inside uses the lowest and the highest ones.
fn shard_of<Q: Hash + ?Sized, S: BuildHasher + Default>(key: &Q) -> usize {
    (S::default().hash_one(key) >> 32) as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_copies_one_shard() {
        let mut first: Sharded<u32, u32> = Sharded::default();
        for i in 0..10_000 {
            first.insert(i, i);
        }
        let mut second = first.clone();
        second.insert(5, 6);
        assert_eq!(
            (first.get(&5), second.get(&5), first.unshared(&second)),
            (Some(&5), Some(&6), 1)
        );
        assert_eq!(second.remove(&77_777), None);
        assert_eq!(
            first.unshared(&second),
            1,
            "removing what is absent copies nothing"
        );
        assert_eq!((second.remove(&5), second.len()), (Some(6), 9_999));
        second.update(
            &70_000,
            || 1,
            |v| {
                *v += 1;
                true
            },
        );
        assert_eq!(second.get(&70_000), Some(&2));
        second.update(&70_000, || 1, |_| false);
        assert_eq!(second.get(&70_000), None);
    }
}
