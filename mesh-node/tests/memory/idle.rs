//! What a flow costs while nothing is in flight.
//!
//! Clients and the application are plain sockets without memory of their own: what is counted is the data thread's.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, SystemTime},
};

use mesh_model::{
    mesh::{Change, MtlsMode},
    testing::cast,
};
use mesh_node::{
    accept::{Family, Kind, Listeners, Pod, PodSockets, PodUid},
    capture::FakeDatapath,
    config::Limits,
    dns::{Names, Resolvers, TtlBounds},
    identify::{Certificates, Handshakes},
    observe::{Metrics, Observer, Spans},
    serve::{DataThreads, Shared},
    state::MeshState,
};

use crate::{ALONE, explain, held, sizes};

/// Flows that are opened: enough that what the process holds anyway does not show.
const FLOWS: usize = 500;
/// What one may hold, in bytes. Two sockets are registered with the runtime, at 256 bytes each.
const MOST: usize = 1_700;

/// Sockets that speak from the pod's own address.
#[derive(Debug)]
struct Loopback(IpAddr);

impl PodSockets for Loopback {
    fn tcp(&self, _: Family, _: Option<SocketAddr>) -> io::Result<socket2::Socket> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(self.0, 0).into())?;
        Ok(socket)
    }
}

/// One data thread, without a kernel.
fn shared(kernel: &Arc<FakeDatapath>) -> Arc<Shared> {
    let observer = Observer::silent();
    let bounds = TtlBounds {
        least: Duration::from_secs(1),
        most: Duration::from_secs(60),
    };
    let (names, _) = Names::new(
        Resolvers::Fixed(Vec::new()),
        bounds,
        observer.metrics().clone(),
    );
    Arc::new(Shared {
        node: "n1".into(),
        state: MeshState::new(),
        certificates: Certificates::new(SystemTime::now),
        datapath: kernel.clone(),
        observer,
        handshakes: Handshakes::new(64, 32),
        limits: Limits {
            connect_timeout: Duration::from_secs(3),
            handshake_timeout: Duration::from_secs(2),
            handshakes: 64,
            handshakes_per_source: 32,
            flows: 2 * FLOWS,
            tunnel_idle: Duration::from_secs(60),
            waypoint_age: Duration::from_secs(600),
            http_idle: Limits::HTTP_IDLE,
            http_head: Limits::HTTP_HEAD,
        },
        names,
        flows: AtomicUsize::new(0),
        clusters: Default::default(),
        spans: Spans::off(Metrics::new()),
    })
}

#[tokio::test]
async fn an_idle_flow_holds_little() {
    let _alone = ALONE.lock().await;
    let ip = IpAddr::V4(Ipv4Addr::new(127, 9, 1, 1));
    let kernel = Arc::new(FakeDatapath::default());
    let shared = shared(&kernel);
    let workload = cast::pod("shop", "web", "n1", &ip.to_string());
    shared.state.apply([
        Change::Config(cast::config()),
        Change::Workload(workload.clone()),
        Change::WorkloadExtra(workload.uid.clone(), cast::extra(MtlsMode::Permissive)),
        Change::Complete,
    ]);
    let (listeners, receivers) = Listeners::new(1);
    let threads = DataThreads::start(shared.clone(), receivers).unwrap();
    let pod = Arc::new(Pod {
        uid: PodUid::new("web"),
        workload: workload.uid.clone(),
        namespace: "shop".into(),
        name: "web".into(),
        service_account: "web".into(),
        identity: workload.identity.clone(),
        addresses: Box::new([ip]),
        barred: None,
        netns_cookie: 7,
        sockets: Arc::new(Loopback(ip)),
    });
    let listener = TcpListener::bind((ip, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let door = listener.local_addr().unwrap();
    listeners
        .add(&pod, Kind::Outbound, &listener)
        .await
        .unwrap();
    // Outside the mesh: the flow is relayed from socket to socket.
    let outside = TcpListener::bind("127.9.1.9:0").unwrap();
    let target = outside.local_addr().unwrap();

    let mut ends: Vec<(TcpStream, TcpStream)> = Vec::with_capacity(2 * FLOWS);
    let mut open = || {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        kernel.told().originals.insert((door, local), target);
        socket.connect(&door.into()).unwrap();
        let mut client = TcpStream::from(socket);
        let (mut application, _) = outside.accept().unwrap();
        let mut byte = [0];
        client.write_all(b"w").unwrap();
        application.read_exact(&mut byte).unwrap();
        application.write_all(&byte).unwrap();
        client.read_exact(&mut byte).unwrap();
        ends.push((client, application));
    };
    // The first ones make what all share.
    (0..8).for_each(|_| open());
    let (before, of) = (held(), sizes());
    (0..FLOWS).for_each(|_| open());
    kernel.told().verdicts = Vec::new();
    let each = (held() - before) / FLOWS;
    println!("an idle flow holds {each} bytes");
    explain(&of, FLOWS);
    assert!(
        each <= MOST,
        "an idle flow holds {each} bytes, more than {MOST}"
    );
    drop(ends);
    threads.end().await;
}
