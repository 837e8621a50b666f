//! The subscriber's side: what is held of each kind, what to ask for, and what a response changes.
//!
//! Invariants: good resources of a response are applied even when others are bad, and the bad ones are named in the
//! NACK and not counted as held; removals wait until every kind is complete on the same stream, because what belongs to an
//! object is of another kind than the object, and goes with it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use mesh_model::{
    mesh::{Change, Policy, PolicyScope, Validity},
    name::Namespace,
};
use prost_types::{Struct, Value, value::Kind as ValueKind};

use super::{
    MARK, Violation, WILDCARD,
    view::{SHARDS, digest, shard_of},
};
use crate::{
    any::Any,
    convert::{self, ConvertError, Decoded},
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource as Sent, Status},
    resource::{COMPLETE, Kind, Resource, Update, Version},
    warren,
};

/// Above so many held resources of a kind a reconnect sends digests instead of versions.
const DIGESTS_ABOVE: usize = 2048;

/// The gRPC code of a NACK: invalid argument.
const INVALID_ARGUMENT: i32 = 3;

/// A subscriber to the kinds of its role.
#[derive(Debug)]
pub struct Client {
    node: Node,
    pub(super) kinds: BTreeMap<Kind, Held>,
    root: Option<Namespace>,
    announced: bool,
    digests_above: usize,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    versions: HashMap<Arc<str>, Version>,
    /// On this stream the server has sent everything once.
    complete: bool,
    /// Removals that wait for every kind's completeness.
    gone: HashSet<Arc<str>>,
    /// Names asked for on demand; `None` for everything.
    wanted: Option<BTreeSet<String>>,
}

/// What a response amounts to. The reply is to be sent after the changes have been applied.
#[derive(Debug, Default)]
pub struct Received {
    /// Changes to apply to the model, in order.
    pub changes: Vec<Change>,
    /// The same as resources, to be kept on disk.
    pub updates: Vec<Update>,
    /// The roots to trust from now on, when they were sent.
    pub roots: Option<Vec<String>>,
    /// What was not understood.
    pub rejected: Vec<ConvertError>,
    /// Names asked for on demand that stand for nothing.
    pub absent: Vec<String>,
    /// The acknowledgement or refusal.
    pub reply: DeltaDiscoveryRequest,
}

impl Client {
    /// A subscriber to what a node proxy needs. `id` and `cluster` describe it to people; the server trusts its certificate only.
    pub fn new(id: &str, cluster: &str) -> Self {
        let mark = Value {
            kind: Some(ValueKind::StringValue(MARK.1.to_owned())),
        };
        let metadata = Struct {
            fields: [(MARK.0.to_owned(), mark)].into(),
        };
        let node = Node {
            id: id.to_owned(),
            cluster: cluster.to_owned(),
            metadata: Some(metadata),
        };
        Self {
            node,
            kinds: nothing_of(Kind::NODE),
            root: None,
            announced: false,
            digests_above: DIGESTS_ABOVE,
        }
    }

    /// Asks for these kinds instead. To be said before anything else.
    pub fn with_kinds(mut self, kinds: &[Kind]) -> Self {
        self.kinds = nothing_of(kinds);
        self
    }

    /// Asks for addresses only when they are first needed (`subscribe`), instead of all of them.
    pub fn on_demand(mut self) -> Self {
        self.held(Kind::Address).wanted = Some(BTreeSet::new());
        self
    }

    /// Changes from how many held resources on digests replace versions.
    pub fn digests_above(mut self, resources: usize) -> Self {
        self.digests_above = resources;
        self
    }

