//! The certificates of this node: which are needed, which are there, and the TLS configurations made from them.
//!
//! Invariants: an expired certificate is never used; a TLS configuration is dropped as soon as the
//! certificate or the roots it was made from are replaced; locks are held for look-ups only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use mesh_model::{name::Identity, reason::Reason};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use super::{Admits, Issued, NodeCertificate, Trust, tls};

/// Dialing configurations kept per identity; beyond that they are made anew.
const EXPECTATIONS: usize = 1024;

/// A handle to the certificates. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Certificates(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Counts changes of what is wanted or there.
    changed: watch::Sender<u64>,
    now: fn() -> SystemTime,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Identity, Entry>,
    node: Option<Arc<NodeCertificate>>,
    /// Configurations to dial with as the node, and how often what they are made from was replaced.
    node_clients: HashMap<Box<[Identity]>, Arc<ClientConfig>>,
    node_generation: u64,
    /// The roots as published by the controller, and since when; until then each certificate's own.
    published: Option<Published>,
}

/// Roots as a controller published them.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// The one that signs first.
    pub trust: Trust,
    /// Since when that one signs.
    pub since: SystemTime,
}

#[derive(Debug, Default)]
struct Entry {
    holders: usize,
    current: Option<Arc<Issued>>,
    /// By whether nodes are admitted.
    servers: [Option<Arc<ServerConfig>>; 2],
    clients: HashMap<Box<[Identity]>, Arc<ClientConfig>>,
    failure: Option<String>,
    /// Somebody wanted the certificate after its end.
    missed: bool,
    /// Counts the certificates and roots that configurations were made from.
    generation: u64,
}

/// Keeps an identity's certificate wanted; letting go of the last one ends its renewal.
#[derive(Debug)]
pub struct Held {
    owner: Certificates,
    identity: Identity,
}

/// What is known about one certificate, for dumps and metrics.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// Whose it is.
    pub identity: Identity,
    /// Until when it holds; `None` while there is none.
    pub not_after: Option<SystemTime>,
    /// Whether a pod of this node needs it.
    pub wanted: bool,
    /// Why the last renewal failed.
    pub failure: Option<String>,
}

