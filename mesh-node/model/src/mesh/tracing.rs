//! Which requests leave a span behind, and where spans go.
//!
//! Invariants: the rules of a mesh are in the order of their scopes, the narrowest first, and the first one that
//! covers a service decides alone: the controller has put into it whatever it inherits.

use std::sync::Arc;

use crate::{
    mesh::Workload,
    name::{Hostname, Namespace, ServiceName},
    resilience::Share,
};

/// What holds for the requests of a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// For which requests.
    pub scope: TracingScope,
    /// The share of requests that are traced, of those for which nobody has decided yet.
    pub sampling: Share,
    /// Where spans go; there are none when it is absent.
    pub collector: Option<Collector>,
    /// What spans say besides.
    pub tags: Box<[SpanTag]>,
}

/// Whose requests a rule is about; ordered from narrow to wide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TracingScope {
    /// Those for a service.
    Service(ServiceName),
    /// Those that a waypoint takes, by its own service.
    Waypoint(ServiceName),
    /// Those for services and workloads of a namespace.
    Namespace(Namespace),
    /// All.
    Mesh,
}

impl TracingScope {
    /// Whether a request at a waypoint is meant that is for a service, or for a workload itself, of a namespace.
    pub fn covers(
        &self,
        (service, namespace): (Option<&ServiceName>, &Namespace),
        waypoint: &Workload,
    ) -> bool {
        match self {
            Self::Service(name) => service == Some(name),
            Self::Waypoint(name) => waypoint.services.iter().any(|m| m.service == *name),
            Self::Namespace(whole) => whole == namespace,
            Self::Mesh => true,
        }
    }
}

/// Who takes spans, by OTLP over gRPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Collector {
    /// The namespace of its service; any that has the host name when absent.
    pub namespace: Option<Namespace>,
    /// The host name of its service.
    pub hostname: Hostname,
    /// The port of its service.
    pub port: u16,
}

/// Something more that a span says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpanTag {
    /// The attribute's name.
    pub name: Arc<str>,
    /// Its value.
    pub value: TagValue,
}

/// Where the value of a tag is from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TagValue {
    /// Always this.
    Literal(Arc<str>),
    /// A header of the request, in lower case, and what is said where it is missing.
    Header(Arc<str>, Option<Arc<str>>),
}

/// The rule for requests at a waypoint, for a service or for a workload itself; `None` when there are to be no spans.
pub fn tracing_of<'t>(
    rules: &'t [Arc<Tracing>],
    asked: (Option<&ServiceName>, &Namespace),
    waypoint: &Workload,
) -> Option<&'t Arc<Tracing>> {
    let first = rules.iter().find(|r| r.scope.covers(asked, waypoint))?;
    first.collector.is_some().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cast;

    #[test]
    fn the_narrowest_rule_decides_alone() {
        let service = |name: &str| cast::service_name("shop", name);
        let rule = |scope, to: Option<u16>| {
            Arc::new(Tracing {
                scope,
                sampling: Share::ALL,
                collector: to.map(|port| Collector {
                    namespace: None,
                    hostname: "otel.o".into(),
                    port,
                }),
                tags: Box::default(),
            })
        };
        let mut scopes = vec![
            rule(TracingScope::Mesh, Some(4)),
            rule(TracingScope::Namespace("shop".into()), Some(3)),
            rule(TracingScope::Service(service("silent")), None),
            rule(TracingScope::Waypoint(service("waypoint")), Some(2)),
            rule(TracingScope::Service(service("db")), Some(1)),
        ];
        scopes.sort_by(|a, b| a.scope.cmp(&b.scope));
        let own = cast::serving(cast::pod("shop", "w", "n1", "10.0.0.1"), "shop", "waypoint");
        let other = cast::pod("shop", "v", "n1", "10.0.0.2");
        let check = |name: &ServiceName, at: &Workload, expect: Option<u16>| {
            let found = tracing_of(&scopes, (Some(name), &name.namespace), at);
            let port = found.and_then(|t| t.collector.as_ref()).map(|c| c.port);
            assert_eq!(port, expect, "{name}");
        };
        check(&service("db"), &own, Some(1));
        check(&service("web"), &own, Some(2));
        check(&service("web"), &other, Some(3));
        check(&cast::service_name("far", "web"), &other, Some(4));
        check(&service("silent"), &own, None);
        let db = service("db");
        assert!(tracing_of(&[], (Some(&db), &db.namespace), &own).is_none());
        // A workload of the namespace that was addressed itself.
        let found = tracing_of(&scopes, (None, &db.namespace), &other);
        assert_eq!(
            found.map(|t| &t.scope),
            Some(&TracingScope::Namespace("shop".into()))
        );
    }
}
