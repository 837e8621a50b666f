//! What of a destination rule node proxies keep to where no waypoint is on the way, and what they cannot.
//!
//! Invariant: whatever stands in a rule and is not kept to there is named by its path.

use mesh_k8s::networking::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, DestinationRuleSpec, LoadBalancerSettings,
    OutlierDetection,
};

use super::traffic_policy::leaves_places_open;
use crate::{gateway::needs, traffic::reader::Reader};

/// How a rule is kept to without a waypoint.
pub(super) const KEPT: &str =
    "what it says of connections is kept to by the node proxies of clients, without a waypoint";

/// Names what only a waypoint could keep to.
pub(super) fn without_waypoint(reader: &mut Reader, spec: &DestinationRuleSpec) {
    if let Some(policy) = &spec.traffic_policy {
        let path = "spec.trafficPolicy";
        part(
            reader,
            path,
            (&policy.load_balancer, &policy.connection_pool),
            (&policy.outlier_detection, &policy.tls),
        );
        for (name, given) in [
            ("proxyProtocol", policy.proxy_protocol.is_some()),
            ("retryBudget", policy.retry_budget.is_some()),
        ] {
            if given {
                say(reader, format!("{path}.{name}"));
            }
        }
        for (i, own) in policy.port_level_settings.iter().enumerate() {
            part(
                reader,
                &format!("{path}.portLevelSettings[{i}]"),
                (&own.load_balancer, &own.connection_pool),
                (&own.outlier_detection, &own.tls),
            );
        }
    }
    if !spec.subsets.is_empty() {
        say(reader, "spec.subsets".to_owned());
    }
}

fn say(reader: &mut Reader, path: String) {
    reader.warn(
        path,
        "needs a waypoint, and none serves the host; not honoured",
    );
}

fn part(
    reader: &mut Reader,
    path: &str,
    (balancer, pool): (
        &Option<LoadBalancerSettings>,
        &Option<ConnectionPoolSettings>,
    ),
    (outlier, tls): (&Option<OutlierDetection>, &Option<ClientTlsSettings>),
) {
    if let Some(balancer) = balancer {
        balancing(reader, &format!("{path}.loadBalancer"), balancer);
    }
    if pool.as_ref().is_some_and(|pool| pool.http.is_some()) {
        say(reader, format!("{path}.connectionPool.http"));
    }
    // The mesh's own TLS is there anyway.
    let named = tls
        .as_ref()
        .is_some_and(|tls| !tls.subject_alt_names.is_empty());
    match tls.as_ref().map(|tls| tls.mode.as_str()) {
        None => {}
        Some("ISTIO_MUTUAL") if !named => {}
        Some("ISTIO_MUTUAL") => say(reader, format!("{path}.tls.subjectAltNames")),
        Some("" | "DISABLE") => {
            let text = "endpoints in the mesh are reached by its tunnels all the same";
            reader.info(format!("{path}.tls"), text);
        }
        Some(_) => say(reader, format!("{path}.tls")),
    }
    let Some(outlier) = outlier else { return };
    if leaves_places_open(balancer.as_ref()) {
        let text = "without a waypoint endpoints nearby do not come first for it; for a service's trafficDistribution they do";
        reader.info(format!("{path}.outlierDetection"), text);
    }
    let at = |name: &str| format!("{path}.outlierDetection.{name}");
    if !outlier.outlier_detection_http_error_codes.is_empty() {
        say(reader, at("outlierDetectionHttpErrorCodes"));
    }
    let counted = [
        (
            "consecutive5xxErrors",
            outlier.consecutive_5xx_errors.unwrap_or(0),
        ),
        (
            "consecutiveGatewayErrors",
            outlier.consecutive_gateway_errors.unwrap_or(0),
        ),
    ];
    for (name, _) in counted.into_iter().filter(|(_, count)| *count != 0) {
        if outlier.split_external_local_origin_errors == Some(true) {
            say(reader, at(name));
        } else {
            let text = "counts connections that cannot be made; answers are seen by waypoints only, and none serves the host";
            reader.warn(at(name), text);
        }
    }
}

/// An endpoint is chosen for each connection, at random by weight.
fn balancing(reader: &mut Reader, path: &str, wire: &LoadBalancerSettings) {
    let at = |name: &str| format!("{path}.{name}");
    let places = wire.locality_lb_setting.as_ref();
    let warmed = needs::warms_up(wire);
    for (name, given) in [
        ("consistentHash", wire.consistent_hash.is_some()),
        (
            "localityLbSetting",
            places.is_some_and(|setting| setting.enabled != Some(false)),
        ),
        ("warmup", wire.warmup.is_some() && warmed),
        (
            "warmupDurationSecs",
            wire.warmup_duration_secs.is_some() && warmed,
        ),
    ] {
        if given {
            say(reader, at(name));
        }
    }
    if needs::is_in_turn(wire) {
        say(reader, at("simple"));
    } else if matches!(
        wire.simple.as_str(),
        "LEAST_REQUEST" | "LEAST_CONN" | "RANDOM"
    ) {
        let text = "without a waypoint an endpoint is chosen for each connection, at random";
        reader.info(at("simple"), text);
    }
}
