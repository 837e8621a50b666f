//! What 100,000 known pods cost in memory, what one change copies, and what a touched pod costs.

use std::{fs, hint::black_box, time::Instant};

use mesh_model::{
    mesh::{
        Change, Mesh, MtlsMode, Workload,
        workload::{Canonical, Locality, Membership},
    },
    testing::cast::*,
};

/// Resident memory of this process, which only grows here.
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

const PODS: usize = 100_000;

/// As a big cluster has them: 20 pods to a deployment, 100 to a node, names as Kubernetes makes them.
fn nth(n: usize) -> Workload {
    let deployment = n / 20;
    let (namespace, app) = (
        format!("team-{}", deployment % 200),
        format!("service-{deployment}"),
    );
    let name = format!("{app}-7d4b9c6f5d-{:05x}", n * 7919 % 0xfffff);
    let mut w = pod(
        &namespace,
        &name,
        &format!("node-{}", n % 1_000),
        &format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255),
    );
    w.identity = identity(&namespace, &app);
    w.locality = Locality {
        region: "eu-west-1".into(),
        zone: format!("eu-west-1{}", ['a', 'b', 'c'][n % 1_000 % 3]).into(),
        subzone: "".into(),
    };
    w.canonical = Canonical {
        name: app.as_str().into(),
        revision: "v1".into(),
        workload_name: app.as_str().into(),
        workload_type: "deployment".into(),
    };
    w.services = Box::new([Membership {
        service: service_name(&namespace, &app),
        ports: Box::new([(80, 8080)]),
    }]);
    w
}

fn main() {
    let before = resident();
    let start = Instant::now();
    let mut mesh = Mesh::empty()
        .apply([Change::Config(config()), Change::Complete])
        .0;
    // In batches, as a stream of resources brings them.
    for first in (0..PODS).step_by(1_000) {
        let changes = (first..first + 1_000).flat_map(|n| {
            let w = nth(n);
            [
                Change::WorkloadExtra(w.uid.clone(), extra(MtlsMode::Permissive)),
                Change::Workload(w),
            ]
        });
        mesh = mesh.apply(changes).0;
    }
    let took = start.elapsed();
    assert_eq!(mesh.workload_count(), PODS);
    let held = resident() - before;
    println!(
        "{PODS} pods: {} bytes per pod, {:.1} MB, built in {took:?}",
        held / PODS,
        held as f64 / 1e6
    );

    let mut times = Vec::new();
    for n in 0..200 {
        let mut w = nth(n * 499);
        w.healthy = false;
        let start = Instant::now();
        black_box(mesh.apply([Change::Workload(w)]));
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!(
        "one pod changes: p50 {:?}, p99 {:?}",
        times[100], times[197]
    );

    let held = resident();
    assert_eq!(black_box(mesh.workloads().count()), PODS);
    println!(
        "a pod that flows have touched: {} bytes more",
        (resident() - held) / PODS
    );
}
