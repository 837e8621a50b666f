//! Resources as JSON for people and golden files: short, ordered, empty parts left out.

mod traffic;

use mesh_model::mesh::{
    Change, Enrolment, GatewayAddress, GatewayDestination, MeshConfig, Policy, PolicyScope,
    Service, ServiceExtra, TagValue, Tracing, TracingScope, Validity, Workload, WorkloadExtra,
    policy::{Match, StringMatch},
};
use serde_json::{Map, Value, json};

/// One change as JSON: `{"<what>": "<name>", ...fields}`.
pub fn change(change: &Change) -> Value {
    match change {
        Change::Workload(workload) => self::workload(workload),
        Change::WorkloadExtra(uid, extra) => with("workloadExtra", uid, workload_extra(extra)),
        Change::Service(service) => self::service(service),
        Change::ServiceExtra(name, extra) => with("serviceExtra", name, service_extra(extra)),
        Change::Policy(policy) => self::policy(policy),
        Change::Config(config) => self::config(config),
        Change::Routes(routes) => with("routes", &routes.service, traffic::routes(routes)),
        Change::Destination(to) => with("destination", &to.service, traffic::destination(to)),
        Change::RemoveRoutes(name) => with("removeRoutes", name, Map::new()),
        Change::RemoveDestination(name) => with("removeDestination", name, Map::new()),
        Change::RemoveWorkload(uid) => with("removeWorkload", uid, Map::new()),
        Change::RemoveWorkloadExtra(uid) => with("removeWorkloadExtra", uid, Map::new()),
        Change::RemoveService(name) => with("removeService", name, Map::new()),
        Change::RemoveServiceExtra(name) => with("removeServiceExtra", name, Map::new()),
        Change::RemovePolicy(name) => with("removePolicy", name, Map::new()),
        Change::Complete => json!({"complete": true}),
    }
}

fn with(what: &str, name: &impl ToString, rest: Map<String, Value>) -> Value {
    let mut fields = Map::from_iter([(what.to_owned(), Value::String(name.to_string()))]);
    fields.extend(rest);
    Value::Object(fields)
}

/// Keeps what is not empty, false or zero.
fn only(fields: Value) -> Map<String, Value> {
    let Value::Object(mut fields) = fields else {
        return Map::new();
    };
    fields.retain(|_, value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Number(number) => number.as_u64() != Some(0),
        Value::Bool(true) => true,
    });
    fields
}

fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

fn word(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_ascii_lowercase()
}

fn config(config: &MeshConfig) -> Value {
    let fields = only(json!({
        "rootNamespace": config.root_namespace.as_str(),
        "clusterDomain": config.cluster_domain.as_str(),
        "registryOnly": config.registry_only,
        "sameNode": word(&config.same_node),
        "enrolledNamespaces": texts(&config.enrolled_namespaces),
        "tunnelBlockers": texts(config.tunnel_blockers.iter().map(|b| {
            let way = if b.ingress { "ingress" } else { "egress" };
            format!("{}/{} {way}", b.namespace, b.name)
        })),
        "tracing": texts(config.tracing.iter().map(|t| tracing(t))),
    }));
    with("mesh", &config.trust_domain, fields)
}

fn tracing(tracing: &Tracing) -> String {
    let scope = match &tracing.scope {
        TracingScope::Service(name) => format!("service {name}"),
        TracingScope::Waypoint(name) => format!("waypoint {name}"),
        TracingScope::Namespace(name) => format!("namespace {name}"),
        TracingScope::Mesh => "mesh".to_owned(),
    };
    let Some(to) = &tracing.collector else {
        return format!("{scope}: none");
    };
    let namespace = to.namespace.as_ref().map_or("*", |n| n.as_str());
    let tags = tracing.tags.iter().map(|tag| match &tag.value {
        TagValue::Literal(text) => format!(" {}={text:?}", tag.name),
        TagValue::Header(name, None) => format!(" {}=header {name}", tag.name),
        TagValue::Header(name, Some(or)) => format!(" {}=header {name} or {or:?}", tag.name),
    });
    format!(
        "{scope}: {} ppm to {namespace}/{}:{}{}",
        tracing.sampling.parts(),
        to.hostname,
        to.port,
        tags.collect::<String>()
    )
}

fn workload(workload: &Workload) -> Value {
    let services: Map<String, Value> = workload
        .services
        .iter()
        .map(|member| {
            let ports = member
                .ports
                .iter()
                .map(|(from, to)| json!(format!("{from}->{to}")));
            (member.service.to_string(), ports.collect())
        })
        .collect();
    let (locality, canonical) = (&workload.locality, &workload.canonical);
    let place = format!("{}/{}/{}", locality.region, locality.zone, locality.subzone);
    let fields = only(json!({
        "identity": workload.identity.to_string(),
        "network": workload.network.as_str(),
        "addresses": texts(&workload.addresses),
        "hostname": workload.hostname.as_ref().map(ToString::to_string),
        "node": workload.node.as_str(),
        "protocol": word(&workload.protocol),
        "hostNetwork": workload.host_network,
        "unhealthy": !workload.healthy,
        "locality": place.trim_matches('/'),
        "canonical": format!("{} {} ({} {})", canonical.name, canonical.revision, canonical.workload_type, canonical.workload_name),
        "services": services,
        "policies": texts(&workload.policies),
        "waypoint": workload.waypoint.as_ref().map(waypoint),
        "capacity": if workload.capacity == 1 { Value::Null } else { json!(workload.capacity) },
    }));
    with("workload", &workload.uid, fields)
}

