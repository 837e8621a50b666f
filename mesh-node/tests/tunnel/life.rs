//! How tunnels begin and end: drain, idle, silence, strangers.

use std::time::Duration;

use mesh_model::reason::Reason;
use mesh_node::{
    tunnel::{OpenError, TunnelError, accept, connect},
    wire::Limits,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
};

use crate::support::*;

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
            ping_timeout: Duration::from_secs(2),
            ..limits
        };
        let (near, mut far) = tunnels(often(Limits::client()), often(Limits::server())).await;
        let _path = path(&near, &mut far).await;
        assert!(
            tokio::time::timeout(Duration::from_secs(3), near.closed())
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
