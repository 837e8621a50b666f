//! Which pods there shall be, and where: the lab's scheduler and its workload controllers.
//!
//! Invariants: pure, with dice as an argument; a pod that exists and still fits is never replaced; a new
//! generation of pods is ready before the old one is told to go.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    manifest::{Key, Object},
    net::NodeIndex,
};

/// A pod that exists.
#[derive(Clone, Debug)]
pub struct Existing {
    /// Its name.
    pub key: Key,
    /// Who asked for it; `None` for a pod of its own.
    pub owner: Option<Key>,
    /// The generation of the owner's template that it was made from.
    pub generation: String,
    /// Where it runs.
    pub node: NodeIndex,
    /// Whether it is ready.
    pub ready: bool,
}

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct NewPod {
    /// Its name.
    pub key: Key,
    /// Who asked for it.
    pub owner: Option<Key>,
    /// The generation of the template.
    pub generation: String,
    /// Where it shall run.
    pub node: NodeIndex,
    /// The pod as a manifest, without addresses and status.
    pub value: Value,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Pods to make.
    pub create: Vec<NewPod>,
    /// Pods to end.
    pub delete: Vec<Key>,
    /// What cannot be done, and why.
    pub warnings: Vec<String>,
}

/// The nodes with their labels.
pub type Nodes = BTreeMap<NodeIndex, BTreeMap<String, String>>;

/// Compares what is asked for with what is there. `existing` are the pods that have not been told to go.
pub fn plan(
    objects: &BTreeMap<Key, Object>,
    nodes: &Nodes,
    existing: &[Existing],
    dice: &mut dyn FnMut() -> String,
) -> Plan {
    let mut round = Round {
        nodes,
        existing,
        dice,
        placed: existing.iter().map(|e| (e.owner.clone(), e.node)).collect(),
        plan: Plan::default(),
    };
    for object in objects.values() {
        match (object.key.group.as_str(), object.key.kind.as_str()) {
            ("", "Pod") => round.single(object),
            ("apps", "Deployment" | "ReplicaSet") => round.replicas(object),
            ("apps", "StatefulSet") => round.ordinals(object),
            ("apps", "DaemonSet") => round.daemons(object),
            ("batch", "Job") => round.job(object),
            _ => {}
        }
    }
    for pod in existing {
        let wanted = match &pod.owner {
            Some(owner) => objects.contains_key(owner),
            None => objects.contains_key(&pod.key),
        };
        if !wanted {
            round.plan.delete.push(pod.key.clone());
        }
    }
    round.plan
}

struct Round<'a> {
    nodes: &'a Nodes,
    existing: &'a [Existing],
    dice: &'a mut dyn FnMut() -> String,
    placed: Vec<(Option<Key>, NodeIndex)>,
    plan: Plan,
}

impl<'a> Round<'a> {
    fn single(&mut self, object: &Object) {
        let generation = generation(&object.value);
        match self
            .existing
            .iter()
            .find(|e| e.key == object.key && e.owner.is_none())
        {
            Some(pod) if pod.generation == generation => {}
            // A pod's own manifest changed: it is ended here and made again when it is gone.
            Some(pod) => self.plan.delete.push(pod.key.clone()),
            None => {
                let mut value = object.value.clone();
                value["metadata"]["namespace"] = object.key.namespace.clone().into();
                self.create(None, object.key.clone(), generation, value, None);
            }
        }
    }

    fn replicas(&mut self, object: &Object) {
        let count = usize::try_from(object.value["spec"]["replicas"].as_u64().unwrap_or(1))
            .unwrap_or(usize::MAX)
            .min(500);
        let generation = generation(&object.value["spec"]["template"]);
        let (current, old): (Vec<_>, Vec<_>) = self
            .owned(&object.key)
            .into_iter()
            .partition(|e| e.generation == generation);
        let ready = current.iter().filter(|e| e.ready).count();
        let mut surplus: Vec<&Existing> = current.clone();
        surplus.sort_by_key(|e| !e.ready);
        self.plan
            .delete
            .extend(surplus.iter().skip(count).map(|e| e.key.clone()));
        if ready >= count {
            self.plan.delete.extend(old.iter().map(|e| e.key.clone()));
        }
        for _ in current.len()..count {
            let name = format!("{}-{generation}-{}", object.key.name, (self.dice)());
            let owner = if object.key.kind == "Deployment" {
                json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{}-{generation}", object.key.name)})
            } else {
                json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": object.key.name})
            };
            let mut value = from_template(object, &name, owner);
            value["metadata"]["labels"]["pod-template-hash"] = generation.clone().into();
            self.create(
                Some(object),
                Key::core("Pod", &object.key.namespace, &name),
                generation.clone(),
                value,
                None,
            );
        }
    }

