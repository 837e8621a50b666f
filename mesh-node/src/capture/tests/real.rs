//! The same with the real kernel programs: a pod's connections reach the listeners of the proxy.
//!
//! Invariant: everything is made under names of this process and taken away again.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_model::mesh::Enrolment;

use super::world::{TestPod, World, root};
use crate::{
    accept::{Family, Kind, ListenerEvent, Pod},
    capture::{Datapath, Kernel, LoadedDatapath, PodState},
};

/// A cgroup for pods and the pins of one instance.
struct Node {
    cgroup: PathBuf,
    instance: String,
    kernel: Arc<LoadedDatapath>,
}

impl Node {
    /// `None`, and a line that says why, where the programs cannot be run.
    fn new(name: &str) -> Option<Self> {
        if !root() {
            return None;
        }
        if mesh_loader::embedded().is_empty() {
            eprintln!("SKIPPED: the kernel programs are not compiled; run cargo xtask ebpf");
            return None;
        }
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let Some(cgroup2) = mounts
            .lines()
            .map(|l| l.split(' ').collect::<Vec<_>>())
            .find(|f| f[2] == "cgroup2")
            .map(|f| f[1].to_owned())
        else {
            eprintln!("SKIPPED: there is no cgroup2 file system");
            return None;
        };
        let instance = format!("w-edges-{name}-{}", std::process::id());
        let cgroup = PathBuf::from(cgroup2).join(&instance);
        let own = cgroup.join("agent");
        std::fs::create_dir_all(cgroup.join("pods")).unwrap();
        std::fs::create_dir_all(&own).unwrap();
        let config = mesh_loader::Config::new(instance.clone(), cgroup.join("pods"), own);
        let kernel =
            Arc::new(LoadedDatapath::open(&config).expect("the kernel takes the programs"));
        kernel.beat().unwrap();
        Some(Self {
            cgroup,
            instance,
            kernel,
        })
    }

    /// A connection by a program of the pod, which prints what it read.
    fn connect(&self, pod: &TestPod, to: SocketAddr) -> Child {
        let procs = self.cgroup.join("pods/cgroup.procs");
        let script = format!(
            "echo $$ > {} && exec 3<>/dev/tcp/{}/{} && head -c 5 <&3",
            procs.display(),
            to.ip(),
            to.port()
        );
        // Not `ip netns exec`, which hides the cgroups behind a /sys of its own.
        let mut command = Command::new("nsenter");
        let netns = format!("--net=/run/netns/{}", pod.netns);
        command.args([&netns, "bash", "-c", &script]);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let purged =
            mesh_loader::Datapath::purge(std::path::Path::new("/sys/fs/bpf"), &self.instance);
        for dir in ["pods", "agent", ""] {
            let _ = std::fs::remove_dir(self.cgroup.join(dir));
        }
        if !std::thread::panicking() {
            purged.expect("the pins are taken away");
        }
    }
}

fn wait(child: Child) -> (bool, String) {
    let out = child.wait_with_output().unwrap();
    (
        out.status.success(),
        format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        ),
    )
}

async fn outbound(world: &mut World<LoadedDatapath>) -> (Arc<Pod>, Vec<TcpListener>) {
    let mut found = Vec::new();
    loop {
        match world.threads[0].recv().await.expect("the registry lives") {
            ListenerEvent::Add {
                kind: Kind::Outbound,
                listener,
                ..
            } => found.push(listener),
            ListenerEvent::Add {
                pod,
                kind: Kind::Hbone,
                ..
            } => return (pod, found),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_captured_connection_arrives_with_its_destination() {
    let Some(node) = Node::new("real") else {
        return;
    };
    let pod = TestPod::new("real-1", "10.77.30.5");
    let gateway: SocketAddr = "10.77.30.1:8080".parse().unwrap();
    assert!(
        Command::new("ip")
            .args(["addr", "add", "10.77.30.1/24", "dev", &pod.veth])
            .status()
            .unwrap()
            .success()
    );
    let far = TcpListener::bind(gateway).unwrap();
    let mut world = World::with_kernel("real", node.kernel.clone());
    world.complete();
    world.configure("real-1", &[pod.address], Enrolment::Enrolled, false);
    let begun = Instant::now();
    assert_eq!(world.add(&pod, 2000).await.state, Some(PodState::Captured));
    eprintln!("enrolment through the socket took {:?}", begun.elapsed());
    let (captured, listeners) = outbound(&mut world).await;

    // What a program of the pod dials arrives at one of the proxy's listeners, with what it dialed.
    let client = node.connect(&pod, gateway);
    let begun = Instant::now();
    let (mut stream, peer) = loop {
        if let Some(found) = listeners.iter().find_map(|l| l.accept().ok()) {
            break found;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the connection was not captured"
        );
        node.kernel.beat().unwrap();
        std::thread::yield_now();
    };
    assert_eq!(peer.ip(), pod.address);
    assert_eq!(
        node.kernel
            .take_original(stream.local_addr().unwrap(), peer),
        Some(gateway)
    );
    assert_eq!(
        node.kernel
            .take_original(stream.local_addr().unwrap(), peer),
        None,
        "a destination is told once"
    );
    std::io::Write::write_all(&mut stream, b"proxy").unwrap();
    assert_eq!(wait(client), (true, "proxy".to_owned()));

    // The proxy's own socket inside the pod goes out, past capture and guard, with the pod's address.
    let dialed = captured.sockets.tcp(Family::V4, None).unwrap();
    dialed.set_nonblocking(false).unwrap();
    dialed
        .connect_timeout(&gateway.into(), Duration::from_secs(5))
        .unwrap();
    assert_eq!(far.accept().unwrap().1.ip(), pod.address);

    // A silent proxy refuses new connections, and a proxy that is gone does too.
    drop(listeners);
    while world.threads.iter_mut().any(|t| t.try_recv().is_ok()) {}
    world.del("real-1").await;
    node.kernel.beat().unwrap();
    let (connected, said) = wait(node.connect(&pod, gateway));
    assert!(
        !connected && said.contains("refused"),
        "a pod whose proxy is gone spoke: {said}"
    );

    // Out of the mesh it speaks for itself.
    world.configure("real-1", &[pod.address], Enrolment::Out, false);
    assert_eq!(world.add(&pod, 2000).await.state, Some(PodState::Out));
    let client = node.connect(&pod, gateway);
    let (mut plain, _) = far.accept().unwrap();
    std::io::Write::write_all(&mut plain, b"plain").unwrap();
    assert_eq!(wait(client), (true, "plain".to_owned()));
    let mut rest = Vec::new();
    plain.read_to_end(&mut rest).unwrap();
}
