//! The server on loopback, with a resolver that counts what it is asked.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
};

use hickory_proto::{
    op::{Message, MessageType},
    rr::{RData, Record, RecordType, rdata},
};
use mesh_model::mesh::Change;

use super::*;
use crate::{
    accept::{Family, PodSockets},
    capture::FakeDatapath,
    dns::{DnsHandle, message::tests::query},
};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[derive(Debug)]
struct PlainSockets;

impl PodSockets for PlainSockets {
    fn tcp(&self, _: Family, _: Option<SocketAddr>) -> io::Result<socket2::Socket> {
        let socket = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::STREAM.nonblocking(),
            None,
        )?;
        Ok(socket)
    }

    fn udp(&self, address: IpAddr) -> io::Result<StdUdp> {
        let socket = StdUdp::bind((address, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// A resolver that knows one address for everything, over UDP and TCP.
async fn resolver() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind((HERE, 0)).await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    fn reply(packet: &[u8], asked: &Mutex<Vec<String>>) -> Vec<u8> {
        let query = Message::from_vec(packet).unwrap();
        asked
            .lock()
            .unwrap()
            .push(query.queries[0].name().to_ascii());
        let mut reply = Message::new(
            query.metadata.id,
            MessageType::Response,
            query.metadata.op_code,
        );
        reply.add_queries(query.queries.clone());
        if query.queries[0].query_type() == RecordType::A {
            reply.add_answer(Record::from_rdata(
                query.queries[0].name().clone(),
                60,
                RData::A(rdata::A([192, 0, 2, 1].into())),
            ));
        }
        reply.to_vec().unwrap()
    }
    let seen = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (n, from) = udp.recv_from(&mut buffer).await.unwrap();
            // Somebody else's answer first: it must not be believed.
            let mut wrong = reply(&buffer[..n], &Mutex::default());
            wrong[0] ^= 0xff;
            udp.send_to(&wrong, from).await.unwrap();
            udp.send_to(&reply(&buffer[..n], &seen), from)
                .await
                .unwrap();
        }
    });
    let seen = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                while let Ok(Some(packet)) = forward::read_framed(&mut stream).await {
                    let answer = reply(&packet, &seen);
                    forward::write_framed(&mut stream, &answer).await.unwrap();
                }
            });
        }
    });
    (address, asked)
}

struct World {
    fake: Arc<FakeDatapath>,
    handle: DnsHandle,
    udp: SocketAddr,
    tcp: SocketAddr,
    resolver: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    metrics: Metrics,
}

async fn world() -> World {
    let (resolver, asked) = resolver().await;
    let fake = Arc::new(FakeDatapath::default());
    let state = MeshState::new();
    // The same mesh as in the tests of answers, by way of changes.
    let mesh = super::super::answer::tests::mesh();
    let services = mesh.services().map(|s| Change::Service((**s).clone()));
    let extras = mesh.services().filter_map(|s| {
        Some(Change::ServiceExtra(
            s.name.clone(),
            (**mesh.service_extra(&s.name)?).clone(),
        ))
    });
    state.apply(
        services
            .chain(extras)
            .chain(mesh.workloads().map(|w| Change::Workload((**w).clone()))),
    );
    let metrics = Metrics::new();
    let parts = DnsParts {
        state,
        kernel: fake.clone(),
        datapath: fake.clone(),
        network: "".into(),
        metrics: metrics.clone(),
    };
    let (handle, events) = DnsHandle::new();
    tokio::spawn(DnsServer::new(parts).run(events));
    let udp = StdUdp::bind((HERE, 0)).unwrap();
    let tcp = StdListener::bind((HERE, 0)).unwrap();
    udp.set_nonblocking(true).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let pod = Arc::new(Pod {
        uid: PodUid::new("web-1"),
        workload: "Kubernetes//Pod/shop/web-1".into(),
        namespace: "shop".into(),
        name: "web-1".into(),
        service_account: "web".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
        addresses: [HERE].into(),
        netns_cookie: 1,
        barred: None,
        sockets: Arc::new(PlainSockets),
    });
    handle
        .tell(DnsEvent::Add(PodDns {
            pod,
            udp: vec![udp],
            tcp: vec![tcp],
        }))
        .await
        .unwrap();
    World {
        fake,
        handle,
        udp: udp_at,
        tcp: tcp_at,
        resolver,
        asked,
        metrics,
    }
}

impl World {
    async fn client(&self) -> UdpSocket {
        let client = UdpSocket::bind((HERE, 0)).await.unwrap();
        client.connect(self.udp).await.unwrap();
        self.fake
            .told()
            .resolvers
            .insert(client.local_addr().unwrap(), self.resolver);
        client
    }

