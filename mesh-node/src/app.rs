//! The one place that wires parts together.
//!
//! Invariants: every part is made here and handed what it needs; every task has a name, and when one of them
//! ends before the process does, the process is no longer ready and says which; SIGTERM drains.

mod sockets;
mod tasks;
mod waypoint;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use mesh_api::{delta::Outside, resource::Kind};
use mesh_model::name::{NetworkId, NodeName};
use tokio::sync::watch;

use self::{
    sockets::{Lookouts, Sockets, serve_sockets},
    tasks::{Tasks, follow_readiness},
};
use crate::{
    accept::Listeners,
    admin,
    capture::{
        Capture, CaptureParts, Datapath, Enroller, Finder, Guards, Kernel, KernelMetrics,
        KernelReporter, Kubelet, LoadedDatapath, Refiller, SavedPods, beat, follow_leaving,
        pass_on_kernel_lines,
    },
    cni::{Cni, Plugin, command},
    config::{
        AfterHandover, Config, Invocation, LogFormat, Takeover, Task,
        cgroup::{self, Cgroups},
    },
    dns::{DnsHandle, DnsParts, DnsServer, Names},
    exchange::Clusters,
    identify::{
        CaClient, Certificates, Controller, HANDED, Handshakes, KeyDir, Renewer, receive, show,
    },
    lifecycle::{
        Call, Ending, Lifecycle, Part, Predecessor, Readiness, Retirement, end_of_signals,
        take_over,
    },
    observe::{self, AccessFormat, LogControl, LogSink, Metrics, Observer, Spans},
    role::Role,
    route::Director,
    scan::{Missing, OutsideMesh, OutsideParts, Places, Scan, ScanParts},
    serve::{DataThreads, Shared},
    state::{EnrolledNamespaces, MeshState, XdsClient, XdsParts},
};

/// Who may use the process's own sockets.
const ROOT: u32 = 0;
/// How long the last log lines, and tasks that are told to end, may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a successor waits for its configuration before it takes pods over all the same.
const CONFIGURED: Duration = Duration::from_secs(20);

