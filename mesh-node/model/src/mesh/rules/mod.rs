//! The policies by whom they govern.
//!
//! Invariant: what is in here is exactly what `Mesh::policies` holds.

use std::{collections::BTreeMap, sync::Arc};

use super::{Policy, PolicyScope, shard::Sharded};
use crate::name::{Namespace, PolicyName};

type Book = Arc<BTreeMap<PolicyName, Arc<Policy>>>;

/// The policies of the mesh and of each namespace; those with a selector are found by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    global: Book,
    namespaces: Sharded<Namespace, Book>,
}

impl Rules {
    pub fn add(&mut self, policy: &Arc<Policy>) {
        let (name, policy) = (policy.name.clone(), Arc::clone(policy));
        match policy.scope {
            PolicyScope::Global => drop(Arc::make_mut(&mut self.global).insert(name, policy)),
            PolicyScope::Namespace => {
                self.namespaces
                    .update(&name.namespace.clone(), Arc::default, |book| {
                        Arc::make_mut(book).insert(name, policy);
                        true
                    })
            }
            PolicyScope::Selector => {}
        }
    }

    pub fn remove(&mut self, policy: &Policy) {
        match policy.scope {
            PolicyScope::Global => drop(Arc::make_mut(&mut self.global).remove(&policy.name)),
            PolicyScope::Namespace => {
                self.namespaces
                    .update(&policy.name.namespace, Arc::default, |book| {
                        Arc::make_mut(book).remove(&policy.name);
                        !book.is_empty()
                    })
            }
            PolicyScope::Selector => {}
        }
    }

    pub fn global(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.global.values()
    }

    pub fn namespace(&self, namespace: &Namespace) -> impl Iterator<Item = &Arc<Policy>> {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|b| b.values())
    }
}
