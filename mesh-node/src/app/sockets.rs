//! What the process answers on: registration, administration, hand-over, and the read-only port of metrics.
//!
//! Invariant: only root is served on the sockets of the run directory.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{ROOT, tasks::Tasks};
use crate::{
    admin::{AdminParts, AdminServer},
    capture::{Capture, Guards, Kubelet, PodState, RegistrationServer},
    cni::Cni,
    config::Config,
    identify::{Certificates, HANDED, describe, hand_over, stand},
    lifecycle::{Blobs, HandoverServer},
    observe::{LogControl, Metrics, MetricsServer, Observer, Standing, StateLabel},
    scan::Missing,
    serve::Shared,
    state::{EnrolledNamespaces, MeshState},
};

/// What the kernel tells of its types, without which its programs cannot be loaded.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Who looks after the node around the pods. Cloning shares it.
#[derive(Clone)]
pub(super) struct Lookouts {
    pub(super) guards: Guards,
    pub(super) kubelet: Kubelet,
    pub(super) namespaces: EnrolledNamespaces,
}

impl Lookouts {
    fn describe(&self) -> serde_json::Value {
        serde_json::json!({ "interfaces": self.guards.describe(), "kubelet": self.kubelet.describe() })
    }
}

/// What the sockets of the process show and change.
pub(super) struct Sockets {
    pub(super) metrics: Metrics,
    pub(super) capture: Capture,
    pub(super) state: MeshState,
    pub(super) certificates: Certificates,
    pub(super) observer: Observer,
    pub(super) shared: Arc<Shared>,
    pub(super) pods_cgroup: PathBuf,
    pub(super) lookouts: Lookouts,
    pub(super) missing: Missing,
    pub(super) cni: Option<Cni>,
    pub(super) log: LogControl,
}

/// Registration, administration, hand-over, and the read-only port of metrics.
pub(super) fn serve_sockets(config: &Config, tasks: &Tasks, parts: Sockets) -> Result<()> {
    let Sockets {
        metrics,
        capture,
        state,
        certificates,
        observer,
        shared,
        pods_cgroup,
        lookouts,
        missing,
        cni,
        log,
    } = parts;
    let address = SocketAddr::new(config.node_ip, config.control.metrics_port);
    let standing = standing(
        metrics.clone(),
        lookouts.clone(),
        cni.clone(),
        pods_cgroup,
        certificates.clone(),
    );
    tasks.spawn_until_handed_over(
        "metrics",
        serve_metrics(
            MetricsServer::new(metrics, tasks.readiness.as_check(), standing),
            address,
        ),
    );
    let at = |name: &str| config.run_dir.join(name);
    let bind = |name: &'static str| move || format!("listening on {name} in the run directory");
    let registration = RegistrationServer::bind(&at("pods.sock"), ROOT, capture.clone())
        .with_context(bind("pods.sock"))?;
    tasks.spawn_until_handed_over("registration", registration.run());
    let secrets = certificates.clone();
    let admin = AdminServer::bind(
        &at("admin.sock"),
        ROOT,
        AdminParts {
            state,
            capture: Some(capture.clone()),
            log: Some(log),
            observer,
            lifecycle: tasks.lifecycle.clone(),
            drain: config.drain,
            ready: tasks.readiness.as_check(),
            config: serde_json::json!({ "node": config.node_name.as_str(), "settings": format!("{config:?}") }),
            certificates: Arc::new(move || describe(&certificates)),
            cni,
            guards: Arc::new(move || {
                let mut seen = lookouts.describe();
                seen["missingPods"] = missing.describe();
                seen
            }),
            sessions: Arc::new(move || shared.describe()),
        },
    );
    tasks.spawn(
        "administration",
        admin.with_context(bind("admin.sock"))?.run(),
    );
    let handover = HandoverServer::bind(
        &at("handover.sock"),
        ROOT,
        capture,
        tasks.lifecycle.clone(),
        Arc::new(move || Blobs::from([(HANDED.to_owned(), hand_over(&secrets))])),
        config.drain,
    );
    // Ends when a successor has taken over, which is no failure.
    tokio::spawn(handover.with_context(bind("handover.sock"))?.run());
    Ok(())
}

/// How the node stands: what `mesh-ctl check` looks at.
fn standing(
    metrics: Metrics,
    lookouts: Lookouts,
    cni: Option<Cni>,
    pods_cgroup: PathBuf,
    certificates: Certificates,
) -> Standing {
    Arc::new(move || {
        let node = metrics.node();
        let pods = PodState::ALL.map(|state| {
            let label = StateLabel {
                state: state.as_str(),
            };
            (state.as_str(), node.pods.get_or_create(&label).get())
        });
        let mut seen = lookouts.describe();
        seen["version"] = env!("CARGO_PKG_VERSION").into();
        seen["btf"] = Path::new(BTF).exists().into();
        seen["podsCgroup"] = pods_cgroup.display().to_string().into();
        seen["pods"] = serde_json::json!(BTreeMap::from(pods));
        seen["podsBarred"] = node.pods_barred.get().into();
        seen["podsMissing"] = node.pods_missing.get().into();
        seen["certificates"] = stand(&certificates);
        seen["cni"] = serde_json::json!(cni.as_ref().map(Cni::describe));
        seen
    })
}

/// Listens as soon as nobody else does: an earlier process may hold the port until it has handed over.
pub(super) async fn serve_metrics(server: MetricsServer, address: SocketAddr) {
    let mut said = false;
    loop {
        match MetricsServer::bind(address).await {
            Ok(listener) => return server.run(listener).await,
            Err(error) if !said => {
                tracing::warn!(%address, %error, "the port of metrics cannot be had yet; trying on")
            }
            Err(_) => {}
        }
        said = true;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
