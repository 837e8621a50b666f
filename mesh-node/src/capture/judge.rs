//! What becomes of one pod: enrolled, left alone, refused, or gone.
//!
//! Invariants: a pod that is captured stays captured until the configuration says otherwise, whatever it does;
//! an unknown pod of an enrolled namespace, or of an incomplete configuration, is captured first; every outcome
//! is logged, counted, kept on disk and told to whoever waits.

use std::{io, sync::Arc, time::Duration};

use mesh_model::{mesh::Mesh, reason::Reason};
use tokio::time::Instant;

use super::{
    enrol::{EnrolError, Prepared},
    registration::{PodState, Registration, Reply},
    registry::{AnnounceError, CaptureTask},
    sockets::{Doors, SocketStock},
    wanted::{Terms, Wanted, identity, wanted},
};
use crate::{
    accept::{Pod, PodUid},
    dns::{DnsEvent, PodDns},
    observe::ResultLabel,
};

/// How long the first retry of a failed enrolment waits; each further one twice as long, at most `SLOWEST`.
const RETRY: Duration = Duration::from_millis(250);
const SLOWEST: Duration = Duration::from_secs(30);
/// How many pods can be registered: what the kernel maps hold.
const MOST: usize = mesh_abi::MAX_PODS as usize;

/// What a captured pod holds.
#[derive(Debug)]
pub(super) struct Live {
    pub pod: Arc<Pod>,
    pub stock: Arc<SocketStock>,
    pub doors: Arc<Doors>,
    pub terms: Terms,
    pub existing: usize,
    /// What it carries of others, so that its own flows are refused.
    pub barred: Option<String>,
    /// Whether the kernel may connect it directly.
    pub direct: bool,
}

impl Live {
    /// Why none of its flows is served, if so.
    pub fn bar(&self) -> Option<Reason> {
        self.barred.as_ref().map(|_| Reason::ForwardsOthers)
    }
}

impl CaptureTask {
    /// Decides about a pod anew and does what follows.
    pub(super) async fn judge(&mut self, uid: &str) {
        let snapshot = self.parts.state.load();
        let mesh = &snapshot.mesh;
        self.learn_account(uid, mesh);
        let now = Instant::now();
        let Some(entry) = self
            .pods
            .get(uid)
            .filter(|e| e.report.state != PodState::Gone)
        else {
            return;
        };
        if entry.retry.is_some_and(|r| r > now) && !entry.waiters.iter().any(|w| w.deadline <= now)
        {
            return;
        }
        let live = entry.live.is_some();
        let late = entry.waiters.iter().all(|w| w.deadline <= now);
        match wanted(mesh, &self.parts.cluster, &entry.report.pod) {
            Wanted::Capture(terms) if live => self.renew(uid, mesh, terms).await,
            Wanted::Capture(terms) => self.enrol(uid, mesh, terms, None).await,
            Wanted::Out => self.leave(uid, PodState::Out, None).await,
            Wanted::Refuse(why) => self.leave(uid, PodState::Refused, Some(why)).await,
            // A captured pod stays so: the contradiction refuses its traffic, and capture keeps it inside.
            Wanted::Disagree(why) if live || entry.was_captured => self.keep(uid, mesh, &why).await,
            Wanted::Disagree(why) if late => self.leave(uid, PodState::Refused, Some(why)).await,
            Wanted::Unknown if live || entry.was_captured => self.keep(uid, mesh, UNKNOWN).await,
            Wanted::Unknown if self.is_enrolled(mesh, &entry.report.pod.namespace) => {
                self.enrol(uid, mesh, Terms::default(), Some(UNKNOWN)).await;
            }
            Wanted::Unknown if late && entry.report.state == PodState::Waiting => {
                let is_home = self.parts.home == Some(entry.report.pod.namespace.as_str().into());
                match mesh.is_complete() || is_home {
                    false => self.enrol(uid, mesh, Terms::default(), Some(UNKNOWN)).await,
                    true => {
                        self.leave(
                            uid,
                            PodState::Out,
                            Some("the configuration does not know it".into()),
                        )
                        .await
                    }
                }
            }
            Wanted::Unknown | Wanted::Disagree(_) => self.answer_late(uid),
        }
    }

    /// Whether a namespace is enrolled by now, or was when the list on disk was written.
    fn is_enrolled(&self, mesh: &Mesh, namespace: &str) -> bool {
        let namespace = namespace.into();
        self.parts.namespaces.contains(&namespace)
            || mesh.enrolled_namespaces().contains(&namespace)
    }

    /// A pod that was registered without its service account gets the configuration's as soon as all else agrees;
    /// from then on the two have to agree, so that a later pod of its name does not lend it another identity.
    fn learn_account(&mut self, uid: &str, mesh: &Mesh) {
        let cluster = &self.parts.cluster;
        if let Some(entry) = self.pods.get_mut(uid)
            && entry.report.pod.service_account.is_empty()
            && matches!(wanted(mesh, cluster, &entry.report.pod), Wanted::Capture(_))
            && let Some(workload) = mesh.workload(&entry.report.pod.workload(cluster))
        {
            entry.report.pod.service_account = workload.identity.service_account.to_string();
        }
    }

