//! The one place that wires parts together.
//!
//! Invariants: every part is made here and handed what it needs; every task has a name, and when one of them
//! ends before the process does, the process is no longer ready and says which; SIGTERM drains.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use mesh_model::name::NetworkId;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    accept::{ListenerEvent, Listeners},
    capture::{
        Capture, CaptureParts, Enroller, Finder, Kernel, KernelMetrics, KernelReporter, LoadedDatapath, Refiller, RegistrationServer, SavedPods, beat,
    },
    config::{Config, Invocation, LogFormat, cgroup},
    dns::{DnsHandle, DnsParts, DnsServer},
    identify::{CaClient, Certificates, Controller, Handshakes, KeyDir, Renewer},
    observe::{self, AccessFormat, IdentityLabel, LogSink, Metrics, MetricsServer, Observer, ReadyCheck},
    route::Director,
    serve::{DataThreads, Shared},
    state::{EnrolledNamespaces, MeshState, XdsClient, XdsParts, XdsStatus},
};

/// How long the last log lines, and tasks that are told to end, may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs a role until it is told to stop.
pub fn run(invocation: Invocation) -> Result<()> {
    let Invocation { role, config } = invocation;
    if role.profile().is_none() {
        bail!("the role {:?} is not built yet; this build has the role \"node\"", role.name());
    }
    // Fails only when one has been set before, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let sink = LogSink::new(io::stdout()).context("starting the log")?;
    let format = match config.log_format {
        LogFormat::Text => observe::LogFormat::Text,
        LogFormat::Json => observe::LogFormat::Json,
    };
    let _log = observe::init_logging(format, &config.log, sink.clone()).context("starting the log")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("control").enable_all().build();
    let runtime = runtime.context("starting the control runtime")?;
    let outcome = runtime.block_on(node(config, sink.clone()));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "the node proxy ends");
    }
    runtime.shutdown_timeout(LAST_WORDS);
    sink.flush(LAST_WORDS);
    outcome
}

/// The tasks of the control runtime, by name.
#[derive(Default)]
struct Tasks {
    running: JoinSet<&'static str>,
    ended: Arc<Mutex<Vec<&'static str>>>,
}

impl Tasks {
    /// Runs something that must not end before the process does.
    fn spawn(&mut self, name: &'static str, task: impl Future<Output: Send> + Send + 'static) {
        self.running.spawn(async move {
            // A panic ends the task like a return does.
            let guarded = tokio::spawn(task);
            match guarded.await {
                Ok(_) => tracing::error!(task = name, "a task ended that should not; the process is no longer ready"),
                Err(error) => tracing::error!(task = name, %error, "a task failed; the process is no longer ready"),
            }
            name
        });
    }