impl Certificates {
    /// An empty store that reads the time from `now`.
    pub fn new(now: fn() -> SystemTime) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            now,
        }))
    }

    /// The time by the store's clock.
    pub fn now(&self) -> SystemTime {
        (self.0.now)()
    }

    /// Says that a pod of this node has this identity.
    pub fn hold(&self, identity: &Identity) -> Held {
        self.state()
            .entries
            .entry(identity.clone())
            .or_default()
            .holders += 1;
        self.touch();
        Held {
            owner: self.clone(),
            identity: identity.clone(),
        }
    }

    /// The configuration to accept with, once there is a certificate. Callers bound the wait.
    pub async fn server(&self, identity: &Identity, admits: Admits) -> Arc<ServerConfig> {
        self.wait(|| self.try_server(identity, admits).ok()).await
    }

    /// The configuration to dial with, once there is a certificate. Callers bound the wait.
    pub async fn client(&self, identity: &Identity, expected: &[Identity]) -> Arc<ClientConfig> {
        self.wait(|| self.try_client(identity, expected).ok()).await
    }

    /// The configuration to dial with as the node itself, once it has a certificate. Callers bound the wait.
    pub async fn node_client(&self, expected: &[Identity]) -> Arc<ClientConfig> {
        self.wait(|| self.try_node_client(expected).ok()).await
    }

    /// The configuration to accept with.
    pub fn try_server(
        &self,
        identity: &Identity,
        admits: Admits,
    ) -> Result<Arc<ServerConfig>, Reason> {
        let mut state = self.state();
        let published = state.published.as_ref().map(|p| p.trust.clone());
        let entry = state
            .entries
            .get_mut(identity)
            .ok_or(Reason::NoCertificate)?;
        let own = self.usable(entry)?;
        let slot = &mut entry.servers[usize::from(admits == Admits::Nodes)];
        if let Some(config) = slot {
            return Ok(config.clone());
        }
        let config = tls::server(&own, published.as_ref().unwrap_or(&own.trust), admits)
            .map_err(|e| made_no_config(identity, &e))?;
        *slot = Some(config.clone());
        Ok(config)
    }

    /// The configuration to dial peers with that must prove one of `expected`.
    pub fn try_client(
        &self,
        identity: &Identity,
        expected: &[Identity],
    ) -> Result<Arc<ClientConfig>, Reason> {
        let mut state = self.state();
        let published = state.published.as_ref().map(|p| p.trust.clone());
        let entry = state
            .entries
            .get_mut(identity)
            .ok_or(Reason::NoCertificate)?;
        let own = self.usable(entry)?;
        if let Some(config) = entry.clients.get(expected) {
            return Ok(config.clone());
        }
        let trust = published.as_ref().unwrap_or(&own.trust);
        let domain = &own.identity.trust_domain;
        let config = tls::client((&own.key, domain), trust, expected)
            .map_err(|e| made_no_config(identity, &e))?;
        if entry.clients.len() >= EXPECTATIONS {
            entry.clients.clear();
        }
        entry.clients.insert(expected.into(), config.clone());
        Ok(config)
    }

    /// The configuration to dial peers with as the node itself.
    pub fn try_node_client(&self, expected: &[Identity]) -> Result<Arc<ClientConfig>, Reason> {
        let mut state = self.state();
        let node = state.node.clone().filter(|n| self.now() <= n.not_after);
        let node = node.ok_or(Reason::NoCertificate)?;
        let identity = node.identity.as_ref().ok_or(Reason::NoCertificate)?;
        if let Some(config) = state.node_clients.get(expected) {
            return Ok(config.clone());
        }
        let trust = state.published.as_ref().map_or(&node.trust, |p| &p.trust);
        let config = tls::client((&node.key, &identity.trust_domain), trust, expected)
            .map_err(|e| made_no_config(identity, &e))?;
        if state.node_clients.len() >= EXPECTATIONS {
            state.node_clients.clear();
        }
        state.node_clients.insert(expected.into(), config.clone());
        Ok(config)
    }

    /// Grows whenever what the node's own configurations are made from is replaced.
    pub fn node_generation(&self) -> u64 {
        self.state().node_generation
    }

    /// Grows whenever what an identity's configurations are made from is replaced.
    pub fn generation(&self, identity: &Identity) -> u64 {
        self.state()
            .entries
            .get(identity)
            .map_or(0, |e| e.generation)
    }

    /// Puts a certificate in the place of an older one.
    pub fn put(&self, issued: Issued) {
        let mut state = self.state();
        let entry = state.entries.entry(issued.identity.clone()).or_default();
        entry.current = Some(Arc::new(issued));
        entry.failure = None;
        entry.missed = false;
        entry.forget_configs();
        drop(state);
        self.touch();
    }

    /// Records that a renewal failed; what is there stays in use until it expires.
    pub fn failed(&self, identity: &Identity, why: String) {
        if let Some(entry) = self.state().entries.get_mut(identity) {
            entry.failure = Some(why);
        }
    }

    /// Trusts these roots from now on, as the controller published them: the one that signs first.
    pub fn publish_roots(&self, trust: Trust) {
        if trust.roots().is_empty() {
            return;
        }
        let mut state = self.state();
        let old = state.published.as_ref();
        let same = old.is_some_and(|old| old.trust.same(&trust));
        let signs = old.filter(|old| old.trust.signer() == trust.signer());
        if same && signs.is_some() {
            return;
        }
        let since = signs.map_or_else(|| self.now(), |old| old.since);
        state.published = Some(Published { trust, since });
        if !same {
            state.entries.values_mut().for_each(Entry::forget_configs);
            state.forget_node_configs();
        }
        drop(state);
        self.touch();
    }

    /// The node's own certificate.
    pub fn node(&self) -> Option<Arc<NodeCertificate>> {
        let now = self.now();
        self.state().node.clone().filter(|n| now <= n.not_after)
    }

    /// Waits until the node's own certificate is another one than this.
    pub async fn renewed(&self, old: &Arc<NodeCertificate>) {
        let other = || self.node().filter(|now| !Arc::ptr_eq(now, old));
        self.wait(other).await;
    }

    /// Replaces the node's own certificate.
    pub fn put_node(&self, certificate: NodeCertificate) {
        let mut state = self.state();
        state.node = Some(Arc::new(certificate));
        state.forget_node_configs();
        drop(state);
        self.touch();
    }

    /// A receiver that wakes whenever something is wanted or has arrived.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// What is wanted now, with the certificate that is there.
    pub(super) fn wanted(&self) -> Vec<(Identity, Option<Arc<Issued>>)> {
        self.state()
            .entries
            .iter()
            .filter(|(_, e)| e.holders > 0)
            .map(|(i, e)| (i.clone(), e.current.clone()))
            .collect()
    }

    /// Removes what nobody wants and what has expired besides; gives the identities removed.
    pub(super) fn prune(&self) -> Vec<Identity> {
        let now = self.now();
        let mut gone = Vec::new();
        self.state().entries.retain(|identity, e| {
            let keep = e.holders > 0 || e.current.as_ref().is_some_and(|c| c.not_after >= now);
            if !keep {
                gone.push(identity.clone());
            }
            keep
        });
        gone
    }

    /// Until when an identity's certificate holds.
    pub(super) fn until(&self, identity: &Identity) -> Option<SystemTime> {
        let state = self.state();
        let current = state.entries.get(identity)?.current.as_ref()?;
        Some(current.not_after)
    }

    /// Every certificate that is there.
    pub(super) fn issued(&self) -> Vec<Arc<Issued>> {
        let state = self.state();
        state
            .entries
            .values()
            .filter_map(|e| e.current.clone())
            .collect()
    }

    /// The roots that the controller published.
    pub(super) fn published(&self) -> Option<Published> {
        self.state().published.clone()
    }

    /// What is known about every certificate.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let state = self.state();
        let line = |(identity, e): (&Identity, &Entry)| CertificateStatus {
            identity: identity.clone(),
            not_after: e.current.as_ref().map(|c| c.not_after),
            wanted: e.holders > 0,
            failure: e.failure.clone(),
        };
        state.entries.iter().map(line).collect()
    }

    /// The certificate, unless it has expired. The first who finds it expired wakes whoever renews: one that was not
    /// replaced in time may have expired at once, by a clock that was set.
    fn usable(&self, entry: &mut Entry) -> Result<Arc<Issued>, Reason> {
        let own = entry.current.clone().ok_or(Reason::NoCertificate)?;
        if self.now() > own.not_after {
            entry.forget_configs();
            if !std::mem::replace(&mut entry.missed, true) {
                self.touch();
            }
            return Err(Reason::NoCertificate);
        }
        Ok(own)
    }

    async fn wait<T>(&self, get: impl Fn() -> Option<T>) -> T {
        let mut changes = self.changes();
        loop {
            if let Some(found) = get() {
                return found;
            }
            changes
                .changed()
                .await
                .expect("the sender lives as long as this handle");
        }
    }

    fn touch(&self) {
        self.0.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_node_configs(&mut self) {
        self.node_generation += 1;
        self.node_clients.clear();
    }
}

impl Entry {
    fn forget_configs(&mut self) {
        self.generation += 1;
        self.servers = [None, None];
        self.clients.clear();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(entry) = self.owner.state().entries.get_mut(&self.identity) {
            entry.holders = entry.holders.saturating_sub(1);
        }
        self.owner.touch();
    }
}

fn made_no_config(identity: &impl std::fmt::Display, error: &rustls::Error) -> Reason {
    tracing::error!(%identity, %error, "no TLS configuration could be made from the certificate");
    Reason::NoCertificate
}
