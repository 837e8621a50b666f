//! Peers that mean harm, over good TLS: they lose their tunnel, and nobody else loses anything.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use mesh_node::{
    dial::pool::{Key, Pool, PoolError},
    tunnel::{OpenError, TunnelError, accept, connect},
    wire::{Headers, Limits},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use crate::support::*;

/// The frames of one round.
type Flood = Box<dyn Fn(u32) -> Vec<u8>>;

/// A client that says what it likes, over good TLS.
async fn raw(trust: &Trust, tcp: TcpStream) -> TlsStream<TcpStream> {
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    TlsConnector::from(trust.client.clone())
        .connect(name, tcp)
        .await
        .unwrap()
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(id.to_be_bytes());
    out.extend(payload);
    out
}

/// HEADERS that ask for stream `2 * i + 1`, with a header block of a CONNECT.
fn asks(i: u32, flags: u8) -> Vec<u8> {
    let block = [&[2, 7][..], b"CONNECT", &[1, 11], b"10.0.0.1:80"].concat();
    frame(1, flags, 2 * i + 1, &block)
}

/// What a hostile client sends, round by round.
fn floods() -> [(&'static str, Flood); 8] {
    const END_HEADERS: u8 = 4;
    // One field of 4 KB goes into the dynamic table, and each octet that follows names it again.
    let mut bomb = vec![0x40, 1, b'a', 0x7f, 0x81, 0x1e];
    bomb.extend([b'v'; 3968]);
    bomb.extend([0xbe; 50_000]);
    [
        ("ping", Box::new(|_| frame(6, 0, 0, b"12345678"))),
        ("settings", Box::new(|_| frame(4, 0, 0, &[]))),
        (
            "rapid reset",
            Box::new(|i| {
                let reset = frame(3, 0, 2 * i + 1, &[0, 0, 0, 8]);
                [asks(i, END_HEADERS), reset].concat()
            }),
        ),
        (
            // An empty window update is a mistake for which the server resets the stream itself.
            "made-you-reset",
            Box::new(|i| {
                let mistake = frame(8, 0, 2 * i + 1, &[0; 4]);
                [asks(i, END_HEADERS), mistake].concat()
            }),
        ),
        (
            "continuation",
            Box::new(|i| match i {
                0 => asks(0, 0),
                _ => frame(9, 0, 1, &[0; 9000]),
            }),
        ),
        (
            "header bomb",
            Box::new(move |i| frame(1, END_HEADERS, 2 * i + 1, &bomb)),
        ),
        (
            "window of 2^31",
            Box::new(|_| frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ),
        (
            "initial window of 2^31",
            Box::new(|_| frame(4, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
        ),
    ]
}

#[test]
fn a_hostile_client_loses_its_tunnel_and_its_neighbour_does_not_notice() {
    let name = "hostile::a_hostile_client_loses_its_tunnel_and_its_neighbour_does_not_notice";
    alone(name, async {
        let trust = trust();
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let mut neighbour = path(&near, &mut far).await;
        let before = resident();
        for (name, flood) in floods() {
            let (bad, tcp) = sockets().await;
            let (bad, served) = tokio::join!(
                raw(&trust, bad),
                accept(tcp, trust.server.clone(), Limits::server())
            );
            let served = serve(served.unwrap(), |incoming| {
                drop(incoming.accept(Headers::new()))
            });
            let (mut read, mut write) = tokio::io::split(bad);
            let gone = Rc::new(Cell::new(false));
            let flag = gone.clone();
            // What it is told before it is cut off: the last frame is GOAWAY.
            let told = spawn_local(async move {
                let mut all = Vec::new();
                let _ = read.read_to_end(&mut all).await;
                flag.set(true);
                all
            });
            let _ = write
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await;
            for i in 0..200_000 {
                if gone.get() || write.write_all(&flood(i)).await.is_err() {
                    break;
                }
            }
            let served = served.await.unwrap();
            let error = served.error().expect("the tunnel has ended");
            assert!(
                matches!(error, TunnelError::Protocol { .. }),
                "{name}: {error}"
            );
            drop(write);
            told.await.unwrap();
        }
        let grown = resident().saturating_sub(before);
        println!("{grown} bytes more after all floods");
        assert!(grown < 20 << 20, "{grown} bytes more");
        neighbour.client.write_all(b"undisturbed").await.unwrap();
        let mut got = [0; 11];
        neighbour.server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"undisturbed");
    });
}

/// A server that greets every tunnel with `greeting` and then only listens; counts tunnels.
async fn greeter(trust: &Trust, greeting: Vec<u8>) -> (std::net::SocketAddr, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tls, tunnels) = (
        TlsAcceptor::from(trust.server.clone()),
        Rc::new(Cell::new(0)),
    );
    let count = tunnels.clone();
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tls = tls.accept(tcp).await.unwrap();
            count.set(count.get() + 1);
            tls.write_all(&greeting).await.unwrap();
            spawn_local(async move { while let Ok(1..) = tls.read(&mut [0; 4096]).await {} });
        }
    });
    (address, tunnels)
}

#[test]
fn a_server_that_lets_nobody_in_costs_a_flow_one_more_attempt_and_no_more() {
    run(async {
        let trust = trust();
        let nobody = frame(4, 0, 0, &[0, 3, 0, 0, 0, 0]);
        let away = [nobody.clone(), frame(7, 0, 0, &[0; 8])].concat();
        let id = |name: &str| {
            let id = format!("spiffe://cluster.local/ns/shop/sa/{name}");
            id.parse().unwrap()
        };
        // No streams at all, with and without GOAWAY.
        for (greeting, most) in [(away, 2), (nobody, 1)] {
            let (address, tunnels) = greeter(&trust, greeting).await;
            let pool = Pool::<TunnelError>::new(Duration::from_secs(20), Duration::from_secs(3600));
            let key = Key::new(id("web"), [10, 0, 0, 9].into(), address, &[id("db")]);
            let client = trust.client.clone();
            let make = || ready(address, client.clone());
            let result = pool.open(key, make, request("10.0.0.1:80")).await;
            assert!(
                matches!(
                    &result,
                    Err(PoolError::Overloaded | PoolError::Open(OpenError::Tunnel(_)))
                ),
                "{result:?}"
            );
            assert!(tunnels.get() <= most, "{} tunnels", tunnels.get());
        }
    });
}

/// A tunnel that has heard the server's greeting.
async fn ready(
    address: std::net::SocketAddr,
    tls: Arc<rustls::ClientConfig>,
) -> Result<mesh_node::tunnel::ClientTunnel, TunnelError> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let tunnel = connect(tcp, tls, Limits::client()).await?;
    while tunnel.capacity() > 0 {
        tokio::task::yield_now().await;
    }
    Ok(tunnel)
}
