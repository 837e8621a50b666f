//! The publisher's side for one subscriber: what it asked for, what it is known to hold, and the next message that
//! brings it closer to the newest view.
//!
//! Invariants: one pass over the kinds sends the difference to one view, whole, before a newer one is looked at;
//! at most `WINDOW` messages are unanswered; a subscription changes only between passes; a refused resource is not
//! sent again until it changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use prost::Message;

use super::{
    Outside, View, Violation, WILDCARD,
    batch::Batch,
    outside,
    view::{SHARDS, digest},
};
use crate::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    resource::{Kind, Resource, Version},
    warren,
};

/// How many messages may be unanswered.
const WINDOW: usize = 8;
/// Subscription changes that may wait for the end of a pass.
const MAX_DEFERRED: usize = 64;
/// Names that one subscriber may ask for on demand.
const MAX_NAMES: usize = 200_000;

/// Who subscribes, as its certificate proves.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The node it is.
    pub node: Option<Arc<str>>,
    /// Whether it is one of ours: it gets our own kinds and markers.
    pub ours: bool,
    /// Whether it also gets what single nodes need: clients and endpoints of a waypoint are anywhere.
    pub everywhere: bool,
}

/// What a request told besides what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The subscriber applied a message.
    Acked(Kind),
    /// The subscriber did not understand these.
    Refused(Kind, Vec<Rejection>),
    /// The node does not serve these pods, and tells of no others at present.
    NotCaptured(Vec<Outside>),
    /// A type that is not served was asked for.
    UnknownType(String),
}

/// A resource that a subscriber did not understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Its name.
    pub name: Arc<str>,
    /// What the subscriber says is wrong.
    pub message: String,
}

/// One subscriber.
#[derive(Debug)]
pub struct Server {
    peer: Peer,
    subscriptions: BTreeMap<Kind, Subscription>,
    pass: Option<Pass>,
    deferred: VecDeque<DeltaDiscoveryRequest>,
    unanswered: VecDeque<Unanswered>,
    nonce: u64,
}

#[derive(Debug)]
struct Unanswered {
    nonce: u64,
    kind: Kind,
    names: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Subscription {
    /// Names asked for; `None` for everything.
    wanted: Option<BTreeSet<Arc<str>>>,
    /// Names to be answered even when nothing about them changed.
    fresh: BTreeSet<Arc<str>>,
    base: Base,
    marked: bool,
}

/// What a subscriber is known to hold.
#[derive(Debug)]
enum Base {
    Versions(HashMap<Arc<str>, Option<Version>>),
    Digests(Vec<u64>),
    View(View),
}

#[derive(Debug)]
struct Pass {
    target: View,
    kind: usize,
    at: At,
}

/// How far a pass is within a kind.
#[derive(Clone, Debug)]
enum At {
    Shard(usize),
    After(Option<Arc<str>>),
}

impl Server {
    /// A subscriber that has asked for nothing yet.
    pub fn new(peer: Peer) -> Self {
        Self {
            peer,
            subscriptions: BTreeMap::new(),
            pass: None,
            deferred: VecDeque::new(),
            unanswered: VecDeque::new(),
            nonce: 0,
        }
    }

    /// Takes a request. Afterwards `next` may have something to send.
    pub fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<Event>, Violation> {
        let Some(kind) = self.served(&request.type_url) else {
            let Peer {
                node,
                ours,
                everywhere,
            } = &self.peer;
            let is_node = *ours && node.is_some() && !everywhere;
            return Ok(Some(match outside::heard(&request) {
                Some(pods) if is_node => Event::NotCaptured(pods),
                Some(_) | None => Event::UnknownType(request.type_url),
            }));
        };
        let event = self.answered(kind, &request);
        let asks = !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        if asks || !self.subscriptions.contains_key(&kind) {
            if self.pass.is_none() {
                self.subscribe(kind, request)?;
            } else if self.deferred.len() < MAX_DEFERRED {
                self.deferred.push_back(request);
            } else {
                return Err(Violation::TooManyRequests(MAX_DEFERRED));
            }
        }
        Ok(event)
    }

    /// The next message towards this view; `None` when there is nothing to send or too much is unanswered.
    pub fn next(&mut self, newest: &View) -> Result<Option<DeltaDiscoveryResponse>, Violation> {
        loop {
            if self.unanswered.len() >= WINDOW {
                return Ok(None);
            }
            if self.pass.is_none() {
                while let Some(request) = self.deferred.pop_front() {
                    if let Some(kind) = self.served(&request.type_url) {
                        self.subscribe(kind, request)?;
                    }
                }
                if self.subscriptions.values().all(|s| s.is_at(newest)) {
                    return Ok(None);
                }
            }
            let mut pass = self.pass.take().unwrap_or_else(|| Pass {
                target: newest.clone(),
                kind: 0,
                at: At::Shard(0),
            });
            let Some(kind) = Kind::ALL.get(pass.kind).copied() else {
                continue;
            };
            let message = self.step(kind, &mut pass);
            self.pass = Some(pass);
            if let Some(message) = message {
                return Ok(Some(message));
            }
        }
    }

