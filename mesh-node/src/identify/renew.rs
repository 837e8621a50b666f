//! Keeping certificates fresh: the node's own first, then one for each identity that pods here have.
//!
//! Invariants: renewal begins at half of a certificate's life, give or take a tenth of it, and soon after another root
//! begins to sign; a failed renewal leaves the old certificate in use and is tried again with growing, jittered pauses;
//! a bounded number of requests is under way at once; a clock that is set changes what is due, and no pause.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream};
use mesh_model::name::{Identity, NodeName};
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::time::Instant;

use super::{
    Certificates, Credential, Issued, KeyDir, NodeCertificate, Signer, Trust,
    issued::{IssuedError, Request},
    signer::SignError,
};
use crate::observe::{Metrics, ResultLabel};

/// Requests under way at once.
const CONCURRENT: usize = 8;
/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause after failures; none goes beyond the end of the old certificate.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause when there is none any more, so that traffic is refused no longer than it must be.
const LONGEST_WITHOUT: Duration = Duration::from_secs(2);
/// Within this time after another root has begun to sign, or after a certificate came that the old one signed all the
/// same, each certificate is renewed; all nodes of a mesh do so at once.
const FOLLOW: Duration = Duration::from_secs(10);
/// How long to sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// The task that renews certificates.
#[derive(Debug)]
pub struct Renewer<S> {
    certificates: Certificates,
    keys: KeyDir,
    signer: S,
    node: NodeName,
    requests: Family<ResultLabel, Counter>,
    pauses: HashMap<Option<Identity>, Pause>,
    follow: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    failures: u32,
    until: Instant,
}

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Issued(#[from] IssuedError),
}

impl<S: Signer> Renewer<S> {
    /// A task that has taken up what the key directory still holds.
    pub fn new(
        certificates: Certificates,
        keys: KeyDir,
        signer: S,
        node: NodeName,
        metrics: &Metrics,
    ) -> Self {
        restore(&certificates, &keys);
        Self {
            certificates,
            keys,
            signer,
            node,
            requests: metrics.node().certificate_requests.clone(),
            pauses: HashMap::new(),
            follow: FOLLOW,
        }
    }

