//! Receiving configuration from the controller: one delta stream over mutual TLS, again and again.
//!
//! Invariants: what is held on disk is in use before the first connection; good resources of a response are
//! used although others are bad; what could not be understood is refused by name; nothing is written to disk
//! before everything was received once; each stream is told anew which pods are not served.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use mesh_api::{
    delta::{self, Outside, Received},
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    resource::{Kind, Resource, Update},
};
use mesh_model::{mesh::Change, name::NodeName};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{EnrolledNamespaces, Kept, MeshState, Written, disk};
use crate::{
    identify::{Certificates, Controller, NodeCertificate, Trust},
    observe::{Metrics, ResultLabel, TypeLabel},
};

/// The largest message that is accepted.
const MAX_MESSAGE: usize = 200 << 20;
/// Requests that may wait to be sent.
const REQUESTS: usize = 64;
/// How long changes are gathered before they are written to disk, at least.
const GATHER: Duration = Duration::from_millis(500);
/// Writing takes at most one part in so many of the time, however large the mesh and however often it changes.
const SHARE: u32 = 20;
/// How often a quiet stream counts as confirming what is held.
const CONFIRM: Duration = Duration::from_secs(5);
/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// A stream that held this long begins the pauses anew.
const HEALTHY: Duration = Duration::from_secs(10);

/// How the client is doing, for readiness and dumps.
#[derive(Clone, Debug, Default)]
pub struct XdsStatus {
    /// Whether a stream is up.
    pub connected: bool,
    /// Whether everything was received once, from the controller or from disk.
    pub complete: bool,
    /// Why the last stream ended.
    pub last_error: Option<String>,
    /// Resources refused most recently, with the reason.
    pub rejected: Vec<String>,
}

/// What the client needs.
#[derive(Debug)]
pub struct XdsParts {
    /// This node.
    pub node: NodeName,
    /// The cluster, for people.
    pub cluster: String,
    /// What is subscribed to.
    pub kinds: &'static [Kind],
    /// Where changes go.
    pub state: MeshState,
    /// The node's certificate; also told about roots.
    pub certificates: Certificates,
    /// How the controller is reached.
    pub controller: Controller,
    /// The longest pause between attempts.
    pub longest_pause: Duration,
    /// The directory of the copy on disk.
    pub state_dir: PathBuf,
    /// The list of enrolled namespaces there.
    pub namespaces: EnrolledNamespaces,
    /// The pods that should be in the mesh and are not served, for the controller.
    pub outside: watch::Receiver<Vec<Outside>>,
    /// Metrics.
    pub metrics: Metrics,
}

/// The task that receives configuration.
#[derive(Debug)]
pub struct XdsClient {
    parts: XdsParts,
    client: delta::Client,
    kept: Kept,
    status: watch::Sender<XdsStatus>,
    save_at: Option<Instant>,
    /// How long changes are gathered at present.
    gather: Duration,
    disk: Disk,
}

/// What writes to disk, beside the stream, which goes on meanwhile.
#[derive(Debug)]
struct Disk {
    /// The writing that is under way.
    writing: Option<JoinHandle<Outcome>>,
    /// Resources that came since the process last gave memory back; at first as if
    /// many had, because starting needs memory as well.
    came: usize,
}

/// Receiving needs several times what stays, and the allocator keeps it: after so many resources it is given back.
const MANY: usize = 1_000;

/// How writing went.
#[derive(Debug)]
struct Outcome {
    took: Duration,
    saved: Kept,
    written: Option<Written>,
}

