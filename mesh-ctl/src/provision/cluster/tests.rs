//! A waypoint's life in a cluster, against a small API server: made step by step, used, and withdrawn.

use mesh_translate::Origin;
use serde_json::json;

use super::*;
use crate::{apiserver::ApiServer, watch::Delta};

const HOME: &str = mesh_translate::HOME;
const DAEMON_SETS: &str = "/apis/apps/v1/daemonsets";
const SERVICES: &str = "/api/v1/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/deployments";
const COLLECTIONS: [(&str, &str, &str); 7] = [
    ("/api/v1", "serviceaccounts", "ServiceAccount"),
    ("/api/v1", "services", "Service"),
    ("/api/v1", "configmaps", "ConfigMap"),
    ("/apis/apps/v1", "deployments", "Deployment"),
    ("/apis/apps/v1", "daemonsets", "DaemonSet"),
    (
        "/apis/policy/v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
    ),
    (
        "/apis/autoscaling/v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
    ),
];

struct World {
    server: ApiServer,
    keeper: Keeper,
    /// Objects that nobody makes here: pods, slices, gateways.
    others: Vec<Value>,
}

impl World {
    async fn new() -> Self {
        let (server, client) = ApiServer::start().await;
        for (path, plural, kind) in COLLECTIONS {
            server.serve(path, plural, kind);
        }
        let node = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": NODE, "namespace": HOME},
            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "r.test/mesh-node:1"}]}}}});
        server.put(DAEMON_SETS, node);
        Self {
            server,
            keeper: Keeper::new(client, HOME.to_owned()),
            others: Vec::new(),
        }
    }

    /// Looks once, at what the server has and at what others made.
    async fn look(&mut self, list: &[Wanted]) -> Troubles {
        let mut all = self.others.clone();
        for (path, plural, _) in COLLECTIONS {
            let collection = format!("{path}/{plural}");
            for key in self.server.keys(&collection) {
                all.extend(self.server.object(&collection, &key));
            }
        }
        let read = |value: Value| mesh_k8s::read(value).expect("reads").object;
        let deltas = all.into_iter().map(|value| Delta::Applied {
            object: read(value),
            origin: Origin::default(),
            unknown: [].into(),
        });
        let mut view = View::default();
        view.apply(deltas.collect());
        let view = Arc::new(RwLock::new(view));
        self.keeper.look(list, &view, "PEM").await
    }

    fn patches(&self) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|r| r.starts_with("PATCH")).count()
    }

    fn active(&self, key: &str) -> Option<Value> {
        let service = self.server.object(SERVICES, key)?;
        Some(service["metadata"]["annotations"]["warren.dev/waypoint-active"].clone())
    }

    /// Lets so much time pass for whatever is not wanted.
    fn age(&mut self, time: Duration) {
        for since in self.keeper.unwanted.values_mut() {
            *since = since
                .checked_sub(time)
                .expect("the machine is up that long");
        }
    }
}

fn automatic() -> Wanted {
    serde_json::from_value(json!({"namespace": HOME, "name": "waypoint-shop",
        "origin": {"namespace": {"name": "shop", "because": ["VirtualService shop/a"]}},
        "purpose": {"services": true, "workloads": false}}))
    .expect("reads")
}

fn pod(namespace: &str, name: &str, ready: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{name}-1"), "namespace": namespace, "labels": {
            "app.kubernetes.io/managed-by": "warren", "gateway.networking.k8s.io/gateway-name": name}},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
}

fn slice(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]})
}