    /// How many messages wait for an answer.
    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// Whether the subscriber was sent this view and has answered all of it.
    pub fn is_at(&self, view: &View) -> bool {
        self.pass.is_none()
            && self.unanswered.is_empty()
            && self.subscriptions.values().all(|s| s.is_at(view))
    }

    /// One message of a pass; moves on to the next kind when this one is done.
    fn step(&mut self, kind: Kind, pass: &mut Pass) -> Option<DeltaDiscoveryResponse> {
        let done = |pass: &mut Pass| {
            pass.kind += 1;
            pass.at = At::Shard(0);
        };
        let Some(sub) = self
            .subscriptions
            .get_mut(&kind)
            .filter(|s| !s.is_at(&pass.target))
        else {
            done(pass);
            return None;
        };
        let mut batch = Batch::default();
        let finished = if sub.wanted.is_none() {
            sub.all(kind, pass, &self.peer, &mut batch)
        } else {
            sub.on_demand(kind, pass, &self.peer, &mut batch)
        };
        if finished {
            sub.base = Base::View(pass.target.clone());
            batch.marker = self.peer.ours && !sub.marked;
            sub.marked = true;
            done(pass);
        }
        if batch.is_empty() {
            return None;
        }
        self.nonce += 1;
        self.unanswered.push_back(Unanswered {
            nonce: self.nonce,
            kind,
            names: batch.names(),
        });
        Some(batch.into_response(kind, self.nonce))
    }

    fn served(&self, url: &str) -> Option<Kind> {
        Kind::from_url(url).filter(|k| self.peer.ours || !k.is_ours())
    }

    fn answered(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) -> Option<Event> {
        let nonce: u64 = request.response_nonce.parse().ok()?;
        let at = self
            .unanswered
            .iter()
            .position(|u| u.nonce == nonce && u.kind == kind)?;
        let unanswered = self.unanswered.remove(at)?;
        let Some(error) = &request.error_detail else {
            return Some(Event::Acked(kind));
        };
        let named = error
            .details
            .iter()
            .find(|d| d.type_url.ends_with("/warren.v1.Rejections"));
        let named = named.and_then(|d| warren::Rejections::decode(d.value.clone()).ok());
        let rejections = match named {
            Some(list) => list
                .rejections
                .into_iter()
                .map(|r| Rejection {
                    name: r.name.into(),
                    message: r.message,
                })
                .collect(),
            None => unanswered
                .names
                .into_iter()
                .map(|name| Rejection {
                    name,
                    message: error.message.clone(),
                })
                .collect(),
        };
        Some(Event::Refused(kind, rejections))
    }

    fn subscribe(&mut self, kind: Kind, request: DeltaDiscoveryRequest) -> Result<(), Violation> {
        let first = !self.subscriptions.contains_key(&kind);
        let sub = self
            .subscriptions
            .entry(kind)
            .or_insert_with(|| Subscription::first(&request));
        let (add, drop) = (
            request.resource_names_subscribe,
            request.resource_names_unsubscribe,
        );
        // An empty first request asks for everything.
        let everything =
            add.iter().any(|n| n == WILDCARD) || (first && add.is_empty() && drop.is_empty());
        if drop.iter().any(|n| n == WILDCARD) {
            sub.wanted.get_or_insert_default();
        } else if everything {
            sub.widen(kind, &self.peer);
        }
        let Some(wanted) = &mut sub.wanted else {
            return Ok(());
        };
        for name in drop {
            wanted.remove(name.as_str());
            sub.fresh.remove(name.as_str());
        }
        for name in add.into_iter().filter(|n| n != WILDCARD) {
            let name: Arc<str> = name.into();
            wanted.insert(name.clone());
            sub.fresh.insert(name);
        }
        if wanted.len() > MAX_NAMES {
            Err(Violation::TooManyNames(MAX_NAMES))
        } else {
            Ok(())
        }
    }
}

impl Subscription {
    fn first(request: &DeltaDiscoveryRequest) -> Self {
        let digests = &request.warren_digests;
        let base = if digests.len() == SHARDS * 8 {
            let number = |c: &[u8]| u64::from_le_bytes(c.try_into().expect("chunks of eight"));
            Base::Digests(digests.chunks_exact(8).map(number).collect())
        } else {
            let versions = &request.initial_resource_versions;
            Base::Versions(
                versions
                    .iter()
                    .map(|(n, v)| (n.as_str().into(), v.parse().ok()))
                    .collect(),
            )
        };
        Self {
            wanted: Some(BTreeSet::new()),
            fresh: BTreeSet::new(),
            base,
            marked: false,
        }
    }

    fn is_at(&self, view: &View) -> bool {
        let at = matches!(&self.base, Base::View(v) if v.same(view));
        at && self.fresh.is_empty()
    }

