//! All clusters of the process, by name.
//!
//! Invariant: a name has one cluster while anybody uses it; it is kept until its service is gone, because it remembers who
//! is left out and what was counted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_model::name::ServiceName;

use super::{Cluster, ClusterKey};

/// All clusters of the process. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Clusters(Arc<Mutex<HashMap<ClusterKey, Arc<Cluster>>>>);

impl Clusters {
    /// The cluster of this name.
    pub fn get(&self, key: &ClusterKey) -> Arc<Cluster> {
        let mut all = self.lock();
        if let Some(found) = all.get(key) {
            return found.clone();
        }
        let made = Arc::new(Cluster::new(key.clone()));
        all.insert(key.clone(), made.clone());
        made
    }

    /// Drops those of services that are gone, but for what is still in use.
    pub fn forget(&self, is_gone: impl Fn(&ServiceName) -> bool) {
        let unused = |cluster: &Arc<Cluster>| Arc::strong_count(cluster) == 1;
        self.lock()
            .retain(|key, cluster| !(unused(cluster) && key.service().is_some_and(&is_gone)));
    }

    pub(super) fn all(&self) -> Vec<Arc<Cluster>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClusterKey, Arc<Cluster>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_services_that_are_gone_are_dropped_when_nobody_uses_them() {
        let named = |host: &str| ServiceName {
            namespace: "shop".into(),
            hostname: host.into(),
        };
        let clusters = Clusters::default();
        let get = |host: &str| {
            clusters.get(&ClusterKey::Service {
                service: named(host),
                port: 80,
                subset: None,
            })
        };
        let (stays, used) = (get("stays"), get("used"));
        drop((get("gone"), stays));
        let left = || {
            let mut names: Vec<String> = clusters.all().iter().map(|c| c.key.to_string()).collect();
            names.sort();
            names
        };
        clusters.forget(|name| *name != named("stays"));
        assert_eq!(left(), ["outbound|80||stays", "outbound|80||used"]);
        drop(used);
        clusters.forget(|name| *name != named("stays"));
        assert_eq!(left(), ["outbound|80||stays"]);
    }
}