    /// A pod that was settled before and whose `add` was repeated gets the same answer.
    fn answer_late(&mut self, uid: &str) {
        if let Some(entry) = self.pods.get_mut(uid)
            && !matches!(entry.report.state, PodState::Waiting)
        {
            let reply = Reply::state(entry.report.state, entry.report.reason.clone());
            entry
                .waiters
                .drain(..)
                .for_each(|w| drop(w.reply.send(reply.clone())));
        }
    }

    async fn keep(&mut self, uid: &str, mesh: &Mesh, why: &str) {
        let Some(entry) = self.pods.get(uid) else {
            return;
        };
        match entry.live.as_ref().map(|l| l.terms.clone()) {
            None => self.enrol(uid, mesh, Terms::default(), Some(why)).await,
            Some(terms) => {
                self.rewrite(uid, terms).await;
                self.settle(uid, PodState::Captured, Some(why.to_owned()));
            }
        }
    }

    async fn enrol(&mut self, uid: &str, mesh: &Mesh, terms: Terms, why: Option<&str>) {
        if let Some(refusal) = self.in_the_way(uid) {
            return self.leave(uid, PodState::Refused, Some(refusal)).await;
        }
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        let Some(netns) = entry.netns.clone() else {
            return;
        };
        let (enroller, pod, handed) = (
            self.parts.enroller.clone(),
            entry.report.pod.clone(),
            entry.handed.take(),
        );
        let captured = entry.was_captured || handed.is_some();
        let (for_work, asked) = (pod.clone(), terms.clone());
        let work = tokio::task::spawn_blocking(move || {
            enroller.enrol(&for_work, &netns, &asked, handed, captured)
        });
        let done = work.await.unwrap_or_else(|panic| {
            Err(EnrolError::Failed {
                step: "enrolment",
                source: io::Error::other(panic),
            })
        });
        match done {
            Ok(prepared) => match self.announce(uid, mesh, &pod, prepared, terms).await {
                Ok(()) => {
                    self.count("ok");
                    self.settle(uid, PodState::Captured, why.map(str::to_owned));
                }
                Err(error) => self.failed(uid, &error.to_string()),
            },
            Err(EnrolError::Refused(why)) => {
                self.count("refused");
                self.leave(uid, PodState::Refused, Some(why)).await;
            }
            Err(error @ EnrolError::Failed { .. }) => {
                self.count("failed");
                self.failed(uid, &error.to_string());
            }
        }
    }

    fn count(&self, result: &'static str) {
        self.parts
            .metrics
            .node()
            .enrolments
            .get_or_create(&ResultLabel { result })
            .inc();
    }

    /// Another pod that stands against this one, if one does. A deleted one makes room at once.
    fn in_the_way(&mut self, uid: &str) -> Option<String> {
        let pod = &self.pods.get(uid)?.report.pod;
        let shares = |other: &Registration| {
            other.uid != uid && other.addresses.iter().any(|ip| pod.addresses.contains(ip))
        };
        let rivals: Vec<(String, bool)> = self
            .pods
            .values()
            .filter(|e| shares(&e.report.pod))
            .map(|e| (e.report.pod.uid.clone(), e.report.state == PodState::Gone))
            .collect();
        for (rival, gone) in &rivals {
            if !gone {
                return Some(format!("its address belongs to pod {rival} already"));
            }
            self.finish(rival);
        }
        let captured = self.pods.values().filter(|e| e.live.is_some()).count();
        (captured >= MOST).then(|| format!("this node captures {MOST} pods already"))
    }