    /// From names to everything: of the view that was sent, only what was asked for is held.
    fn widen(&mut self, kind: Kind, peer: &Peer) {
        let Some(wanted) = self.wanted.take() else {
            return;
        };
        self.fresh.clear();
        if let Base::View(view) = &self.base {
            let held = wanted
                .iter()
                .flat_map(|n| view.resolve(kind, n))
                .filter(|r| visible(r, peer));
            self.base = Base::Versions(held.map(|r| (r.name.clone(), Some(r.version))).collect());
        }
    }

    /// Adds shards until the message is full; true when the last one is in.
    fn all(&mut self, kind: Kind, pass: &mut Pass, peer: &Peer, batch: &mut Batch) -> bool {
        let At::Shard(from) = pass.at else {
            return true;
        };
        for i in from..SHARDS {
            if batch.is_full() {
                pass.at = At::Shard(i);
                return false;
            }
            self.shard(kind, i, &pass.target, peer, batch);
        }
        self.declared_but_gone(kind, &pass.target, peer, batch);
        true
    }

    fn declared_but_gone(&self, kind: Kind, target: &View, peer: &Peer, batch: &mut Batch) {
        if let Base::Versions(held) = &self.base {
            let there = |name: &Arc<str>| target.get(kind, name).is_some_and(|r| visible(r, peer));
            batch
                .removed
                .extend(held.keys().filter(|n| !there(n)).cloned());
        }
    }

    fn shard(&self, kind: Kind, i: usize, target: &View, peer: &Peer, batch: &mut Batch) {
        let new = target.shard(kind, i);
        let seen = new.values().filter(|r| visible(r, peer));
        match &self.base {
            Base::View(view) => {
                let old = view.shard(kind, i);
                if Arc::ptr_eq(old, new) {
                    return;
                }
                let held = |r: &Resource| {
                    old.get(&r.name)
                        .is_some_and(|o| visible(o, peer) && o.version == r.version)
                };
                batch.set.extend(seen.filter(|r| !held(r)).cloned());
                let there = |r: &Resource| new.get(&r.name).is_some_and(|n| visible(n, peer));
                batch.removed.extend(
                    old.values()
                        .filter(|r| visible(r, peer) && !there(r))
                        .map(|r| r.name.clone()),
                );
            }
            Base::Versions(held) => {
                batch.set.extend(
                    seen.filter(|r| held.get(&r.name) != Some(&Some(r.version)))
                        .cloned(),
                );
            }
            Base::Digests(digests) => {
                if digest(seen.clone().map(|r| (&*r.name, r.version))) != digests[i] {
                    batch
                        .replaced
                        .push(i.try_into().expect("there are 256 shards"));
                    batch.set.extend(seen.cloned());
                }
            }
        }
    }

    /// Adds names until the message is full; true when the last one is in.
    fn on_demand(&mut self, kind: Kind, pass: &mut Pass, peer: &Peer, batch: &mut Batch) -> bool {
        let wanted = self.wanted.iter().flatten();
        let after = match &pass.at {
            At::After(Some(name)) => Bound::Excluded(name.clone()),
            At::After(None) | At::Shard(_) => Bound::Unbounded,
        };
        let names: Vec<_> = match &after {
            Bound::Excluded(name) => wanted.filter(|n| *n > name).cloned().collect(),
            Bound::Unbounded | Bound::Included(_) => wanted.cloned().collect(),
        };
        for name in names {
            if batch.is_full() {
                return false;
            }
            let fresh = self.fresh.remove(&name);
            self.one(kind, &name, fresh, &pass.target, peer, batch);
            pass.at = At::After(Some(name));
        }
        self.declared_but_gone(kind, &pass.target, peer, batch);
        true
    }

    fn one(
        &self,
        kind: Kind,
        name: &Arc<str>,
        fresh: bool,
        target: &View,
        peer: &Peer,
        batch: &mut Batch,
    ) {
        let new: Vec<_> = target
            .resolve(kind, name)
            .filter(|r| visible(r, peer))
            .cloned()
            .collect();
        let old: Vec<_> = match &self.base {
            Base::View(view) => view
                .resolve(kind, name)
                .filter(|r| visible(r, peer))
                .cloned()
                .collect(),
            Base::Versions(_) | Base::Digests(_) => Vec::new(),
        };
        for r in &old {
            if !new.iter().any(|n| n.name == r.name) {
                batch.removed.push(r.name.clone());
            }
        }
        if fresh && new.is_empty() && old.is_empty() {
            batch.removed.push(name.clone());
        }
        let unchanged = |r: &Resource| match &self.base {
            // What the subscriber declared when it came back is not asked for anew.
            Base::Versions(held) => held.get(&r.name) == Some(&Some(r.version)),
            Base::View(_) | Base::Digests(_) => {
                !fresh
                    && old
                        .iter()
                        .any(|o| o.name == r.name && o.version == r.version)
            }
        };
        batch.set.extend(new.into_iter().filter(|r| !unchanged(r)));
    }
}

fn visible(resource: &Resource, peer: &Peer) -> bool {
    peer.everywhere || resource.node.is_none() || resource.node == peer.node
}
