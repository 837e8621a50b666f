//! A message of the server being filled.
//!
//! Invariant: full at a fixed number of resources or bytes, so that no message is too large for a subscriber.

use std::sync::Arc;

use crate::{
    any::Any,
    discovery::{DeltaDiscoveryResponse, Resource as Sent},
    resource::{COMPLETE, COMPLETE_TYPE, Kind, Resource},
    warren,
};

/// A message is closed when it has so many resources or bytes.
const MAX_RESOURCES: usize = 500;
const MAX_BYTES: usize = 256 * 1024;

/// A message being filled.
#[derive(Default)]
pub(super) struct Batch {
    pub set: Vec<Arc<Resource>>,
    pub removed: Vec<Arc<str>>,
    pub replaced: Vec<u32>,
    pub marker: bool,
}

impl Batch {
    pub fn is_full(&self) -> bool {
        self.set.len() + self.removed.len() >= MAX_RESOURCES
            || self.set.iter().map(|r| r.body.len()).sum::<usize>() >= MAX_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty() && self.replaced.is_empty() && !self.marker
    }

    pub fn names(&self) -> Vec<Arc<str>> {
        self.set.iter().map(|r| r.name.clone()).collect()
    }

    pub fn into_response(self, kind: Kind, nonce: u64) -> DeltaDiscoveryResponse {
        let mut resources: Vec<Sent> = self.set.iter().map(|r| sent(r)).collect();
        if self.marker {
            let resource = Any::pack(COMPLETE_TYPE, &warren::Complete {});
            resources.push(Sent {
                name: COMPLETE.to_owned(),
                resource: Some(resource),
                ..Default::default()
            });
        }
        DeltaDiscoveryResponse {
            system_version_info: String::new(),
            resources,
            type_url: kind.url().to_owned(),
            nonce: nonce.to_string(),
            removed_resources: self.removed.iter().map(|n| n.to_string()).collect(),
            warren_replaced_shards: self.replaced,
        }
    }
}

fn sent(r: &Resource) -> Sent {
    Sent {
        version: r.version.to_string(),
        resource: Some(Any {
            type_url: r.kind.url().to_owned(),
            value: r.body.clone(),
        }),
        name: r.name.to_string(),
        aliases: r.aliases.iter().map(|a| a.to_string()).collect(),
    }
}
