//! The kernel programs against real sockets: two captured pods and a stranger on a bridge, each a network
//! namespace; this process plays the node proxy.
//!
//! Needs root and the compiled programs; says so and passes over otherwise. Runs its cases one after the
//! other, because they share the pods.

#![allow(unsafe_code)] // frames past the stack: pod.rs
#![allow(clippy::unwrap_used)] // a test without the harness is not recognised as one

mod cases;
mod direct;
mod dns;
mod inbound;
mod lifecycle;
mod measure;
mod packets;
mod pod;
mod world;

use std::time::Instant;

type Case = (&'static str, fn(&mut world::World));

const CASES: &[Case] = &[
    (
        "captures IPv4 and gives the original destination",
        cases::capture_v4,
    ),
    ("captures IPv6", cases::capture_v6),
    ("captures IPv4 from an IPv6 socket", cases::capture_mapped),
    ("captures Multipath TCP", cases::capture_mptcp),
    (
        "keeps what a client sent before it closed",
        cases::send_and_close,
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
    ("drops what leaves past the proxy", packets::guard),
    ("drops what speaks in a pod's name", packets::anchor),
    ("captures DNS of connected sockets", dns::connected),
    ("captures DNS of unconnected sockets", dns::unconnected),
    ("captures DNS over TCP", dns::tcp),
    ("leaves no entry behind", cases::no_leak),
    ("keeps a pod within its quota", cases::quota),
    ("adopts what an earlier process pinned", lifecycle::adopt),
    ("withdraws a pod and enrols it again", lifecycle::withdraw),
    (
        "replaces an older layout without a gap",
        lifecycle::replace_layout,
    ),
    ("says what is wrong with a pod", lifecycle::bad_pods),
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
    let mut world = match world::World::build() {
        Ok(world) => world,
        Err(e) => {
            eprintln!("the test world could not be built: {e:#}");
            std::process::exit(1);
        }
    };
    if measuring {
        return measure::run(&mut world);
    }
    let mut failed = 0;
    for (name, case) in CASES
        .iter()
        .filter(|(n, _)| filter.is_none_or(|f| n.contains(f.as_str())))
    {
        let begin = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&mut world)));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!(
            "kernel: {name} ... {word} ({} ms)",
            begin.elapsed().as_millis()
        );
        if outcome.is_err() {
            failed += 1;
            println!("counters: {}", world.nonzero());
        }
    }
    drop(world);
    if failed > 0 {
        eprintln!("{failed} kernel cases failed");
        std::process::exit(1);
    }
}
