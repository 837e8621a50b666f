//! How fast a change reaches nodes: a whole controller over files and mutual TLS, one subscriber that keeps a snapshot
//! as a node does, and more that only take and acknowledge. Prints a table.
//!
//! `cargo run --release -p mesh-ctl --example change_latency -- --pods 10000 --services 1000 --nodes 100`

#[path = "change_latency/cluster.rs"]
mod cluster;
#[path = "../tests/world/mod.rs"]
mod world;

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use mesh_api::{
    delta::Client,
    discovery::DeltaDiscoveryRequest,
    resource::{COMPLETE, Kind},
};
use mesh_model::mesh::{Change, Mesh, policy::Policy};
use tokio::task::JoinSet;
use world::{Node, World};

use cluster::{Cluster, Edit};

#[derive(Parser, Clone)]
struct Args {
    /// Pods in the cluster.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Services, each with an equal share of the pods, a slice and a policy.
    #[arg(long, default_value_t = 1_000)]
    services: usize,
    /// Subscribers.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Changes that are made.
    #[arg(long, default_value_t = 1_000)]
    changes: usize,
    /// Changes per second.
    #[arg(long, default_value_t = 100)]
    rate: usize,
}

/// When each change was made, by its number.
type Made = Arc<Mutex<HashMap<usize, Instant>>>;

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let cluster = Cluster {
        pods: args.pods,
        services: args.services,
        nodes: args.nodes,
    };
    let mut table = Table::default();
    let before = resident();
    let start = Instant::now();
    let world = world::world("").await;
    cluster.write(world.manifests.path());
    let objects = args.pods + 3 * args.services;
    table.row(
        "objects",
        &format!(
            "{} pods, {} services, slices and policies each",
            args.pods, args.services
        ),
    );

    let credential = world.join("n0").await;
    let mut first = subscribe(&world, &credential, Client::new("n0", "Kubernetes")).await;
    let mut mesh = Mesh::empty();
    while !(first.client.is_complete()
        && first.client.held_count(Kind::Authorization) == args.services)
    {
        take(&mut first, &mut mesh).await;
    }
    table.row(
        "files to the first node, from nothing",
        &ms(start.elapsed()),
    );
    let with_all = resident();
    table.row(
        "memory of the controller and one node",
        &format!(
            "{:.1} MB, {} B an object",
            mb(with_all - before),
            (with_all - before) / objects
        ),
    );
    drop(first);

    let (mut back, mut mesh) = one(&world, &credential, &mut table).await;
    let alone = change(&args, 0, &world, &cluster, &mut back, &mut mesh).await;
    report(&args, "one node", &alone, &mut table);
    let messages = many(&args, &world, &mut table).await;
    let together = change(&args, args.changes, &world, &cluster, &mut back, &mut mesh).await;
    report(
        &args,
        &format!("{} nodes", args.nodes),
        &together,
        &mut table,
    );
    let sent = messages.load(Ordering::Relaxed);
    table.row("messages to the other nodes", &sent.to_string());
    table.print();
}

/// The whole again, to a node that knows nothing, and to one that knows everything.
async fn one(world: &World, credential: &world::Credential, table: &mut Table) -> (Node, Mesh) {
    let begin = Instant::now();
    let mut second = subscribe(world, credential, Client::new("n0", "Kubernetes")).await;
    let mut mesh = Mesh::empty();
    while !second.client.is_complete() {
        take(&mut second, &mut mesh).await;
    }
    let seen = format!("{}, {:.2} MB", ms(begin.elapsed()), mb(second.received));
    table.row("full synchronisation of one node", &seen);
    let begin = Instant::now();
    let mut back = subscribe(world, credential, second.client).await;
    back.until("the end of the list", |n| n.client.is_complete())
        .await;
    let seen = format!(
        "{}, {} B asked, {} B answered, {} resources",
        ms(begin.elapsed()),
        back.sent,
        back.received,
        back.updates.len()
    );
    table.row("reconnect when nothing changed", &seen);
    (back, mesh)
}

/// Many more subscribers; they share this machine, so they only take and acknowledge.
async fn many(args: &Args, world: &World, table: &mut Table) -> Arc<AtomicUsize> {
    let messages = Arc::new(AtomicUsize::new(0));
    let mut channels = Vec::new();
    for n in 1..args.nodes {
        let credential = world.join(&format!("n{n}")).await;
        channels.push(world.channel(Some(&credential)).await);
    }
    let begin = Instant::now();
    let mut ready = JoinSet::new();
    for channel in channels {
        let (told, synced) = tokio::sync::oneshot::channel();
        tokio::spawn(follow(channel, told, messages.clone()));
        ready.spawn(async move { synced.await.expect("a subscriber ended") });
    }
    while let Some(end) = ready.join_next().await {
        end.expect("no panic");
    }
    let what = format!("full synchronisation of {} more nodes", args.nodes - 1);
    table.row(&what, &ms(begin.elapsed()));
    messages
}

