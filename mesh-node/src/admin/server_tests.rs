//! The admin socket, and the metrics port beside it, through real sockets.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    accept::Listeners,
    admin::client::{call, ready},
    capture::{
        Capture, CaptureParts, Enroller, FakeDatapath, Finder, KernelMetrics, Refiller, SavedPods,
    },
    dns::DnsHandle,
    lifecycle::{Phase, Readiness},
    observe::{Metrics, MetricsServer},
    state::EnrolledNamespaces,
};

struct World {
    dir: std::path::PathBuf,
    lifecycle: Lifecycle,
    asked: Arc<AtomicBool>,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn world(name: &str) -> (World, AdminParts) {
    let dir = std::env::temp_dir().join(format!("w-edges-admin-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (metrics, state, kernel) = (
        Metrics::new(),
        MeshState::new(),
        Arc::new(FakeDatapath::default()),
    );
    let late = metrics.node().sockets_made_late.clone();
    let (capture, task) = Capture::new(CaptureParts {
        cluster: "Kubernetes".into(),
        state: state.clone(),
        namespaces: EnrolledNamespaces::open(&dir),
        home: None,
        enroller: Enroller {
            kernel: kernel.clone(),
            datapath: kernel,
            refill: Refiller::start().unwrap(),
            late,
        },
        listeners: Listeners::new(0).0,
        dns: DnsHandle::new().0,
        saved: SavedPods::open(&dir).unwrap(),
        finder: Finder::default(),
        metrics: metrics.clone(),
    });
    tokio::spawn(task.run());
    let lifecycle = Lifecycle::default();
    let asked = Arc::new(AtomicBool::new(false));
    let seen = asked.clone();
    let parts = AdminParts {
        state,
        capture: Some(capture),
        log: None,
        observer: Observer::silent(),
        lifecycle: lifecycle.clone(),
        drain: Duration::from_secs(5),
        ready: Readiness::default().as_check(),
        config: json!({"nodeName": "n1"}),
        certificates: Arc::new(move || {
            seen.store(true, SeqCst);
            json!([{"identity": "spiffe://cluster.local/ns/shop/sa/web"}])
        }),
        guards: Arc::new(|| json!({"direct": true})),
        cni: None,
        sessions: Arc::new(|| json!({"flows": []})),
    };
    (
        World {
            dir,
            lifecycle,
            asked,
        },
        parts,
    )
}

#[tokio::test]
async fn root_sees_everything_and_changes_it_by_post_only() {
    let (world, parts) = world("root");
    let path = world.dir.join("admin.sock");
    let uid = nix::unistd::geteuid().as_raw();
    tokio::spawn(AdminServer::bind(&path, uid, parts).unwrap().run());
    let (status, dump) = call(&path, Method::GET, "/config_dump").await.unwrap();
    let dump: Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(status, 200);
    for key in ["workloads", "services", "policies", "certificates", "pods"] {
        assert!(dump[key].is_array(), "{key} is missing: {dump}");
    }
    assert_eq!(
        (&dump["config"]["nodeName"], &dump["version"]["complete"]),
        (&json!("n1"), &json!(false))
    );
    assert_eq!(call(&path, Method::GET, "/drain").await.unwrap().0, 405);
    assert_eq!(
        world.lifecycle.phase(),
        Phase::Serving,
        "a GET changed something"
    );
    assert_eq!(call(&path, Method::GET, "/nowhere").await.unwrap().0, 404);
    assert_eq!(
        call(&path, Method::POST, "/logging?volume=11")
            .await
            .unwrap()
            .0,
        400
    );
    assert_eq!(
        call(&path, Method::POST, "/logging?access=off")
            .await
            .unwrap()
            .0,
        200
    );
    assert_eq!(call(&path, Method::GET, "/sessions").await.unwrap().0, 200);
    assert_eq!(call(&path, Method::POST, "/drain").await.unwrap().0, 200);
    assert!(matches!(
        world.lifecycle.phase(),
        Phase::Draining {
            ending: Ending::Stop,
            ..
        }
    ));
    assert_eq!(call(&path, Method::POST, "/drain").await.unwrap().0, 409);
}

#[tokio::test]
async fn a_probe_hears_what_the_process_waits_for() {
    let (world, mut parts) = world("probe");
    let path = world.dir.join("admin.sock");
    assert!(ready(&path).await.is_err(), "nobody listens yet");
    let readiness = Readiness::default();
    parts.ready = readiness.as_check();
    let part = readiness.part("configuration", "the controller");
    let uid = nix::unistd::geteuid().as_raw();
    tokio::spawn(AdminServer::bind(&path, uid, parts).unwrap().run());
    assert_eq!(
        ready(&path).await.unwrap_err().to_string(),
        "configuration waits for the controller"
    );
    part.ready();
    ready(&path).await.unwrap();
}

/// During an upgrade the socket is still that of a process in another container.
#[tokio::test]
async fn the_answer_of_another_container_does_not_count() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mount namespaces are made by root only");
        return;
    }
    let (world, parts) = world("elsewhere");
    let path = world.dir.join("admin.sock");
    let uid = nix::unistd::geteuid().as_raw();
    tokio::spawn(AdminServer::bind(&path, uid, parts).unwrap().run());
    let elsewhere = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(ready(&path))
    });
    let answer = tokio::task::spawn_blocking(move || elsewhere.join().unwrap()).await;
    let error = answer.unwrap().unwrap_err().to_string();
    assert!(error.contains("another container"), "{error}");
}

#[tokio::test]
async fn others_are_turned_away() {
    let (world, parts) = world("others");
    let path = world.dir.join("admin.sock");
    let not_us = nix::unistd::geteuid().as_raw() + 1;
    tokio::spawn(AdminServer::bind(&path, not_us, parts).unwrap().run());
    assert!(call(&path, Method::GET, "/config_dump").await.is_err());
    assert!(
        !world.asked.load(SeqCst),
        "a stranger's request was carried out"
    );
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn the_metrics_port_is_read_only() {
    let (metrics, readiness) = (Metrics::new(), Readiness::default());
    metrics.add_kernel(Arc::new(KernelMetrics(Arc::new(FakeDatapath::default()))));
    let part = readiness.part("configuration", "the controller");
    let listener = MetricsServer::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let standing = Arc::new(|| json!({"btf": true}));
    tokio::spawn(MetricsServer::new(metrics, readiness.as_check(), standing).run(listener));
    let ask = async |request: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(
                format!("{request} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n").as_bytes(),
            )
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let metrics = ask("GET /stats/prometheus").await;
    assert!(
        metrics.contains(r#"warren_kernel_total{kind="decision",name="connect_captured"} 0"#),
        "{metrics}"
    );
    assert!(
        metrics.contains("# EOF") && metrics.contains("warren_build_info"),
        "{metrics}"
    );
    assert!(
        ask("GET /readyz").await.contains("503")
            && ask("GET /readyz").await.contains("the controller")
    );
    let status = ask("GET /status").await;
    assert!(
        status.contains("\"btf\": true") && status.contains("waits for the controller"),
        "{status}"
    );
    part.ready();
    assert!(ask("GET /status").await.contains("\"waits\": null"));
    assert!(
        ask("GET /readyz").await.contains("200 OK")
            && ask("GET /healthz/ready").await.contains("200 OK")
    );
    assert!(ask("GET /livez").await.contains("200 OK"));
    assert!(ask("POST /metrics").await.contains("405"));
    assert!(
        ask("POST /drain").await.contains("405") && ask("GET /config_dump").await.contains("404")
    );
}
