//! Where a waypoint sends a connection that carries no requests: by its service's rules, or to the service itself.
//!
//! Invariants: nothing is read of a connection unless a rule asks for a name, and then a bounded number of bytes for a
//! bounded time; bounds of the destination are asked before anything is dialed; what is counted is given back when
//! the connection ends.

use std::{io, time::Duration};

use bytes::BytesMut;
use http::HeaderMap;
use mesh_model::{
    authz::{Denial, Target},
    balance::Viewpoint,
    mesh::Service,
    name::WorkloadUid,
    reason::Reason,
    route::{
        http::{Backend, choose},
        stream::{Connecting, FoundStream, StreamAction},
    },
};
use tokio::{io::AsyncReadExt, time::timeout};

use super::{
    Data, parties,
    reach::Reaching,
    stopped::Stopped,
    waypoint::{self, Carry},
};
use crate::{
    dial::DialError,
    exchange::{ClusterKey, Joined, Wish, server_name},
    observe::FlowGuard,
    relay::Bounds,
    tunnel::{Io, Link},
};

/// Endpoints that are tried, one after the other.
const TRIES: usize = 3;
/// How long a client may take to say which name it asks for; after that it asks for none.
const HELLO: Duration = Duration::from_secs(5);

/// An endpoint that was connected to.
pub(super) struct Reached {
    /// The connection.
    pub far: Link,
    /// Its place among those of its cluster.
    pub held: Option<Joined>,
    /// What its destination bounds.
    pub bounds: Bounds,
}

impl Reached {
    /// One of which nobody says how it is bounded.
    pub fn unbounded(far: Link) -> Self {
        Self {
            far,
            held: None,
            bounds: Bounds::NONE,
        }
    }
}

/// Whether the name that the client's TLS asks for would make a difference.
pub(super) fn wants_name(carry: &Carry) -> bool {
    let Target::Service(service, port) = &carry.permitted.permit.subject().target else {
        return false;
    };
    let routes = carry.permitted.snapshot.mesh.routes(&service.name);
    routes.is_some_and(|routes| routes.wants_name(&connecting(carry, *port, None)))
}

/// Reads the name that a client's TLS asks for. What was read is in `first`.
pub(super) async fn hear_name(near: &mut Io, first: &mut BytesMut) -> io::Result<Option<String>> {
    let hear = async {
        loop {
            if let Some(known) = server_name(first) {
                return Ok(known);
            }
            if near.read_buf(first).await? == 0 {
                return Ok(None);
            }
        }
    };
    timeout(HELLO, hear).await.unwrap_or(Ok(None))
}

fn connecting<'a>(carry: &'a Carry, port: u16, sni: Option<&'a str>) -> Connecting<'a> {
    let subject = carry.permitted.permit.subject();
    let mesh = &carry.permitted.snapshot.mesh;
    // Of whoever proved nothing, rules know nothing.
    let identity = carry.identity();
    let client = mesh.workload_at(&subject.source.network, carry.client.ip());
    let client = client.filter(|w| identity.is_some_and(|proven| w.identity == *proven));
    let extra = client.and_then(|w| mesh.extra(&w.uid));
    Connecting {
        namespace: identity.map(|i| &i.namespace),
        groups: extra.map_or(&[], |e| &*e.groups),
        port,
        dialed: subject.original.ip(),
        sni,
    }
}