/// Runs a role until it is told to stop.
pub fn run(invocation: Invocation) -> Result<()> {
    let Invocation { task, config } = invocation;
    let role = match task {
        Task::Run(Role::Ready) => return at_hand(ready(config)),
        Task::Run(role) => role,
        Task::Cni(action) => return at_hand(command::run(action, &config)),
        Task::Leave(step) => return at_hand(command::leave(&config, step)),
        Task::Uninstall(patience) => return at_hand(command::restore(&config, patience)),
    };
    if role.profile().is_none() {
        bail!(
            "the role {:?} is not built yet; this build has the roles \"node\" and \"waypoint\"",
            role.name()
        );
    }
    // Fails only when one has been set before, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let log = Log::start(&config).context("starting the log")?;
    let sink = log.sink.clone();
    let retirement = match config.after_handover {
        AfterHandover::Exit => None,
        AfterHandover::Wait => Some(Retirement::prepare().context("listening to signals")?),
    };
    let successor = config.run_dir.join("admin.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build();
    let runtime = runtime.context("starting the control runtime")?;
    let outcome = runtime.block_on(async {
        match role {
            Role::Waypoint => waypoint::waypoint(config, log).await.map(|()| Ending::Stop),
            Role::Node | Role::Gateway | Role::Ready => node(config, log).await,
        }
    });
    // With it go the sockets that are still open: whoever stays holds nothing.
    runtime.shutdown_timeout(LAST_WORDS);
    if let (Some(retirement), Ok(Ending::HandedOver)) = (retirement, &outcome) {
        tracing::info!("idle until told to stop: a successor serves");
        match retirement.wait(&successor) {
            Call::Stop => tracing::info!("told to stop"),
            Call::Deserted => tracing::warn!(
                "no node proxy serves any more: ending, so that this one is started again"
            ),
        }
    }
    sink.flush(LAST_WORDS);
    outcome.map(drop)
}

/// Asks the node proxy that runs in the same container.
async fn ready(config: Config) -> Result<()> {
    let asked = admin::client::ready(&config.run_dir.join("admin.sock")).await;
    asked.context("not ready")
}

/// Does a piece of work for whoever waits for it.
fn at_hand(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("starting the runtime")?.block_on(work)
}

/// The log: where lines go and how they look.
struct Log {
    sink: LogSink,
    access: AccessFormat,
    control: LogControl,
}

impl Log {
    fn start(config: &Config) -> Result<Self> {
        let sink = LogSink::new(io::stdout())?;
        let (format, access) = match config.log_format {
            LogFormat::Text => (observe::LogFormat::Text, AccessFormat::Text),
            LogFormat::Json => (observe::LogFormat::Json, AccessFormat::Json),
        };
        let control = observe::init_logging(format, &config.log, sink.clone())?;
        Ok(Self {
            sink,
            access,
            control,
        })
    }
}

/// The role `node`; says what ended it.
async fn node(config: Config, log: Log) -> Result<Ending> {
    config
        .prepare_node()
        .context("preparing directories and limits")?;
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
    let predecessor = predecessor(&config).await;
    if let Some(piece) = predecessor.as_ref().and_then(|p| p.blobs.get(HANDED)) {
        let taken = receive(&certificates, piece);
        tracing::info!(taken, "certificates and keys were handed over in memory");
    }
    let (told, outside) = watch::channel(Vec::new());
    let namespaces = control(
        &config,
        (&config.node_name, Kind::NODE, outside),
        &tasks,
        &state,
        &certificates,
        &metrics,
    )?;
    let groups = cgroup::find(config.pods_cgroup.as_deref()).context("finding the cgroups")?;
    let pods_cgroup = groups.pods.clone();
    let kernel = open_kernel(&config, &groups)?;
    metrics.add_kernel(Arc::new(KernelMetrics(kernel.clone())));
    let lines = kernel.loader().lines();
    if let Some(lines) = lines.context("opening the kernel programs' log")? {
        tracing::info!("the kernel programs write lines; the log level kernel=debug shows them");
        tasks.spawn("kernel lines", pass_on_kernel_lines(lines));
    }
    let (listeners, receivers) = Listeners::new(config.threads);
    let shared = data_parts(
        &config,
        &tasks,
        &state,
        &certificates,
        kernel.clone(),
        &observer,
        Spans::off(metrics.clone()),
    );
    let data =
        DataThreads::start(shared.clone(), receivers).context("starting the data threads")?;
    let lookouts = Lookouts {
        namespaces,
        guards: Guards::default(),
        kubelet: Kubelet::new(config.kubelet_cgroup.clone(), groups),
    };
    let capture = start_capture(
        &config, &tasks, &state, &kernel, &observer, listeners, &lookouts,
    )?;
    if predecessor.is_some() {
        configured(&state, &certificates).await;
    }
    let (pods, _taken_up, predecessor) = take_up(&tasks, &capture, predecessor).await?;
    let missing = scan(
        &config,
        &tasks,
        &state,
        &capture,
        &metrics,
        pods_cgroup.clone(),
    );
    let outside = OutsideMesh::new(OutsideParts {
        cluster: config.cluster_id.clone(),
        state: state.clone(),
        capture: capture.clone(),
        missing: missing.clone(),
        told,
    });
    tasks.spawn_until_handed_over("pods outside the mesh", outside.run());
    let cni = config.cni.keep.then(|| Cni::new(Plugin::new(&config)));
    serve_sockets(
        &config,
        &tasks,
        Sockets {
            metrics: metrics.clone(),
            capture: capture.clone(),
            state,
            certificates,
            observer,
            shared: shared.clone(),
            pods_cgroup,
            lookouts,
            missing,
            cni: cni.clone(),
            log: log.control,
        },
    )?;
    if let Some(predecessor) = predecessor {
        // Only now: until here whoever registers a pod still found somebody listening.
        let gone = predecessor.done().await;
        gone.context("letting the earlier process go")?;
        tracing::info!(pods, "took over from the earlier process");
    }
    if let Some(cni) = cni {
        // Only now: an earlier process may keep an entry of its own.
        tasks.spawn_until_handed_over("CNI plugin", cni.run(metrics.clone()));
    }
    tasks.spawn(
        "signals",
        end_of_signals(tasks.lifecycle.clone(), config.drain),
    );
    tracing::info!(node = %config.node_name, instance = config.instance, threads = config.threads, pods, "the node proxy serves");
    let ending = tokio::select! {
        ending = tasks.lifecycle.draining() => ending,
        () = data.ended() => bail!("the data threads have ended"),
    };
    tracing::info!(?ending, "draining");
    if ending == Ending::Stop {
        capture.close().await?;
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
    tracing::info!("stopped");
    Ok(ending)
}

/// A running process of the same instance, which then waits for us to serve what it gave.
async fn predecessor(config: &Config) -> Option<Predecessor> {
    if config.takeover == Takeover::Never {
        return None;
    }
    match take_over(&config.run_dir.join("handover.sock"), ROOT).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "a running process did not hand over; starting from what is on disk");
            None
        }
    }
}

