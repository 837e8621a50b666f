//! CustomResourceDefinitions of Warren's own kinds, made from their types.
//!
//! Invariant: schemas are structural: no references, no defaults (what a field means when it is left out is the
//! translation's to say), a description and a type at every field.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::mesh_config::{MeshConfig, MeshConfigSpec};
use crate::{
    Kind,
    definition::{Names, definition},
};

/// The definitions, each as an object that can be applied.
pub fn crds() -> Vec<Value> {
    let names = Names {
        plural: "meshconfigs",
        short: "mcfg",
        categories: &["warren"],
    };
    let rules: Vec<Value> = RULES
        .iter()
        .map(|(rule, message)| json!({"rule": rule, "message": message}))
        .collect();
    vec![own::<MeshConfig, MeshConfigSpec>(names, rules.into())]
}

/// What a type cannot say of MeshConfig's spec, as expressions of CEL, each with what whoever breaks it is told: what could
/// only be a mistake is not even stored.
const RULES: [(&str, &str); 7] = [
    // The trust domain becomes a part of every identity.
    (
        "!has(self.trustDomain) || self.trustDomain == '' || self.trustDomain.matches('^[A-Za-z0-9._-]+$')",
        "trustDomain has letters, digits, '.', '-' and '_' only",
    ),
    (
        "!has(self.rootNamespace) || self.rootNamespace == '' || self.rootNamespace.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "rootNamespace is the name of a namespace",
    ),
    (
        "!has(self.clusterDomain) || self.clusterDomain == '' || self.clusterDomain.matches('^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?([.][A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*[.]?$')",
        "clusterDomain is a DNS name",
    ),
    (
        "!has(self.clusterId) || !self.clusterId.contains('/')",
        "clusterId must not contain '/'",
    ),
    (
        "!has(self.extensionProviders) || self.extensionProviders.all(p, has(p.name) && p.name != '' && self.extensionProviders.exists_one(q, has(q.name) && q.name == p.name))",
        "extensionProviders have a name each, which no other has",
    ),
    (
        "!has(self.extensionProviders) || self.extensionProviders.all(p, !has(p.opentelemetry) || (has(p.opentelemetry.service) && p.opentelemetry.service != '' && has(p.opentelemetry.port)))",
        "opentelemetry of extensionProviders needs service and port",
    ),
    (
        "!has(self.defaultProviders) || !has(self.defaultProviders.tracing) || self.defaultProviders.tracing.all(n, has(self.extensionProviders) && self.extensionProviders.exists(p, has(p.name) && p.name == n))",
        "defaultProviders.tracing names one of extensionProviders",
    ),
];

fn own<K: Kind, Spec: JsonSchema>(names: Names<'_>, rules: Value) -> Value {
    let mut spec = schema::<Spec>();
    spec["x-kubernetes-validations"] = rules;
    let text = |text: &str| json!({"type": "string", "description": text});
    let schema = json!({
        "type": "object",
        "description": spec["description"],
        "properties": {
            "apiVersion": text("The group and version of this object."),
            "kind": text("The kind of this object."),
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status(),
        },
    });
    definition::<K>(names, &["Accepted", "Programmed"], &schema)
}

/// What the controller says about an object.
fn status() -> Value {
    let text = |text: &str| json!({"type": "string", "description": text});
    json!({
        "type": "object",
        "description": "What the controller says about this object.",
        "properties": {
            "conditions": {
                "type": "array",
                "description": "Whether it was understood, and whether it is in force.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "description": "One condition.",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": text("Accepted or Programmed."),
                        "status": text("True, False or Unknown."),
                        "reason": text("One word that programs may compare."),
                        "message": text("A sentence for people."),
                        "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When the status last changed."},
                        "observedGeneration": {"type": "integer", "format": "int64", "description": "The generation of the object that this is about."},
                    },
                },
            },
        },
    })
}

/// The schema of a type as the API server wants it.
fn schema<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    tidy(&mut schema);
    schema
}

