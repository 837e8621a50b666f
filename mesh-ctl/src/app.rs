//! Wires the controller together: objects are watched, translated and published, certificates are signed.
//!
//! Invariants: every task has an owner, and when one that matters ends the controller ends; who runs where is known
//! to the CA before nodes are told of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use mesh_api::{
    auth::istio_certificate_service_server::IstioCertificateServiceServer,
    discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    warren::replicas_server::ReplicasServer,
};
use mesh_model::{
    mesh::Change,
    name::{Identity, NodeName, TrustDomain},
};
use mesh_translate::Key;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tracing::{debug, error, info, warn};

use crate::{
    admin::{self, Admin},
    ca::{
        self, Answers, Authority, CertificateService, Given, Hosted, MemberTokens, Policy,
        Replicas, Reviews, Rotation, SecretStore, Waypoint, bundle,
    },
    leader::Candidate,
    listen::{self, Clients, Conn, Credentials, Names},
    monitor::{self, Metrics},
    provision,
    publish::{self, Handle},
    status::{self, Statuses},
    taint,
    token::JoinKey,
    view::{Refresh, View},
    watch::{Cluster, Delta, Manifests, Objects, Source},
    webhook::{self, Reviewer},
};

/// The largest request of a subscriber: versions of everything that it holds.
const MAX_SUBSCRIPTION: usize = 64 * 1024 * 1024;
/// The largest request for a certificate.
const MAX_CERTIFICATE_REQUEST: usize = 64 * 1024;
/// A connection that does not answer pings this long is closed.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));

/// The service account of node agents, in the controller's namespace.
const NODE_ACCOUNT: &str = "warren-node";
/// Statuses are written at most this often.
const GATHER_STATUSES: Duration = Duration::from_millis(200);

/// What to run.
pub struct Options {
    /// Where objects are read from.
    pub from: Input,
    /// Where keys are kept.
    pub state: PathBuf,
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// Where metrics and health are.
    pub monitor: SocketAddr,
    /// Where the webhook is, when objects are read from a cluster.
    pub webhook: SocketAddr,
    /// What the controller is called.
    pub names: Names,
    /// Whose identities are signed.
    pub trust_domain: TrustDomain,
    /// How long certificates live.
    pub leaf_ttl: Duration,
    /// The CA to begin with.
    pub given: Option<Given>,
    /// Whether the leader takes the taint of nodes that are not ready off those that are.
    pub taint: bool,
}

/// Where objects are read from.
pub enum Input {
    /// A folder of manifests.
    Manifests(PathBuf),
    /// A cluster's API.
    Cluster(kube::Client),
}

type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

/// A controller that runs until this is dropped.
pub struct Running {
    /// Where nodes connect.
    pub address: SocketAddr,
    /// Where metrics and health are.
    pub monitor: SocketAddr,
    /// Where the webhook is.
    pub webhook: Option<SocketAddr>,
    tasks: Tasks,
    _lock: nix::fcntl::Flock<std::fs::File>,
}

/// Runs until a signal or a failure.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Running { tasks, _lock, .. } = start(options).await?;
    until_stopped(tasks).await
}