/// Waits a while until flows can be decided as the earlier process decides them, which serves meanwhile.
async fn configured(state: &MeshState, certificates: &Certificates) {
    let complete = state.wait_for(CONFIGURED, |s| s.mesh.is_complete().then_some(()));
    if complete.await.is_none() || certificates.node().is_none() {
        tracing::warn!(
            "taking over before configuration or certificates are complete; some flows will have to wait"
        );
    }
}

/// The pods of an earlier process: from its hands, or from disk. An earlier process that runs has stopped
/// accepting afterwards, and waits to be let go.
async fn take_up(
    tasks: &Tasks,
    capture: &Capture,
    predecessor: Option<Predecessor>,
) -> Result<(usize, Part, Option<Predecessor>)> {
    let part = tasks.readiness.part("earlier pods", "being taken up");
    let Some(mut predecessor) = predecessor else {
        let pods = capture.restore().await?;
        part.ready();
        return Ok((pods, part, None));
    };
    let pods = capture.adopt(std::mem::take(&mut predecessor.pods)).await?;
    predecessor
        .ready()
        .await
        .context("telling the earlier process that its pods are served")?;
    part.ready();
    Ok((pods, part, Some(predecessor)))
}

/// The search for pods that run already. Readiness waits for its first look; a successor looks for itself.
fn scan(
    config: &Config,
    tasks: &Tasks,
    state: &MeshState,
    capture: &Capture,
    metrics: &Metrics,
    pods_cgroup: PathBuf,
) -> Missing {
    if !config.pod_scan {
        return Missing::default();
    }
    let (scan, missing, mut first) = Scan::new(ScanParts {
        node: config.node_name.clone(),
        cluster: config.cluster_id.clone(),
        state: state.clone(),
        capture: capture.clone(),
        places: Places::of_a_node(pods_cgroup),
        metrics: metrics.clone(),
    });
    let part = tasks
        .readiness
        .part("running pods", "the first search for them");
    tasks.spawn_until_handed_over("search for pods", scan.run());
    tokio::spawn(async move {
        if first.wait_for(|done| *done).await.is_ok() {
            part.ready();
        }
        // The part lives as long as the process: dropping it would mean that it died.
        std::future::pending::<()>().await
    });
    missing
}