    async fn announce(
        &mut self,
        uid: &str,
        mesh: &Mesh,
        reg: &Registration,
        made: Prepared,
        terms: Terms,
    ) -> Result<(), AnnounceError> {
        let Prepared {
            doors,
            stock,
            existing,
            barred,
        } = made;
        let Some(netns) = self.pods.get(uid).and_then(|e| e.netns.clone()) else {
            return Ok(());
        };
        let pod = Arc::new(Pod {
            uid: PodUid::new(uid),
            workload: reg.workload(&self.parts.cluster),
            namespace: reg.namespace.as_str().into(),
            name: reg.name.as_str().into(),
            service_account: reg.service_account.as_str().into(),
            identity: identity(mesh, &self.parts.cluster, reg),
            addresses: reg.addresses.clone().into(),
            netns_cookie: netns.cookie(),
            barred: barred.as_ref().map(|_| Reason::ForwardsOthers),
            sockets: stock.clone(),
        });
        let live = Live {
            pod,
            stock,
            doors: Arc::new(doors),
            terms,
            existing,
            direct: barred.is_none(),
            barred,
        };
        self.share(&live).await?;
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.live = Some(live);
            entry.failures = 0;
            entry.retry = None;
        }
        Ok(())
    }

    /// Gives a pod's sockets to those who serve them.
    pub(super) async fn share(&self, live: &Live) -> Result<(), AnnounceError> {
        let mut dns = PodDns {
            pod: live.pod.clone(),
            udp: Vec::new(),
            tcp: Vec::new(),
        };
        for door in &live.doors.tcp {
            match door.kind {
                Some(kind) => {
                    self.parts
                        .listeners
                        .add(&live.pod, kind, &door.socket)
                        .await?
                }
                None => dns.tcp.push(
                    door.socket
                        .try_clone()
                        .map_err(crate::accept::ListenError::from)?,
                ),
            }
        }
        for socket in &live.doors.udp {
            dns.udp.push(
                socket
                    .try_clone()
                    .map_err(crate::accept::ListenError::from)?,
            );
        }
        Ok(self.parts.dns.tell(DnsEvent::Add(dns)).await?)
    }

    fn failed(&mut self, uid: &str, error: &str) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        entry.failures += 1;
        let pause = RETRY
            .saturating_mul(1 << entry.failures.min(10))
            .min(SLOWEST);
        entry.retry = Some(Instant::now() + pause);
        entry.report.reason = Some(error.to_owned());
        let title = entry.report.pod.title();
        tracing::error!(pod = title, error, retry = ?pause, "it could not be enrolled");
        let now = Instant::now();
        let text = format!(
            "pod {title} could not be enrolled: {error}; it is tried again, repeat the request"
        );
        // Whoever has time left waits for the next attempt.
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut entry.waiters)
            .into_iter()
            .partition(|w| w.deadline <= now + pause);
        entry.waiters = rest;
        due.into_iter()
            .for_each(|w| drop(w.reply.send(Reply::error(text.clone()))));
    }

    /// Leaves a pod alone, and releases it when it was captured.
    async fn leave(&mut self, uid: &str, state: PodState, reason: Option<String>) {
        let Some(entry) = self.pods.get(uid) else {
            return;
        };
        let pod = entry.report.pod.clone();
        let was = entry.live.is_some() || entry.was_captured;
        if was {
            self.release(uid).await;
            if let Err(error) = self.parts.enroller.withdraw(&pod) {
                return self.failed(uid, &format!("it could not be released: {error}"));
            }
        }
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.was_captured = false;
            entry.handed = None;
        }
        if pod.veth_ifindex != 0
            && let Err(error) = self.parts.enroller.kernel.anchor(pod.veth_ifindex)
        {
            tracing::warn!(pod = pod.title(), %error, "its interface could not be guarded; it may claim addresses of other pods");
        }
        self.settle(uid, state, reason);
    }

    /// Ends a pod's flows and closes its sockets.
    pub(super) async fn release(&mut self, uid: &str) {
        let Some(live) = self.pods.get_mut(uid).and_then(|e| e.live.take()) else {
            return;
        };
        if let Err(error) = self
            .parts
            .listeners
            .remove(&live.pod.uid, Reason::WorkloadGone)
            .await
        {
            tracing::warn!(uid, %error, "not every data thread could be told");
        }
        if let Err(error) = self
            .parts
            .dns
            .tell(DnsEvent::Remove(live.pod.uid.clone()))
            .await
        {
            tracing::warn!(uid, %error, "the DNS server could not be told");
        }
        live.stock.close();
    }

    pub(super) fn settle(&mut self, uid: &str, state: PodState, reason: Option<String>) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        let barred = entry.live.as_ref().and_then(|l| l.barred.as_ref());
        let barred = barred.map(|why| format!("{why}{BARRED}"));
        let is_barred = barred.is_some();
        let reason = barred.or(reason);
        let changed = entry.report.state != state || entry.report.reason != reason;
        entry.report.state = state;
        entry.report.reason = reason.clone();
        entry.was_captured = false;
        entry.retry = None;
        let reply = Reply::state(state, reason.clone());
        entry
            .waiters
            .drain(..)
            .for_each(|w| drop(w.reply.send(reply.clone())));
        if changed {
            let (title, word) = (entry.report.pod.title(), state.as_str());
            match state {
                PodState::Refused => tracing::warn!(
                    pod = title,
                    state = word,
                    reason = reason.as_deref(),
                    "a pod cannot be captured"
                ),
                _ if is_barred => tracing::warn!(
                    pod = title,
                    state = word,
                    reason = reason.as_deref(),
                    "a captured pod is refused"
                ),
                _ => tracing::info!(
                    pod = title,
                    state = word,
                    reason = reason.as_deref(),
                    "a pod's capture was decided"
                ),
            }
            let saved = entry.saved();
            self.keep_on_disk(&saved);
        }
    }

    pub(super) fn keep_on_disk(&self, saved: &super::saved::SavedPod) {
        if let Err(error) = self.parts.saved.put(saved) {
            tracing::error!(pod = saved.report.pod.title(), %error, "its record could not be written; after a restart it must be registered again");
        }
    }
}

/// How the reason of a barred pod goes on.
pub(crate) const BARRED: &str =
    "; it stays captured, and its traffic is refused until that is over";
const UNKNOWN: &str =
    "captured before its configuration is known; its traffic is refused until then";