/// Starts a controller; it listens when this returns.
pub async fn start(options: Options) -> anyhow::Result<Running> {
    let Options {
        from,
        state,
        listen,
        monitor,
        webhook,
        names,
        trust_domain,
        leaf_ttl,
        given,
        taint,
    } = options;
    let _lock = ca::lock(&state)?;
    let source = match &from {
        Input::Manifests(folder) => Objects::Manifests(Box::new(Manifests::new(folder)?)),
        Input::Cluster(client) => Objects::Cluster(Cluster::new(client)),
    };
    let authority = Arc::new(match &from {
        Input::Manifests(_) => Authority::open(&state, given, trust_domain)?,
        Input::Cluster(client) => {
            let secret = SecretStore::new(client.clone(), client.default_namespace());
            Authority::open_in(secret, &state, given, trust_domain).await?
        }
    });
    let metrics = Arc::new(Metrics::default());
    let mut tasks = JoinSet::new();
    let (said, keep) = watch::channel(Statuses::default());
    let (wanted, to_make) = watch::channel(None);
    let (troubles, trouble) = watch::channel(provision::Troubles::new());
    let view: Arc<RwLock<View>> = Arc::default();
    let webhook = match &from {
        Input::Manifests(_) => {
            let keeping = provision::keep_file(to_make, state.join("waypoints.json"));
            tasks.spawn(named("keeping the list of waypoints", keeping));
            None
        }
        Input::Cluster(client) => {
            let making = (to_make, troubles);
            let signing = (&authority, leaf_ttl);
            lead(client, signing, &keep, &view, making, taint, &mut tasks)?;
            let clients = Clients::ApiServer;
            let (address, incoming) =
                secured(webhook, &authority, &names, clients, &mut tasks).await?;
            let reviewer = Arc::new(Reviewer::new(view.clone(), metrics.clone()));
            let serving = webhook::serve(incoming, reviewer);
            tasks.spawn(named("the webhook", serving));
            Some(address)
        }
    };

    let (handle, discovery, publishing) = publish::publisher(metrics.clone());
    tasks.spawn(named("publishing", publishing));
    tasks.spawn(named(
        "following the roots",
        follow_roots(authority.clone(), handle.clone()),
    ));

    let placed = Arc::new(Placed {
        nodes: RwLock::default(),
        view: view.clone(),
    });
    let policy = Policy {
        leaf_ttl,
        ..Policy::default()
    };
    let tokens = match &from {
        Input::Manifests(_) => MemberTokens::Join(JoinKey::open(&state)?),
        Input::Cluster(client) => {
            let account = (client.default_namespace(), NODE_ACCOUNT);
            MemberTokens::Review(Box::new(Reviews::new(client.clone(), account)))
        }
    };
    let certificates = CertificateService::new(
        authority.clone(),
        placed.clone(),
        tokens,
        policy,
        metrics.clone(),
    );

    let (address, incoming) =
        secured(listen, &authority, &names, Clients::Nodes, &mut tasks).await?;
    let server = Server::builder()
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
        .add_service(
            AggregatedDiscoveryServiceServer::new(discovery)
                .max_decoding_message_size(MAX_SUBSCRIPTION),
        )
        .add_service(
            IstioCertificateServiceServer::new(certificates)
                .max_decoding_message_size(MAX_CERTIFICATE_REQUEST),
        )
        .add_service(ReplicasServer::new(Answers(authority.clone())));
    tasks.spawn(async move {
        (
            "serving nodes",
            server
                .serve_with_incoming(incoming)
                .await
                .map_err(Into::into),
        )
    });

    let socket = TcpListener::bind(monitor)
        .await
        .with_context(|| format!("listening on {monitor}"))?;
    let monitor = socket.local_addr()?;
    let looking = monitor::look_for_istio(view.clone(), metrics.clone());
    tasks.spawn(named("looking for Istio", looking));
    tasks.spawn(named("monitoring", monitor::serve(socket, metrics)));
    tasks.spawn(named(
        "keeping statuses",
        keep_statuses(keep, state.join("statuses.json")),
    ));
    let replicas = match from {
        Input::Manifests(_) => None,
        Input::Cluster(client) => Some(Replicas {
            namespace: client.default_namespace().to_owned(),
            port: address.port(),
            view: view.clone(),
        }),
    };
    let rotation = Rotation {
        authority: authority.clone(),
        hosted: placed.clone(),
        replicas,
    };
    let followers = Followers {
        handle: handle.clone(),
        placed,
        domain: authority.domain().clone(),
        said,
        wanted,
        trouble,
        view,
    };
    let admin = Arc::new(Admin {
        authority,
        leaf_ttl,
        running: Some((handle, rotation)),
    });
    tasks.spawn(named(
        "the admin socket",
        admin::serve(admin::listen(&state)?, admin),
    ));
    tasks.spawn(async move { ("reading objects", translating(source, followers).await) });

    info!(%address, %monitor, "the controller serves xDS and certificates");
    Ok(Running {
        address,
        monitor,
        webhook,
        tasks,
        _lock,
    })
}

/// A TLS listener whose certificate stays fresh: where it listens, and who comes.
async fn secured(
    listen: SocketAddr,
    authority: &Arc<Authority>,
    names: &Names,
    clients: Clients,
    tasks: &mut Tasks,
) -> anyhow::Result<(SocketAddr, ReceiverStream<io::Result<Conn>>)> {
    let now = SystemTime::now();
    let credentials = Credentials::issue(authority, names, clients, now)
        .context("making the controller's certificate")?;
    let config = Arc::new(ArcSwap::new(credentials.config));
    let renewing = listen::keep_fresh(
        authority.clone(),
        names.clone(),
        clients,
        now,
        config.clone(),
    );
    tasks.spawn(named("renewing a certificate", renewing));
    let socket = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}"))?;
    let address = socket.local_addr()?;
    let incoming = listen::accept(socket, config, authority.domain().clone());
    Ok((address, incoming))
}

