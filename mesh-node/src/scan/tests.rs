//! Pods that nobody registered, on a node in miniature.

use std::{path::PathBuf, time::Duration};

use mesh_model::mesh::Enrolment;
use tokio::task::JoinHandle;

use super::*;
use crate::capture::{
    PodState,
    tests::world::{TestPod, World, root},
};

/// Where the runtime of the test keeps its namespaces: links to them.
struct Runtime(tempfile::TempDir);

impl Runtime {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, pod: &TestPod) -> PathBuf {
        self.0.path().join(&pod.netns)
    }

    fn add(&self, pod: &TestPod) {
        std::os::unix::fs::symlink(pod.path(), self.path(pod)).unwrap();
    }

    fn remove(&self, pod: &TestPod) {
        std::fs::remove_file(self.path(pod)).unwrap();
    }

    fn search(&self, world: &World) -> (JoinHandle<()>, Missing, watch::Receiver<bool>) {
        let (scan, missing, done) = Scan::new(ScanParts {
            node: "n1".into(),
            cluster: "Kubernetes".into(),
            state: world.state.clone(),
            capture: world.capture.clone(),
            places: Places {
                named: vec![self.0.path().into()],
                pods: self.0.path().join("kubepods"),
                proc: "/proc".into(),
            },
            metrics: world.metrics.clone(),
        });
        (tokio::spawn(scan.run()), missing, done)
    }
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

#[tokio::test]
async fn a_running_pod_is_found_registered_and_deleted_when_it_is_gone() {
    if !root() {
        return;
    }
    let runtime = Runtime::new();
    let pods = [
        TestPod::new("u-1", "10.78.1.5"),
        TestPod::new("u-2", "10.78.1.6"),
    ];
    pods.iter().for_each(|p| runtime.add(p));
    let world = World::new("found");
    world.configure("u-1", &[pods[0].address], Enrolment::Enrolled, false);
    world.configure("u-2", &[pods[1].address], Enrolment::Out, false);
    let (task, missing, mut done) = runtime.search(&world);
    assert!(!*done.borrow(), "the configuration is not complete");
    let report = world.until("u-1", PodState::Captured).await;
    assert_eq!(
        (report.pod.veth_ifindex, report.pod.service_account.as_str()),
        (pods[0].ifindex(), "web")
    );
    let report = world.until("u-2", PodState::Out).await;
    assert_eq!(report.pod.veth_ifindex, pods[1].ifindex());
    world.complete();
    soon("the first look", done.wait_for(|d| *d)).await.unwrap();
    assert_eq!(missing.describe(), json!({}));

    // Only the configuration loses it: its processes may go on for a while, so it stays.
    let named = "Kubernetes//Pod/shop/u-1".into();
    world
        .state
        .apply([mesh_model::mesh::Change::RemoveWorkload(named)]);
    let later = TestPod::new("u-3", "10.78.1.7");
    world.configure("u-3", &[later.address], Enrolment::Enrolled, false);
    runtime.add(&later);
    world.until("u-3", PodState::Captured).await;
    world.until("u-1", PodState::Captured).await;
    runtime.remove(&pods[0]);
    world.until("u-1", PodState::Gone).await;
    // Only the namespace goes, as that of a job that has ended.
    runtime.remove(&pods[1]);
    let gone = async {
        while world
            .capture
            .list()
            .await
            .unwrap()
            .iter()
            .any(|p| p.pod.uid == "u-2")
        {
            tokio::task::yield_now().await;
        }
    };
    soon("the end of u-2", gone).await;
    let text = world.metrics.text().unwrap();
    assert!(text.contains("warren_pods_found_total 3"), "{text}");
    task.abort();
}

#[tokio::test]
async fn a_pod_that_cannot_be_told_from_another_is_not_taken_for_it() {
    if !root() {
        return;
    }
    let runtime = Runtime::new();
    let (pod, thief) = (
        TestPod::new("u-1", "10.78.2.5"),
        TestPod::new("u-2", "10.78.2.6"),
    );
    thief.also("addr add 10.78.2.5/24 dev eth0");
    runtime.add(&pod);
    runtime.add(&thief);
    let world = World::new("thief");
    world.complete();
    world.configure("u-1", &[pod.address], Enrolment::Enrolled, false);
    let (task, missing, _done) = runtime.search(&world);
    let told = async {
        while missing.describe() == json!({}) {
            tokio::task::yield_now().await;
        }
    };
    soon("the finding", told).await;
    let why = missing.describe()["shop/u-1"].to_string();
    assert!(why.contains("several network namespaces"), "{why}");
    assert!(world.capture.list().await.unwrap().is_empty());
    // Once the other is registered, its namespace is nobody else's.
    world.configure("u-2", &[thief.address], Enrolment::Out, false);
    let reply = world.add(&thief, 1000).await;
    assert!(reply.ok, "{reply:?}");
    world.until("u-1", PodState::Captured).await;
    task.abort();
}

#[tokio::test]
async fn a_pod_is_registered_once_by_two() {
    if !root() {
        return;
    }
    let runtime = Runtime::new();
    let pod = TestPod::new("u-1", "10.78.3.5");
    runtime.add(&pod);
    let world = World::new("two");
    world.configure("u-1", &[pod.address], Enrolment::Enrolled, false);
    world.complete();
    let (task, ..) = runtime.search(&world);
    let (reply, _) = tokio::join!(
        world.add(&pod, 1000),
        world.until("u-1", PodState::Captured)
    );
    assert_eq!(reply.state, Some(PodState::Captured), "{reply:?}");
    // As the CNI plugin registers it where the runtime does not name the veth.
    let request = json!({"op": "add", "timeoutMs": 1000, "pod": {"uid": "u-1", "namespace": "shop", "name": "u-1",
        "addresses": [pod.address]}});
    let reply = world.ask(&request.to_string(), Some(&pod.fd())).await;
    assert_eq!(reply.state, Some(PodState::Captured), "{reply:?}");
    let listed = world.capture.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].pod.veth_ifindex, pod.ifindex());
    let enrolments = world.metrics.text().unwrap();
    assert!(
        enrolments.contains("warren_enrolments_total{result=\"ok\"} 1"),
        "{enrolments}"
    );
    task.abort();
}
