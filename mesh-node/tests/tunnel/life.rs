//! How tunnels begin and end: drain, idle, silence, strangers, hostile peers; and what they cost.

use std::{cell::Cell, rc::Rc, time::Duration};

use mesh_model::reason::Reason;
use mesh_node::{
    tunnel::{OpenError, TunnelError, accept, connect},
    wire::{Headers, Limits},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{cost::resident, support::*};

#[test]
fn a_draining_server_lets_flows_end_and_the_client_goes_elsewhere() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let mut path = path(&near, &mut far).await;
        far.drain();
        while !near.is_closed() {
            tokio::task::yield_now().await;
        }
        let error = near.open(request("10.0.0.1:80")).await.unwrap_err();
        assert!(error.may_retry(), "{error:?}");
        assert!(far.next().await.is_none());
        path.client.write_all(b"goes on").await.unwrap();
        path.client.shutdown().await.unwrap();
        let mut got = Vec::new();
        path.server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"goes on");
        path.server.shutdown().await.unwrap();
        path.near.await.unwrap();
        path.far.await.unwrap();
        near.closed().await;
    });
}

#[test]
fn a_tunnel_that_dies_resets_its_flows_with_a_reason() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let mut path = path(&near, &mut far).await;
        far.abort();
        let end = path.near.await.unwrap();
        assert_eq!(end.reason, Some(Reason::TunnelFailure), "{end:?}");
        assert_eq!(path.far.await.unwrap().reason, Some(Reason::Draining));
        let error = path.client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(matches!(
            near.open(request("10.0.0.1:80")).await,
            Err(OpenError::Tunnel(_))
        ));
    });
}

#[test]
fn a_stream_that_is_dropped_is_reset_and_a_request_that_is_dropped_is_refused() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let opening = {
            let near = near.clone();
            spawn_local(async move { near.open(request("10.0.0.1:80")).await })
        };
        drop(far.next().await.unwrap());
        assert_eq!(refused(opening.await.unwrap()).0, 503);
        let opening = {
            let near = near.clone();
            spawn_local(async move { near.open(request("10.0.0.1:80")).await })
        };
        let mut incoming = far.next().await.unwrap();
        opening.abort();
        incoming.cancelled().await;
        drop(incoming);
        assert_eq!((near.streams(), far.streams()), (0, 0));
    });
}

#[test]
fn a_silent_peer_is_noticed() {
    run(async {
        let trust = trust();
        let (near, far) = sockets().await;
        let limits = Limits {
            ping_every: Duration::from_millis(20),
            ping_timeout: Duration::from_millis(40),
            ..Limits::client()
        };
        // The peer makes its handshake and never reads again.
        let acceptor = tokio_rustls::TlsAcceptor::from(trust.server);
        let (near, far) = tokio::join!(connect(near, trust.client, limits), acceptor.accept(far));
        let (near, _far) = (near.unwrap(), far.unwrap());
        let error = near.open(request("10.0.0.1:80")).await.unwrap_err();
        assert_eq!(error, OpenError::Tunnel(TunnelError::PingTimeout));
    });
}

#[test]
fn pings_keep_a_quiet_tunnel_alive() {
    run(async {
        let often = |limits: Limits| Limits {
            ping_every: Duration::from_millis(10),
            ping_timeout: Duration::from_millis(500),
            ..limits
        };
        let (near, mut far) = tunnels(often(Limits::client()), often(Limits::server())).await;
        let _path = path(&near, &mut far).await;
        assert!(
            tokio::time::timeout(Duration::from_millis(1500), near.closed())
                .await
                .is_err()
        );
    });
}

#[test]
fn a_client_without_a_certificate_gets_no_tunnel() {
    run(async {
        let trust = trust();
        let (near, far) = sockets().await;
        let near = spawn_local(connect(near, trust.stranger, Limits::client()));
        let error = accept(far, trust.server, Limits::server())
            .await
            .unwrap_err();
        assert!(matches!(error, TunnelError::Tls(_)), "{error}");
        // With TLS 1.3 a client may believe for a moment that it was accepted.
        if let Ok(near) = near.await.unwrap() {
            assert!(near.open(request("10.0.0.1:80")).await.is_err());
        }
    });
}

#[test]
fn a_peer_that_does_not_speak_tls_gets_no_tunnel() {
    run(async {
        let (mut near, far) = sockets().await;
        near.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let error = accept(far, trust().server, Limits::server())
            .await
            .unwrap_err();
        assert!(matches!(error, TunnelError::Tls(_)), "{error}");
    });
}

/// The frames of one round.
type Flood = Box<dyn Fn(u32) -> Vec<u8>>;

/// A client that says what it likes, over good TLS.
async fn raw(trust: &Trust, tcp: tokio::net::TcpStream) -> TlsStream<tokio::net::TcpStream> {
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

#[test]
fn a_hostile_client_loses_its_tunnel_and_its_neighbour_does_not_notice() {
    run(async {
        let trust = trust();
        let connect_block = [&[2, 7][..], b"CONNECT", &[1, 11], b"10.0.0.1:80"].concat();
        let floods: [(&str, Flood); 5] = [
            ("ping", Box::new(|_| frame(6, 0, 0, b"12345678"))),
            ("settings", Box::new(|_| frame(4, 0, 0, &[]))),
            ("rapid reset", {
                let block = connect_block.clone();
                Box::new(move |i| {
                    [
                        frame(1, 4, 2 * i + 1, &block),
                        frame(3, 0, 2 * i + 1, &[0, 0, 0, 8]),
                    ]
                    .concat()
                })
            }),
            ("continuation", {
                let block = connect_block.clone();
                Box::new(move |i| {
                    if i == 0 {
                        frame(1, 0, 1, &block)
                    } else {
                        frame(9, 0, 1, &[0; 9000])
                    }
                })
            }),
            (
                "window",
                Box::new(|_| frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
            ),
        ];
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let mut neighbour = path(&near, &mut far).await;
        let before = resident();
        for (name, flood) in floods {
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
        assert!(grown < 20 << 20, "{grown} bytes more");
        neighbour.client.write_all(b"undisturbed").await.unwrap();
        let mut got = [0; 11];
        neighbour.server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"undisturbed");
    });
}
