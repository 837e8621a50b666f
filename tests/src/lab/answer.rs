//! What the supervisor does when it is asked: objects made and taken away, components ordered about.
//!
//! Invariant: an answer is sent only after the world has settled on what it says.

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    component::Order,
    control::{Question, Request},
    manifest::{Document, Key, Source},
    supervisor::World,
};

impl World {
    pub(super) fn answer(&mut self, (request, reply): Question) {
        let done = match request {
            Request::Status => serde_json::to_value(self.status()).map_err(Into::into),
            Request::Apply { sources, namespace } => Ok(self.apply(&sources, &namespace)),
            Request::Delete { sources, namespace } => Ok(self.delete(&sources, &namespace)),
            Request::DeletePod { pod } => self.delete_pod(&pod),
            Request::Component { name, order } => return self.order(&name, order, reply),
        };
        self.settle();
        // Whoever asked may have gone meanwhile.
        let _ = reply.send(done);
    }

    fn order(&self, name: &str, order: Order, reply: oneshot::Sender<Result<Value>>) {
        let Some(component) = self.components.get(name) else {
            let _ = reply.send(Err(anyhow!(
                "no component `{name}`; there are: {}",
                self.components
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
            return;
        };
        let done = component.order(order);
        tokio::spawn(async move {
            let _ = reply.send(done.await.map(|()| Value::Null));
        });
    }

    fn apply(&mut self, sources: &[Source], namespace: &str) -> Value {
        let mut said = Vec::new();
        for document in sources.iter().flat_map(|s| s.documents(namespace)) {
            match document {
                Document::Object(object) => {
                    let verb = match self.objects.get(&object.key) {
                        None => "created",
                        Some(old) if old.value == object.value => "unchanged",
                        Some(_) => "configured",
                    };
                    said.push(format!("{} {verb}", object.key));
                    self.objects.insert(object.key.clone(), *object);
                }
                Document::Opaque { file, text, why } => {
                    said.push(format!("{file}: {why}; left to the controller as it is"));
                    self.opaque.insert(file, text);
                }
            }
        }
        json!(said)
    }

    fn delete(&mut self, sources: &[Source], namespace: &str) -> Value {
        let mut said = Vec::new();
        for document in sources.iter().flat_map(|s| s.documents(namespace)) {
            let (what, there) = match document {
                Document::Object(object) => {
                    let there = self.objects.remove(&object.key).is_some();
                    if object.key.kind == "Namespace" {
                        // What is in a namespace goes with it.
                        self.objects.retain(|k, _| k.namespace != object.key.name);
                    }
                    (object.key.to_string(), there)
                }
                Document::Opaque { file, .. } => {
                    (file.clone(), self.opaque.remove(&file).is_some())
                }
            };
            said.push(format!(
                "{what} {}",
                if there { "deleted" } else { "not found" }
            ));
        }
        json!(said)
    }

    fn delete_pod(&mut self, key: &Key) -> Result<Value> {
        if !self.pods.contains_key(key) {
            bail!("no {key}");
        }
        self.objects.remove(key);
        self.end(key);
        Ok(json!([format!("{key} deleted")]))
    }
}