    async fn ask(&self, client: &UdpSocket, packet: &[u8]) -> Message {
        client.send(packet).await.unwrap();
        let mut buffer = [0; 4096];
        let n = timeout(Duration::from_secs(10), client.recv(&mut buffer))
            .await
            .expect("an answer in time")
            .unwrap();
        Message::from_vec(&buffer[..n]).unwrap()
    }

    fn counted(&self, transport: &str, result: &str) -> bool {
        let line =
            format!("warren_dns_requests_total{{transport=\"{transport}\",result=\"{result}\"}}");
        self.metrics.text().unwrap().contains(&line)
    }
}

fn first_address(message: &Message) -> Option<IpAddr> {
    message.answers.iter().find_map(|r| match &r.data {
        RData::A(a) => Some(IpAddr::from(a.0)),
        _ => None,
    })
}

#[tokio::test]
async fn the_mesh_answers_its_names_and_the_resolver_the_others() {
    let world = world().await;
    let client = world.client().await;
    let own = world
        .ask(
            &client,
            &query("cart.shop.svc.cluster.local.", RecordType::A, None),
        )
        .await;
    assert_eq!(first_address(&own), Some("10.96.0.7".parse().unwrap()));
    assert!(
        world.asked.lock().unwrap().is_empty(),
        "the resolver was asked about a name of the mesh"
    );
    let other = world
        .ask(
            &client,
            &query("www.example.com.", RecordType::A, Some(1232)),
        )
        .await;
    assert_eq!(
        (first_address(&other), other.metadata.id),
        (Some("192.0.2.1".parse().unwrap()), 0x1234)
    );
    let alias = world
        .ask(
            &client,
            &query("out.shop.svc.cluster.local.", RecordType::A, None),
        )
        .await;
    assert_eq!(
        (alias.answers.len(), first_address(&alias)),
        (2, Some("192.0.2.1".parse().unwrap()))
    );
    let inner = world
        .ask(
            &client,
            &query("in.shop.svc.cluster.local.", RecordType::A, None),
        )
        .await;
    assert_eq!(first_address(&inner), Some("10.96.0.7".parse().unwrap()));
    assert_eq!(
        *world.asked.lock().unwrap(),
        ["www.example.com.", "api.example.com."]
    );
    let broken = world
        .ask(&client, &[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
        .await;
    assert_eq!(broken.metadata.response_code, ResponseCode::FormErr);
    assert!(
        world.counted("udp", "answered")
            && world.counted("udp", "forwarded")
            && world.counted("udp", "malformed")
    );
}

#[tokio::test]
async fn without_a_known_resolver_the_failure_is_said() {
    let world = world().await;
    let client = UdpSocket::bind((HERE, 0)).await.unwrap();
    client.connect(world.udp).await.unwrap();
    let failed = world
        .ask(&client, &query("www.example.com.", RecordType::A, None))
        .await;
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    assert!(world.counted("udp", "failed"));
}

#[tokio::test]
async fn over_tcp_both_on_one_connection() {
    let world = world().await;
    let mut stream = TcpStream::connect(world.tcp).await.unwrap();
    let key = (world.tcp, stream.local_addr().unwrap());
    world.fake.told().originals.insert(key, world.resolver);
    for (name, address) in [
        ("cart.shop.svc.cluster.local.", "10.96.0.7"),
        ("www.example.com.", "192.0.2.1"),
        ("www.example.org.", "192.0.2.1"),
    ] {
        forward::write_framed(&mut stream, &query(name, RecordType::A, None))
            .await
            .unwrap();
        let reply = timeout(Duration::from_secs(10), forward::read_framed(&mut stream))
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(
            first_address(&Message::from_vec(&reply).unwrap()),
            Some(address.parse().unwrap())
        );
    }
    assert_eq!(world.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_paused_server_leaves_queries_to_its_successor() {
    let world = world().await;
    let client = world.client().await;
    world
        .ask(
            &client,
            &query("cart.shop.svc.cluster.local.", RecordType::A, None),
        )
        .await;
    world.handle.tell(DnsEvent::Pause).await.unwrap();
    // The queue is in order, so that a second event that was taken means that the first has been carried out.
    world
        .handle
        .tell(DnsEvent::Remove(PodUid::new("nobody")))
        .await
        .unwrap();
    client
        .send(&query("cart.shop.svc.cluster.local.", RecordType::A, None))
        .await
        .unwrap();
    let mut buffer = [0; 512];
    let silent = timeout(Duration::from_millis(200), client.recv(&mut buffer)).await;
    assert!(silent.is_err(), "a paused server answered");
    world.handle.tell(DnsEvent::Resume).await.unwrap();
    timeout(Duration::from_secs(10), client.recv(&mut buffer))
        .await
        .expect("the query that waited is answered")
        .unwrap();
}
