//! Workloads and services, as Istio's `Address` carries them.
//!
//! Invariant: what `encode` makes, `decode` turns back into the same value.

use mesh_model::{
    mesh::{
        AppProtocol, Service, ServicePort, Workload,
        service::{Balancing, Mode, Scope, Visibility},
        workload::{Canonical, Locality, Membership, TunnelProtocol},
    },
    name::{
        ClusterId, Identity, Namespace, NetworkAddress, NetworkId, NodeName, ServiceName,
        WorkloadUid,
    },
};

use super::field::{
    Bad, Problem, all, gateway, gateway_wire, hostname, ip, ip_bytes, known, label, namespace, net,
    network_address, policy_name, port, real_port, service_name, strings, texts,
};
use crate::workload::{self as wire, load_balancing};

/// The trust domain of a workload whose message names none.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

pub(super) fn encode_workload(w: &Workload) -> wire::Workload {
    wire::Workload {
        name: w.name.to_string(),
        namespace: w.namespace.to_string(),
        addresses: w.addresses.iter().map(|a| ip_bytes(*a)).collect(),
        network: w.network.to_string(),
        tunnel_protocol: match w.protocol {
            TunnelProtocol::None => wire::TunnelProtocol::None,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: w.identity.trust_domain.to_string(),
        service_account: w.identity.service_account.to_string(),
        waypoint: w.waypoint.as_ref().map(gateway_wire),
        node: w.node.to_string(),
        canonical_name: w.canonical.name.to_string(),
        canonical_revision: w.canonical.revision.to_string(),
        workload_type: workload_type(&w.canonical.workload_type).into(),
        workload_name: w.canonical.workload_name.to_string(),
        native_tunnel: false,
        authorization_policies: w.policies.iter().map(ToString::to_string).collect(),
        status: if w.healthy {
            wire::WorkloadStatus::Healthy
        } else {
            wire::WorkloadStatus::Unhealthy
        }
        .into(),
        cluster_id: w.cluster.to_string(),
        network_gateway: None,
        uid: w.uid.to_string(),
        hostname: w
            .hostname
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        services: w
            .services
            .iter()
            .map(|m| (m.service.to_string(), port_list(m)))
            .collect(),
        application_tunnel: None,
        locality: (w.locality != Locality::default()).then(|| wire::Locality {
            region: w.locality.region.to_string(),
            zone: w.locality.zone.to_string(),
            subzone: w.locality.subzone.to_string(),
        }),
        network_mode: if w.host_network {
            wire::NetworkMode::HostNetwork
        } else {
            wire::NetworkMode::Standard
        }
        .into(),
        extensions: Vec::new(),
        capacity: (w.capacity != 1).then_some(w.capacity),
    }
}

fn port_list(m: &Membership) -> wire::PortList {
    let port = |&(service, target): &(u16, u16)| wire::Port {
        service_port: service.into(),
        target_port: target.into(),
        app_protocol: wire::AppProtocol::Unknown.into(),
    };
    wire::PortList {
        ports: m.ports.iter().map(port).collect(),
    }
}

/// Owners of other kinds are shown as pods, as Istio does.
fn workload_type(kind: &str) -> wire::WorkloadType {
    match kind {
        "deployment" => wire::WorkloadType::Deployment,
        "cronjob" => wire::WorkloadType::Cronjob,
        "job" => wire::WorkloadType::Job,
        _ => wire::WorkloadType::Pod,
    }
}

pub(super) fn decode_workload(name: &str, w: wire::Workload) -> Result<Workload, Bad> {
    if w.uid != name {
        return Err(Bad::new("uid", Problem::NameMismatch(w.uid)));
    }
    if w.network_gateway.is_some() {
        return Err(Bad::new(
            "network_gateway",
            Problem::Extension("network gateways".into()),
        ));
    }
    let uid = WorkloadUid::from(uid_text("uid", &w.uid)?);
    let namespace = namespace("namespace", &w.namespace)?;
    let trust_domain = if w.trust_domain.is_empty() {
        DEFAULT_TRUST_DOMAIN
    } else {
        w.trust_domain.as_str()
    };
    let protocol = tunnel_protocol(w.tunnel_protocol)?;
    let identity = identity(trust_domain, &namespace, &w.service_account, protocol)?;
    let mut addresses = Vec::with_capacity(w.addresses.len());
    for address in all("addresses", &w.addresses, |a| ip("", a))? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let locality = w.locality.unwrap_or_default();
    Ok(Workload {
        uid,
        name: w.name.into(),
        namespace,
        identity,
        network: NetworkId::from(w.network.as_str()),
        addresses: addresses.into(),
        hostname: if w.hostname.is_empty() {
            None
        } else {
            Some(hostname("hostname", &w.hostname)?)
        },
        node: NodeName::from(w.node.as_str()),
        cluster: ClusterId::from(w.cluster_id.as_str()),
        protocol,
        host_network: known::<wire::NetworkMode>("network_mode", w.network_mode)?
            == wire::NetworkMode::HostNetwork,
        healthy: known::<wire::WorkloadStatus>("status", w.status)?
            == wire::WorkloadStatus::Healthy,
        locality: Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            subzone: locality.subzone.into(),
        },
        canonical: Canonical {
            name: w.canonical_name.into(),
            revision: w.canonical_revision.into(),
            workload_name: w.workload_name.into(),
            workload_type: known::<wire::WorkloadType>("workload_type", w.workload_type)?
                .as_str_name()
                .to_ascii_lowercase()
                .into(),
        },
        services: memberships(w.services)?,
        policies: all("authorization_policies", &w.authorization_policies, |p| {
            policy_name("", p)
        })?,
        waypoint: w
            .waypoint
            .map(gateway)
            .transpose()
            .map_err(|b| b.within("waypoint"))?,
        capacity: w.capacity.unwrap_or(1),
    })
}

