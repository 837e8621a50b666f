//! What every CustomResourceDefinition has besides its schema.

use serde_json::{Value, json};

use crate::Kind;

/// Names of a kind that its type does not tell.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// Of many.
    pub plural: &'a str,
    /// For whoever types.
    pub short: &'a str,
    /// Groups of kinds that are asked for at once.
    pub categories: &'a [&'a str],
}

/// The definition of a kind, as an object that can be applied. `conditions` of the status are shown in lists; `schema` is
/// that of every version, of which the first is stored.
pub fn definition<K: Kind>(names: Names<'_>, conditions: &[&str], schema: &Value) -> Value {
    let mut columns: Vec<Value> = conditions
        .iter()
        .map(|name| {
            let path = format!(".status.conditions[?(@.type==\"{name}\")].status");
            json!({"name": name, "type": "string", "jsonPath": path})
        })
        .collect();
    columns.push(json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}));
    let versions: Vec<Value> = K::VERSIONS
        .iter()
        .enumerate()
        .map(|(index, version)| {
            json!({
                "name": version,
                "served": true,
                "storage": index == 0,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": schema},
            })
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{}", names.plural, K::GROUP)},
        "spec": {
            "group": K::GROUP,
            "names": {
                "kind": K::KIND,
                "listKind": format!("{}List", K::KIND),
                "plural": names.plural,
                "singular": K::KIND.to_ascii_lowercase(),
                "shortNames": [names.short],
                "categories": names.categories,
            },
            "scope": if K::NAMESPACED { "Namespaced" } else { "Cluster" },
            "versions": versions,
        },
    })
}