/// Certificates and configuration, for whoever has this name to the controller, and tells it which pods are outside; the
/// list of namespaces that it keeps.
fn control(
    config: &Config,
    (name, kinds, outside): (&NodeName, &'static [Kind], watch::Receiver<Vec<Outside>>),
    tasks: &Tasks,
    state: &MeshState,
    certificates: &Certificates,
    metrics: &Metrics,
) -> Result<EnrolledNamespaces> {
    let controller = Controller {
        url: config.controller.clone(),
        ca: config.controller_ca.clone(),
        timeout: config.control.xds_timeout,
    };
    let signer = CaClient {
        controller: controller.clone(),
        token: config.token_file.clone(),
        cluster: config.cluster_id.clone(),
        lifetime: config.control.certificate_lifetime,
    };
    let keys = KeyDir::open(config.run_dir.join("keys"))
        .with_context(|| format!("opening {}/keys", config.run_dir.display()))?;
    let renewer = Renewer::new(certificates.clone(), keys, signer, name.clone(), metrics);
    tasks.spawn("certificates", renewer.run());
    tasks.spawn(
        "certificate metrics",
        show(certificates.clone(), metrics.clone()),
    );
    let namespaces = EnrolledNamespaces::open(&config.state_dir);
    let (status, client) = XdsClient::new(XdsParts {
        node: name.clone(),
        cluster: config.cluster_id.to_string(),
        kinds,
        state: state.clone(),
        certificates: certificates.clone(),
        controller,
        longest_pause: config.control.xds_backoff,
        state_dir: config.state_dir.clone(),
        namespaces: namespaces.clone(),
        outside,
        metrics: metrics.clone(),
    });
    tasks.spawn("configuration stream", client.run());
    tasks.spawn(
        "readiness",
        follow_readiness(tasks.readiness.clone(), status, certificates.clone()),
    );
    Ok(namespaces)
}

fn open_kernel(config: &Config, groups: &Cgroups) -> Result<Arc<LoadedDatapath>> {
    let mut loader = mesh_loader::Config::new(
        config.instance.clone(),
        groups.pods.clone(),
        groups.own.clone(),
    );
    loader.tc = config.tc;
    loader.edition = config.edition;
    let kernel = LoadedDatapath::open(&loader)
        .with_context(|| format!("attaching the kernel programs to {}", groups.pods.display()))?;
    Ok(Arc::new(kernel))
}

fn data_parts(
    config: &Config,
    tasks: &Tasks,
    state: &MeshState,
    certificates: &Certificates,
    datapath: Arc<dyn Datapath>,
    observer: &Observer,
    spans: Spans,
) -> Arc<Shared> {
    let (names, task) = Names::new(
        config.resolvers.clone(),
        config.name_ttl,
        observer.metrics().clone(),
    );
    tasks.spawn("host names", task.run());
    let clusters = Clusters::default();
    observer.metrics().add_clusters(Box::new(clusters.clone()));
    Arc::new(Shared {
        node: config.node_name.clone(),
        state: state.clone(),
        certificates: certificates.clone(),
        datapath,
        observer: observer.clone(),
        handshakes: Handshakes::new(
            config.limits.handshakes,
            config.limits.handshakes_per_source,
        ),
        limits: config.limits,
        names,
        flows: AtomicUsize::new(0),
        clusters,
        spans,
    })
}

/// Pods: who they are, what the kernel knows of them, their DNS.
fn start_capture(
    config: &Config,
    tasks: &Tasks,
    state: &MeshState,
    kernel: &Arc<LoadedDatapath>,
    observer: &Observer,
    listeners: Listeners,
    lookouts: &Lookouts,
) -> Result<Capture> {
    let metrics = observer.metrics();
    let network = NetworkId::new("");
    let (dns, questions) = DnsHandle::new();
    let parts = DnsParts {
        state: state.clone(),
        kernel: kernel.clone(),
        datapath: kernel.clone(),
        network: network.clone(),
        metrics: metrics.clone(),
    };
    tasks.spawn("dns", DnsServer::new(parts).run(questions));
    let enroller = Enroller {
        kernel: kernel.clone(),
        datapath: kernel.clone(),
        refill: Refiller::start().context("starting the maker of sockets")?,
        late: metrics.node().sockets_made_late.clone(),
    };
    let (capture, task) = Capture::new(CaptureParts {
        cluster: config.cluster_id.clone(),
        state: state.clone(),
        namespaces: lookouts.namespaces.clone(),
        home: config.controller_namespace(),
        enroller,
        listeners,
        dns,
        saved: SavedPods::open(&config.run_dir).with_context(|| {
            format!(
                "opening the records of pods in {}",
                config.run_dir.display()
            )
        })?,
        finder: Finder::default(),
        metrics: metrics.clone(),
    });
    tasks.spawn("pods", task.run());
    let seen: Arc<dyn Kernel> = kernel.clone();
    let director = Director::new(config.node_name.clone(), state.clone(), kernel.clone());
    tasks.spawn_until_handed_over("direct paths", director.run());
    tasks.spawn_until_handed_over("heartbeat", beat(seen.clone(), metrics.clone()));
    let part = tasks.readiness.part("capture", "its start");
    // A successor with other programs retires ours.
    tasks.spawn_until_handed_over("mesh's stay", follow_leaving(seen.clone(), part));
    let Lookouts {
        guards,
        kubelet,
        namespaces: _,
    } = lookouts;
    tasks.spawn_until_handed_over(
        "interfaces",
        guards.clone().run(seen.clone(), metrics.clone()),
    );
    tasks.spawn_until_handed_over(
        "kubelet",
        kubelet.clone().run(seen.clone(), metrics.clone()),
    );
    tasks.spawn_until_handed_over(
        "kernel events",
        KernelReporter::new(seen, state.clone(), observer.clone(), network, guards).run(),
    );
    Ok(capture)
}
