//! What a pod costs that the node knows and nobody has talked to: snapshot, stream and copy on disk together.

use std::time::{Duration, SystemTime};

use mesh_api::{
    any::Any,
    convert,
    delta::{Client, Received},
    discovery::{self, DeltaDiscoveryResponse},
    resource::{Kind, Resource, Update},
};
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

use crate::{ALONE, explain, held, sizes};

/// The node whose proxy it is.
const NODE: &str = "node-1";
/// Pods that are known.
const PODS: usize = 10_000;
/// What one may hold, in bytes.
const MOST: usize = 400;
/// Resources to a response, as the controller sends them.
const BATCH: usize = 500;

/// A way to have pods, and its name.
type Cast = (&'static str, fn(usize) -> Workload);
/// Those that clusters have.
const CASTS: [Cast; 2] = [
    ("a pod of a deployment", nth),
    ("a workload that nothing made", alone),
];

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

/// Nothing made it: it is its own deployment, as a WorkloadEntry or a bare pod is.
fn alone(n: usize) -> Workload {
    let mut w = nth(n);
    w.canonical.name = w.name.clone();
    w.canonical.workload_name = w.name.clone();
    w
}

/// What a node proxy is told of pods: all of everybody's, and the companions of its own.
fn told(nth: fn(usize) -> Workload) -> impl Iterator<Item = Resource> {
    let pods = (0..PODS).map(nth).flat_map(|w| {
        let extra = cast::extra(MtlsMode::Permissive);
        let own = (w.node.as_str() == NODE).then(|| Change::WorkloadExtra(w.uid.clone(), extra));
        own.into_iter().chain([Change::Workload(w)])
    });
    let changes = [Change::Config(cast::config())].into_iter().chain(pods);
    changes
        .flat_map(|change| convert::encode(&change))
        .map(|update| match update {
            Update::Set(resource) => resource,
            Update::Remove(..) => unreachable!("nothing is removed"),
        })
}

fn check(what: &str, how: &str, bytes: usize) {
    let each = bytes / PODS;
    println!("{what}, {how}: {each} bytes");
    assert!(
        each <= MOST,
        "{what}, {how}, holds {each} bytes, more than {MOST}"
    );
}

#[tokio::test]
async fn a_pod_known_from_disk_holds_little() {
    let _alone = ALONE.lock().await;
    for (what, nth) in CASTS {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = Kept::default();
        told(nth).for_each(|resource| kept.insert(&resource));
        save(&dir.path().join("config.bin"), &kept).unwrap();
        drop(kept);
        let state = MeshState::new();
        let parts = XdsParts {
            node: NODE.into(),
            cluster: "Kubernetes".to_owned(),
            kinds: Kind::NODE,
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
            outside: tokio::sync::watch::channel(Vec::new()).1,
            metrics: Metrics::new(),
        };
        let before = held();
        let (_status, client) = XdsClient::new(parts);
        check(what, "from disk", held() - before);
        assert_eq!(state.load().mesh.workload_count(), PODS);
        drop(client);
        check(what, "in the snapshot", held() - before);
    }
}

/// The steps of the stream's client one by one: decode, apply, keep, write, let go of what was written.
#[tokio::test]
async fn a_pod_known_from_the_stream_holds_little_once_it_is_on_disk() {
    let _alone = ALONE.lock().await;
    for (what, nth) in CASTS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.bin");
        let responses = by_kind(told(nth));
        let (before, of) = (held(), sizes());
        let sent: usize = responses.len();
        let mut client = Client::new(NODE, "Kubernetes");
        client.connect();
        let (state, mut kept) = (MeshState::new(), Kept::default());
        for response in &responses {
            let Received {
                changes,
                updates,
                rejected,
                ..
            } = client.receive(response.clone()).unwrap();
            assert!(rejected.is_empty(), "{rejected:?}");
            for update in updates {
                match update {
                    Update::Set(resource) => kept.insert(&resource),
                    Update::Remove(kind, name) => kept.remove(kind, name),
                }
            }
            state.apply(changes);
        }
        assert_eq!(state.load().mesh.workload_count(), PODS, "{sent} responses");
        println!(
            "{what}, before it is on disk: {} bytes",
            (held() - before) / PODS
        );
        let saved = kept.clone();
        let written = save(&path, &saved).unwrap();
        kept.settle(&saved, written);
        drop(saved);
        explain(&of, PODS);
        check(what, "from the stream", held() - before);
        drop((client, kept));
        check(what, "in the snapshot", held() - before);
    }
}

fn by_kind(resources: impl Iterator<Item = Resource>) -> Vec<DeltaDiscoveryResponse> {
    let (companions, addresses): (Vec<_>, Vec<_>) =
        resources.partition(|r| r.kind == Kind::Companion);
    let batches = companions.chunks(BATCH).chain(addresses.chunks(BATCH));
    let wire = |r: &Resource| discovery::Resource {
        name: r.name.to_string(),
        version: r.version.to_string(),
        resource: Some(Any {
            type_url: r.kind.url().to_owned(),
            value: r.body.clone(),
        }),
        ..Default::default()
    };
    let response = |batch: &[Resource]| DeltaDiscoveryResponse {
        type_url: batch[0].kind.url().to_owned(),
        resources: batch.iter().map(wire).collect(),
        ..Default::default()
    };
    batches.map(response).collect()
}