    fn ordinals(&mut self, object: &Object) {
        let count = object.value["spec"]["replicas"]
            .as_u64()
            .unwrap_or(1)
            .min(500);
        let generation = generation(&object.value["spec"]["template"]);
        let names: Vec<String> = (0..count)
            .map(|i| format!("{}-{i}", object.key.name))
            .collect();
        for pod in self.owned(&object.key) {
            if !names.contains(&pod.key.name) || pod.generation != generation {
                self.plan.delete.push(pod.key.clone());
            }
        }
        for name in names {
            let key = Key::core("Pod", &object.key.namespace, &name);
            if self.existing.iter().any(|e| e.key == key) {
                continue;
            }
            let mut value = from_template(
                object,
                &name,
                json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": object.key.name}),
            );
            value["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] = name.clone().into();
            value["spec"]["hostname"] = name.into();
            value["spec"]["subdomain"] = object.value["spec"]["serviceName"].clone();
            self.create(Some(object), key, generation.clone(), value, None);
        }
    }

    fn daemons(&mut self, object: &Object) {
        let generation = generation(&object.value["spec"]["template"]);
        let fitting: Vec<NodeIndex> = self
            .nodes
            .keys()
            .copied()
            .filter(|n| {
                fits(
                    &object.value["spec"]["template"]["spec"],
                    *n,
                    &self.nodes[n],
                )
            })
            .collect();
        for pod in self.owned(&object.key) {
            if pod.generation != generation || !fitting.contains(&pod.node) {
                self.plan.delete.push(pod.key.clone());
            }
        }
        for node in fitting {
            if self.owned(&object.key).iter().any(|e| e.node == node) {
                continue;
            }
            let name = format!("{}-{}", object.key.name, (self.dice)());
            let value = from_template(
                object,
                &name,
                json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": object.key.name}),
            );
            self.create(
                Some(object),
                Key::core("Pod", &object.key.namespace, &name),
                generation.clone(),
                value,
                Some(node),
            );
        }
    }

    fn job(&mut self, object: &Object) {
        let generation = generation(&object.value["spec"]["template"]);
        if self.owned(&object.key).is_empty() {
            let name = format!("{}-{}", object.key.name, (self.dice)());
            let value = from_template(
                object,
                &name,
                json!({"apiVersion": "batch/v1", "kind": "Job", "name": object.key.name}),
            );
            self.create(
                Some(object),
                Key::core("Pod", &object.key.namespace, &name),
                generation,
                value,
                None,
            );
        }
    }

    fn create(
        &mut self,
        owner: Option<&Object>,
        key: Key,
        generation: String,
        mut value: Value,
        node: Option<NodeIndex>,
    ) {
        let owner = owner.map(|o| o.key.clone());
        let Some(node) = node.or_else(|| self.choose(&owner, &value["spec"])) else {
            self.plan.warnings.push(format!(
                "{key}: no node has what its nodeName or nodeSelector asks for; nodes are {}",
                self.nodes
                    .keys()
                    .map(|n| n.name())
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
            return;
        };
        value["spec"]["nodeName"] = node.name().into();
        self.placed.push((owner.clone(), node));
        self.plan.create.push(NewPod {
            key,
            owner,
            generation,
            node,
            value,
        });
    }

    fn choose(&self, owner: &Option<Key>, spec: &Value) -> Option<NodeIndex> {
        let load = |n: &NodeIndex| {
            let of_owner = self
                .placed
                .iter()
                .filter(|(o, at)| owner.is_some() && o == owner && at == n)
                .count();
            (
                of_owner,
                self.placed.iter().filter(|(_, at)| at == n).count(),
                *n,
            )
        };
        self.nodes
            .iter()
            .filter(|(n, labels)| fits(spec, **n, labels))
            .map(|(n, _)| *n)
            .min_by_key(load)
    }

    fn owned(&self, owner: &Key) -> Vec<&'a Existing> {
        self.existing
            .iter()
            .filter(|e| e.owner.as_ref() == Some(owner))
            .collect()
    }
}

fn fits(spec: &Value, node: NodeIndex, labels: &BTreeMap<String, String>) -> bool {
    if spec["nodeName"]
        .as_str()
        .is_some_and(|name| name != node.name())
    {
        return false;
    }
    let selector = spec["nodeSelector"].as_object();
    selector.is_none_or(|s| {
        s.iter()
            .all(|(k, v)| labels.get(k).map(String::as_str) == v.as_str())
    })
}

fn from_template(owner: &Object, name: &str, mut reference: Value) -> Value {
    let template = &owner.value["spec"]["template"];
    reference["controller"] = true.into();
    reference["uid"] = uid_for(&owner.key.to_string()).into();
    let mut value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    value["metadata"]["name"] = name.into();
    value["metadata"]["namespace"] = owner.key.namespace.clone().into();
    value["metadata"]["ownerReferences"] = json!([reference]);
    value
}

/// Ten characters that change with the template, as a ReplicaSet's name has them.
fn generation(template: &Value) -> String {
    let alphabet = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = fnv(&template.to_string());
    (0..10)
        .map(|_| {
            let letter = alphabet[usize::try_from(hash % 27).expect("a remainder is small")];
            hash /= 27;
            char::from(letter)
        })
        .collect()
}

/// A uid that is the same for the same name.
pub fn uid_for(name: &str) -> String {
    let (a, b) = (fnv(name), fnv(&format!("{name}/")));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::manifest::{Document, Source};

    fn objects(text: &str) -> BTreeMap<Key, Object> {
        let docs = Source {
            path: "t.yaml".into(),
            text: text.into(),
        }
        .documents("default");
        docs.into_iter()
            .map(|d| match d {
                Document::Object(o) => (o.key.clone(), *o),
                Document::Opaque { why, .. } => panic!("{why}"),
            })
            .collect()
    }

    fn nodes() -> Nodes {
        (1..=2)
            .map(|n| {
                (
                    NodeIndex(n),
                    BTreeMap::from([("disk".to_owned(), format!("d{n}"))]),
                )
            })
            .collect()
    }

    fn run(text: &str, existing: &[Existing]) -> Plan {
        let mut n = 0;
        plan(&objects(text), &nodes(), existing, &mut || {
            n += 1;
            format!("r{n}")
        })
    }

    fn exist(plan: &Plan, ready: bool) -> Vec<Existing> {
        plan.create
            .iter()
            .map(|p| Existing {
                key: p.key.clone(),
                owner: p.owner.clone(),
                generation: p.generation.clone(),
                node: p.node,
                ready,
            })
            .collect()
    }

    fn deployment(replicas: u32, image: &str) -> String {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec: {{containers: [{{name: c, image: {image}}}]}}\n"
        )
    }

    #[test]
    fn spreads_and_scales() {
        let four = run(&deployment(4, "a"), &[]);
        assert_eq!(
            four.create.iter().map(|p| p.node.0).collect::<Vec<_>>(),
            [1, 2, 1, 2]
        );
        let there = exist(&four, true);
        let one = run(&deployment(1, "a"), &there);
        assert_eq!((one.create.len(), one.delete.len()), (0, 3));
        assert_eq!(
            run(
                "apiVersion: v1\nkind: Service\nmetadata: {name: x}\n",
                &there
            )
            .delete
            .len(),
            4,
            "without its owner a pod goes"
        );
    }

    #[test]
    fn a_new_generation_is_ready_before_the_old_one_goes() {
        let old = exist(&run(&deployment(2, "a"), &[]), true);
        let step = run(&deployment(2, "b"), &old);
        assert_eq!((step.create.len(), step.delete.len()), (2, 0));
        let mut all = old.clone();
        all.extend(exist(&step, false));
        assert_eq!(
            run(&deployment(2, "b"), &all).delete.len(),
            0,
            "the new ones are not ready yet"
        );
        all[2].ready = true;
        all[3].ready = true;
        let last = run(&deployment(2, "b"), &all).delete;
        assert_eq!(last, old.iter().map(|e| e.key.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn honours_node_selector_and_says_when_it_cannot() {
        let pod = |sel: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{nodeSelector: {{disk: {sel}}}}}\n"
            )
        };
        assert_eq!(run(&pod("d2"), &[]).create[0].node, NodeIndex(2));
        let none = run(&pod("d9"), &[]);
        assert!(
            none.create.is_empty() && none.warnings[0].contains("pod/p"),
            "{:?}",
            none.warnings
        );
    }

    #[test]
    fn one_daemon_per_node() {
        let text = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: d}\nspec: {template: {spec: {containers: []}}}\n";
        let first = run(text, &[]);
        assert_eq!(first.create.len(), 2);
        assert!(run(text, &exist(&first, true)).create.is_empty());
    }
}
