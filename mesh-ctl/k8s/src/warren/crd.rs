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
    // A rule that a type cannot say; the trust domain becomes a part of every identity.
    let rules = json!([{
        "rule": "!has(self.trustDomain) || self.trustDomain == '' || self.trustDomain.matches('^[A-Za-z0-9._-]+$')",
        "message": "trustDomain has letters, digits, '.', '-' and '_' only",
    }]);
    vec![own::<MeshConfig, MeshConfigSpec>(names, rules)]
}

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