impl Disk {
    /// Waits until nothing is being written; then sets how long changes are gathered before the next time, and lets
    /// go of what is on disk.
    async fn written(&mut self, gather: &mut Duration, kept: &mut Kept) {
        let Some(task) = &mut self.writing else {
            return;
        };
        let outcome = task.await;
        self.writing = None;
        let Ok(Outcome {
            took,
            saved,
            written,
        }) = outcome
        else {
            return;
        };
        *gather = GATHER.max(took * SHARE);
        if let Some(written) = written {
            kept.settle(&saved, written);
        }
        drop(saved);
        if self.came >= MANY {
            self.came = 0;
            crate::capture::return_memory();
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Connect(#[from] crate::identify::SignError),
    #[error("the stream ended: {0}")]
    Status(Box<tonic::Status>),
    #[error("the controller closed the stream")]
    Closed,
    #[error("the node has a new certificate")]
    Renewed,
    #[error("the controller broke the protocol: {0}")]
    Violation(#[from] delta::Violation),
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl XdsClient {
    /// A client that has taken up what is on disk, and its status.
    pub fn new(parts: XdsParts) -> (watch::Receiver<XdsStatus>, Self) {
        let client =
            delta::Client::new(parts.node.as_str(), &parts.cluster).with_kinds(parts.kinds);
        let (status, watching) = watch::channel(XdsStatus::default());
        let mut this = Self {
            parts,
            client,
            kept: Kept::default(),
            status,
            save_at: None,
            gather: GATHER,
            disk: Disk {
                writing: None,
                came: MANY,
            },
        };
        this.restore();
        (watching, this)
    }

    fn path(&self) -> PathBuf {
        self.parts.state_dir.join("config.bin")
    }

    fn restore(&mut self) {
        let path = self.path();
        let (resources, written) = match disk::load(&path) {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the configuration on disk is not used; traffic waits for the controller");
                return;
            }
        };
        self.kept = Kept::of(written);
        let count = resources.len();
        let mut changes = Vec::new();
        for resource in resources {
            match self.client.seed(resource) {
                Ok(said) => {
                    self.publish(said.roots);
                    changes.extend(said.changes);
                }
                Err(error) => tracing::warn!(%error, "a resource on disk is not used"),
            }
        }
        tracing::info!(path = %path.display(), resources = count, "serving the last good configuration");
        changes.push(Change::Complete);
        self.parts.state.apply(changes);
        if count >= MANY {
            crate::capture::return_memory();
        }
        self.status.send_modify(|s| s.complete = true);
        let written = std::fs::metadata(&path)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let seconds = written.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0));
        self.parts
            .metrics
            .node()
            .config_received
            .store(seconds, std::sync::atomic::Ordering::Relaxed);
    }

    /// Receives for ever.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let error = match self.one_stream().await {
                Err(error) => error,
                Ok(never) => match never {},
            };
            self.save_now().await;
            if matches!(error, StreamError::Renewed) {
                // The controller ends a stream with the certificate it rests on; going first costs nothing.
                tracing::info!(
                    "the configuration stream begins anew, with the node's new certificate"
                );
                continue;
            }
            self.parts.metrics.node().xds_connected.set(0);
            self.count("error");
            if began.elapsed() > HEALTHY {
                pause = FIRST_PAUSE;
            }
            tracing::warn!(controller = %self.parts.controller.url, %error, again_in = ?pause, "no configuration stream; the last good configuration stays in use");
            self.status.send_modify(|s| {
                s.connected = false;
                s.last_error = Some(error.to_string());
            });
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = (pause * 2).min(self.parts.longest_pause);
        }
    }

    async fn one_stream(&mut self) -> Result<std::convert::Infallible, StreamError> {
        let certificate = self.certificate().await?;
        let channel = self.parts.controller.connect(Some(&certificate)).await?;
        let (requests, outgoing) = mpsc::channel::<DeltaDiscoveryRequest>(REQUESTS);
        for request in self.client.connect() {
            requests
                .try_send(request)
                .expect("the queue holds more than one request per kind");
        }
        let outside = self.parts.outside.borrow_and_update().clone();
        if !outside.is_empty() {
            requests
                .try_send(delta::tell_outside(&outside))
                .expect("the queue holds one more");
        }
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut responses = client
            .delta_aggregated_resources(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        self.count("ok");
        self.parts.metrics.node().xds_connected.set(1);
        self.status.send_modify(|s| s.connected = true);
        tracing::info!(controller = %self.parts.controller.url, "configuration stream is up");
        let mut confirm = tokio::time::interval(CONFIRM);
        loop {
            let save_at = self.save_at.unwrap_or_else(|| Instant::now() + CONFIRM);
            let writing = self.disk.writing.is_some();
            tokio::select! {
                response = responses.message() => {
                    let response = response?.ok_or(StreamError::Closed)?;
                    let reply = self.take(response)?;
                    requests.send(reply).await.map_err(|_| StreamError::Closed)?;
                }
                // Where nobody captures pods, there is nobody to tell of them.
                Ok(()) = self.parts.outside.changed() => {
                    let told = delta::tell_outside(&self.parts.outside.borrow_and_update());
                    requests.send(told).await.map_err(|_| StreamError::Closed)?;
                }
                () = sleep_until(save_at), if !writing => self.begin_saving(),
                () = self.disk.written(&mut self.gather, &mut self.kept), if writing => {}
                () = self.parts.certificates.renewed(&certificate) => return Err(StreamError::Renewed),
                _ = confirm.tick() => if self.client.is_complete() {
                    self.parts.metrics.node().config_is_fresh();
                }
            }
        }
    }

    /// The node's certificate, once there is one.
    async fn certificate(&self) -> Result<Arc<NodeCertificate>, StreamError> {
        let mut changes = self.parts.certificates.changes();
        loop {
            changes.mark_unchanged();
            if let Some(certificate) = self.parts.certificates.node() {
                return Ok(certificate);
            }
            changes.changed().await.map_err(|_| StreamError::Closed)?;
        }
    }

    /// Applies a response and gives the reply.
    fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<DeltaDiscoveryRequest, StreamError> {
        let kind = Kind::from_url(&response.type_url);
        // Those of policies: one that was not understood is kept all the same.
        let policies = response
            .resources
            .iter()
            .filter(|_| kind == Some(Kind::Authorization));
        let bodies: HashMap<String, Bytes> = policies
            .filter_map(|r| Some((r.name.clone(), r.resource.as_ref()?.value.clone())))
            .collect();
        let received = self.client.receive(response)?;
        let Received {
            changes,
            updates,
            roots,
            rejected,
            absent: _,
            reply,
        } = received;
        if let Some(kind) = kind {
            let label = TypeLabel {
                r#type: kind.to_string(),
            };
            self.parts
                .metrics
                .node()
                .xds_resources
                .get_or_create(&label)
                .inc_by(updates.len() as u64);
            if !rejected.is_empty() {
                self.parts
                    .metrics
                    .node()
                    .xds_nacks
                    .get_or_create(&label)
                    .inc();
            }
            // A policy that denies because it was not understood must deny after a restart too.
            for error in rejected.iter().filter(|_| kind == Kind::Authorization) {
                if let Some(body) = bodies.get(&error.name) {
                    let resource = Resource::new(kind, error.name.as_str(), body.clone());
                    self.kept.insert(&resource);
                }
            }
        }
        for error in &rejected {
            tracing::warn!(%error, "a resource was refused; what it replaced stays in use, and a policy denies");
        }
        self.disk.came = self.disk.came.saturating_add(updates.len());
        // Roots change nothing of the mesh, and are written all the same.
        let to_write = !(updates.is_empty() && changes.is_empty());
        for update in updates {
            match update {
                Update::Set(resource) => self.kept.insert(&resource),
                Update::Remove(kind, name) => self.kept.remove(kind, name),
            }
        }
        self.publish(roots);
        if !changes.is_empty() {
            self.parts.state.apply(changes);
        }
        if to_write {
            let at = Instant::now() + self.gather;
            self.save_at.get_or_insert(at);
        }
        self.parts.metrics.node().config_is_fresh();
        let complete = self.parts.state.load().mesh.is_complete();
        self.status.send_modify(|s| {
            s.complete = complete;
            if !rejected.is_empty() {
                s.rejected = rejected.iter().map(ToString::to_string).collect();
            }
        });
        Ok(reply)
    }

    fn publish(&self, roots: Option<Vec<String>>) {
        let Some(pem) = roots else { return };
        let ders: Result<Vec<_>, _> = pem
            .iter()
            .flat_map(|p| CertificateDer::pem_slice_iter(p.as_bytes()))
            .collect();
        let trust = ders
            .map_err(|e| e.to_string())
            .and_then(|ders| Trust::new(ders).map_err(|e| e.to_string()));
        match trust {
            Ok(trust) => self.parts.certificates.publish_roots(trust),
            Err(error) => {
                tracing::error!(%error, "the published roots cannot be read; the roots in use stay")
            }
        }
    }

    /// Writes what is due, and waits for it.
    async fn save_now(&mut self) {
        self.disk.written(&mut self.gather, &mut self.kept).await;
        if self.save_at.is_some() {
            self.begin_saving();
            self.disk.written(&mut self.gather, &mut self.kept).await;
        }
    }

    /// Begins to write what changed, if something did; the stream does not wait for the disk.
    fn begin_saving(&mut self) {
        let mesh = self.parts.state.load().mesh.clone();
        if self.save_at.take().is_none() || !mesh.is_complete() {
            return;
        }
        let namespaces = self.parts.namespaces.clone();
        let path = self.parts.state_dir.join("config.bin");
        let saved = self.kept.clone();
        self.disk.writing = Some(tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            if let Err(error) = namespaces.update(&mesh) {
                tracing::warn!(%error, "the list of enrolled namespaces could not be written; the earlier one stays");
            }
            let written = disk::save(&path, &saved).inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "the configuration could not be written; a restart without the controller would use an older one");
            });
            Outcome {
                took: began.elapsed(),
                saved,
                written: written.ok(),
            }
        }));
    }

    fn count(&self, result: &'static str) {
        self.parts
            .metrics
            .node()
            .xds_connections
            .get_or_create(&ResultLabel { result })
            .inc();
    }
}

#[cfg(test)]
#[path = "xds_tests.rs"]
mod tests;