/// Connects to an endpoint of what rules say, or of what was addressed where none say anything.
pub(super) async fn reach(
    data: &Data,
    carry: &Carry,
    report: &mut FlowGuard,
    sni: Option<&str>,
) -> Result<Reached, Stopped> {
    let mesh = &carry.permitted.snapshot.mesh;
    let Target::Service(service, port) = &carry.permitted.permit.subject().target else {
        return waypoint::reach(data, carry, report)
            .await
            .map(Reached::unbounded);
    };
    let refused = |reason| Stopped::Denied(Denial::new(reason));
    let routes = mesh.routes(&service.name);
    let asked = connecting(carry, *port, sni);
    let found = routes.map_or(FoundStream::Unrouted, |r| r.find_stream(&asked));
    let backend = match found {
        FoundStream::Unrouted => None,
        FoundStream::NoRule => {
            tracing::debug!(%service.name, "no rule for connections to a service matches");
            return Err(refused(Reason::NoEndpoints));
        }
        FoundStream::Refused(reason) => return Err(refused(reason)),
        FoundStream::Rule(rule) => match &rule.action {
            StreamAction::Invalid(why) => {
                tracing::debug!(rule = %rule.name, %why, "a rule that could not be understood refused a connection");
                return Err(refused(Reason::RouteInvalid));
            }
            StreamAction::Forward(backends) => {
                let chosen = choose(backends, fastrand::u64(..));
                let chosen = chosen.ok_or(refused(Reason::NoEndpoints))?;
                if let Some(why) = &chosen.invalid {
                    tracing::debug!(rule = %rule.name, %why, "a backend that cannot be used refused a connection");
                    return Err(refused(Reason::RouteInvalid));
                }
                Some(chosen)
            }
        },
    };
    if backend.is_none() && mesh.destination(&service.name).is_none() {
        return waypoint::reach(data, carry, report)
            .await
            .map(Reached::unbounded);
    }
    by_policy(data, carry, report, (service, *port), backend).await
}

/// Connects to an endpoint of a backend, or of the service, as its destination's policy says.
async fn by_policy(
    data: &Data,
    carry: &Carry,
    report: &mut FlowGuard,
    (service, port): (&Service, u16),
    backend: Option<&Backend>,
) -> Result<Reached, Stopped> {
    let refused = |reason| Stopped::Denied(Denial::new(reason));
    let snapshot = &carry.permitted.snapshot;
    let key = ClusterKey::of(&service.name, port, backend);
    report.record_mut().service = key.service().cloned();
    let cluster = data.shared.clusters.get(&key);
    let source = &carry.permitted.permit.subject().source;
    let from = Viewpoint::of_waypoint(&snapshot.mesh, &data.shared.node, source);
    let policy = cluster.policy(&snapshot.mesh, snapshot.generation, from);
    let counted = cluster.connections.take(policy.pool.max_connections);
    let counted = counted.ok_or(refused(Reason::Overloaded))?;
    let client = report.record().source.workload.clone();
    let reaching = Reaching {
        data,
        carry,
        permitted: &carry.permitted,
        client: client.as_deref(),
        service: key.service(),
        policy: &policy,
    };
    let (mut tried, mut last) = (Vec::<WorkloadUid>::new(), DialError::NoCandidate);
    let nothing = HeaderMap::new();
    for _ in 0..TRIES {
        let now = std::time::Instant::now();
        let wish = Wish {
            tried: &tried,
            dialed: Some(carry.permitted.permit.subject().original),
            ..Wish::default()
        };
        let view = (&snapshot.mesh, snapshot.generation, from);
        let hash =
            |by: &mesh_model::resilience::Affinity| by.hash(&nothing, None, carry.client.ip());
        let pinned = match &key {
            ClusterKey::Service { service, port, .. } => carry.permitted.pinned(service, *port),
            ClusterKey::Addressed => Ok(None),
        };
        let pinned = pinned.map_err(refused)?;
        let picked = match pinned {
            Some(endpoint) => cluster.take(view, endpoint, now),
            None => cluster.pick(view, hash, wish, now),
        };
        let picked = picked.map_err(refused)?;
        parties::went_to(&picked.endpoint.candidate, report);
        let who = picked.endpoint.workload.uid.clone();
        match reaching.link(&picked.endpoint, None).await {
            Ok(link) => {
                cluster.connected(&who);
                let taken = Some(picked.taken);
                return Ok(Reached {
                    far: link,
                    held: Some(Joined::new(cluster.clone(), counted, taken)),
                    bounds: Bounds::of(&policy.pool),
                });
            }
            Err(error) if error.is_final() || tried.contains(&who) => return Err(error.into()),
            Err(error) => {
                if cluster.unreached(&who, std::time::Instant::now()) {
                    tracing::info!(cluster = %key, workload = %who, "an endpoint failed too often and is left out for a while");
                }
                tried.push(who);
                last = error;
            }
        }
    }
    Err(last.into())
}
