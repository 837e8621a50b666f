//! How clusters are doing, for dumps and metrics.
//!
//! Invariant: what is told of a cluster's endpoints is of the last snapshot that it was used with.

use std::{sync::atomic::Ordering::Relaxed, time::Instant};

use super::{Cluster, Clusters, Member};
use crate::observe::{ClusterFigures, ClusterSource, EndpointFigures};

impl Clusters {
    /// How each is doing, for dumps, in the order of their names.
    pub fn describe(&self) -> serde_json::Value {
        let mut all = self.all();
        all.sort_by_cached_key(|c| c.key.to_string());
        all.iter().map(|c| c.describe()).collect()
    }
}

impl ClusterSource for Clusters {
    fn figures(&self) -> Vec<ClusterFigures> {
        self.all().iter().map(|c| c.figures()).collect()
    }
}

impl Cluster {
    fn figures(&self) -> ClusterFigures {
        let counts = [
            &self.connections,
            &self.pending,
            &self.requests,
            &self.retries,
        ];
        let [connections, pending, requests, retries] = counts.map(|c| u64::from(c.get()));
        ClusterFigures {
            name: self.key.to_string(),
            connections,
            pending,
            requests,
            retries,
            connections_ever: self.connections.ever(),
            requests_ever: self.requests.ever(),
            retries_ever: self.retries.ever(),
            overflows: counts.map(|c| c.refused()),
            connect_failures: self.connect_failures.load(Relaxed),
            ejections: self.ejected.load(Relaxed),
            endpoints: self.members(|m, ejected| EndpointFigures {
                workload: m.endpoint.workload.uid.to_string(),
                active: m.active.get().into(),
                ejected,
            }),
        }
    }

    fn describe(&self) -> serde_json::Value {
        let endpoints: Vec<serde_json::Value> = self.members(|m, ejected| {
            serde_json::json!({
                "workload": m.endpoint.workload.uid.as_str(),
                "weight": m.weight,
                "rank": m.rank,
                "active": m.active.get(),
                "ejected": ejected,
            })
        });
        serde_json::json!({
            "name": self.key.to_string(),
            "connections": self.connections.get(),
            "pending": self.pending.get(),
            "requests": self.requests.get(),
            "retries": self.retries.get(),
            "endpoints": endpoints,
        })
    }

    /// Something of each endpoint, and whether it is left out now.
    fn members<T>(&self, show: impl Fn(&Member, bool) -> T) -> Vec<T> {
        let state = self.state();
        let now = Instant::now();
        let members = state.listed.as_ref().map(|l| l.endpoints.as_deref());
        let Some(Ok(members)) = members else {
            return Vec::new();
        };
        let out = |m: &Member| {
            let ejections = state.ejections.as_ref();
            ejections.is_some_and(|(_, e)| e.is_ejected(&m.endpoint.workload.uid, now))
        };
        members.iter().map(|m| show(m, out(m))).collect()
    }
}
