//! Companions: what Istio's types cannot carry, beside them under `workload/`, `service/`, `mesh` and `roots`.
//!
//! Invariant: a mode that this build does not know becomes STRICT with a feature that no build has, so it denies.

use std::sync::Arc;

use mesh_model::{
    mesh::{Enrolment, MeshConfig, MtlsMode, SameNode, ServiceExtra, TunnelBlocker, WorkloadExtra},
    name::{ServiceName, TrustDomain, WorkloadUid},
};

use super::{
    field::{
        Bad, Problem, all, hostname, known, label, namespace, port, service_name, strings, texts,
    },
    tracing,
};
use crate::warren::{self as wire, companion::Content};

pub(super) const MESH: &str = "mesh";
pub(super) const ROOTS: &str = "roots";
pub(super) const WORKLOAD: &str = "workload/";
pub(super) const SERVICE: &str = "service/";

/// What a companion says.
pub(super) enum Said {
    Workload(WorkloadUid, WorkloadExtra),
    Service(ServiceName, ServiceExtra),
    Mesh(MeshConfig),
    Roots(Vec<String>),
}

/// Whose companion a resource is.
pub(super) enum Owner {
    Workload(WorkloadUid),
    Service(ServiceName),
    Mesh,
    Roots,
}

pub(super) fn owner(name: &str) -> Result<Owner, Bad> {
    if let Some(uid) = name.strip_prefix(WORKLOAD) {
        return Ok(Owner::Workload(super::address::uid_text("", uid)?.into()));
    }
    if let Some(service) = name.strip_prefix(SERVICE) {
        return Ok(Owner::Service(service_name("", service)?));
    }
    match name {
        MESH => Ok(Owner::Mesh),
        ROOTS => Ok(Owner::Roots),
        _ => Err(Bad::new("", Problem::Name(name.to_owned()))),
    }
}

pub(super) fn decode(name: &str, content: Option<Content>) -> Result<Said, Bad> {
    let content = content.ok_or_else(|| Bad::new("content", Problem::Missing))?;
    match (owner(name)?, content) {
        (Owner::Workload(uid), Content::Workload(w)) => Ok(Said::Workload(uid, workload(w)?)),
        (Owner::Service(service), Content::Service(s)) => {
            Ok(Said::Service(service, self::service(s)?))
        }
        (Owner::Mesh, Content::Mesh(m)) => Ok(Said::Mesh(mesh(m)?)),
        (Owner::Roots, Content::Roots(r)) => Ok(Said::Roots(r.pem)),
        (Owner::Workload(_) | Owner::Service(_) | Owner::Mesh | Owner::Roots, _) => {
            Err(Bad::new("content", Problem::NameMismatch(name.to_owned())))
        }
    }
}

pub(super) fn encode_workload(x: &WorkloadExtra) -> Content {
    let (enrolment, refusal) = match &x.enrolment {
        Enrolment::Enrolled => (wire::Enrolment::Enrolled, String::new()),
        Enrolment::Out => (wire::Enrolment::Out, String::new()),
        Enrolment::Refused(why) => (wire::Enrolment::Refused, why.to_string()),
    };
    let port = |&(port, mode): &(u16, MtlsMode)| wire::PortMtls {
        port: port.into(),
        mtls: mode_wire(mode).into(),
    };
    Content::Workload(wire::Workload {
        enrolment: enrolment.into(),
        refusal,
        mtls: mode_wire(x.mtls).into(),
        mtls_ports: x.mtls_ports.iter().map(port).collect(),
        probe_ports: x.probe_ports.iter().map(|p| u32::from(*p)).collect(),
        cut_existing: x.cut_existing,
        allow_forwarded: x.allow_forwarded,
        guarded: x.guarded,
        features: strings(&x.features),
        pod_uid: x.pod_uid.as_deref().unwrap_or_default().to_owned(),
        groups: strings(&x.groups),
    })
}

fn mode_wire(mode: MtlsMode) -> wire::Mtls {
    match mode {
        MtlsMode::Strict => wire::Mtls::Strict,
        MtlsMode::Permissive => wire::Mtls::Permissive,
        MtlsMode::Disable => wire::Mtls::Disable,
    }
}