    /// Notes tasks that end; never returns.
    async fn watch(&mut self) {
        loop {
            match self.running.join_next().await {
                Some(Ok(name)) => self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(name),
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// The role `node`.
async fn node(config: Config, sink: LogSink) -> Result<()> {
    prepare(&config)?;
    let mut tasks = Tasks::default();
    let metrics = Metrics::new();
    metrics.add_log(&sink);
    let access = match config.log_format {
        LogFormat::Text => AccessFormat::Text,
        LogFormat::Json => AccessFormat::Json,
    };
    let observer = Observer::new(metrics.clone(), sink, access, config.access_log);
    let state = MeshState::new();
    let certificates = Certificates::new(SystemTime::now);
    let xds = control(&config, &mut tasks, &state, &certificates, &metrics)?;
    let kernel = open_kernel(&config)?;
    metrics.add_kernel(Arc::new(KernelMetrics(kernel.clone())));
    let (listeners, receivers) = Listeners::new(config.threads);
    let data = start_data(&config, &state, &certificates, &kernel, &observer, receivers)?;
    tasks.spawn("direct paths", Director::new(config.node_name.clone(), state.clone(), kernel.clone()).run());
    let capture = start_capture(&config, &mut tasks, &state, &kernel, &observer, listeners)?;
    let ready = readiness(&tasks, xds, certificates, capture.clone());
    let address = SocketAddr::new(config.node_ip, config.control.metrics_port);
    let listener = MetricsServer::bind(address).await.with_context(|| format!("listening on {address} for metrics"))?;
    tasks.spawn("metrics", MetricsServer::new(metrics.clone(), ready).run(listener));
    let taken = capture.restore().await?;
    let pods_sock = config.run_dir.join("pods.sock");
    let server = RegistrationServer::bind(&pods_sock, 0, capture).with_context(|| format!("listening on {}", pods_sock.display()))?;
    tasks.spawn("registration", server.run());
    tracing::info!(node = %config.node_name, instance = config.instance, threads = config.threads, pods = taken, "the node proxy serves");
    tokio::select! {
        name = stop_signal() => tracing::info!(signal = name?, "stopping"),
        () = data.ended() => bail!("the data threads have ended"),
        () = tasks.watch() => {}
    }
    metrics.node().draining.set(1);
    data.drain(config.drain).await;
    tracing::info!("stopped");
    Ok(())
}

/// Directories and limits.
fn prepare(config: &Config) -> Result<()> {
    let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| format!("making {}", path.display()));
    private(&config.run_dir)?;
    private(&config.state_dir)?;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of descriptors")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of descriptors")?;
    }
    Ok(())
}

/// Certificates and configuration.
fn control(
    config: &Config, tasks: &mut Tasks, state: &MeshState, certificates: &Certificates, metrics: &Metrics,
) -> Result<watch::Receiver<XdsStatus>> {
    let controller = Controller { url: config.controller.clone(), ca: config.controller_ca.clone(), timeout: config.control.xds_timeout };
    let signer = CaClient {
        controller: controller.clone(),
        token: config.token_file.clone(),
        cluster: config.cluster_id.clone(),
        lifetime: config.control.certificate_lifetime,
    };
    let keys = KeyDir::open(config.run_dir.join("keys")).with_context(|| format!("opening {}/keys", config.run_dir.display()))?;
    let renewer = Renewer::new(certificates.clone(), keys, signer, config.node_name.clone());
    tasks.spawn("certificates", renewer.run());
    tasks.spawn("certificate metrics", show_certificates(certificates.clone(), metrics.clone()));
    let (status, client) = XdsClient::new(XdsParts {
        node: config.node_name.clone(),
        cluster: config.cluster_id.to_string(),
        state: state.clone(),
        certificates: certificates.clone(),
        controller,
        longest_pause: config.control.xds_backoff,
        state_dir: config.state_dir.clone(),
        metrics: metrics.clone(),
    });
    tasks.spawn("configuration", client.run());
    Ok(status)
}

fn open_kernel(config: &Config) -> Result<Arc<LoadedDatapath>> {
    let groups = cgroup::find(config.pods_cgroup.as_deref()).context("finding the cgroups")?;
    let loader = mesh_loader::Config::new(config.instance.clone(), groups.pods.clone(), groups.own.clone());
    let kernel = LoadedDatapath::open(&loader).with_context(|| format!("attaching the kernel programs to {}", groups.pods.display()))?;
    Ok(Arc::new(kernel))
}

fn start_data(
    config: &Config, state: &MeshState, certificates: &Certificates, kernel: &Arc<LoadedDatapath>, observer: &Observer,
    receivers: Vec<mpsc::Receiver<ListenerEvent>>,
) -> Result<DataThreads> {
    let shared = Shared {
        node: config.node_name.clone(),
        state: state.clone(),
        certificates: certificates.clone(),
        datapath: kernel.clone(),
        observer: observer.clone(),
        handshakes: Handshakes::new(config.limits.handshakes, config.limits.handshakes_per_source),
        limits: config.limits,
        flows: AtomicUsize::new(0),
    };
    DataThreads::start(Arc::new(shared), receivers).context("starting the data threads")
}

/// Pods: who they are, what the kernel knows of them, their DNS.
fn start_capture(
    config: &Config, tasks: &mut Tasks, state: &MeshState, kernel: &Arc<LoadedDatapath>, observer: &Observer, listeners: Listeners,
) -> Result<Capture> {
    let metrics = observer.metrics();
    let network = NetworkId::new("");
    let (dns, questions) = DnsHandle::new();
    let parts = DnsParts { state: state.clone(), kernel: kernel.clone(), datapath: kernel.clone(), network: network.clone(), metrics: metrics.clone() };
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
        namespaces: EnrolledNamespaces::open(&config.state_dir),
        enroller,
        listeners,
        dns,
        saved: SavedPods::open(&config.run_dir).with_context(|| format!("opening the records of pods in {}", config.run_dir.display()))?,
        finder: Finder::default(),
        metrics: metrics.clone(),
    });
    tasks.spawn("pods", task.run());
    let seen: Arc<dyn Kernel> = kernel.clone();
    tasks.spawn("heartbeat", beat(seen.clone(), metrics.clone()));
    tasks.spawn("kernel events", KernelReporter::new(seen, state.clone(), observer.clone(), network).run());
    Ok(capture)
}

fn readiness(tasks: &Tasks, xds: watch::Receiver<XdsStatus>, certificates: Certificates, capture: Capture) -> ReadyCheck {
    let ended = tasks.ended.clone();
    Arc::new(move || {
        if let Some(name) = ended.lock().unwrap_or_else(PoisonError::into_inner).first() {
            return Err(format!("the task {name:?} has ended"));
        }
        let xds = xds.borrow();
        if !xds.complete {
            let why = xds.last_error.as_deref().unwrap_or("none has come yet");
            return Err(format!("waiting for configuration: {why}"));
        }
        if certificates.node().is_none() {
            return Err("waiting for the node's certificate".into());
        }
        if !capture.is_settled() {
            return Err("taking up pods of an earlier process".into());
        }
        Ok(())
    })
}

/// Shows when certificates expire.
async fn show_certificates(certificates: Certificates, metrics: Metrics) {
    let mut changes = certificates.changes();
    loop {
        changes.mark_unchanged();
        for status in certificates.status() {
            let label = IdentityLabel { identity: status.identity.to_string() };
            let seconds = status.not_after.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs());
            let family = &metrics.node().certificate_expiry;
            if status.wanted {
                family.get_or_create(&label).set(i64::try_from(seconds).unwrap_or(i64::MAX));
            } else {
                family.remove(&label);
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn stop_signal() -> Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
