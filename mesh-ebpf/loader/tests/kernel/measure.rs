//! Not a test: what the programs cost. `cargo test -p mesh-loader --test kernel -- --measure`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_loader::Outcome;

use crate::world::World;

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const CONNECTIONS: u32 = 5_000;

/// Prints the time of a connection on each path, and nanoseconds per run of each program.
pub fn run(w: &mut World) {
    let to = SocketAddr::new(w.b.v4, 8600);
    let l = w.b.app.must(&format!("listen {to}")).id;
    w.b.app.must(&format!("sink {l}"));
    let cookie = w.a.info.as_ref().unwrap().cookie;
    let dp = w.dp();
    dp.set_verdict(cookie, to, Outcome::Direct, dp.epoch(to.ip()), None)
        .unwrap();
    for (path, to) in [("captured", SocketAddr::new(w.b.v4, 8601)), ("direct", to)] {
        for counted in [false, true] {
            fs::write(STATS, if counted { "1" } else { "0" }).unwrap();
            let before = programs();
            let ns = churn(w, to);
            println!(
                "{path}, statistics {}: {ns} ns a connection",
                if counted { "on" } else { "off" }
            );
            for (name, (runs, time)) in programs() {
                let (r0, t0) = before.get(&name).copied().unwrap_or_default();
                if runs > r0 {
                    println!(
                        "  {name}: {:.1} runs a connection, {} ns each",
                        (runs - r0) as f64 / f64::from(CONNECTIONS),
                        (time - t0) / (runs - r0)
                    );
                }
            }
        }
    }
    fs::write(STATS, "0").unwrap();
}

fn churn(w: &mut World, to: SocketAddr) -> String {
    let stop = AtomicBool::new(false);
    let outbound: Vec<_> =
        w.a.outbound
            .iter()
            .map(|l| l.try_clone().unwrap())
            .collect();
    let (app, dp) = (&mut w.a.app, w.dp.as_ref().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for l in &outbound {
                    while let Ok((stream, peer)) = l.accept() {
                        dp.take_original(peer, stream.local_addr().unwrap())
                            .unwrap();
                    }
                }
                std::thread::yield_now();
            }
        });
        let said = app.ask(&format!("churn {to} {CONNECTIONS}"));
        stop.store(true, Ordering::Relaxed);
        said.unwrap().words[0].clone()
    })
}

/// Runs and nanoseconds of each program.
fn programs() -> BTreeMap<String, (u64, u64)> {
    mesh_loader::statistics()
        .unwrap()
        .into_iter()
        .map(|s| (s.0, (s.1, s.2)))
        .collect()
}