fn report(args: &Args, to: &str, latencies: &[(Edit, Duration)], table: &mut Table) {
    let what = format!("{} changes at {}/s to {to}", args.changes, args.rate);
    table.row(&what, &quantiles(latencies));
    for kind in [Edit::Pod, Edit::Policy, Edit::Service] {
        let own = latencies.iter().filter(|(edit, _)| *edit == kind);
        let own: Vec<_> = own.copied().collect();
        table.row(&format!("  {kind:?}"), &quantiles(&own));
    }
}

async fn subscribe(world: &World, credential: &world::Credential, client: Client) -> Node {
    Node::subscribe(world, Some(credential), client)
        .await
        .expect("may subscribe")
}

/// Takes a response into a snapshot, and gives what it said.
async fn take(node: &mut Node, mesh: &mut Mesh) -> Vec<Change> {
    let received = node.next().await.expect("the stream goes on");
    assert!(received.rejected.is_empty(), "{:?}", received.rejected);
    let said = received.changes.clone();
    (*mesh, _) = mesh.apply(received.changes);
    said
}

/// A subscriber that takes and acknowledges.
async fn follow(
    channel: tonic::transport::Channel,
    told: tokio::sync::oneshot::Sender<()>,
    messages: Arc<AtomicUsize>,
) {
    let mut node = Node::over(channel, Client::new("n", "Kubernetes"))
        .await
        .expect("may subscribe");
    let (mut told, mut markers) = (Some(told), 0);
    while let Ok(Some(response)) = node.responses.message().await {
        messages.fetch_add(1, Ordering::Relaxed);
        let marker = response
            .resources
            .last()
            .is_some_and(|r| r.name == COMPLETE);
        markers += usize::from(marker);
        let reply = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        };
        if node.requests.send(reply).await.is_err() {
            return;
        }
        if markers == Kind::NODE.len()
            && let Some(told) = told.take()
        {
            told.send(()).expect("somebody waits");
        }
    }
}

/// Makes changes at the wanted rate, and measures until each is in the snapshot.
async fn change(
    args: &Args,
    before: usize,
    world: &World,
    cluster: &Cluster,
    node: &mut Node,
    mesh: &mut Mesh,
) -> Vec<(Edit, Duration)> {
    let made: Made = Arc::default();
    let maker = {
        let (made, cluster, args) = (made.clone(), cluster.clone(), args.clone());
        let folder = world.manifests.path().to_owned();
        std::thread::spawn(move || {
            let begin = Instant::now();
            for i in 1..=args.changes {
                let n = before + i;
                let at = begin + Duration::from_secs_f64(i as f64 / args.rate as f64);
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                let (file, text) = cluster.edit(n);
                let aside = folder.join(format!(".{file}.new"));
                fs::write(&aside, text).expect("written");
                made.lock().expect("not poisoned").insert(n, Instant::now());
                fs::rename(&aside, folder.join(file)).expect("renamed");
            }
        })
    };
    let mut latencies = Vec::new();
    while latencies.len() < args.changes {
        let said = tokio::time::timeout(Duration::from_secs(30), take(node, mesh)).await;
        let Ok(said) = said else {
            println!(
                "{} changes were never seen on their own: later ones overtook them",
                args.changes - latencies.len()
            );
            break;
        };
        let now = Instant::now();
        for n in said.iter().filter_map(number) {
            if let Some(at) = made.lock().expect("not poisoned").remove(&n) {
                latencies.push((Edit::of(n), now - at));
            }
        }
    }
    maker.join().expect("no panic");
    latencies
}

/// The number of the change that made a resource what it is.
fn number(change: &Change) -> Option<usize> {
    match change {
        Change::Workload(w) => w.canonical.revision.strip_prefix('v')?.parse().ok(),
        Change::Policy(Policy { rules, .. }) => {
            let network = rules
                .first()?
                .clauses
                .first()?
                .matches
                .first()?
                .source_ips
                .first()?;
            match network.addr() {
                std::net::IpAddr::V4(ip) => usize::try_from(u32::from(ip) & 0x00ff_ffff).ok(),
                std::net::IpAddr::V6(_) => None,
            }
        }
        Change::Service(s) => s
            .ports
            .iter()
            .find(|p| p.port == 81)
            .map(|p| usize::from(p.target_port)),
        _ => None,
    }
}

fn quantiles(latencies: &[(Edit, Duration)]) -> String {
    let mut all: Vec<Duration> = latencies.iter().map(|(_, took)| *took).collect();
    all.sort_unstable();
    let at = |share: f64| {
        all.get(((all.len() as f64 * share) as usize).min(all.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    format!(
        "{} seen, p50 {}, p90 {}, p99 {}, most {}",
        all.len(),
        ms(at(0.5)),
        ms(at(0.9)),
        ms(at(0.99)),
        ms(at(1.0))
    )
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Resident memory of this process.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .expect("a line of every process");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .expect("a number")
        * 1024
}

#[derive(Default)]
struct Table(Vec<(String, String)>);

impl Table {
    fn row(&mut self, what: &str, seen: &str) {
        println!("{what}: {seen}");
        self.0.push((what.to_owned(), seen.to_owned()));
    }

    fn print(&self) {
        let width = self
            .0
            .iter()
            .map(|(what, _)| what.len())
            .max()
            .unwrap_or_default();
        println!();
        for (what, seen) in &self.0 {
            println!("| {what:width$} | {seen} |");
        }
    }
}
