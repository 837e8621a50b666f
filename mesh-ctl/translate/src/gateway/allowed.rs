//! Which namespaces may use a gateway: `allowedRoutes` of its listeners.
//!
//! Invariant: what is not said or not understood admits the gateway's own namespace only.

use std::collections::BTreeMap;

use mesh_k8s::gateway::{Gateway, NamespaceSelector};

use crate::view::{ClusterView, Entry, Key};

/// Whether objects of a namespace may go through a waypoint.
pub(super) fn namespace(view: &ClusterView, gateway: &Entry<Gateway>, namespace: &str) -> bool {
    let Gateway { metadata, spec, .. } = &*gateway.object;
    if metadata.namespace == namespace {
        return true;
    }
    let listener = spec
        .listeners
        .iter()
        .find(|listener| listener.protocol == "HBONE" || listener.name == "mesh");
    let allowed = listener
        .and_then(|listener| listener.allowed_routes.as_ref())
        .and_then(|routes| routes.namespaces.as_ref());
    let Some(allowed) = allowed else {
        return false;
    };
    match allowed.from.as_str() {
        "All" => true,
        "Selector" => {
            let entry = view.namespaces.get(&Key::new("", namespace));
            let labels = entry.map(|entry| &entry.object.metadata.labels);
            match (&allowed.selector, labels) {
                (Some(selector), Some(labels)) => selects(selector, labels),
                _ => false,
            }
        }
        _ => false,
    }
}

fn selects(selector: &NamespaceSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().all(|expression| {
            let value = labels.get(&expression.key);
            let listed = value.is_some_and(|value| expression.values.contains(value));
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use mesh_k8s::gateway::LabelExpression;

    use super::*;

    #[test]
    fn selectors_mean_what_they_mean_in_kubernetes() {
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let check = |key: &str, operator: &str, values: &[&str], expect: bool| {
            let expression = LabelExpression {
                key: key.to_owned(),
                operator: operator.to_owned(),
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            };
            let selector = NamespaceSelector {
                match_expressions: vec![expression],
                ..NamespaceSelector::default()
            };
            assert_eq!(
                selects(&selector, &labels),
                expect,
                "{key} {operator} {values:?}"
            );
        };
        check("team", "In", &["a", "b"], true);
        check("team", "In", &["b"], false);
        check("team", "NotIn", &["b"], true);
        check("other", "NotIn", &["b"], true);
        check("other", "In", &["b"], false);
        check("team", "Exists", &[], true);
        check("other", "DoesNotExist", &[], true);
        check("team", "Odd", &[], false);
        assert!(selects(&NamespaceSelector::default(), &labels));
    }
}
