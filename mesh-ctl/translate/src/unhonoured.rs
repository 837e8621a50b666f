//! Objects of kinds that would configure the mesh and that nobody here obeys: what their authors are told.
//!
//! Invariant: where one would have kept something out, the text says what is let in instead.

use mesh_k8s::{ObjectRef, Other};

use crate::{
    status::{InForce, Reports, Severity},
    view::Entry,
};

/// Says what is not done of what an object asks for.
pub(crate) fn report(object: &ObjectRef, entry: &Entry<Other>, reports: &mut Reports) {
    let kind = &entry.object.kind;
    let short = format!("{kind} is not honoured by this version");
    let text = missing(entry.object.group(), kind).unwrap_or(&short);
    reports.say(object, &entry.origin, Severity::Warning, "kind", text);
    let not = InForce::Not("NotHonoured", short);
    reports.in_force(object, &entry.origin, not);
}

/// What does not happen, by group and kind.
fn missing(group: &str, kind: &str) -> Option<&'static str> {
    Some(match (group, kind) {
        ("security.istio.io", "RequestAuthentication") => {
            "requests are NOT checked for tokens: a wrong or expired one is let in as if there were none; an AuthorizationPolicy that asks for requestPrincipals or request.auth lets nobody in by them"
        }
        ("extensions.istio.io", "WasmPlugin") => {
            "no extensions are run, so that requests are NOT checked or changed by it"
        }
        ("networking.istio.io", "Sidecar") => {
            "clients reach every service that is exported to them; outboundTrafficPolicy: REGISTRY_ONLY in MeshConfig keeps them from hosts that nobody knows, and AuthorizationPolicy from services"
        }
        ("networking.istio.io", "EnvoyFilter") => {
            "there is no Envoy to patch; what it is for has to be said by VirtualService, DestinationRule, AuthorizationPolicy or a route of the Gateway API"
        }
        ("networking.istio.io", "ProxyConfig") => {
            "there is no proxy beside the pods that it could configure"
        }
        ("networking.istio.io", "WorkloadGroup") => {
            "machines do not register by themselves; each needs a WorkloadEntry"
        }
        ("networking.istio.io", "Gateway") => {
            "there are no gateways at the edge of the mesh; virtual services have effect for its gateway mesh only"
        }
        _ => return None,
    })
}