/// Takes out what structural schemas do not have.
fn tidy(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    for field in ["$schema", "title", "default", "components", "nullable"] {
        fields.remove(field);
    }
    // Unsigned formats are not OpenAPI's.
    if fields
        .get("format")
        .and_then(Value::as_str)
        .is_some_and(|f| f.starts_with("uint"))
    {
        fields.remove("format");
    }
    let below = |value: Option<&mut Value>| {
        let all = value.and_then(Value::as_object_mut).map(Map::values_mut);
        all.into_iter().flatten().for_each(tidy);
    };
    below(fields.get_mut("properties"));
    for field in ["items", "additionalProperties"] {
        if let Some(schema) = fields.get_mut(field) {
            tidy(schema);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every schema below this one, with its path.
    fn walk(schema: &Value, path: &str, seen: &mut Vec<(String, Value)>) {
        seen.push((path.to_owned(), schema.clone()));
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(property, &format!("{path}.{name}"), seen);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{path}[]"), seen);
        }
    }

    /// The bounds of a field of MeshConfig's spec.
    fn bounds(path: &str) -> Value {
        let crd = &crds()[0];
        let mut seen = Vec::new();
        walk(
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"],
            "",
            &mut seen,
        );
        let found = seen.into_iter().find(|(known, _)| known == path);
        found.unwrap_or_else(|| panic!("no field {path}")).1
    }

    #[test]
    fn what_could_mean_nothing_is_refused_by_the_api_server() {
        let port = bounds(".extensionProviders[].opentelemetry.port");
        assert_eq!(
            (&port["minimum"], &port["maximum"]),
            (&json!(1), &json!(65535))
        );
        let share = bounds(".defaultConfig.tracing.sampling");
        let least = share["minimum"].as_f64().zip(share["maximum"].as_f64());
        assert_eq!(least, Some((0.0, 100.0)));
        assert_eq!(bounds(".defaultProviders.tracing")["maxItems"], 1);
        for field in [".outboundTrafficPolicy", ".sameNode", ".waypoint"] {
            assert!(bounds(field)["enum"].is_array(), "{field}");
        }
        // An API server refuses a definition whose rules could cost too much: what they run through has an end.
        assert_eq!(bounds(".extensionProviders")["maxItems"], 64);
        for field in [
            ".trustDomain",
            ".rootNamespace",
            ".clusterDomain",
            ".clusterId",
            ".extensionProviders[].name",
            ".extensionProviders[].opentelemetry.service",
            ".defaultProviders.tracing[]",
        ] {
            assert!(bounds(field)["maxLength"].is_u64(), "{field}");
        }
    }

    /// Rules are expressions that nothing here evaluates: at least what they speak of is there, and looked for first.
    #[test]
    fn rules_speak_of_fields_that_there_are() {
        let spec = bounds("");
        let rules = spec["x-kubernetes-validations"].as_array().expect("rules");
        assert_eq!(rules.len(), RULES.len());
        for rule in rules {
            let text = rule["rule"].as_str().expect("text");
            let named = text.split("self.").skip(1).map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric());
                &rest[..end.unwrap_or(rest.len())]
            });
            for field in named {
                assert!(spec["properties"][field].is_object(), "{field}: {text}");
                assert!(
                    text.contains(&format!("has(self.{field})")),
                    "{field}: {text}"
                );
            }
            assert!(!rule["message"].as_str().unwrap_or_default().is_empty());
            let (open, close) = (text.matches('(').count(), text.matches(')').count());
            assert_eq!(open, close, "{text}");
        }
    }

    #[test]
    fn schemas_are_structural_and_say_what_fields_mean() {
        for crd in crds() {
            for version in crd["spec"]["versions"].as_array().expect("versions") {
                let mut seen = Vec::new();
                walk(&version["schema"]["openAPIV3Schema"], "", &mut seen);
                assert!(
                    seen.iter()
                        .any(|(path, _)| path == ".spec.honourIstioLabels.injection"),
                    "{seen:?}"
                );
                for (path, schema) in seen {
                    assert!(schema["type"].is_string(), "{path} has no type: {schema}");
                    assert!(
                        // A list says what its texts are.
                        path == ".metadata"
                            || path.ends_with("[]") && schema["type"] == "string"
                            || schema["description"].is_string(),
                        "{path} has no description"
                    );
                    for never in ["$ref", "default", "title", "nullable"] {
                        assert!(schema.get(never).is_none(), "{path} has {never}: {schema}");
                    }
                }
            }
        }
    }
}
