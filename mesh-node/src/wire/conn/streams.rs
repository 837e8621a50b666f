//! The streams of a connection: windows, state and what the owner keeps for each.
//!
//! Invariant: `live` is the number of entries that are neither reset nor ended in both directions.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// What has happened to a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// The peer ended its direction.
    pub const RECEIVED_END: u8 = 1;
    /// We ended ours.
    pub const SENT_END: u8 = 2;
    /// The request was answered.
    pub const ANSWERED: u8 = 4;
    /// Reset by either side.
    pub const RESET: u8 = 8;

    /// Whether it has happened.
    pub fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// It has happened.
    pub fn set(&mut self, flag: u8) {
        self.0 |= flag;
    }

    fn is_live(self) -> bool {
        const BOTH: u8 = Flags::RECEIVED_END | Flags::SENT_END;
        !self.has(Self::RESET) && self.0 & BOTH != BOTH
    }
}

/// One stream.
#[derive(Debug)]
pub struct Entry<S> {
    /// What we may send.
    pub send_window: i32,
    /// What the peer may send.
    pub receive_left: i32,
    /// What was drained and not credited yet.
    pub owed: u32,
    /// What has happened.
    pub flags: Flags,
    /// The owner's.
    pub user: S,
}

/// All streams.
#[derive(Debug)]
pub struct Streams<S> {
    map: HashMap<u32, Entry<S>, BuildHasherDefault<IdHasher>>,
    live: usize,
}

impl<S> Default for Streams<S> {
    fn default() -> Self {
        Self {
            map: HashMap::default(),
            live: 0,
        }
    }
}

impl<S> Streams<S> {
    pub fn insert(&mut self, id: u32, send: u32, receive: u32, user: S) {
        let entry = Entry {
            send_window: send as i32,
            receive_left: receive as i32,
            owed: 0,
            flags: Flags::default(),
            user,
        };
        self.map.insert(id, entry);
        self.live += 1;
    }

    pub fn get(&mut self, id: u32) -> Option<&mut Entry<S>> {
        self.map.get_mut(&id)
    }

    /// The entry, if the stream has neither been reset nor ended.
    pub fn get_live(&mut self, id: u32) -> Option<&mut Entry<S>> {
        self.map.get_mut(&id).filter(|entry| entry.flags.is_live())
    }

    pub fn each(&mut self) -> impl Iterator<Item = (u32, &mut Entry<S>)> {
        self.map.iter_mut().map(|(&id, entry)| (id, entry))
    }

    pub fn live(&self) -> usize {
        self.live
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether we may send content.
    pub fn may_send(&self, id: u32) -> bool {
        self.map.get(&id).is_some_and(|entry| {
            let flags = entry.flags;
            flags.is_live() && flags.has(Flags::ANSWERED) && !flags.has(Flags::SENT_END)
        })
    }

    pub fn end_send(&mut self, id: u32) {
        self.set(id, Flags::SENT_END);
    }

    pub fn end_receive(&mut self, id: u32) {
        self.set(id, Flags::RECEIVED_END);
    }

    /// Marks a stream as reset; `false` if there is nothing left to reset.
    pub fn kill(&mut self, id: u32) -> bool {
        let live = self.get_live(id).is_some();
        self.set(id, Flags::RESET);
        live
    }

    pub fn remove(&mut self, id: u32) -> Option<S> {
        let entry = self.map.remove(&id)?;
        self.live -= usize::from(entry.flags.is_live());
        if self.map.is_empty() {
            self.map.shrink_to(16);
        }
        Some(entry.user)
    }

    fn set(&mut self, id: u32, flag: u8) {
        if let Some(entry) = self.map.get_mut(&id) {
            let before = entry.flags.is_live();
            entry.flags.set(flag);
            self.live -= usize::from(before && !entry.flags.is_live());
        }
    }
}

/// Stream identifiers are consecutive, so spreading their bits is enough; a peer cannot have more than the
/// bounded number of streams, whatever identifiers it picks.
#[derive(Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }
}
