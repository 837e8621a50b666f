//! The kernel programs against real sockets: two captured pods and a stranger on a bridge, each a network
//! namespace; this process plays the node proxy.
//!
//! Needs root and the compiled programs, and is not run where `WARREN_SKIP_ROOT_TESTS` says why; says so and
//! passes over otherwise. Runs its cases one after the
//! other, because they share the pods.

#![allow(unsafe_code)] // frames past the stack: pod.rs
#![allow(clippy::unwrap_used)] // a test without the harness is not recognised as one

mod cases;
mod chain;
mod direct;
mod dns;
mod flood;
mod foreign;
mod inbound;
mod lifecycle;
mod lines;
mod measure;
mod packets;
mod pairs;
mod pod;
mod world;

use std::time::Instant;

use mesh_loader::Tc;

type Case = (&'static str, fn(&mut world::World));

const CASES: &[Case] = &[
    (
        "captures IPv4 and gives the original destination",
        cases::capture_v4,
    ),
    (
        "writes lines when it was compiled to write them",
        lines::written,
    ),
    ("captures IPv6", cases::capture_v6),
    ("captures IPv4 from an IPv6 socket", cases::capture_mapped),
    ("captures Multipath TCP", cases::capture_mptcp),
    (
        "keeps what a client sent before it closed",
        cases::send_and_close,
    ),
    (
        "keeps what a client sent before it reset",
        cases::send_and_reset,
    ),
    ("sweeps what nobody asked for", cases::sweep),
    ("leaves loopback and the pod itself alone", cases::local),
    (
        "refuses with the reason's errno, until the epoch moves",
        cases::refuse,
    ),
    ("refuses when the proxy is silent", cases::stale),
    ("goes direct when the verdict says so", direct::direct),
    ("goes direct to a VIP's local endpoint", direct::vip),
    ("cuts a direct flow", direct::cut),
    ("steers inbound connections to the proxy", inbound::steer),
    (
        "protects the proxy's ports from outside",
        inbound::private_ports,
    ),
    ("lets kubelet probe declared ports only", inbound::probe),
    (
        "shows the application its real client",
        inbound::real_client,
    ),
    ("lets the proxy's own sockets out", inbound::own_socket),
    (
        "lets them out where the proxy is a pod itself",
        inbound::own_socket_below_the_pods,
    ),
    ("drops what leaves past the proxy", packets::guard),
    ("drops what speaks in a pod's name", packets::anchor),
    (
        "puts a detached anchor back, and nothing goes direct meanwhile",
        chain::detached,
    ),
    (
        "anchors a port of the bridge as soon as it is heard of",
        chain::announced,
    ),
    (
        "puts itself before whoever came before it",
        chain::displaced,
    ),
    ("leaves others their verdicts", chain::honours),
    (
        "protects a pod that is reached past its host veth",
        chain::past_the_veth,
    ),
    (
        "sees a VIP before a load balancer above does",
        chain::balancer,
    ),
    (
        "sees a VIP before a load balancer in the same cgroup does",
        chain::balancer_beside,
    ),
    ("anchors a port that nobody told of", chain::stranger_port),
    (
        "withdraws the direct path while a port cannot be anchored",
        chain::crowded,
    ),
    ("captures DNS of connected sockets", dns::connected),
    ("captures DNS of unconnected sockets", dns::unconnected),
    ("captures DNS over TCP", dns::tcp),
    ("leaves no entry behind", cases::no_leak),
    ("keeps a pod within its quota", cases::quota),
    (
        "refuses connects beyond a pod's quota, and nobody else's",
        flood::connects,
    ),
    (
        "remembers resolvers up to a pod's quota, and everybody else's",
        flood::resolvers,
    ),
    ("gives up what a full map cannot hold", flood::full),
    (
        "diverts a direct flow that would find no place",
        flood::diverts,
    ),
    ("says which map is full", flood::full_for_us),
    ("adopts what an earlier process pinned", lifecycle::adopt),
    ("withdraws a pod and enrols it again", lifecycle::withdraw),
    (
        "leaves in two steps, and captures again when it comes back",
        lifecycle::leave,
    ),
    (
        "replaces an older layout without a gap",
        lifecycle::replace_layout,
    ),
    ("says what is wrong with a pod", lifecycle::bad_pods),
    (
        "decides 10,000 random cases as the model does",
        pairs::agree,
    ),
];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("pod") {
        return pod::run(&args[2]);
    }
    if args.iter().any(|a| a == "--list") {
        for (name, _) in CASES {
            println!("{name}: test");
        }
        return;
    }
    if let Some(why) = world::cannot() {
        println!("kernel tests passed over: {why}");
        return;
    }
    let measuring = args.iter().any(|a| a == "--measure");
    let filter = args.iter().skip(1).find(|a| !a.starts_with('-'));
    let mut failed = 0;
    for tc in [Tc::Auto, Tc::Clsact] {
        let mut world = match world::World::build(tc) {
            Ok(world) => world,
            Err(e) => {
                eprintln!("the test world could not be built: {e:#}");
                std::process::exit(1);
            }
        };
        if measuring {
            return measure::run(&mut world);
        }
        failed += all(&mut world, filter);
        if world.dp().tc() == Tc::Clsact {
            break;
        }
    }
    if failed > 0 {
        eprintln!("{failed} kernel cases failed");
        std::process::exit(1);
    }
}

/// Runs the cases that `filter` leaves; says how many failed.
fn all(world: &mut world::World, filter: Option<&String>) -> usize {
    let by = match world.dp().tc() {
        Tc::Clsact => "clsact",
        Tc::Auto | Tc::Tcx => "tcx",
    };
    let mut failed = 0;
    for (name, case) in CASES
        .iter()
        .filter(|(n, _)| filter.is_none_or(|f| n.contains(f.as_str())))
    {
        let begin = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(world)));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!(
            "kernel ({by}): {name} ... {word} ({} ms)",
            begin.elapsed().as_millis()
        );
        if outcome.is_err() {
            failed += 1;
            println!("counters: {}", world.nonzero());
        }
    }
    failed
}