    /// Takes a resource from disk as held, and returns what it says.
    /// One of a kind that is not asked for says nothing: nobody would ever correct it.
    pub fn seed(&mut self, resource: Resource) -> Result<Decoded, ConvertError> {
        if !self.kinds.contains_key(&resource.kind) {
            return Ok(Decoded::default());
        }
        let decoded = convert::decode_resource(resource.kind.url(), &resource.name, resource.body);
        if decoded.error.is_none() {
            let name = shared_name(&decoded, &resource.name);
            self.held(resource.kind)
                .versions
                .insert(name, resource.version);
        }
        let decoded = self.widen(decoded);
        match decoded.error {
            Some(error) if decoded.changes.is_empty() => Err(error),
            Some(_) | None => Ok(decoded),
        }
    }

    /// How many resources of a kind are held.
    pub fn held_count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).map_or(0, |h| h.versions.len())
    }

    /// Whether every kind has been sent completely on this stream.
    pub fn is_complete(&self) -> bool {
        self.kinds.values().all(|h| h.complete)
    }

    /// Begins a new stream: the first requests to send, in order.
    pub fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let above = self.digests_above;
        let mut requests: Vec<_> = self
            .kinds
            .iter_mut()
            .map(|(kind, held)| held.first_request(*kind, above))
            .collect();
        if let Some(first) = requests.first_mut() {
            first.node = Some(self.node.clone());
        }
        requests
    }

    /// Asks for more names on demand; `None` when all of them were asked for already.
    pub fn subscribe(
        &mut self,
        kind: Kind,
        names: impl IntoIterator<Item = String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let wanted = self.held(kind).wanted.as_mut()?;
        let new: Vec<String> = names
            .into_iter()
            .filter(|n| wanted.insert(n.clone()))
            .collect();
        (!new.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_subscribe: new,
            ..Default::default()
        })
    }

    /// Gives names up that were asked for on demand.
    pub fn unsubscribe(
        &mut self,
        kind: Kind,
        names: impl IntoIterator<Item = String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let held = self.held(kind);
        let wanted = held.wanted.as_mut()?;
        let old: Vec<String> = names.into_iter().filter(|n| wanted.remove(n)).collect();
        for name in &old {
            held.versions.remove(name.as_str());
        }
        (!old.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_unsubscribe: old,
            ..Default::default()
        })
    }

    /// Takes a response: what it changes and the reply to it.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Result<Received, Violation> {
        let kind = Kind::from_url(&response.type_url)
            .filter(|k| self.kinds.contains_key(k))
            .ok_or_else(|| Violation::UnexpectedType(response.type_url.clone()))?;
        let mut out = Received::default();
        let mut marker = false;
        if !response.warren_replaced_shards.is_empty() {
            self.held(kind).replace(&response.warren_replaced_shards);
        }
        for sent in response.resources {
            if sent.name == COMPLETE {
                marker = true;
            } else {
                self.take(kind, sent, &mut out);
            }
        }
        let held = self.held(kind);
        for name in response.removed_resources {
            if held.versions.contains_key(name.as_str()) {
                held.gone.insert(name.into());
            } else {
                out.absent.push(name);
            }
        }
        held.complete |= marker;
        if self.is_complete() {
            for (kind, held) in &mut self.kinds {
                for name in std::mem::take(&mut held.gone) {
                    held.versions.remove(&name);
                    out.changes.extend(convert::removed(*kind, &name));
                    out.updates.push(Update::Remove(*kind, name));
                }
            }
        }
        if marker && !self.announced && self.is_complete() {
            self.announced = true;
            out.changes.push(Change::Complete);
        }
        out.reply = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: response.nonce,
            error_detail: refusal(&out.rejected),
            ..Default::default()
        };
        Ok(out)
    }

    fn take(&mut self, kind: Kind, sent: Sent, out: &mut Received) {
        let Any { type_url, value } = sent.resource.unwrap_or_default();
        let decoded = convert::decode_resource(&type_url, &sent.name, value.clone());
        let decoded = self.widen(decoded);
        let name = shared_name(&decoded, &sent.name);
        let held = self.held(kind);
        // Whether understood or not, it exists.
        held.gone.remove(&name);
        if let Some(error) = decoded.error {
            out.rejected.push(error);
        } else {
            let version = sent.version.parse().unwrap_or_else(|_| Version::of(&value));
            held.versions.insert(name.clone(), version);
            out.updates
                .push(Update::Set(resource(kind, name, version, value)));
        }
        out.roots = decoded.roots.or(out.roots.take());
        out.changes.extend(decoded.changes);
    }

    /// An invalid policy of the root namespace governs the whole mesh, also when its scope was not understood.
    fn widen(&mut self, mut decoded: Decoded) -> Decoded {
        for change in &mut decoded.changes {
            match change {
                Change::Config(config) => self.root = Some(config.root_namespace.clone()),
                Change::Policy(Policy {
                    name,
                    scope,
                    validity: Validity::Invalid(_),
                    ..
                }) => {
                    let rules_all = self
                        .root
                        .as_ref()
                        .is_none_or(|root| *root == name.namespace);
                    if *scope == PolicyScope::Namespace && rules_all {
                        *scope = PolicyScope::Global;
                    }
                }
                _ => {}
            }
        }
        decoded
    }

    fn held(&mut self, kind: Kind) -> &mut Held {
        self.kinds.entry(kind).or_default()
    }
}

