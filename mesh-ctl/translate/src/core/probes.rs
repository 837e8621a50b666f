//! The ports of a pod that the kubelet connects to.

use mesh_k8s::{
    core::{Container, HandlerPort, Pod},
    text::IntOrString,
};

/// The ports that probes and hooks of the pod's containers name, ascending, none twice.
pub(crate) fn ports(pod: &Pod) -> Box<[u16]> {
    let lasting = pod
        .spec
        .init_containers
        .iter()
        .filter(|container| container.restart_policy == "Always");
    let mut ports: Vec<u16> = pod
        .spec
        .containers
        .iter()
        .chain(lasting)
        .flat_map(of_container)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into()
}

fn of_container(container: &Container) -> Vec<u16> {
    let probes = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
    ];
    let probes = probes
        .into_iter()
        .flatten()
        .flat_map(|probe| [&probe.http_get, &probe.tcp_socket, &probe.grpc]);
    let hooks = container
        .lifecycle
        .iter()
        .flat_map(|life| [&life.post_start, &life.pre_stop]);
    let hooks = hooks
        .flatten()
        .flat_map(|hook| [&hook.http_get, &hook.tcp_socket]);
    // A probe with a host of its own does not connect to this pod.
    let own = probes
        .chain(hooks)
        .flatten()
        .filter(|handler| handler.host.is_empty());
    own.filter_map(|handler| number(handler, container))
        .collect()
}

fn number(handler: &HandlerPort, container: &Container) -> Option<u16> {
    match &handler.port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|port| *port != 0),
        IntOrString::Text(text) => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .or_else(|| named(container, text)),
    }
}

fn named(container: &Container, name: &str) -> Option<u16> {
    container
        .ports
        .iter()
        .find(|port| port.name == name && is_tcp(&port.protocol))
        .map(|port| port.container_port)
}

/// The number of a named TCP port of a pod.
pub(crate) fn named_port(pod: &Pod, name: &str) -> Option<u16> {
    let lasting = pod
        .spec
        .init_containers
        .iter()
        .filter(|container| container.restart_policy == "Always");
    pod.spec
        .containers
        .iter()
        .chain(lasting)
        .find_map(|container| named(container, name))
}

/// Whether a protocol field means TCP.
pub(crate) fn is_tcp(protocol: &str) -> bool {
    protocol.is_empty() || protocol.eq_ignore_ascii_case("TCP")
}
