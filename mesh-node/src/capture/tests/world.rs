//! A node in miniature: a run directory, a registry with its server, and pods that are namespaces.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_model::{
    mesh::{
        Change, Enrolment, MeshConfig, MtlsMode, SameNode, Workload, WorkloadExtra,
        workload::TunnelProtocol,
    },
    name::WorkloadUid,
};
use tokio::{sync::mpsc::Receiver, task::JoinSet};

use super::super::{packets::PacketStream, registration::Reply, *};
use crate::{
    accept::{ListenerEvent, Listeners},
    dns::{DnsEvent, DnsHandle},
    observe::Metrics,
    state::{EnrolledNamespaces, MeshState},
};

/// Whether this process may make namespaces; says so when not.
pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root to make network namespaces");
    }
    root
}

fn ip(args: &str) {
    let done = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .expect("the ip command is there");
    assert!(
        done.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// A pod: a namespace with a veth to the node.
pub struct TestPod {
    pub netns: String,
    pub veth: String,
    pub address: IpAddr,
    pub uid: String,
}

impl TestPod {
    pub fn new(uid: &str, address: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = format!(
            "{}-{}",
            std::process::id() % 100_000,
            NEXT.fetch_add(1, Relaxed)
        );
        let pod = Self {
            netns: format!("w-edges-{n}"),
            veth: format!("we{n}"),
            address: address.parse().unwrap(),
            uid: uid.into(),
        };
        ip(&format!("netns add {}", pod.netns));
        ip(&format!(
            "link add {} type veth peer name eth0 netns {}",
            pod.veth, pod.netns
        ));
        ip(&format!(
            "-n {} addr add {address}/{} dev eth0{}",
            pod.netns,
            if pod.address.is_ipv4() { 24 } else { 64 },
            if pod.address.is_ipv6() { " nodad" } else { "" }
        ));
        ip(&format!("-n {} link set lo up", pod.netns));
        ip(&format!("-n {} link set eth0 up", pod.netns));
        ip(&format!("link set {} up", pod.veth));
        pod
    }

    pub fn also(&self, args: &str) {
        ip(&format!("-n {} {args}", self.netns));
    }

    pub fn fd(&self) -> File {
        File::open(format!("/run/netns/{}", self.netns)).expect("the namespace was made")
    }

    pub fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.netns).into()
    }

    pub fn ifindex(&self) -> u32 {
        nix::net::if_::if_nametoindex(self.veth.as_str()).expect("the veth was made")
    }

    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> T {
        let netns = Netns::open(Path::new(&format!("/run/netns/{}", self.netns))).unwrap();
        netns.enter(work).unwrap()
    }

    pub fn delete(&self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.netns])
            .output();
        let _ = Command::new("ip")
            .args(["link", "del", &self.veth])
            .output();
    }
}

impl Drop for TestPod {
    fn drop(&mut self) {
        self.delete();
    }
}

/// The node.
pub struct World<K = FakeDatapath> {
    pub dir: PathBuf,
    pub kernel: Arc<K>,
    pub state: MeshState,
    pub metrics: Metrics,
    pub capture: Capture,
    pub threads: Vec<Receiver<ListenerEvent>>,
    pub dns: Receiver<DnsEvent>,
    client: PacketStream,
    tasks: JoinSet<()>,
    keep: bool,
}

impl World {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("w-edges-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self::on(dir, Arc::new(FakeDatapath::default()), MeshState::new())
    }
}