    /// Renews for ever.
    pub async fn run(mut self) {
        let mut changes = self.certificates.changes();
        loop {
            changes.mark_unchanged();
            self.renew_due().await;
            for identity in self.certificates.prune() {
                if let Err(error) = self.keys.forget(&identity) {
                    tracing::warn!(%identity, %error, "the key file of an expired certificate could not be removed");
                }
            }
            let sleep = self.until_next_due();
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn renew_due(&mut self) {
        let now = self.certificates.now();
        if self.node_due() <= now {
            let outcome = self.renew_node().await;
            self.settle(None, outcome);
        }
        let Some(node) = self.certificates.node() else {
            return;
        };
        let due: Vec<Identity> = self
            .due_workloads()
            .into_iter()
            .filter(|(_, at)| *at <= now)
            .map(|(i, _)| i)
            .collect();
        let credential = Credential::Certificate(node);
        let requests: Vec<_> = due
            .into_iter()
            .map(|identity| self.renew(identity, credential.clone()))
            .collect();
        let outcomes: Vec<_> = stream::iter(requests)
            .buffer_unordered(CONCURRENT)
            .collect()
            .await;
        for (identity, outcome) in outcomes {
            self.settle(Some(identity), outcome);
        }
    }

    async fn renew_node(&self) -> Result<(), RenewError> {
        let credential = self
            .certificates
            .node()
            .map_or(Credential::Token, Credential::Certificate);
        // The CA names the node by what it proved; this URI only fills the request.
        let request = Request::new(&format!("spiffe://mesh/warren/node/{}", self.node))?;
        let chain = match self.signer.sign(&request.csr_pem, None, &credential).await {
            // A certificate that the controller no longer honours must not lock the node out while its token would do.
            Err(error) if matches!(credential, Credential::Certificate(_)) => self
                .signer
                .sign(&request.csr_pem, None, &Credential::Token)
                .await
                .map_err(|_| error)?,
            other => other?,
        };
        let certificate = NodeCertificate::from_bundle(
            request.bundle(&chain, self.certificates.now()),
            self.certificates.now(),
        )?;
        if let Err(error) = self.keys.keep_node(&certificate.bundle) {
            tracing::warn!(%error, "the node's certificate could not be kept; a restart will need the controller");
        }
        tracing::info!(node = %self.node, "the node has a certificate");
        self.certificates.put_node(certificate);
        Ok(())
    }

    fn renew(
        &self,
        identity: Identity,
        credential: Credential,
    ) -> impl Future<Output = (Identity, Result<(), RenewError>)> {
        let this = self;
        async move {
            let outcome = async {
                let request = Request::new(&identity.to_string())?;
                let chain = this
                    .signer
                    .sign(&request.csr_pem, Some(&identity), &credential)
                    .await?;
                let bundle = request.bundle(&chain, this.certificates.now());
                let issued = Issued::from_bundle(&bundle, &identity, this.certificates.now())?;
                if let Err(error) = this.keys.keep(&identity, &bundle) {
                    tracing::warn!(%identity, %error, "a certificate could not be kept; a restart will need the controller");
                }
                tracing::info!(%identity, "certificate issued");
                this.certificates.put(issued);
                Ok(())
            };
            let outcome = outcome.await;
            (identity, outcome)
        }
    }

    fn settle(&mut self, whose: Option<Identity>, outcome: Result<(), RenewError>) {
        let result = if outcome.is_ok() { "ok" } else { "error" };
        self.requests.get_or_create(&ResultLabel { result }).inc();
        let Err(error) = outcome else {
            self.pauses.remove(&whose);
            return;
        };
        let longest = self.left(&whose).clamp(LONGEST_WITHOUT, LONGEST_PAUSE);
        let failures = self
            .pauses
            .get(&whose)
            .map_or(1, |p| p.failures.saturating_add(1));
        let pause = pause(failures, longest, fastrand::f64());
        match &whose {
            None => {
                tracing::warn!(node = %self.node, %error, again_in = ?pause, "the node's certificate could not be renewed")
            }
            Some(identity) => {
                tracing::warn!(%identity, %error, again_in = ?pause, "a certificate could not be renewed");
                self.certificates.failed(identity, error.to_string());
            }
        }
        self.pauses.insert(
            whose,
            Pause {
                failures,
                until: Instant::now() + pause,
            },
        );
    }

    /// How long the certificate that is there still holds.
    fn left(&self, whose: &Option<Identity>) -> Duration {
        let until = match whose {
            None => self.certificates.node().map(|n| n.not_after),
            Some(identity) => self.certificates.until(identity),
        };
        until
            .and_then(|until| until.duration_since(self.certificates.now()).ok())
            .unwrap_or_default()
    }

    fn node_due(&self) -> SystemTime {
        let due = self.certificates.node().map(|n| {
            let by_life = half_life(n.since, n.not_after, 0.5);
            self.by_root(&n.trust, n.since, 0.0, by_life)
        });
        self.after_pause(&None, due)
    }

    fn due_workloads(&self) -> Vec<(Identity, SystemTime)> {
        let due = |(identity, current): (Identity, Option<Arc<Issued>>)| {
            let valid = current.filter(|c| c.not_after > self.certificates.now());
            let due = valid.map(|c| {
                let dice = jitter(&identity);
                let by_life = half_life(c.since, c.not_after, dice);
                self.by_root(&c.trust, c.since, dice, by_life)
            });
            let at = self.after_pause(&Some(identity.clone()), due);
            (identity, at)
        };
        self.certificates.wanted().into_iter().map(due).collect()
    }

    /// When to renew what has been there since then: by its life, or earlier when another root signs now than the one
    /// that signed it.
    fn by_root(
        &self,
        trust: &Trust,
        since: SystemTime,
        dice: f64,
        by_life: SystemTime,
    ) -> SystemTime {
        match self.certificates.published() {
            Some(published) if trust.signed_by() != published.trust.signer() => {
                let pause = self.follow.mul_f64(0.2 + 0.8 * dice);
                by_life.min(published.since.max(since) + pause)
            }
            Some(_) | None => by_life,
        }
    }

    fn after_pause(&self, whose: &Option<Identity>, due: Option<SystemTime>) -> SystemTime {
        let due = due.unwrap_or(SystemTime::UNIX_EPOCH);
        let Some(pause) = self.pauses.get(whose) else {
            return due;
        };
        match pause.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => due,
            left => due.max(self.certificates.now() + left),
        }
    }

    fn until_next_due(&self) -> Duration {
        let now = self.certificates.now();
        let mut next = self.node_due();
        if self.certificates.node().is_some() {
            next = self
                .due_workloads()
                .into_iter()
                .map(|(_, at)| at)
                .fold(next, SystemTime::min);
        }
        next.duration_since(now)
            .unwrap_or(Duration::ZERO)
            .clamp(Duration::from_millis(20), IDLE)
    }
}

/// When to renew: at half of the life that was left when it came, moved by up to a tenth of it; `dice` from 0 to 1.
fn half_life(since: SystemTime, not_after: SystemTime, dice: f64) -> SystemTime {
    let life = not_after.duration_since(since).unwrap_or(Duration::ZERO);
    since + life.mul_f64(0.4 + 0.2 * dice.clamp(0.0, 1.0))
}

/// A number from 0 to 1 that spreads identities apart and stays the same for one.
fn jitter(identity: &Identity) -> f64 {
    use std::hash::{BuildHasher, RandomState};
    static STATE: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    let hash = STATE.get_or_init(RandomState::new).hash_one(identity);
    f64::from((hash >> 32) as u32) / f64::from(u32::MAX)
}

/// The pause after so many failures; `dice` from 0 to 1.
fn pause(failures: u32, longest: Duration, dice: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(0.5 + 0.5 * dice)
}

/// Takes up what an earlier process left on tmpfs, where it did not hand it over itself.
fn restore(certificates: &Certificates, keys: &KeyDir) {
    let now = certificates.now();
    let handed: HashSet<Identity> = certificates
        .issued()
        .iter()
        .map(|i| i.identity.clone())
        .collect();
    let node = keys
        .node()
        .map_err(IssuedError::from)
        .and_then(|b| b.map(|b| NodeCertificate::from_bundle(b, now)).transpose());
    match node {
        Ok(Some(node)) if certificates.node().is_none() => certificates.put_node(node),
        Ok(Some(_) | None) => {}
        Err(error) => tracing::warn!(%error, "the node's kept certificate is not used"),
    }
    let workloads = keys.workloads().unwrap_or_else(|error| {
        tracing::warn!(%error, "kept certificates cannot be read");
        Vec::new()
    });
    let missing = workloads.into_iter().filter(|(i, _)| !handed.contains(i));
    for (identity, bundle) in missing {
        match Issued::from_bundle(&bundle, &identity, now) {
            Ok(issued) => certificates.put(issued),
            Err(error) => tracing::warn!(%identity, %error, "a kept certificate is not used"),
        }
    }
}

#[cfg(test)]
#[path = "renew_tests.rs"]
mod tests;
