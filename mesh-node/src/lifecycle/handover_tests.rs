//! Two processes' worth of parts and a pod between them: nothing may be refused while it changes hands.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use mesh_model::mesh::Enrolment;
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::{
    accept::{Kind, ListenerEvent},
    capture::{
        PodState,
        packets::PacketStream,
        tests::world::{TestPod, World, root},
    },
    dns::DnsEvent,
};

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn server(world: &World, lifecycle: &Lifecycle) -> (PathBuf, tokio::task::JoinHandle<()>) {
    let path = world.dir.join("handover.sock");
    let blobs = Arc::new(|| Blobs::from([("keys".to_owned(), b"secret".to_vec())]));
    let server = HandoverServer::bind(
        &path,
        uid(),
        world.capture.clone(),
        lifecycle.clone(),
        blobs,
        Duration::from_secs(30),
    )
    .unwrap();
    (path, tokio::spawn(server.run()))
}

/// A data thread in miniature: accepts on the outbound listeners and answers with one byte.
fn data_thread(mut events: Receiver<ListenerEvent>, mark: u8) -> Arc<AtomicUsize> {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    std::thread::spawn(move || {
        let (mut listeners, mut serving) = (Vec::<TcpListener>::new(), true);
        loop {
            match events.try_recv() {
                Ok(ListenerEvent::Add {
                    kind: Kind::Outbound,
                    listener,
                    ..
                }) => listeners.push(listener),
                Ok(ListenerEvent::Pause) => serving = false,
                Ok(ListenerEvent::Resume) => serving = true,
                Ok(_) => {}
                Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => return,
                Err(tokio::sync::mpsc::error::TryRecvError::Empty) => std::thread::yield_now(),
            }
            for listener in listeners.iter().filter(|_| serving) {
                while let Ok((mut stream, _)) = listener.accept() {
                    count.fetch_add(1, SeqCst);
                    // A client that went away is the client's own measurement.
                    let _ = stream.write_all(&[mark]);
                }
            }
        }
    });
    accepted
}

fn drain_dns(mut events: Receiver<DnsEvent>) {
    tokio::spawn(async move { while events.recv().await.is_some() {} });
}

fn split(world: &mut World) -> Vec<Receiver<ListenerEvent>> {
    let (_, closed) = tokio::sync::mpsc::channel(1);
    drain_dns(std::mem::replace(&mut world.dns, closed));
    std::mem::take(&mut world.threads)
}