/// Who a workload is. One without a tunnel may be nobody: it has nothing to prove, and nobody can prove to be it.
fn identity(
    trust_domain: &str,
    namespace: &Namespace,
    account: &str,
    protocol: TunnelProtocol,
) -> Result<Identity, Bad> {
    let nobody = account.is_empty() && protocol == TunnelProtocol::None;
    let shown = if nobody { "nobody" } else { account };
    let parsed = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{shown}").parse();
    let identity: Identity = parsed.map_err(|_| {
        let text = format!("{trust_domain}, {namespace}, {account}");
        Bad::new("service_account", Problem::Name(text))
    })?;
    Ok(Identity {
        service_account: account.into(),
        ..identity
    })
}

/// A workload's unique name has at least four slashes, which keeps it apart from a service's name and from an alias.
pub(super) fn uid_text<'a>(field: &str, text: &'a str) -> Result<&'a str, Bad> {
    let ok = text.len() <= 1024 && is_uid(text) && text.bytes().all(|b| b.is_ascii_graphic());
    if ok {
        Ok(text)
    } else {
        Err(Bad::new(field, Problem::Name(text.to_owned())))
    }
}

/// Whether the name of an `Address` is a workload's.
pub(super) fn is_uid(name: &str) -> bool {
    name.bytes().filter(|b| *b == b'/').count() >= 4
}

fn tunnel_protocol(number: i32) -> Result<TunnelProtocol, Bad> {
    match known("tunnel_protocol", number)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::None),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => {
            Err(Bad::new("tunnel_protocol", Problem::UnknownValue(number)))
        }
    }
}

fn memberships(
    services: std::collections::BTreeMap<String, wire::PortList>,
) -> Result<Box<[Membership]>, Bad> {
    services
        .into_iter()
        .map(|(name, list)| {
            let convert = || {
                Ok(Membership {
                    service: service_name("", &name)?,
                    ports: all("ports", list.ports, |p| {
                        Ok((
                            real_port("service_port", p.service_port)?,
                            port("target_port", p.target_port)?,
                        ))
                    })?,
                })
            };
            convert().map_err(|b: Bad| b.within(format_args!("services[{name}]")))
        })
        .collect()
}

pub(super) fn encode_service(s: &Service) -> wire::Service {
    let range = |(network, range): &(NetworkId, ipnet::IpNet)| wire::NetworkAddress {
        network: network.to_string(),
        address: ip_bytes(range.addr()),
        length: Some(range.prefix_len().into()),
    };
    wire::Service {
        name: s.short.to_string(),
        namespace: s.name.namespace.to_string(),
        hostname: s.name.hostname.to_string(),
        addresses: s
            .vips
            .iter()
            .map(network_address)
            .chain(s.ranges.iter().map(range))
            .collect(),
        ports: s.ports.iter().map(port_wire).collect(),
        subject_alt_names: strings(&s.subject_alt_names),
        waypoint: s.waypoint.as_ref().map(gateway_wire),
        load_balancing: (s.balancing != Balancing::default()).then(|| balancing_wire(&s.balancing)),
        ip_families: families(s).into(),
        visibility: match s.visibility {
            Visibility::Public => wire::Visibility::Public,
            Visibility::Namespace => wire::Visibility::Namespace,
        }
        .into(),
        ..Default::default()
    }
}

fn families(s: &Service) -> wire::IpFamilies {
    let v4 = s.vips.iter().any(|a| a.ip.is_ipv4());
    let v6 = s.vips.iter().any(|a| a.ip.is_ipv6());
    match (v4, v6) {
        (true, true) => wire::IpFamilies::Dual,
        (true, false) => wire::IpFamilies::Ipv4Only,
        (false, true) => wire::IpFamilies::Ipv6Only,
        (false, false) => wire::IpFamilies::Automatic,
    }
}

fn port_wire(p: &ServicePort) -> wire::Port {
    let app_protocol = match p.protocol {
        AppProtocol::Unknown => wire::AppProtocol::Unknown,
        AppProtocol::Http11 => wire::AppProtocol::Http11,
        AppProtocol::Http2 => wire::AppProtocol::Http2,
        AppProtocol::Grpc => wire::AppProtocol::Grpc,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::Tls => wire::AppProtocol::Tls,
    };
    wire::Port {
        service_port: p.port.into(),
        target_port: p.target_port.into(),
        app_protocol: app_protocol.into(),
    }
}

