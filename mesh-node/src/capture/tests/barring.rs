//! What becomes of a captured pod that begins to carry traffic of others.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_model::{mesh::Enrolment, reason::Reason};

use super::world::{TestPod, World, root};
use crate::{
    accept::{ListenerEvent, Pod},
    capture::{DirectFlow, PodReport, PodState},
};

/// Waits until the registry says of `uid` what it should.
async fn until(world: &World, uid: &str, good: impl Fn(&PodReport) -> bool) {
    let look = async {
        loop {
            let pods = world.capture.list().await.unwrap();
            if pods.iter().any(|p| p.pod.uid == uid && good(p)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look)
        .await
        .unwrap_or_else(|_| panic!("{uid} was never as it should be"));
}

/// The pod as the first data thread was told of it last, and why its flows were ended before, if they were.
fn served(world: &mut World) -> (Option<Arc<Pod>>, Option<Reason>) {
    let (mut pod, mut ended) = (None, None);
    while let Ok(event) = world.threads[0].try_recv() {
        match event {
            ListenerEvent::Add { pod: added, .. } => pod = Some(added),
            ListenerEvent::Remove { reason, .. } => (pod, ended) = (None, Some(reason)),
            other => panic!("{other:?}"),
        }
    }
    (pod, ended)
}

fn forward(pod: &TestPod, on: bool) {
    let text = if on { "1" } else { "0" };
    pod.inside(move || std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", text));
}

fn is_barred(report: &PodReport) -> bool {
    let why = report.reason.as_deref().unwrap_or_default();
    let told = why.contains("net.ipv6.conf.all.forwarding is on") && why.contains("stays captured");
    report.state == PodState::Captured && told
}

fn is_free(report: &PodReport) -> bool {
    report.state == PodState::Captured && report.reason.is_none()
}

#[tokio::test]
async fn a_captured_pod_that_begins_to_forward_is_barred_until_it_stops() {
    if !root() {
        return;
    }
    let pod = TestPod::new("router", "10.77.9.5");
    let mut world = World::new("barred");
    world.configure("router", &[pod.address], Enrolment::Enrolled, false);
    world.complete();
    let reply = world.add(&pod, 1000).await;
    assert_eq!(
        (reply.state, reply.reason),
        (Some(PodState::Captured), None)
    );
    assert_eq!(served(&mut world).0.expect("it is served").barred, None);
    let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
    let flow = |source, destination| DirectFlow {
        source,
        destination,
        dialed: destination,
        cookie: 1,
    };
    let others = flow(at("10.77.9.7", 40000), at("10.77.9.8", 80));
    world.kernel.told().flows = vec![
        flow(at("10.77.9.5", 40000), at("10.77.9.7", 80)),
        flow(at("10.77.9.7", 40000), at("10.77.9.5", 80)),
        others,
    ];
    let before = world.kernel.told().epochs[&pod.address];

    forward(&pod, true);
    until(&world, "router", is_barred).await;
    {
        let told = world.kernel.told();
        assert!(told.pods.contains_key("router"), "capture was withdrawn");
        assert!(told.indirect.contains("router"), "it may still go direct");
        assert_eq!(told.flows, [others], "its direct flows go on");
        assert!(told.epochs[&pod.address] > before, "verdicts on it hold");
    }
    let (shown, ended) = served(&mut world);
    let shown = shown.expect("it is still served, so that refusals are told");
    assert_eq!(shown.barred, Some(Reason::ForwardsOthers));
    assert_eq!(ended, Some(Reason::ForwardsOthers));
    let text = world.metrics.text().unwrap();
    for line in ["warren_pods_barred 1", r#"warren_pods{state="captured"} 1"#] {
        assert!(text.contains(line), "{line}: {text}");
    }

    // A process that starts over, with no configuration yet, does not let go of it either.
    let (dir, kernel) = world.die().await;
    let mut world = World::on(dir, kernel, Default::default());
    assert_eq!(world.capture.restore().await.unwrap(), 1);
    until(&world, "router", is_barred).await;
    assert!(world.kernel.told().indirect.contains("router"));
    world.configure("router", &[pod.address], Enrolment::Enrolled, false);
    world.complete();
    until(&world, "router", is_barred).await;
    let shown = served(&mut world).0.expect("it is served");
    assert_eq!(shown.barred, Some(Reason::ForwardsOthers));

    forward(&pod, false);
    until(&world, "router", is_free).await;
    assert_eq!(served(&mut world).0.expect("it is served").barred, None);
    assert!(world.kernel.told().indirect.is_empty());
    // The count is published when the look is over.
    let counted = async {
        while !(world.metrics.text().unwrap()).contains("warren_pods_barred 0") {
            tokio::task::yield_now().await;
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(5), counted).await;
    counted.expect("it is not counted as barred any more");
}