impl<K: Kernel + Datapath + 'static> World<K> {
    /// The same with another kernel.
    pub fn with_kernel(name: &str, kernel: Arc<K>) -> Self {
        let dir = std::env::temp_dir().join(format!("w-edges-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self::on(dir, kernel, MeshState::new())
    }

    /// A process that starts on what another left.
    pub fn on(dir: PathBuf, kernel: Arc<K>, state: MeshState) -> Self {
        let metrics = Metrics::new();
        let (listeners, threads) = Listeners::new(2);
        let (dns, dns_events) = DnsHandle::new();
        let parts = CaptureParts {
            cluster: "Kubernetes".into(),
            state: state.clone(),
            namespaces: EnrolledNamespaces::open(&dir),
            home: Some("warren-system".into()),
            enroller: Enroller {
                kernel: kernel.clone(),
                datapath: kernel.clone(),
                refill: Refiller::start().unwrap(),
                late: metrics.node().sockets_made_late.clone(),
            },
            listeners,
            dns,
            saved: SavedPods::open(&dir).unwrap(),
            finder: Finder::default(),
            metrics: metrics.clone(),
        };
        let (capture, task) = Capture::new(parts);
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run());
        let uid = nix::unistd::geteuid().as_raw();
        let socket = dir.join("pods.sock");
        tasks.spawn(
            RegistrationServer::bind(&socket, uid, capture.clone())
                .unwrap()
                .run(),
        );
        let client = PacketStream::connect(&socket, uid).unwrap();
        Self {
            dir,
            kernel,
            state,
            metrics,
            capture,
            threads,
            dns: dns_events,
            client,
            tasks,
            keep: false,
        }
    }

    /// Ends the process: its sockets close, its pins stay.
    pub async fn die(mut self) -> (PathBuf, Arc<K>) {
        self.tasks.shutdown().await;
        self.keep = true;
        (self.dir.clone(), self.kernel.clone())
    }

    pub async fn ask(&self, request: &str, descriptor: Option<&File>) -> Reply {
        let fds: Vec<_> = descriptor.iter().map(|f| f.as_fd()).collect();
        self.client.send(request.as_bytes(), &fds).await.unwrap();
        let packet = tokio::time::timeout(Duration::from_secs(20), self.client.receive(64 << 10))
            .await
            .expect("an answer in time");
        serde_json::from_slice(&packet.unwrap().expect("the server is there").bytes).unwrap()
    }

    pub async fn add(&self, pod: &TestPod, timeout_ms: u64) -> Reply {
        self.add_in("shop", pod, timeout_ms).await
    }

    pub async fn add_in(&self, namespace: &str, pod: &TestPod, timeout_ms: u64) -> Reply {
        let request = serde_json::json!({"op": "add", "timeoutMs": timeout_ms, "pod": {
            "uid": pod.uid, "namespace": namespace, "name": pod.uid, "serviceAccount": "web",
            "addresses": [pod.address], "vethIfindex": pod.ifindex(), "probePorts": [8080]}});
        self.ask(&request.to_string(), Some(&pod.fd())).await
    }

    pub async fn del(&self, uid: &str) -> Reply {
        self.ask(&format!(r#"{{"op":"del","uid":"{uid}"}}"#), None)
            .await
    }

    pub fn configure(
        &self,
        uid: &str,
        addresses: &[IpAddr],
        enrolment: Enrolment,
        cut_existing: bool,
    ) {
        let name = WorkloadUid::from(format!("Kubernetes//Pod/shop/{uid}").as_str());
        let workload = Workload {
            uid: name.clone(),
            name: uid.into(),
            namespace: "shop".into(),
            identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
            network: "".into(),
            addresses: addresses.into(),
            hostname: None,
            node: "n1".into(),
            cluster: "Kubernetes".into(),
            protocol: TunnelProtocol::Hbone,
            host_network: false,
            healthy: true,
            locality: Default::default(),
            canonical: Default::default(),
            services: [].into(),
            policies: [].into(),
            waypoint: None,
            capacity: 1,
        };
        let extra = WorkloadExtra {
            enrolment,
            mtls: MtlsMode::Permissive,
            mtls_ports: [].into(),
            probe_ports: [9090].into(),
            cut_existing,
            allow_forwarded: false,
            guarded: false,
            features: [].into(),
            pod_uid: Some(uid.into()),
            groups: Box::default(),
        };
        self.state.apply([
            Change::Workload(workload),
            Change::WorkloadExtra(name, extra),
        ]);
    }

    pub fn complete(&self) {
        let config = MeshConfig {
            trust_domain: "cluster.local".into(),
            root_namespace: "warren-system".into(),
            cluster_domain: "cluster.local".into(),
            registry_only: false,
            same_node: SameNode::Auto,
            enrolled_namespaces: Box::new([]),
            tunnel_blockers: Box::new([]),
            tracing: Box::new([]),
        };
        self.state.apply([Change::Config(config), Change::Complete]);
    }

    /// Waits for the state of a pod.
    pub async fn until(&self, uid: &str, state: PodState) -> PodReport {
        let look = async {
            loop {
                let pods = self.capture.list().await.unwrap();
                if let Some(found) = pods
                    .into_iter()
                    .find(|p| p.pod.uid == uid && p.state == state)
                {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), look)
            .await
            .unwrap_or_else(|_| panic!("{uid} never became {state:?}"))
    }
}

impl<K> Drop for World<K> {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