fn service_port(p: wire::Port) -> Result<ServicePort, Bad> {
    Ok(ServicePort {
        port: real_port("service_port", p.service_port)?,
        target_port: port("target_port", p.target_port)?,
        protocol: match known("app_protocol", p.app_protocol)? {
            wire::AppProtocol::Unknown => AppProtocol::Unknown,
            wire::AppProtocol::Http11 => AppProtocol::Http11,
            wire::AppProtocol::Http2 => AppProtocol::Http2,
            wire::AppProtocol::Grpc => AppProtocol::Grpc,
            wire::AppProtocol::Tcp => AppProtocol::Tcp,
            wire::AppProtocol::Tls => AppProtocol::Tls,
        },
    })
}

pub(super) fn decode_service(name: &str, s: wire::Service) -> Result<Service, Bad> {
    let owner = ServiceName {
        namespace: namespace("namespace", &s.namespace)?,
        hostname: hostname("hostname", &s.hostname)?,
    };
    if owner.to_string() != name {
        return Err(Bad::new(
            "hostname",
            Problem::NameMismatch(owner.to_string()),
        ));
    }
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for (i, a) in s.addresses.into_iter().enumerate() {
        let at = |b: Bad| b.within(format_args!("addresses[{i}]"));
        let network = NetworkId::from(a.network.as_str());
        match a.length {
            None => vips.push(NetworkAddress {
                network,
                ip: ip("address", &a.address).map_err(at)?,
            }),
            Some(length) => ranges.push((network, net(&a.address, length).map_err(at)?)),
        }
    }
    if !s.name.is_empty() {
        label("name", &s.name)?;
    }
    Ok(Service {
        name: owner,
        short: s.name.into(),
        vips: vips.into(),
        ranges: ranges.into(),
        ports: all("ports", s.ports, service_port)?,
        subject_alt_names: texts(s.subject_alt_names),
        waypoint: s
            .waypoint
            .map(gateway)
            .transpose()
            .map_err(|b| b.within("waypoint"))?,
        balancing: s
            .load_balancing
            .map(balancing)
            .transpose()
            .map_err(|b| b.within("load_balancing"))?
            .unwrap_or_default(),
        visibility: match known("visibility", s.visibility)? {
            wire::Visibility::Public => Visibility::Public,
            wire::Visibility::Namespace => Visibility::Namespace,
        },
    })
}

fn balancing_wire(b: &Balancing) -> wire::LoadBalancing {
    let scope = |s: &Scope| -> i32 {
        match s {
            Scope::Region => load_balancing::Scope::Region,
            Scope::Zone => load_balancing::Scope::Zone,
            Scope::Subzone => load_balancing::Scope::Subzone,
            Scope::Node => load_balancing::Scope::Node,
            Scope::Cluster => load_balancing::Scope::Cluster,
            Scope::Network => load_balancing::Scope::Network,
        }
        .into()
    };
    let mode = match b.mode {
        Mode::Unspecified => load_balancing::Mode::UnspecifiedMode,
        Mode::Strict => load_balancing::Mode::Strict,
        Mode::Failover => load_balancing::Mode::Failover,
        Mode::Passthrough => load_balancing::Mode::Passthrough,
    };
    let health = if b.allow_unhealthy {
        load_balancing::HealthPolicy::AllowAll
    } else {
        load_balancing::HealthPolicy::OnlyHealthy
    };
    wire::LoadBalancing {
        routing_preference: b.preference.iter().map(scope).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    }
}

fn balancing(b: wire::LoadBalancing) -> Result<Balancing, Bad> {
    let scope = |number: i32| match known("", number)? {
        load_balancing::Scope::UnspecifiedScope => Err(Bad::new("", Problem::UnknownValue(number))),
        load_balancing::Scope::Region => Ok(Scope::Region),
        load_balancing::Scope::Zone => Ok(Scope::Zone),
        load_balancing::Scope::Subzone => Ok(Scope::Subzone),
        load_balancing::Scope::Node => Ok(Scope::Node),
        load_balancing::Scope::Cluster => Ok(Scope::Cluster),
        load_balancing::Scope::Network => Ok(Scope::Network),
    };
    Ok(Balancing {
        preference: all("routing_preference", b.routing_preference, scope)?,
        mode: match known("mode", b.mode)? {
            load_balancing::Mode::UnspecifiedMode => Mode::Unspecified,
            load_balancing::Mode::Strict => Mode::Strict,
            load_balancing::Mode::Failover => Mode::Failover,
            load_balancing::Mode::Passthrough => Mode::Passthrough,
        },
        allow_unhealthy: known::<load_balancing::HealthPolicy>("health_policy", b.health_policy)?
            == load_balancing::HealthPolicy::AllowAll,
    })
}