impl Held {
    fn first_request(&mut self, kind: Kind, digests_above: usize) -> DeltaDiscoveryRequest {
        self.complete = false;
        self.gone.clear();
        let mut request = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            ..Default::default()
        };
        request.resource_names_subscribe.push(WILDCARD.to_owned());
        if let Some(wanted) = &self.wanted {
            request.resource_names_unsubscribe.push(WILDCARD.to_owned());
            request
                .resource_names_subscribe
                .extend(wanted.iter().cloned());
        }
        if self.wanted.is_none() && self.versions.len() > digests_above {
            request.warren_digests = self.digests();
        } else {
            request.initial_resource_versions = self
                .versions
                .iter()
                .map(|(n, v)| (n.to_string(), v.to_string()))
                .collect();
        }
        request
    }

    fn digests(&self) -> Vec<u8> {
        let mut shards: Vec<Vec<(&str, Version)>> = vec![Vec::new(); SHARDS];
        for (name, version) in &self.versions {
            shards[shard_of(name)].push((name, *version));
        }
        shards
            .into_iter()
            .flat_map(|s| digest(s.into_iter()).to_le_bytes())
            .collect()
    }

    /// What is held in these shards is gone unless it is named again before the marker.
    fn replace(&mut self, shards: &[u32]) {
        let replaced: HashSet<usize> = shards.iter().map(|s| *s as usize).collect();
        let names = self
            .versions
            .keys()
            .filter(|n| replaced.contains(&shard_of(n)));
        self.gone.extend(names.cloned());
    }
}

/// The name of a resource, as the model has it when it keeps it too: there are as many as pods.
fn shared_name(decoded: &Decoded, name: &str) -> Arc<str> {
    match &decoded.changes[..] {
        [Change::Workload(w)] if w.uid.as_str() == name => w.uid.share(),
        _ => name.into(),
    }
}

fn nothing_of(kinds: &[Kind]) -> BTreeMap<Kind, Held> {
    kinds.iter().map(|k| (*k, Held::default())).collect()
}

fn resource(kind: Kind, name: Arc<str>, version: Version, body: Bytes) -> Resource {
    Resource {
        version,
        ..Resource::new(kind, name, body)
    }
}

fn refusal(rejected: &[ConvertError]) -> Option<Status> {
    let first = rejected.first()?;
    let rejections = rejected
        .iter()
        .map(|e| warren::Rejection {
            name: e.name.clone(),
            message: e.to_string(),
        })
        .collect();
    let message = match rejected.len() {
        1 => first.to_string(),
        n => format!("{n} resources were not understood; the first: {first}"),
    };
    let detail = Any::pack(
        "type.googleapis.com/warren.v1.Rejections",
        &warren::Rejections { rejections },
    );
    Some(Status {
        code: INVALID_ARGUMENT,
        message,
        details: vec![detail],
    })
}