fn workload(w: wire::Workload) -> Result<WorkloadExtra, Bad> {
    let mut features: Vec<Arc<str>> = texts(w.features).into();
    let mut mode = |number: i32| match wire::Mtls::try_from(number) {
        Ok(wire::Mtls::Strict) => MtlsMode::Strict,
        Ok(wire::Mtls::Permissive) => MtlsMode::Permissive,
        Ok(wire::Mtls::Disable) => MtlsMode::Disable,
        Ok(wire::Mtls::Unspecified) | Err(_) => {
            features.push(format!("warren.dev/mtls-mode-{number}").into());
            MtlsMode::Strict
        }
    };
    let mtls = mode(w.mtls);
    let ports: Vec<_> = w
        .mtls_ports
        .iter()
        .map(|p| (p.port, mode(p.mtls)))
        .collect();
    Ok(WorkloadExtra {
        enrolment: match known("enrolment", w.enrolment)? {
            wire::Enrolment::Unspecified => return Err(Bad::new("enrolment", Problem::Missing)),
            wire::Enrolment::Enrolled => Enrolment::Enrolled,
            wire::Enrolment::Out => Enrolment::Out,
            wire::Enrolment::Refused => Enrolment::Refused(w.refusal.into()),
        },
        mtls,
        mtls_ports: all("mtls_ports", ports, |(p, m)| Ok((port("port", p)?, m)))?,
        probe_ports: all("probe_ports", w.probe_ports, |p| port("", p))?,
        cut_existing: w.cut_existing,
        allow_forwarded: w.allow_forwarded,
        guarded: w.guarded,
        features: features.into(),
        pod_uid: (!w.pod_uid.is_empty()).then(|| w.pod_uid.into()),
        groups: texts(w.groups),
    })
}

pub(super) fn encode_service(x: &ServiceExtra) -> Content {
    Content::Service(wire::Service {
        affinity: x.affinity.map(|d| prost_types::Duration {
            seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            nanos: d.subsec_nanos().cast_signed(),
        }),
        headless: x.headless,
        external_name: x.external_name.as_deref().map(str::to_owned),
        features: strings(&x.features),
        visible_to: x.visible_to.iter().map(ToString::to_string).collect(),
        standby: x.standby.as_ref().map(|name| wire::Standby {
            namespace: name.namespace.to_string(),
            hostname: name.hostname.to_string(),
        }),
    })
}

fn service(s: wire::Service) -> Result<ServiceExtra, Bad> {
    let affinity = s.affinity.map(|d| {
        std::time::Duration::try_from(d)
            .map_err(|e| Bad::new("affinity", Problem::Malformed(e.to_string())))
    });
    Ok(ServiceExtra {
        affinity: affinity.transpose()?,
        headless: s.headless,
        external_name: s.external_name.map(Arc::from),
        features: texts(s.features),
        visible_to: all("visible_to", &s.visible_to, |n| namespace("", n))?,
        standby: s
            .standby
            .map(|name| standby(&name).map_err(|b| b.within("standby")))
            .transpose()?,
    })
}

fn standby(name: &wire::Standby) -> Result<ServiceName, Bad> {
    Ok(ServiceName {
        namespace: namespace("namespace", &name.namespace)?,
        hostname: hostname("hostname", &name.hostname)?,
    })
}

pub(super) fn encode_mesh(m: &MeshConfig) -> Content {
    let same_node = match m.same_node {
        SameNode::Auto => wire::SameNode::Auto,
        SameNode::Tunnel => wire::SameNode::Tunnel,
        SameNode::Direct => wire::SameNode::Direct,
    };
    Content::Mesh(wire::Mesh {
        trust_domain: m.trust_domain.to_string(),
        root_namespace: m.root_namespace.to_string(),
        cluster_domain: m.cluster_domain.to_string(),
        registry_only: m.registry_only,
        same_node: same_node.into(),
        enrolled_namespaces: m
            .enrolled_namespaces
            .iter()
            .map(ToString::to_string)
            .collect(),
        tunnel_blockers: m.tunnel_blockers.iter().map(blocker_to_wire).collect(),
        tracing: m.tracing.iter().map(|t| tracing::wire(t)).collect(),
    })
}

fn blocker_to_wire(b: &TunnelBlocker) -> wire::TunnelBlocker {
    wire::TunnelBlocker {
        namespace: b.namespace.to_string(),
        name: b.name.to_string(),
        ingress: b.ingress,
    }
}

fn blocker(b: wire::TunnelBlocker) -> Result<TunnelBlocker, Bad> {
    Ok(TunnelBlocker {
        namespace: namespace("namespace", &b.namespace)?,
        name: label("name", &b.name)?.into(),
        ingress: b.ingress,
    })
}

fn mesh(m: wire::Mesh) -> Result<MeshConfig, Bad> {
    Ok(MeshConfig {
        trust_domain: TrustDomain::from(label("trust_domain", &m.trust_domain)?),
        root_namespace: namespace("root_namespace", &m.root_namespace)?,
        cluster_domain: hostname("cluster_domain", &m.cluster_domain)?,
        registry_only: m.registry_only,
        // The tunnel is right whatever an unknown value asks for.
        same_node: match wire::SameNode::try_from(m.same_node) {
            Ok(wire::SameNode::Auto) => SameNode::Auto,
            Ok(wire::SameNode::Direct) => SameNode::Direct,
            Ok(wire::SameNode::Tunnel | wire::SameNode::Unspecified) | Err(_) => SameNode::Tunnel,
        },
        enrolled_namespaces: all("enrolled_namespaces", &m.enrolled_namespaces, |n| {
            namespace("", n)
        })?,
        tunnel_blockers: all("tunnel_blockers", m.tunnel_blockers, blocker)?,
        tracing: all("tracing", m.tracing, |t| tracing::read(t).map(Arc::new))?,
    })
}