/// Connects as fast as it can until told to stop; gives the number of connections and the failures.
fn client(
    pod: &TestPod,
    to: SocketAddr,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<(usize, Vec<String>)> {
    let path = format!("/run/netns/{}", pod.netns);
    std::thread::spawn(move || {
        let netns = crate::capture::Netns::open(path.as_ref()).unwrap();
        netns
            .enter(|| {
                let (mut count, mut failures) = (0, Vec::new());
                while !stop.load(SeqCst) {
                    count += 1;
                    let once = || -> std::io::Result<()> {
                        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
                        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                        stream.read_exact(&mut [0; 1])
                    };
                    if let Err(error) = once() {
                        failures.push(error.to_string());
                    }
                }
                Ok((count, failures))
            })
            .unwrap()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_fails_while_the_pods_change_hands() {
    if !root() {
        return;
    }
    let pod = TestPod::new("moving", "10.77.20.5");
    let mut old = World::new("handover");
    old.complete();
    old.configure("moving", &[pod.address], Enrolment::Enrolled, false);
    assert_eq!(old.add(&pod, 1000).await.state, Some(PodState::Captured));
    let by_old: Vec<_> = split(&mut old)
        .into_iter()
        .map(|t| data_thread(t, b'o'))
        .collect();
    let lifecycle = Lifecycle::default();
    let (path, serving) = server(&old, &lifecycle);

    let stop = Arc::new(AtomicBool::new(false));
    let load = client(&pod, SocketAddr::new(pod.address, 15001), stop.clone());
    let count = |of: &[Arc<AtomicUsize>]| of.iter().map(|c| c.load(SeqCst)).sum::<usize>();
    let begun = Instant::now();
    while count(&by_old) < 100 && begun.elapsed() < Duration::from_secs(20) {
        tokio::task::yield_now().await;
    }
    let mut taken_over = Vec::new();
    let mut new = World::on(old.dir.join("next"), old.kernel.clone(), old.state.clone());
    let predecessor = take_over(&path, uid())
        .await
        .unwrap()
        .expect("the old process is there");
    assert_eq!(predecessor.blobs["keys"], b"secret");
    let mut predecessor = predecessor;
    assert_eq!(
        new.capture
            .adopt(std::mem::take(&mut predecessor.pods))
            .await
            .unwrap(),
        1
    );
    new.until("moving", PodState::Captured).await;
    taken_over.extend(split(&mut new).into_iter().map(|t| data_thread(t, b'n')));
    predecessor.ready().await.unwrap();
    predecessor.done().await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), serving)
        .await
        .expect("the old process is done")
        .unwrap();
    assert!(matches!(
        lifecycle.phase(),
        Phase::Draining {
            ending: Ending::HandedOver,
            ..
        }
    ));

    // Told to pause, the old threads may still take what they were about to; after that they take nothing.
    let grown = async |by: usize| {
        let (from, begun) = (count(&taken_over), Instant::now());
        while count(&taken_over) < from + by && begun.elapsed() < Duration::from_secs(20) {
            tokio::task::yield_now().await;
        }
        assert!(
            count(&taken_over) >= from + by,
            "the successor does not accept"
        );
        count(&by_old)
    };
    let old_before = grown(200).await;
    let old_after = grown(200).await;
    stop.store(true, SeqCst);
    let (connections, failures) = load.join().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {connections} connections failed: {:?}",
        failures.len(),
        failures.first()
    );
    assert_eq!(old_after, old_before, "the old process still accepts");
    assert!(old_before >= 100, "the load never began");
    // The old process refuses to register pods and changes nothing any more.
    let late = old.add(&pod, 10).await;
    assert!(!late.ok && late.error.unwrap().contains("successor"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_dies_leaves_the_old_process_serving() {
    if !root() {
        return;
    }
    let pod = TestPod::new("kept", "10.77.21.5");
    let mut old = World::new("kept");
    old.complete();
    old.configure("kept", &[pod.address], Enrolment::Enrolled, false);
    assert_eq!(old.add(&pod, 1000).await.state, Some(PodState::Captured));
    let by_old: Vec<_> = split(&mut old)
        .into_iter()
        .map(|t| data_thread(t, b'o'))
        .collect();
    let lifecycle = Lifecycle::default();
    let (path, serving) = server(&old, &lifecycle);
    for said in ["nothing", "take", "ready"] {
        if said == "nothing" {
            drop(PacketStream::connect(&path, uid()).unwrap());
        } else {
            let predecessor = take_over(&path, uid()).await.unwrap().unwrap();
            if said == "ready" {
                predecessor.ready().await.unwrap();
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let before: usize = by_old.iter().map(|c| c.load(SeqCst)).sum();
        let load = client(&pod, SocketAddr::new(pod.address, 15001), stop.clone());
        let begun = Instant::now();
        while by_old.iter().map(|c| c.load(SeqCst)).sum::<usize>() < before + 50
            && begun.elapsed() < Duration::from_secs(20)
        {
            tokio::task::yield_now().await;
        }
        stop.store(true, SeqCst);
        let (connections, failures) = load.join().unwrap();
        assert!(
            connections >= 50 && failures.is_empty(),
            "after {said:?}: {connections} {failures:?}"
        );
    }
    assert_eq!(lifecycle.phase(), Phase::Serving);
    assert!(!serving.is_finished());
    // It registers pods again.
    let again = async {
        while !old.add(&pod, 1000).await.ok {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("the old process takes registrations again");
}

#[tokio::test]
async fn without_a_running_process_there_is_nobody_to_take_over_from() {
    let dir = std::env::temp_dir().join(format!("w-edges-nobody-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    assert!(
        take_over(&dir.join("handover.sock"), uid())
            .await
            .unwrap()
            .is_none()
    );
    // A stale socket file is nobody either.
    drop(crate::capture::packets::PacketListener::bind(&dir.join("stale.sock"), uid()).unwrap());
    assert!(
        take_over(&dir.join("stale.sock"), uid())
            .await
            .unwrap()
            .is_none()
    );
    std::fs::remove_dir_all(dir).unwrap();
}
