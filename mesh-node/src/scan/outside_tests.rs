//! What is told of pods that are not served, and when it is told no more.

use std::net::IpAddr;

use super::{super::PATIENCE, *};
use crate::capture::tests::world::{TestPod, World, root};

struct Looks {
    world: World,
    missing: Missing,
    mesh: OutsideMesh,
    told: watch::Receiver<Vec<Outside>>,
}

impl Looks {
    fn new(name: &str) -> Self {
        let (world, missing) = (World::new(name), Missing::default());
        world.complete();
        let (told, heard) = watch::channel(Vec::new());
        let mesh = OutsideMesh::new(OutsideParts {
            cluster: "Kubernetes".into(),
            state: world.state.clone(),
            capture: world.capture.clone(),
            missing: missing.clone(),
            told,
        });
        Self {
            world,
            missing,
            mesh,
            told: heard,
        }
    }

    fn configure(&self, name: &str, address: IpAddr, enrolment: Enrolment) {
        self.world.configure(name, &[address], enrolment, false);
    }

    /// What one more look tells, when it is something else than before.
    async fn look(&mut self) -> Option<Vec<(String, Outcome)>> {
        self.look_at(Instant::now()).await
    }

    async fn look_at(&mut self, now: Instant) -> Option<Vec<(String, Outcome)>> {
        self.mesh.look(now).await.expect("the registry runs");
        let new = self.told.has_changed().expect("somebody tells");
        let told = self.told.borrow_and_update();
        let pods = told.iter().map(|o| (o.uid.to_string(), o.outcome));
        new.then(|| pods.collect())
    }
}

fn at(name: &str, outcome: Outcome) -> (String, Outcome) {
    (format!("Kubernetes//Pod/shop/{name}"), outcome)
}

#[tokio::test]
async fn a_pod_that_cannot_be_captured_is_told_of_while_that_lasts() {
    if !root() {
        return;
    }
    let mut looks = Looks::new("outside");
    let nested = TestPod::new("nested", "10.77.12.5");
    nested.also("link add in0 type veth peer name in1");
    nested.also("link set in0 up");
    nested.also("link set in1 up");
    let router = TestPod::new("router", "10.77.12.6");
    for pod in [&nested, &router] {
        looks.configure(&pod.uid, pod.address, Enrolment::Enrolled);
    }
    let reply = looks.world.add(&nested, 1000).await;
    assert_eq!(reply.state, Some(PodState::Refused), "{reply:?}");
    let reply = looks.world.add(&router, 1000).await;
    assert_eq!(reply.state, Some(PodState::Captured), "{reply:?}");
    assert_eq!(looks.look().await, None, "it could be over soon");
    let left = at("nested", Outcome::LeftAlone);
    assert_eq!(looks.look().await, Some(vec![left.clone()]));
    let reason = looks.told.borrow()[0].reason.clone();
    assert!(reason.contains("a further interface in"), "{reason}");
    assert_eq!(looks.look().await, None, "it was told");

    let forward =
        |on: &'static str| move || std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", on);
    router.inside(forward("1"));
    let barred = async |looks: &Looks| loop {
        let found = looks.world.until("router", PodState::Captured).await;
        if found.reason.is_some() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    };
    let barred = tokio::time::timeout(Duration::from_secs(20), barred(&looks)).await;
    barred.expect("it is seen that it forwards");
    assert_eq!(looks.look().await, None);
    let refused = at("router", Outcome::Refused);
    assert_eq!(looks.look().await, Some(vec![left, refused.clone()]));
    let reason = looks.told.borrow()[1].reason.clone();
    assert!(
        reason.contains("forwarding is on") && !reason.contains("stays captured"),
        "{reason}"
    );

    // One is not to be in the mesh any more, the other is deleted.
    looks.configure("nested", nested.address, Enrolment::Out);
    assert_eq!(looks.look().await, Some(vec![refused]));
    looks.world.del("router").await;
    assert_eq!(looks.look().await, Some(Vec::new()));
}

/// Why the configuration refuses a pod is told by whoever made the configuration.
#[tokio::test]
async fn a_pod_that_the_configuration_refuses_is_not_told_of() {
    if !root() {
        return;
    }
    let mut looks = Looks::new("outside-refused");
    let pod = TestPod::new("sidecar", "10.77.12.7");
    let refused = Enrolment::Refused("it has a sidecar".into());
    looks.configure(&pod.uid, pod.address, refused);
    let reply = looks.world.add(&pod, 1000).await;
    assert_eq!(reply.state, Some(PodState::Refused), "{reply:?}");
    for _ in 0..3 {
        assert_eq!(looks.look().await, None);
    }
}

#[tokio::test]
async fn a_pod_that_is_not_found_is_told_of_when_it_is_missing_for_long() {
    let mut looks = Looks::new("outside-missing");
    let address = "10.77.12.8".parse().expect("an address");
    looks.configure("lost", address, Enrolment::Enrolled);
    let lost = |pods: &[&str]| {
        let why = |pod: &&str| ((*pod).to_owned(), "no network".to_owned());
        pods.iter().map(why).collect()
    };
    // Nobody asks for the other in the mesh.
    looks.configure("other", address, Enrolment::Out);
    let missing = ["shop/lost", "shop/other"];
    let metrics = looks.world.metrics.clone();
    looks.missing.replace(lost(&missing), &metrics);
    assert_eq!(looks.look().await, None);
    assert_eq!(looks.look().await, None);
    let later = Instant::now() + PATIENCE;
    assert_eq!(looks.look_at(later).await, None);
    let told = Some(vec![at("lost", Outcome::TriedAgain)]);
    assert_eq!(looks.look_at(later).await, told);
    looks.missing.replace(lost(&[]), &metrics);
    assert_eq!(looks.look().await, Some(Vec::new()));
}

#[test]
fn what_a_pod_waits_for_is_no_trouble() {
    let report = |state, reason: Option<&str>| PodReport {
        pod: serde_json::from_value(serde_json::json!({
            "uid": "u", "namespace": "shop", "name": "web", "addresses": []}))
        .expect("a registration"),
        state,
        reason: reason.map(str::to_owned),
    };
    let check = |state, reason, expect| {
        let report = report(state, reason);
        let found = trouble(&report).map(|(why, outcome)| (why.to_owned(), outcome));
        let expect: Option<(&str, Outcome)> = expect;
        assert_eq!(found, expect.map(|(why, o)| (why.to_owned(), o)));
    };
    check(PodState::Waiting, None, None);
    let tried = Some(("no", Outcome::TriedAgain));
    check(PodState::Waiting, Some("no"), tried);
    check(PodState::Captured, None, None);
    check(PodState::Out, Some("unknown"), None);
    check(PodState::Gone, Some("no"), None);
    let barred = format!("no{BARRED}");
    let refused = Some(("no", Outcome::Refused));
    check(PodState::Captured, Some(&barred), refused);
    check(PodState::Captured, Some("no"), refused);
}
