//! A captured pod is brought up to date: with the configuration, and with what was seen of it.
//!
//! Invariants: a captured pod stays captured, whatever of this fails; what failed is tried again.

use std::sync::Arc;

use mesh_model::{mesh::Mesh, reason::Reason};

use super::{
    registration::PodState,
    registry::{AnnounceError, CaptureTask},
    wanted::{Terms, identity},
};
use crate::accept::Pod;

impl CaptureTask {
    /// Brings a captured pod up to date with the configuration.
    pub(super) async fn renew(&mut self, uid: &str, mesh: &Mesh, terms: Terms) {
        if let Some(live) = self.pods.get_mut(uid).and_then(|e| e.live.as_mut())
            && terms.allow_forwarded
        {
            live.barred = None;
        }
        self.rewrite(uid, terms).await;
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        let Some(live) = entry.live.as_mut() else {
            return;
        };
        let who = identity(mesh, &self.parts.cluster, &entry.report.pod);
        let barred = live.bar();
        if live.pod.identity != who || live.pod.barred != barred {
            let pod = Pod {
                identity: who,
                barred,
                service_account: entry.report.pod.service_account.as_str().into(),
                sockets: live.stock.clone(),
                addresses: live.pod.addresses.clone(),
                ..copy(&live.pod)
            };
            live.pod = Arc::new(pod);
            let old = live.pod.uid.clone();
            let told = self
                .parts
                .listeners
                .remove(&old, barred.unwrap_or(Reason::WorkloadGone))
                .await
                .map_err(AnnounceError::from);
            let live = self
                .pods
                .get(uid)
                .and_then(|e| e.live.as_ref())
                .expect("the entry was live just now");
            let told = match told {
                Ok(()) => self.share(live).await,
                Err(e) => Err(e),
            };
            if let Err(error) = told {
                tracing::error!(uid, %error, "what changed about a pod could not be announced");
            }
        }
        self.settle(uid, PodState::Captured, None);
    }

    /// Tells the kernel what changed about a captured pod: ports that kubelet probes, whether it may go direct.
    pub(super) async fn rewrite(&mut self, uid: &str, terms: Terms) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        let (Some(live), Some(netns)) = (entry.live.as_mut(), entry.netns.clone()) else {
            return;
        };
        let direct = live.barred.is_none();
        if live.terms.probe_ports == terms.probe_ports && live.direct == direct {
            live.terms = terms;
            return;
        }
        let (enroller, pod) = (self.parts.enroller.clone(), entry.report.pod.clone());
        let (doors, asked) = (live.doors.clone(), terms.clone());
        let work = tokio::task::spawn_blocking(move || {
            enroller.rewrite(&pod, &netns, &asked, &doors, direct)
        });
        let done = work.await.map_err(|panic| panic.to_string());
        match done.and_then(|d| d.map_err(|e| e.to_string())) {
            Ok(ended) => {
                if ended > 0 {
                    tracing::warn!(
                        pod = entry.report.pod.title(),
                        ended,
                        "its direct flows were ended"
                    );
                }
                live.terms = terms;
                live.direct = direct;
            }
            Err(error) => {
                let probe_ports = std::mem::take(&mut live.terms.probe_ports);
                live.terms = Terms {
                    probe_ports,
                    ..terms
                };
                tracing::error!(
                    pod = entry.report.pod.title(),
                    error,
                    "what the kernel knows of it could not be changed; that is tried again"
                );
            }
        }
    }
}

fn copy(pod: &Pod) -> Pod {
    Pod {
        uid: pod.uid.clone(),
        workload: pod.workload.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        identity: pod.identity.clone(),
        addresses: pod.addresses.clone(),
        netns_cookie: pod.netns_cookie,
        barred: pod.barred,
        sockets: pod.sockets.clone(),
    }
}