#[tokio::test]
async fn a_waypoint_is_used_when_it_has_an_endpoint_and_goes_last_of_all_its_service() {
    let mut world = World::new().await;
    let (key, list) = ("warren-system/waypoint-shop", [automatic()]);
    assert!(world.look(&list).await.is_empty());
    assert_eq!(world.patches(), 4);
    assert_eq!(world.active(key), None);
    let deployment = world.server.object(DEPLOYMENTS, key).expect("is made");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "r.test/mesh-node:1");
    // Nothing is written twice.
    world.look(&list).await;
    assert_eq!(world.patches(), 4);
    world.others = vec![pod(HOME, "waypoint-shop", "False")];
    world.look(&list).await;
    assert_eq!(world.active(key), None);
    world.others = vec![pod(HOME, "waypoint-shop", "True")];
    world.look(&list).await;
    assert_eq!(world.active(key), Some("false".into()));
    world.others.push(slice(HOME, "waypoint-shop"));
    world.look(&list).await;
    assert_eq!(world.active(key), Some("true".into()));
    // It stays in use when nobody is there: it is missed then.
    world.others.clear();
    world.look(&list).await;
    assert_eq!(world.active(key), Some("true".into()));
    // A leader that remembers nothing changes nothing.
    world.keeper.forget();
    world.look(&list).await;
    assert_eq!(world.active(key), Some("true".into()));

    world.others = vec![pod(HOME, "waypoint-shop", "True")];
    world.look(&[]).await;
    world.age(LINGER / 2);
    world.look(&[]).await;
    assert!(world.server.object(DEPLOYMENTS, key).is_some());
    world.age(LINGER);
    world.look(&[]).await;
    assert!(world.server.object(DEPLOYMENTS, key).is_none());
    assert_eq!(world.active(key), Some("true".into()));
    world.look(&[]).await;
    assert!(world.active(key).is_some(), "a pod is there still");
    world.others.clear();
    world.look(&[]).await;
    assert_eq!(world.active(key), None);
    for (path, plural, _) in COLLECTIONS {
        let left = world.server.keys(&format!("{path}/{plural}"));
        assert!(left.is_empty() || plural == "daemonsets", "{left:?}");
    }
}

#[tokio::test]
async fn a_gateways_parameters_are_merged_and_what_is_wrong_with_them_changes_nothing() {
    let mut world = World::new().await;
    let wanted: Wanted = serde_json::from_value(
        json!({"namespace": "shop", "name": "wp", "origin": "gateway",
        "purpose": {"services": true, "workloads": false}, "extras": {"parameters": "more"}}),
    )
    .expect("reads");
    let (key, list) = ("shop/wp", [wanted]);
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "wp", "namespace": "shop", "uid": "u1"}, "spec": {"gatewayClassName": "warren-waypoint"}});
    world.others = vec![gateway];
    let troubles = world.look(&list).await;
    let object = ObjectRef::new("Gateway", "shop", "wp");
    assert!(
        troubles[&object].contains("ConfigMap more is not there"),
        "{troubles:?}"
    );
    assert_eq!(world.patches(), 0);
    let map = |text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more", "namespace": "shop"},
            "data": {"deployment": text}})
    };
    let maps = "/api/v1/configmaps";
    world.server.put(maps, map("spec: {replicas: 3}"));
    assert!(world.look(&list).await.is_empty());
    let deployment = world.server.object(DEPLOYMENTS, key).expect("is made");
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["metadata"]["ownerReferences"][0]["uid"], "u1");
    world.server.put(maps, map("spec: {replicas"));
    for (_, at) in world.keeper.parameters.values_mut() {
        *at = at.checked_sub(FRESH).expect("the machine is up that long");
    }
    let troubles = world.look(&list).await;
    assert!(
        troubles[&object].contains("nothing is changed"),
        "{troubles:?}"
    );
    assert_eq!(world.patches(), 4);
    // Without its Gateway nothing is made anew; what was made goes with it.
    world.others.clear();
    world.server.delete(DEPLOYMENTS, key, false);
    assert!(world.look(&list).await.is_empty());
    assert!(world.server.object(DEPLOYMENTS, key).is_none());
}

#[tokio::test]
async fn whoever_needs_a_waypoint_is_told_when_it_cannot_be_made() {
    let mut world = World::new().await;
    let forbidden = |_: &Value| {
        let said = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "no"});
        (403, said)
    };
    let path = format!("PATCH /api/v1/namespaces/{HOME}/serviceaccounts/waypoint-shop");
    world.server.answers(&path, forbidden);
    let troubles = world.look(&[automatic()]).await;
    let rule = ObjectRef::new("VirtualService", "shop", "a");
    assert!(troubles[&rule].contains("serviceaccounts"), "{troubles:?}");
}
