//! A small cast for tests: workloads, services and policies with everything ordinary about them filled in.

use std::{net::IpAddr, sync::Arc};

use crate::{
    mesh::{
        Action, AppProtocol, Change, Enrolment, MeshConfig, MtlsMode, Policy, PolicyScope,
        SameNode, Service, ServicePort, Validity, Workload, WorkloadExtra,
        policy::{Clause, Match, Rule},
        service::Balancing,
        workload::{Canonical, Locality, Membership, TunnelProtocol},
    },
    name::{Identity, NetworkAddress, PolicyName, ServiceName, WorkloadUid},
};

/// The trust domain of the cast.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// An identity of the cast's trust domain.
pub fn identity(namespace: &str, account: &str) -> Identity {
    Identity {
        trust_domain: TRUST_DOMAIN.into(),
        namespace: namespace.into(),
        service_account: account.into(),
    }
}

/// The uid of a pod.
pub fn uid(namespace: &str, name: &str) -> WorkloadUid {
    WorkloadUid::new(format!("Kubernetes//Pod/{namespace}/{name}"))
}

/// An enrolled pod on a node; its service account has its name.
pub fn pod(namespace: &str, name: &str, node: &str, address: &str) -> Workload {
    Workload {
        uid: uid(namespace, name),
        name: name.into(),
        namespace: namespace.into(),
        identity: identity(namespace, name),
        network: "".into(),
        addresses: Box::new([address.parse().expect("a test's address")]),
        hostname: None,
        node: node.into(),
        cluster: "Kubernetes".into(),
        protocol: TunnelProtocol::Hbone,
        host_network: false,
        healthy: true,
        locality: Locality::default(),
        canonical: Canonical::default(),
        services: Box::new([]),
        policies: Box::new([]),
        waypoint: None,
        capacity: 1,
    }
}

/// What an enrolled pod accepts.
pub fn extra(mtls: MtlsMode) -> WorkloadExtra {
    WorkloadExtra {
        enrolment: Enrolment::Enrolled,
        mtls,
        mtls_ports: Box::new([]),
        probe_ports: Box::new([]),
        cut_existing: false,
        allow_forwarded: false,
        guarded: false,
        features: Box::new([]),
        pod_uid: None,
        groups: Box::default(),
    }
}

/// The changes that make a pod known with a permissive extra part.
pub fn known(workload: Workload) -> [Change; 2] {
    let uid = workload.uid.clone();
    [
        Change::Workload(workload),
        Change::WorkloadExtra(uid, extra(MtlsMode::Permissive)),
    ]
}

/// A service's name in the cluster's domain.
pub fn service_name(namespace: &str, name: &str) -> ServiceName {
    ServiceName {
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local")
            .as_str()
            .into(),
    }
}

/// A service with one address and one port that goes to a target port.
pub fn service(namespace: &str, name: &str, vip: &str, port: u16, target_port: u16) -> Service {
    Service {
        name: service_name(namespace, name),
        short: name.into(),
        vips: Box::new([NetworkAddress {
            network: "".into(),
            ip: vip.parse().expect("a test's address"),
        }]),
        ranges: Box::new([]),
        ports: Box::new([ServicePort {
            port,
            target_port,
            protocol: AppProtocol::Unknown,
        }]),
        subject_alt_names: Box::new([]),
        waypoint: None,
        balancing: Balancing::default(),
        visibility: Default::default(),
    }
}

/// Makes a workload an endpoint of a service.
pub fn serving(mut workload: Workload, namespace: &str, name: &str) -> Workload {
    let mut services = std::mem::take(&mut workload.services).into_vec();
    services.push(Membership {
        service: service_name(namespace, name),
        ports: Box::new([]),
    });
    workload.services = services.into();
    workload
}

/// The mesh's configuration.
pub fn config() -> MeshConfig {
    MeshConfig {
        trust_domain: TRUST_DOMAIN.into(),
        root_namespace: "warren-system".into(),
        cluster_domain: "cluster.local".into(),
        registry_only: false,
        same_node: SameNode::Auto,
        enrolled_namespaces: Box::new([]),
        tunnel_blockers: Box::new([]),
        tracing: Box::new([]),
    }
}

/// The name of a policy.
pub fn policy_name(namespace: &str, name: &str) -> PolicyName {
    PolicyName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// A valid policy with one rule for each match.
pub fn policy(
    namespace: &str,
    name: &str,
    scope: PolicyScope,
    action: Action,
    matches: impl IntoIterator<Item = Match>,
) -> Policy {
    let rule = |m| Rule {
        clauses: Box::new([Clause {
            matches: Box::new([m]),
        }]),
    };
    Policy {
        name: policy_name(namespace, name),
        scope,
        action,
        rules: matches.into_iter().map(rule).collect(),
        dry_run: false,
        validity: Validity::Valid,
    }
}

/// The policy as one that could not be understood.
pub fn invalid(mut policy: Policy) -> Policy {
    policy.validity = Validity::Invalid(Arc::from("a test says so"));
    policy
}

/// An address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("a test's address")
}
