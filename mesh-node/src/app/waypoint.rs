//! The role `waypoint`: an ordinary pod that carries the traffic of services which name it, and captures nothing.
//!
//! Invariants: it has its own identity only; it listens from the beginning and serves as soon as it knows who it is;
//! SIGTERM tells peers to go elsewhere, and waits for what they have here.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use mesh_api::resource;
use mesh_model::name::{Identity, NodeName, WorkloadUid};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

use super::{Log, control, data_parts, sockets::serve_metrics, tasks::Tasks};
use crate::{
    accept::{Family, Kind, Listeners, Pod, PodSockets, PodUid},
    admin::{AdminParts, AdminServer},
    capture::NoDatapath,
    config::{Config, OwnPod},
    export::Exporter,
    identify::{Certificates, describe},
    lifecycle::{Lifecycle, Part, Readiness, end_of_signals},
    observe::{Metrics, MetricsServer, Observer, Spans},
    serve::{DataThreads, Shared},
    state::MeshState,
};

/// HBONE's port (CONTRACTS.md, "Ports").
const HBONE_PORT: u16 = 15008;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// How long to look for the mesh's configuration before looking again.
const LOOK: Duration = Duration::from_secs(60);

/// Runs until it is told to stop.
pub(super) async fn waypoint(config: Config, log: Log) -> Result<()> {
    let own = config.pod.clone().context(
        "a waypoint has to know which pod it is: pass --pod-namespace, --pod-name and --service-account",
    )?;
    config
        .prepare()
        .context("preparing directories and limits")?;
    let listener = listen(HBONE_PORT).context("listening for HBONE")?;
    let tasks = Tasks {
        readiness: Readiness::default(),
        lifecycle: Lifecycle::default(),
    };
    let metrics = Metrics::new();
    metrics.add_log(&log.sink);
    let observer = Observer::new(
        metrics.clone(),
        log.sink.clone(),
        log.access,
        config.access_log,
    );
    let state = MeshState::new();
    let certificates = Certificates::new(SystemTime::now);
    // As the controller calls it (`mesh-ctl/src/ca/grant.rs`).
    let name = format!("waypoint/{}/{}/{}", own.namespace, own.account, own.name);
    let name = NodeName::new(name);
    let _no_pods_of_its_own = control(
        &config,
        (
            &name,
            resource::Kind::WAYPOINT,
            watch::channel(Vec::new()).1,
        ),
        &tasks,
        &state,
        &certificates,
        &metrics,
    )?;
    let (listeners, receivers) = Listeners::new(config.threads);
    let kernel = Arc::new(NoDatapath);
    let (spans, finished) = Spans::new(metrics.clone());
    let shared = data_parts(
        &config,
        &tasks,
        &state,
        &certificates,
        kernel,
        &observer,
        spans,
    );
    let (known, pod) = watch::channel(None);
    let exporter = Exporter::start(shared.clone(), finished, pod);
    let exporter = exporter.context("starting the thread that sends spans")?;
    let data =
        DataThreads::start(shared.clone(), receivers).context("starting the data threads")?;
    let part = tasks.readiness.part("listener", "who the waypoint is");
    let serving = serve(
        own,
        config.clone(),
        state.clone(),
        listeners,
        listener,
        (part, known),
    );
    tasks.spawn("listener", serving);
    show(
        &config,
        &tasks,
        &log,
        state,
        certificates,
        observer,
        &shared,
    )?;
    tasks.spawn(
        "signals",
        end_of_signals(tasks.lifecycle.clone(), config.drain),
    );
    tracing::info!(waypoint = %name, threads = config.threads, "the waypoint runs");
    tokio::select! {
        ending = tasks.lifecycle.draining() => tracing::info!(?ending, "draining"),
        () = data.ended() => bail!("the data threads have ended"),
    }
    metrics.node().draining.set(1);
    data.drain();
    let left = tasks.lifecycle.drained(|| shared.flows.load(Relaxed)).await;
    if left > 0 {
        tracing::warn!(
            flows = left,
            "flows were still live when the time to drain was over; they are ended"
        );
    }
    data.end().await;
    exporter.end().await;
    tracing::info!("stopped");
    Ok(())
}