/// Stands for the lease, and starts what only the leader writes.
fn lead(
    client: &kube::Client,
    (authority, leaf_ttl): (&Arc<Authority>, Duration),
    said: &watch::Receiver<Statuses>,
    view: &Arc<RwLock<View>>,
    (wanted, troubles): (
        watch::Receiver<provision::List>,
        watch::Sender<provision::Troubles>,
    ),
    taint: bool,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let namespace = client.default_namespace().to_owned();
    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let me = format!("{host}_{:08x}", fastrand::u32(..));
    let (candidate, leads) = Candidate::new(client.clone(), &namespace, me.clone());
    tasks.spawn(named("standing for the lease", candidate.run()));
    let writing = status::cluster::keep(client.clone(), me, said.clone(), leads.clone());
    tasks.spawn(named("writing statuses to the cluster", writing));
    let keeping = webhook::keep(
        client.clone(),
        namespace.clone(),
        authority.clone(),
        view.clone(),
        leads.clone(),
    );
    tasks.spawn(named("keeping the webhook's configuration", keeping));
    let making = provision::keep(
        client.clone(),
        authority.clone(),
        view.clone(),
        wanted,
        leads.clone(),
        troubles,
    );
    tasks.spawn(named("making waypoints", making));
    if taint {
        let freeing = taint::keep(client.clone(), namespace.clone(), leads.clone());
        tasks.spawn(named("freeing nodes that are ready", freeing));
    }
    let keeping = bundle::keep(
        authority.clone(),
        leaf_ttl,
        client.clone(),
        namespace,
        leads,
    );
    tasks.spawn(named("keeping the roots in the cluster", keeping));
    Ok(())
}

async fn named(
    name: &'static str,
    task: impl Future<Output = ()>,
) -> (&'static str, anyhow::Result<()>) {
    task.await;
    (name, Ok(()))
}

/// Ends with a signal, or with the first task that ends: none is meant to.
async fn until_stopped(mut tasks: Tasks) -> anyhow::Result<()> {
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        ended = tasks.join_next() => ended,
    };
    match ended {
        None => {
            info!("the controller stops; nodes go on with what they have");
            Ok(())
        }
        Some(Ok((name, Ok(())))) => anyhow::bail!("{name} ended unexpectedly"),
        Some(Ok((name, Err(e)))) => Err(e.context(format!("{name} failed"))),
        Some(Err(panic)) => Err(panic.into()),
    }
}

/// Tells nodes which roots to trust, now and after each step of a rotation.
async fn follow_roots(authority: Arc<Authority>, handle: Handle) {
    let mut kept = authority.watch();
    loop {
        let roots: Vec<String> = kept
            .borrow_and_update()
            .roots()
            .into_iter()
            .map(str::to_owned)
            .collect();
        handle.set_roots(&roots);
        if kept.changed().await.is_err() {
            return;
        }
    }
}

/// Which identities have pods on which node, as last translated.
struct Placed {
    nodes: RwLock<BTreeMap<NodeName, BTreeSet<Identity>>>,
    /// The objects, for waypoints: their pods are not enrolled.
    view: Arc<RwLock<View>>,
}

impl Placed {
    /// Replaces what is known of these nodes.
    fn update(&self, nodes: BTreeMap<NodeName, BTreeSet<Identity>>) {
        let mut all = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        for (node, identities) in nodes {
            if identities.is_empty() {
                all.remove(&node);
            } else {
                all.insert(node, identities);
            }
        }
    }
}

impl Hosted for Placed {
    fn hosts(&self, node: &NodeName, identity: &Identity) -> bool {
        let all = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        all.get(node)
            .is_some_and(|identities| identities.contains(identity))
    }

    fn is_waypoint(&self, waypoint: &Waypoint) -> bool {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let key = Key::new(waypoint.namespace.as_str(), &waypoint.pod);
        view.cluster().pods.get(&key).is_some_and(|entry| {
            let pod = &*entry.object;
            pod.spec.account() == waypoint.account.as_str()
                && pod.metadata.labels.contains_key(ca::GATEWAY)
        })
    }

    fn is_node(&self, node: &NodeName) -> bool {
        let hosted = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        if hosted.contains_key(node) {
            return true;
        }
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let key = Key::new("", node.as_str());
        view.cluster().nodes.contains_key(&key)
    }

    fn is_gone(&self, node: &NodeName) -> bool {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let any = !view.cluster().nodes.is_empty();
        drop(view);
        any && !self.is_node(node)
    }

