//! The configuration dump: what this node knows, under the key names that tools for ztunnel look for.

use mesh_model::{
    mesh::workload::Enrolment,
    mesh::{
        Action, GatewayAddress, Mesh, Policy, PolicyScope, Service, Validity, Workload,
        policy::{Match, StringMatch},
        workload::TunnelProtocol,
    },
};
use serde_json::{Map, Value, json};

/// The parts of the dump that come from the snapshot.
pub(super) fn mesh(mesh: &Mesh) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert(
        "workloads".into(),
        mesh.workloads().map(|w| workload(mesh, w)).collect(),
    );
    out.insert(
        "services".into(),
        mesh.services().map(|s| service(mesh, s)).collect(),
    );
    out.insert(
        "policies".into(),
        mesh.policies().map(|p| policy(p)).collect(),
    );
    out
}

fn gateway(address: &Option<GatewayAddress>) -> Value {
    match address {
        None => Value::Null,
        Some(g) => {
            json!({"destination": format!("{:?}", g.destination), "hbonePort": g.hbone_port})
        }
    }
}

fn workload(mesh: &Mesh, w: &Workload) -> Value {
    let extra = mesh.extra(&w.uid);
    let enrolment = extra.map(|e| match &e.enrolment {
        Enrolment::Enrolled => "enrolled".to_owned(),
        Enrolment::Out => "out".to_owned(),
        Enrolment::Refused(why) => format!("refused: {why}"),
    });
    json!({
        "uid": w.uid.as_str(),
        "name": w.name,
        "namespace": w.namespace.as_str(),
        "serviceAccount": w.identity.service_account.as_str(),
        "trustDomain": w.identity.trust_domain.as_str(),
        "workloadIps": w.addresses,
        "hostname": w.hostname.as_ref().map(|h| h.as_str()),
        "network": w.network.as_str(),
        "node": w.node.as_str(),
        "clusterId": w.cluster.as_str(),
        "protocol": match w.protocol { TunnelProtocol::None => "TCP", TunnelProtocol::Hbone => "HBONE" },
        "networkMode": if w.host_network { "HostNetwork" } else { "Standard" },
        "status": if w.healthy { "Healthy" } else { "Unhealthy" },
        "locality": {"region": w.locality.region, "zone": w.locality.zone, "subzone": w.locality.subzone},
        "canonicalName": w.canonical.name,
        "canonicalRevision": w.canonical.revision,
        "workloadName": w.canonical.workload_name,
        "workloadType": w.canonical.workload_type,
        "services": w.services.iter().map(|m| m.service.to_string()).collect::<Vec<_>>(),
        "authorizationPolicies": w.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "waypoint": gateway(&w.waypoint),
        "capacity": w.capacity,
        "enrolment": enrolment,
        "mtls": extra.map(|e| format!("{:?}", e.mtls).to_uppercase()),
        "mtlsPorts": extra.map(|e| e.mtls_ports.iter().map(|(p, m)| (p.to_string(), json!(format!("{m:?}").to_uppercase()))).collect::<Map<_, _>>()),
        "probePorts": extra.map(|e| &*e.probe_ports),
        "guarded": extra.map(|e| e.guarded),
    })
}

fn service(mesh: &Mesh, s: &Service) -> Value {
    let endpoints: Map<String, Value> = mesh
        .endpoints(&s.name)
        .iter()
        .map(|w| {
            let ports = w.services.iter().find(|m| m.service == s.name).map_or(&[][..], |m| &m.ports);
            let ports: Map<String, Value> = ports.iter().map(|(port, target)| (port.to_string(), json!(target))).collect();
            (w.uid.to_string(), json!({"workloadUid": w.uid.as_str(), "port": ports, "status": if w.healthy { "Healthy" } else { "Unhealthy" }}))
        })
        .collect();
    let extra = mesh.service_extra(&s.name);
    json!({
        "name": s.short,
        "namespace": s.name.namespace.as_str(),
        "hostname": s.name.hostname.as_str(),
        "vips": s.vips.iter().map(|v| format!("{}/{}", v.network, v.ip)).collect::<Vec<_>>(),
        "ranges": s.ranges.iter().map(|(network, range)| format!("{network}/{range}")).collect::<Vec<_>>(),
        "ports": s.ports.iter().map(|p| (p.port.to_string(), json!(p.target_port))).collect::<Map<_, _>>(),
        "appProtocols": s.ports.iter().map(|p| (p.port.to_string(), json!(format!("{:?}", p.protocol)))).collect::<Map<_, _>>(),
        "endpoints": endpoints,
        "subjectAltNames": s.subject_alt_names,
        "waypoint": gateway(&s.waypoint),
        "loadBalancer": format!("{:?}", s.balancing),
        "headless": extra.is_some_and(|e| e.headless),
        "externalName": extra.and_then(|e| e.external_name.as_ref()),
    })
}

fn policy(p: &Policy) -> Value {
    let matches = |m: &Match| {
        let strings = |list: &[StringMatch]| {
            let shown = |m: &StringMatch| match m {
                StringMatch::Exact(t) => json!({"Exact": t}),
                StringMatch::Prefix(t) => json!({"Prefix": t}),
                StringMatch::Suffix(t) => json!({"Suffix": t}),
                StringMatch::Presence => json!("Presence"),
            };
            list.iter().map(shown).collect::<Vec<_>>()
        };
        json!({
            "namespaces": strings(&m.namespaces), "notNamespaces": strings(&m.not_namespaces),
            "principals": strings(&m.principals), "notPrincipals": strings(&m.not_principals),
            "sourceIps": m.source_ips, "notSourceIps": m.not_source_ips,
            "destinationIps": m.destination_ips, "notDestinationIps": m.not_destination_ips,
            "destinationPorts": m.destination_ports, "notDestinationPorts": m.not_destination_ports,
            "serviceAccounts": m.service_accounts.iter().map(|a| format!("{}/{}", a.namespace, a.service_account)).collect::<Vec<_>>(),
            "notServiceAccounts": m.not_service_accounts.iter().map(|a| format!("{}/{}", a.namespace, a.service_account)).collect::<Vec<_>>(),
            "beyondL4": m.beyond_l4,
        })
    };
    let rules: Vec<Value> = p
        .rules
        .iter()
        .map(|r| {
            r.clauses
                .iter()
                .map(|c| c.matches.iter().map(matches).collect::<Value>())
                .collect::<Value>()
        })
        .collect();
    json!({
        "name": p.name.name,
        "namespace": p.name.namespace.as_str(),
        "scope": match p.scope { PolicyScope::Global => "Global", PolicyScope::Namespace => "Namespace", PolicyScope::Selector => "WorkloadSelector" },
        "action": match p.action { Action::Allow => "Allow", Action::Deny => "Deny", Action::Audit => "Audit" },
        "dryRun": p.dry_run,
        "invalid": match &p.validity { Validity::Valid => Value::Null, Validity::Invalid(why) => json!(why) },
        "rules": rules,
    })
}
