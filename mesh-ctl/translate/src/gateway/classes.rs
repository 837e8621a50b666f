//! Classes of gateways: what is said of those that are ours.
//!
//! Invariant: a class is ours when it names the mesh as its controller, whatever it is called; of others nothing is said.
//! Source: Gateway API v1, GatewayClassConditionType.

use mesh_k8s::{ObjectRef, gateway::GatewayClass};

use super::waypoint::CLASS;
use crate::{
    status::{InForce, Reports, Severity},
    view::ClusterView,
};

/// By which name the mesh speaks of gateways, in classes and in statuses of routes.
pub const CONTROLLER: &str = "warren.dev/waypoint";

/// Accepts the classes of ours.
pub(crate) fn report(view: &ClusterView, reports: &mut Reports) {
    let entries = view.gateway_classes.values();
    for entry in entries.filter(|entry| entry.object.spec.controller_name == CONTROLLER) {
        let meta = &entry.object.metadata;
        let object = ObjectRef::of::<GatewayClass>(meta);
        if meta.name != CLASS {
            let text = format!(
                "only gateways of class {CLASS} are waypoints; those of this class are not looked at"
            );
            reports.say(
                &object,
                &entry.origin,
                Severity::Error,
                "metadata.name",
                text,
            );
        }
        reports.in_force(&object, &entry.origin, InForce::Wholly);
    }
}