    fn all(&self) -> Vec<(NodeName, Identity)> {
        let hosted = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let of = |(node, all): (&NodeName, &BTreeSet<Identity>)| {
            let node = node.clone();
            all.clone().into_iter().map(move |i| (node.clone(), i))
        };
        hosted.iter().flat_map(of).collect()
    }
}

/// What follows a translation.
struct Followers {
    handle: Handle,
    placed: Arc<Placed>,
    domain: TrustDomain,
    /// What is to be said, for the task that keeps it where `mesh-ctl` and people find it.
    said: watch::Sender<Statuses>,
    /// The waypoints to be made, for the task that makes them.
    wanted: watch::Sender<provision::List>,
    /// Which of them cannot be made, and why.
    trouble: watch::Receiver<provision::Troubles>,
    /// What is known, for all who look at it.
    view: Arc<RwLock<View>>,
}

/// Takes what the source tells, translates it, and publishes what changed. The source has a loop of its own: what it
/// has begun to read must not be dropped because something else happened.
async fn translating(mut source: impl Source, followers: Followers) -> anyhow::Result<()> {
    let (batches, queue) = mpsc::channel(1);
    let reading = async {
        loop {
            batches
                .send(source.next().await?)
                .await
                .context("nobody takes what was read")?;
        }
    };
    tokio::select! {
        end = reading => end,
        end = following(queue, followers) => end,
    }
}

async fn following(
    mut queue: mpsc::Receiver<Vec<Delta>>,
    mut followers: Followers,
) -> anyhow::Result<()> {
    let mut refusals = followers.handle.watch_refusals();
    let mut outside = followers.handle.watch_outside();
    loop {
        tokio::select! {
            deltas = queue.recv() => {
                let deltas = deltas.context("the source is gone")?;
                let view = followers.view.clone();
                let refresh = tokio::task::spawn_blocking(move || {
                    let mut view = view.write().unwrap_or_else(PoisonError::into_inner);
                    view.apply(deltas);
                    view.refresh()
                })
                .await
                .context("translating objects")?;
                if let Some(refresh) = refresh {
                    followers.publish(refresh);
                }
            }
            changed = refusals.changed() => changed.context("the publisher is gone")?,
            changed = outside.changed() => changed.context("the publisher is gone")?,
            // Where nobody makes waypoints, there is none to hear of.
            Ok(()) = followers.trouble.changed() => {}
        }
        let refused = followers.handle.refusals();
        let refused = refused
            .iter()
            .map(|r| (r.node.as_str(), &*r.name, r.message.as_str()));
        let troubles = followers.trouble.borrow_and_update().clone();
        let not_served = followers.handle.outside();
        followers.said.send_if_modified(|statuses| {
            let refused = statuses.refused(refused);
            let outside = statuses.outside(&not_served);
            statuses.not_made(troubles) || refused || outside
        });
    }
}

/// Keeps statuses in a file, beside everything else: the next change does not wait for the disk.
async fn keep_statuses(mut said: watch::Receiver<Statuses>, path: PathBuf) {
    while said.changed().await.is_ok() {
        let all = said.borrow_and_update().all();
        let file = path.clone();
        let written = tokio::task::spawn_blocking(move || status::write(&all, &file)).await;
        if let Ok(Err(error)) = written {
            warn!(%error, file = %path.display(), "statuses could not be written");
        }
        tokio::time::sleep(GATHER_STATUSES).await;
    }
}

impl Followers {
    fn publish(&self, refresh: Refresh) {
        let Refresh {
            changes,
            statuses,
            hosted,
            waypoints,
            translated,
            took,
        } = refresh;
        debug!(changes = changes.len(), translated, ?took, "translated");
        let wrong = changes.iter().find_map(|c| match c {
            Change::Config(config) if config.trust_domain != self.domain => {
                Some(&config.trust_domain)
            }
            _ => None,
        });
        if let Some(wanted) = wrong {
            error!(%wanted, signed = %self.domain, "the MeshConfig names another trust domain than --trust-domain; nothing will be signed for it");
        }
        self.placed.update(hosted);
        self.handle.apply(changes);
        if let Some(waypoints) = waypoints {
            self.wanted.send_replace(Some(waypoints.into()));
        }
        self.said.send_if_modified(|said| {
            let told = said.translated(statuses);
            for warning in told.new {
                warn!("{warning}");
            }
            for settled in told.settled {
                info!("settled: {settled}");
            }
            told.changed
        });
    }
}
