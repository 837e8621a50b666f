//! What becomes of a pod that is registered, reconfigured, restarted under, and deleted.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_model::mesh::Enrolment;

use super::world::{TestPod, World, root};
use crate::{
    accept::{Family, Kind, ListenerEvent, Pod},
    capture::{Kernel, PodState, registration::Reply},
    dns::DnsEvent,
};

fn state(reply: &Reply) -> PodState {
    assert!(reply.ok, "{reply:?}");
    reply.state.expect("a state")
}

/// The listeners that the first data thread got for its next pod.
async fn listeners(
    world: &mut World,
    count: usize,
) -> (Arc<Pod>, Vec<(Kind, std::net::TcpListener)>) {
    let mut found = Vec::new();
    let mut whose = None;
    while found.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(5), world.threads[0].recv())
            .await
            .expect("an event in time");
        match event.expect("the registry lives") {
            ListenerEvent::Add {
                pod,
                kind,
                listener,
            } => {
                found.push((kind, listener));
                whose = Some(pod);
            }
            other => panic!("{other:?}"),
        }
    }
    (whose.unwrap(), found)
}

#[tokio::test]
async fn an_enrolled_pod_is_captured_and_served() {
    if !root() {
        return;
    }
    let pod = TestPod::new("web-1", "10.77.1.5");
    let mut world = World::new("enrolled");
    world.configure("web-1", &[pod.address], Enrolment::Enrolled, false);
    world.complete();
    assert_eq!(state(&world.add(&pod, 1000).await), PodState::Captured);
    assert_eq!(
        state(&world.add(&pod, 1000).await),
        PodState::Captured,
        "adding again is no error"
    );
    let (served, doors) = listeners(&mut world, 7).await;
    assert_eq!(
        served.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    let ports: Vec<_> = doors
        .iter()
        .map(|(k, l)| (*k, l.local_addr().unwrap().port()))
        .collect();
    let outbound = (15001..=15005).map(|p| (Kind::Outbound, p));
    assert_eq!(
        ports,
        outbound
            .chain([(Kind::Plaintext, 15006), (Kind::Hbone, 15008)])
            .collect::<Vec<_>>()
    );
    let Some(DnsEvent::Add(dns)) = world.dns.recv().await else {
        panic!("no DNS")
    };
    assert_eq!((dns.udp.len(), dns.tcp.len()), (1, 1));
    assert_eq!(
        dns.udp[0].local_addr().unwrap(),
        SocketAddr::new(pod.address, 15053)
    );

    // The listener is reached from inside the pod, and only there.
    let to = SocketAddr::new(pod.address, 15001);
    let client = pod.inside(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)));
    let (accepted, peer) = doors[0].1.accept().unwrap();
    assert_eq!(
        (accepted.local_addr().unwrap(), peer),
        (to, client.local_addr().unwrap())
    );

    // A socket of the pod dials from the pod's address, and was marked before anybody had it.
    let server = pod.inside(|| TcpListener::bind("0.0.0.0:8080"));
    let before = world.kernel.told().marked.len();
    let dialed = served
        .sockets
        .tcp(Family::V4, Some("192.0.2.9:1234".parse().unwrap()))
        .unwrap();
    assert!(
        world.kernel.told().marked[before..].contains(&Some("192.0.2.9:1234".parse().unwrap()))
    );
    let to = SocketAddr::new(pod.address, 8080);
    let started = dialed.connect(&to.into());
    assert!(started.is_ok() || started.unwrap_err().raw_os_error() == Some(libc::EINPROGRESS));
    assert_eq!(server.accept().unwrap().1.ip(), pod.address);

    assert_eq!(
        pod.inside(|| std::fs::read_to_string("/proc/sys/net/ipv4/tcp_tw_reuse"))
            .trim(),
        "1"
    );
    let (known, veth, ports) = world.kernel.told().pods["web-1"].clone();
    assert_eq!(
        (known.addresses, veth, ports.len()),
        (vec![pod.address], pod.ifindex(), 8)
    );
    assert!(
        world
            .metrics
            .text()
            .unwrap()
            .contains(r#"warren_pods{state="captured"} 1"#)
    );

    // Deletion: nothing is served, the entries stay until the namespace is gone.
    assert_eq!(state(&world.del("web-1").await), PodState::Gone);
    assert!(
        served.sockets.tcp(Family::V4, None).is_err(),
        "a deleted pod still gives sockets"
    );
    assert!(
        matches!(world.threads[0].recv().await, Some(ListenerEvent::Remove { uid, .. }) if uid.as_str() == "web-1")
    );
    assert!(matches!(world.dns.recv().await, Some(DnsEvent::Remove(_))));
    assert!(
        world.kernel.told().pods.contains_key("web-1"),
        "the identity was removed before its namespace"
    );
    drop((client, accepted, dialed, server, doors, dns));
    pod.delete();
    let gone = async {
        while world.kernel.told().pods.contains_key("web-1") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("the entries of a deleted pod went");
}

#[tokio::test]
async fn what_is_not_known_is_captured_first() {
    if !root() {
        return;
    }
    let (controller, early, listed, plain, late) = (
        TestPod::new("controller", "10.77.2.4"),
        TestPod::new("early", "10.77.2.5"),
        TestPod::new("listed", "10.77.2.6"),
        TestPod::new("plain", "10.77.2.7"),
        TestPod::new("late", "10.77.2.8"),
    );
    let dir = std::env::temp_dir().join(format!("w-edges-unknown-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let world = <World>::on(dir.clone(), Default::default(), Default::default());
    // Configuration is incomplete and the time is up: captured, and refused until it is known.
    let reply = world.add(&early, 20).await;
    assert_eq!(state(&reply), PodState::Captured);
    assert!(
        reply
            .reason
            .unwrap()
            .contains("before its configuration is known")
    );
    // But whoever could send it: captured, it would wait for itself.
    let reply = world.add_in("warren-system", &controller, 20).await;
    assert_eq!(state(&reply), PodState::Out);
    // It turns out to be nobody's business.
    world.configure("early", &[early.address], Enrolment::Out, false);
    world.until("early", PodState::Out).await;
    assert!(world.kernel.told().pods.is_empty());
    assert!(
        world.kernel.told().anchored.contains(&early.ifindex()),
        "a pod outside is not guarded"
    );
    // Complete, and the pod is not in it: left alone.
    world.complete();
    assert_eq!(state(&world.add(&plain, 20).await), PodState::Out);
    // Until its labels flip.
    world.configure("plain", &[plain.address], Enrolment::Enrolled, false);
    world.until("plain", PodState::Captured).await;
    // From then on the namespace is an enrolled one, whatever the list on disk says.
    assert_eq!(state(&world.add(&late, 20).await), PodState::Captured);
    world.die().await;

    std::fs::write(dir.join("enrolled"), "shop\n").unwrap();
    let world = <World>::on(dir.clone(), Default::default(), Default::default());
    let before = Instant::now();
    assert_eq!(state(&world.add(&listed, 60_000).await), PodState::Captured);
    assert!(
        before.elapsed() < Duration::from_secs(30),
        "a pod of an enrolled namespace waited for configuration"
    );
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn pods_that_cannot_be_captured_are_refused_with_a_reason() {
    if !root() {
        return;
    }
    let world = World::new("refused");
    world.complete();
    let refused = async |pod: &TestPod, part: &str| {
        let reply = world.add(pod, 30).await;
        assert_eq!(reply.state, Some(PodState::Refused), "{reply:?}");
        assert!(
            reply.reason.as_deref().unwrap_or_default().contains(part),
            "{reply:?} does not say {part}"
        );
        assert!(!world.kernel.told().pods.contains_key(&pod.uid));
    };
    let other = TestPod::new("other-mesh", "10.77.3.5");
    world.configure("other-mesh", &[other.address], Enrolment::Enrolled, false);
    let _theirs = other.inside(|| TcpListener::bind("0.0.0.0:15008"));
    refused(&other, "15008").await;

    let nested = TestPod::new("nested", "10.77.3.6");
    nested.also("link add docker0 type bridge");
    nested.also("addr add 172.17.0.1/16 dev docker0");
    world.configure("nested", &[nested.address], Enrolment::Enrolled, false);
    refused(&nested, "docker0").await;

    let liar = TestPod::new("liar", "10.77.3.7");
    world.configure(
        "liar",
        &["10.77.3.99".parse().unwrap()],
        Enrolment::Enrolled,
        false,
    );
    refused(&liar, "configuration says").await;

    let asked = TestPod::new("asked", "10.77.3.8");
    world.configure(
        "asked",
        &[asked.address],
        Enrolment::Refused("runtime class gvisor".into()),
        false,
    );
    refused(&asked, "gvisor").await;

    let first = TestPod::new("first", "10.77.3.9");
    world.configure("first", &[], Enrolment::Enrolled, false);
    assert_eq!(state(&world.add(&first, 30).await), PodState::Captured);
    let second = TestPod::new("second", "10.77.3.9");
    world.configure("second", &[], Enrolment::Enrolled, false);
    refused(&second, "belongs to pod first").await;
    // The address is free as soon as its owner is deleted, whether or not the namespace is gone yet.
    world.del("first").await;
    assert_eq!(state(&world.add(&second, 30).await), PodState::Captured);
    let told = world.kernel.told();
    assert!(told.pods.contains_key("second") && !told.pods.contains_key("first"));
    assert!(
        told.epochs[&second.address] >= 3,
        "verdicts about an address survived its owner"
    );
}

#[tokio::test]
async fn a_swapped_namespace_is_not_believed() {
    if !root() {
        return;
    }
    let (mine, theirs) = (
        TestPod::new("mine", "10.77.4.5"),
        TestPod::new("theirs", "10.77.4.6"),
    );
    let world = World::new("swapped");
    world.complete();
    world.configure("mine", &[mine.address], Enrolment::Enrolled, false);
    let request = serde_json::json!({"op": "add", "timeoutMs": 50, "pod": {"uid": "mine", "namespace": "shop", "name": "mine",
        "serviceAccount": "web", "addresses": [mine.address], "vethIfindex": mine.ifindex()}}).to_string();
    let reply = world.ask(&request, Some(&theirs.fd())).await;
    assert!(
        reply
            .reason
            .as_deref()
            .unwrap_or_default()
            .contains("another pod's"),
        "{reply:?}"
    );
    let none = world.ask(&request, None).await;
    assert!(!none.ok && none.error.unwrap().contains("exactly one descriptor"));
    let file = world
        .ask(
            &request.replace("mine\",\"names", "x\",\"names"),
            Some(&std::fs::File::open("/proc/self/ns/net").unwrap()),
        )
        .await;
    assert!(
        !file.ok && file.error.unwrap().contains("node's own"),
        "the node's namespace was taken for a pod's"
    );
}

#[tokio::test]
async fn a_restarted_agent_takes_its_pods_up_again() {
    if !root() {
        return;
    }
    let (stays, leaves) = (
        TestPod::new("stays", "10.77.5.5"),
        TestPod::new("leaves", "10.77.5.6"),
    );
    let world = World::new("restart");
    world.complete();
    for pod in [&stays, &leaves] {
        world.configure(&pod.uid, &[pod.address], Enrolment::Enrolled, false);
        assert_eq!(state(&world.add(pod, 1000).await), PodState::Captured);
    }
    let (dir, kernel) = world.die().await;
    leaves.delete();
    // The next process knows no configuration yet.
    let mut world = World::on(dir, kernel, Default::default());
    assert_eq!(world.capture.restore().await.unwrap(), 1);
    assert!(world.capture.is_settled());
    world.until("stays", PodState::Captured).await;
    let (pod, _doors) = listeners(&mut world, 7).await;
    assert_eq!(pod.uid.as_str(), "stays");
    assert_eq!(
        pod.identity.trust_domain.as_str(),
        "unknown.invalid",
        "an identity was made up"
    );
    let gone = async {
        while world.kernel.known().unwrap().len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("the entries of the pod that left went");
    // Configuration comes, and with it the identity.
    world.configure("stays", &[stays.address], Enrolment::Enrolled, false);
    let (pod, _doors) = loop {
        match world.threads[0].recv().await {
            Some(ListenerEvent::Remove { .. }) => break listeners(&mut world, 7).await,
            other => drop(other),
        }
    };
    assert_eq!(pod.identity.trust_domain.as_str(), "cluster.local");
}

#[tokio::test]
async fn a_process_that_ends_refuses_rather_than_keeps_waiting() {
    if !root() {
        return;
    }
    let pod = TestPod::new("ends", "10.77.7.5");
    let mut world = World::new("ends");
    world.complete();
    world.configure("ends", &[pod.address], Enrolment::Enrolled, false);
    assert_eq!(state(&world.add(&pod, 1000).await), PodState::Captured);
    for thread in &mut world.threads {
        thread.close();
        while thread.recv().await.is_some() {}
    }
    let to = SocketAddr::new(pod.address, 15001);
    pod.inside(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop));
    world.capture.close().await.unwrap();
    // A program that another test of this process starts holds copies of all descriptors until its exec.
    let until = Instant::now() + Duration::from_secs(10);
    let refused = loop {
        let tried = pod
            .inside(move || Ok(TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop)));
        match tried {
            Err(e) => break e,
            Ok(()) => assert!(Instant::now() < until, "somebody still listens"),
        }
    };
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(
        world.kernel.told().pods.contains_key("ends"),
        "a pod was released because the proxy ended"
    );
}

#[tokio::test]
async fn older_connections_are_counted_or_cut() {
    if !root() {
        return;
    }
    let world = World::new("older");
    world.complete();
    for (uid, address, cut) in [("counted", "10.77.6.5", false), ("cut", "10.77.6.6", true)] {
        let pod = TestPod::new(uid, address);
        let gateway = pod
            .address
            .to_string()
            .replace(".6.5", ".6.1")
            .replace(".6.6", ".6.1");
        // The node's end of the veth is the far end of an old connection.
        let done = std::process::Command::new("ip")
            .args(["addr", "add", &format!("{gateway}/24"), "dev", &pod.veth])
            .status()
            .unwrap();
        assert!(done.success());
        let far = TcpListener::bind((gateway.as_str(), 0)).unwrap();
        let to = far.local_addr().unwrap();
        let mut old = pod.inside(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)));
        let _accepted = far.accept().unwrap();
        world.configure(uid, &[pod.address], Enrolment::Enrolled, cut);
        assert_eq!(state(&world.add(&pod, 1000).await), PodState::Captured);
        old.set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let ended =
            matches!(old.read(&mut [0; 1]), Err(e) if e.kind() != std::io::ErrorKind::WouldBlock);
        assert_eq!(ended, cut, "{uid}");
        world.del(uid).await;
    }
}

/// As a CNI plugin registers it, before the configuration knows the pod.
#[tokio::test]
async fn a_service_account_that_is_not_registered_is_learned_once() {
    if !root() {
        return;
    }
    let pod = TestPod::new("nameless", "10.77.8.5");
    let mut world = World::new("nameless");
    let request = serde_json::json!({"op": "add", "timeoutMs": 20, "pod": {"uid": pod.uid, "namespace": "shop",
        "name": pod.uid, "addresses": [pod.address], "vethIfindex": pod.ifindex()}})
    .to_string();
    let reply = world.ask(&request, Some(&pod.fd())).await;
    assert_eq!(state(&reply), PodState::Captured);
    let (shown, _doors) = listeners(&mut world, 7).await;
    assert_eq!(
        shown.identity.trust_domain.as_str(),
        "unknown.invalid",
        "an identity was made up"
    );
    world.configure("nameless", &[pod.address], Enrolment::Enrolled, false);
    let (shown, _doors) = loop {
        match world.threads[0].recv().await {
            Some(ListenerEvent::Remove { .. }) => break listeners(&mut world, 7).await,
            other => drop(other),
        }
    };
    assert_eq!(
        (
            shown.service_account.as_str(),
            shown.identity.to_string().as_str()
        ),
        ("web", "spiffe://cluster.local/ns/shop/sa/web")
    );
    // A repeated registration does not unlearn it.
    let reply = world.ask(&request, Some(&pod.fd())).await;
    assert_eq!(state(&reply), PodState::Captured);
    let report = world.until("nameless", PodState::Captured).await;
    assert_eq!(report.pod.service_account, "web");
}
