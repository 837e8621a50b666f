//! What a pod costs that the node knows and nobody has talked to: snapshot, stream and copy on disk together.

use std::time::{Duration, SystemTime};

use mesh_api::{convert, resource::Update};
use mesh_model::{
    mesh::{
        Change, MtlsMode, Workload,
        workload::{Canonical, Membership},
    },
    testing::cast,
};
use mesh_node::{
    identify::{Certificates, Controller},
    observe::Metrics,
    state::{EnrolledNamespaces, Kept, MeshState, XdsClient, XdsParts, save},
};

use crate::{ALONE, held};

/// Pods that are known.
const PODS: usize = 10_000;
/// What one may hold, in bytes.
const MOST: usize = 800;

/// As clusters have them: 20 pods to a deployment, 100 to a node, names as Kubernetes makes them.
fn nth(n: usize) -> Workload {
    let (namespace, app) = (
        format!("team-{}", n / 20 % 50),
        format!("service-{}", n / 20),
    );
    let name = format!("{app}-7d4b9c6f5d-{:05x}", n * 7919 % 0xfffff);
    let address = format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
    let mut w = cast::pod(&namespace, &name, &format!("node-{}", n % 100), &address);
    w.identity = cast::identity(&namespace, &app);
    w.canonical = Canonical {
        name: app.as_str().into(),
        revision: "v1".into(),
        workload_name: app.as_str().into(),
        workload_type: "deployment".into(),
    };
    w.services = Box::new([Membership {
        service: cast::service_name(&namespace, &app),
        ports: Box::new([(80, 8080)]),
    }]);
    w
}

#[tokio::test]
async fn a_known_pod_holds_little() {
    let _alone = ALONE.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Kept::default();
    let pods = (0..PODS).map(nth).flat_map(|w| {
        let extra = cast::extra(MtlsMode::Permissive);
        [
            Change::WorkloadExtra(w.uid.clone(), extra),
            Change::Workload(w),
        ]
    });
    for change in [Change::Config(cast::config())].into_iter().chain(pods) {
        for update in convert::encode(&change) {
            let Update::Set(resource) = update else {
                unreachable!("nothing is removed");
            };
            kept.insert(&resource);
        }
    }
    save(&dir.path().join("config.bin"), &kept).unwrap();
    drop(kept);
    let state = MeshState::new();
    let parts = XdsParts {
        node: "node-1".into(),
        cluster: "Kubernetes".to_owned(),
        kinds: mesh_api::resource::Kind::NODE,
        state: state.clone(),
        certificates: Certificates::new(SystemTime::now),
        controller: Controller {
            url: "https://127.0.0.1:1".to_owned(),
            ca: dir.path().join("none"),
            timeout: Duration::from_secs(1),
        },
        longest_pause: Duration::from_secs(1),
        state_dir: dir.path().to_owned(),
        namespaces: EnrolledNamespaces::open(dir.path()),
        metrics: Metrics::new(),
    };
    let before = held();
    let (_status, client) = XdsClient::new(parts);
    let all = held() - before;
    assert_eq!(state.load().mesh.workload_count(), PODS);
    drop(client);
    let snapshot = held() - before;
    let (each, snapshot) = (all / PODS, snapshot / PODS);
    println!("a known pod holds {each} bytes, {snapshot} of them in the snapshot");
    assert!(
        each <= MOST,
        "a known pod holds {each} bytes, more than {MOST}"
    );
}