fn workload_extra(extra: &WorkloadExtra) -> Map<String, Value> {
    let enrolment = match &extra.enrolment {
        Enrolment::Enrolled => "enrolled".to_owned(),
        Enrolment::Out => "out".to_owned(),
        Enrolment::Refused(reason) => format!("refused: {reason}"),
    };
    only(json!({
        "enrolment": enrolment,
        "mtls": word(&extra.mtls),
        "mtlsPorts": texts(extra.mtls_ports.iter().map(|(port, mode)| format!("{port}: {}", word(mode)))),
        "probePorts": extra.probe_ports,
        "cutExisting": extra.cut_existing,
        "allowForwarded": extra.allow_forwarded,
        "guarded": extra.guarded,
        "features": texts(&extra.features),
        "podUid": extra.pod_uid,
        "groups": texts(&extra.groups),
    }))
}

fn service(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        format!(
            "{}->{} {}",
            port.port,
            port.target_port,
            word(&port.protocol)
        )
    });
    let balancing = &service.balancing;
    let fields = only(json!({
        "short": &*service.short,
        "vips": texts(service.vips.iter().map(|vip| vip.ip)),
        "ranges": texts(service.ranges.iter().map(|(_, range)| range)),
        "ports": ports.collect::<Vec<_>>(),
        "subjectAltNames": texts(&service.subject_alt_names),
        "waypoint": service.waypoint.as_ref().map(waypoint),
        "preference": balancing.preference.iter().map(word).collect::<Vec<_>>(),
        "mode": if balancing.mode == Default::default() { String::new() } else { word(&balancing.mode) },
        "allowUnhealthy": balancing.allow_unhealthy,
        "visibility": if service.visibility == Default::default() { String::new() } else { word(&service.visibility) },
    }));
    with("service", &service.name, fields)
}

fn waypoint(address: &GatewayAddress) -> String {
    match &address.destination {
        GatewayDestination::Hostname(name) => format!("{name}:{}", address.hbone_port),
        GatewayDestination::Address(at) => format!("{}:{}", at.ip, address.hbone_port),
    }
}

fn service_extra(extra: &ServiceExtra) -> Map<String, Value> {
    only(json!({
        "affinity": extra.affinity.map(|time| format!("{}s", time.as_secs())),
        "headless": extra.headless,
        "externalName": extra.external_name.as_deref(),
        "visibleTo": texts(&extra.visible_to),
        "standby": extra.standby.as_ref().map(ToString::to_string),
        "features": texts(&extra.features),
    }))
}

fn policy(policy: &Policy) -> Value {
    let scope = match policy.scope {
        PolicyScope::Global => "global",
        PolicyScope::Namespace => "namespace",
        PolicyScope::Selector => "selector",
    };
    let rules = policy.rules.iter().map(|rule| {
        let clause = |clause: &mesh_model::mesh::policy::Clause| {
            clause.matches.iter().map(matched).collect::<Value>()
        };
        json!({"all": rule.clauses.iter().map(clause).collect::<Vec<_>>()})
    });
    let mut fields =
        only(json!({"scope": scope, "action": word(&policy.action), "dryRun": policy.dry_run}));
    if let Validity::Invalid(reason) = &policy.validity {
        fields.insert("invalid".to_owned(), json!(&**reason));
    }
    fields.insert("rules".to_owned(), rules.collect());
    with("policy", &policy.name, fields)
}

fn matched(found: &Match) -> Value {
    let strings = |list: &[StringMatch]| {
        let text = |item: &StringMatch| match item {
            StringMatch::Exact(text) => text.to_string(),
            StringMatch::Prefix(text) => format!("{text}*"),
            StringMatch::Suffix(text) => format!("*{text}"),
            StringMatch::Presence => "*".to_owned(),
        };
        list.iter().map(text).collect::<Vec<_>>()
    };
    let accounts = |list: &[mesh_model::mesh::policy::ServiceAccountMatch]| {
        list.iter()
            .map(|account| format!("{}/{}", account.namespace, account.service_account))
            .collect::<Vec<_>>()
    };
    Value::Object(only(json!({
        "namespaces": strings(&found.namespaces),
        "notNamespaces": strings(&found.not_namespaces),
        "principals": strings(&found.principals),
        "notPrincipals": strings(&found.not_principals),
        "sourceIps": texts(&found.source_ips),
        "notSourceIps": texts(&found.not_source_ips),
        "destinationIps": texts(&found.destination_ips),
        "notDestinationIps": texts(&found.not_destination_ips),
        "ports": found.destination_ports,
        "notPorts": found.not_destination_ports,
        "serviceAccounts": accounts(&found.service_accounts),
        "notServiceAccounts": accounts(&found.not_service_accounts),
        "beyondL4": found.beyond_l4,
    })))
}
