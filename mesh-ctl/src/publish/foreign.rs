//! The state as data planes see it that speak Istio's types only.
//!
//! Invariant: made from the encoded resources alone, so it cannot say anything that our own nodes were not told.

use std::collections::HashMap;

use mesh_api::{
    convert,
    delta::View,
    resource::{Kind, Update},
};
use mesh_model::{
    mesh::{Change, WorkloadExtra},
    name::{Namespace, WorkloadUid},
};
use tracing::error;

/// Workloads, services and policies without companions: what those say about mutual TLS becomes policies.
pub(super) fn view(ours: &View) -> View {
    let (mut root, mut extras, mut rest) = (Namespace::from(""), HashMap::new(), Vec::new());
    let said = |kind: Kind| kind == Kind::Companion || !kind.is_ours();
    for resource in ours.iter().filter(|r| said(r.kind)) {
        match convert::decode(resource.kind.url(), &resource.name, &resource.body) {
            Ok(changes) => {
                for change in changes {
                    match change {
                        Change::Config(config) => root = config.root_namespace,
                        Change::WorkloadExtra(uid, extra) => drop(extras.insert(uid, extra)),
                        other => rest.push(other),
                    }
                }
            }
            Err(error) => {
                error!(%error, "a resource of our own cannot be read; foreign data planes do without it")
            }
        }
    }
    let mut updates = Vec::new();
    for change in rest {
        updates.extend(projected(change, &root, &extras));
    }
    View::default().apply(updates.into_iter().filter(|u| !u.key().0.is_ours()))
}

fn projected(
    change: Change,
    root: &Namespace,
    extras: &HashMap<WorkloadUid, WorkloadExtra>,
) -> Vec<Update> {
    match change {
        Change::Workload(mut workload) => {
            let policy = extras
                .get(&workload.uid)
                .and_then(|extra| convert::foreign::mtls_policy(root, extra));
            let Some(policy) = policy else {
                return convert::encode(&Change::Workload(workload));
            };
            workload.policies = workload
                .policies
                .iter()
                .cloned()
                .chain([policy.name.clone()])
                .collect();
            let mut updates = convert::encode(&Change::Policy(policy));
            updates.extend(convert::encode(&Change::Workload(workload)));
            updates
        }
        Change::Policy(policy) => convert::foreign::policy(&policy)
            .map(|p| convert::encode(&Change::Policy(p)))
            .unwrap_or_default(),
        other => convert::encode(&other),
    }
}
