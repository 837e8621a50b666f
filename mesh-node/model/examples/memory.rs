//! What 100,000 known pods cost in memory, what one change copies, and what a touched pod costs.
#![allow(
    unsafe_code,
    reason = "a counting allocator is the only honest way to measure"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use mesh_model::{
    mesh::{
        Change, Mesh, MtlsMode, Workload,
        workload::{Canonical, Locality, Membership},
    },
    testing::cast::*,
};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// What malloc takes for a request: a header of 8 bytes, steps of 16, at least 32.
fn chunk(size: usize) -> usize {
    ((size + 8).div_ceil(16) * 16).max(32)
}

// SAFETY: hands every call to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(chunk(layout.size()), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(chunk(layout.size()), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
    let empty = Mesh::empty();
    let before = HELD.load(Relaxed);
    let start = Instant::now();
    let changes = (0..PODS).flat_map(|n| {
        let w = nth(n);
        [
            Change::WorkloadExtra(w.uid.clone(), extra(MtlsMode::Permissive)),
            Change::Workload(w),
        ]
    });
    let (mesh, diff) = empty.apply(changes.chain([Change::Config(config()), Change::Complete]));
    let took = start.elapsed();
    assert_eq!((diff.workloads.len(), mesh.workload_count()), (PODS, PODS));
    drop(diff);
    let held = HELD.load(Relaxed) - before;
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

    let held = HELD.load(Relaxed);
    for n in 0..1_000 {
        black_box(mesh.workload_at(&"".into(), ip(&format!("10.0.{}.{}", n >> 8, n & 255))));
    }
    println!(
        "a pod that flows have touched: {} bytes more",
        (HELD.load(Relaxed) - held) / 1_000
    );
}