/// Both families where the machine has IPv6, else IPv4.
fn listen(port: u16) -> io::Result<TcpListener> {
    let bind = |domain, ip: IpAddr| -> io::Result<TcpListener> {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(ip, port).into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(TcpListener::from(socket))
    };
    match bind(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            bind(Domain::IPV4, Ipv4Addr::UNSPECIFIED.into())
        }
        bound => bound,
    }
}

/// Gives the listener to the data threads once the mesh's configuration says in which trust domain this is.
async fn serve(
    own: OwnPod,
    config: Config,
    state: MeshState,
    listeners: Listeners,
    listener: TcpListener,
    (part, known): (Part, watch::Sender<Option<Arc<Pod>>>),
) {
    let domain = loop {
        let found = state.wait_for(LOOK, |s| Some(s.mesh.config()?.trust_domain.clone()));
        if let Some(domain) = found.await {
            break domain;
        }
    };
    let identity = Identity {
        trust_domain: domain,
        namespace: own.namespace.clone(),
        service_account: own.account.clone(),
    };
    let uid = format!("{}//Pod/{}/{}", config.cluster_id, own.namespace, own.name);
    let pod = Arc::new(Pod {
        uid: PodUid::new(own.name.as_str()),
        workload: WorkloadUid::new(uid),
        namespace: own.namespace,
        name: own.name.into(),
        service_account: own.account,
        identity: identity.clone(),
        addresses: own.addresses.into(),
        netns_cookie: 0,
        barred: None,
        sockets: Arc::new(OwnSockets),
    });
    known.send_replace(Some(pod.clone()));
    match listeners.add(&pod, Kind::Waypoint, &listener).await {
        Ok(()) => {
            tracing::info!(%identity, "the waypoint serves");
            part.ready();
            std::future::pending::<()>().await;
        }
        Err(error) => tracing::error!(%error, "the listener could not be served"),
    }
}

/// Sockets of the process's own network namespace.
#[derive(Debug)]
struct OwnSockets;

impl PodSockets for OwnSockets {
    /// There is no application here that could be shown a client.
    fn tcp(&self, family: Family, _: Option<SocketAddr>) -> io::Result<Socket> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Administration, and the read-only port of metrics.
fn show(
    config: &Config,
    tasks: &Tasks,
    log: &Log,
    state: MeshState,
    certificates: Certificates,
    observer: Observer,
    shared: &Arc<Shared>,
) -> Result<()> {
    let address = SocketAddr::new(config.node_ip, config.control.metrics_port);
    let standing = Arc::new(|| serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }));
    let metrics = MetricsServer::new(
        observer.metrics().clone(),
        tasks.readiness.as_check(),
        standing,
    );
    tasks.spawn("metrics", serve_metrics(metrics, address));
    let shared = shared.clone();
    let parts = AdminParts {
        state,
        capture: None,
        log: Some(log.control.clone()),
        observer,
        lifecycle: tasks.lifecycle.clone(),
        drain: config.drain,
        ready: tasks.readiness.as_check(),
        config: serde_json::json!({ "settings": format!("{config:?}") }),
        certificates: Arc::new(move || describe(&certificates)),
        cni: None,
        guards: Arc::new(|| serde_json::Value::Null),
        sessions: Arc::new(move || shared.describe()),
    };
    // An ordinary pod need not be root: whoever is the same user is served.
    let user = nix::unistd::geteuid().as_raw();
    let admin = AdminServer::bind(&config.run_dir.join("admin.sock"), user, parts);
    let admin = admin.context("listening on admin.sock in the run directory")?;
    tasks.spawn("administration", admin.run());
    Ok(())
}
