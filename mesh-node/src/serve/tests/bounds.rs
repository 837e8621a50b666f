//! What hostile and unlucky peers get.

use std::{net::SocketAddr, time::Duration};

use mesh_model::mesh::MtlsMode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// What a foreign client gets for a CONNECT to `authority` in a tunnel to `to`, as `who`.
async fn connect_as(node: &Node, who: &Home, to: &Home, authority: &str) -> Result<(), u16> {
    use crate::tunnel::{self, ConnectRequest, OpenError};
    let tls = node
        .certificates
        .try_client(
            &who.workload.identity,
            std::slice::from_ref(&to.workload.identity),
        )
        .expect("a certificate");
    let (address, from, authority) = (SocketAddr::new(to.ip, 15008), who.ip, authority.to_owned());
    let opened = async move {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(from, 0)).expect("free");
        let tcp = socket.connect(address).await.expect("the proxy listens");
        let tunnel = tunnel::connect(tcp, tls, crate::wire::Limits::client())
            .await
            .expect("both prove who they are");
        match tunnel
            .open(ConnectRequest {
                authority,
                headers: crate::wire::Headers::new(),
            })
            .await
        {
            Ok(_) => Ok(()),
            Err(OpenError::Refused { status, .. }) => Err(status),
            Err(other) => panic!("{other}"),
        }
    };
    let asking = tokio::task::LocalSet::new();
    asking
        .run_until(tokio::time::timeout(Duration::from_secs(10), opened))
        .await
        .expect("an answer in time")
}

#[tokio::test]
async fn a_connect_reaches_nothing_but_the_pod_it_came_to() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.10.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.10.2", MtlsMode::Strict).await;
    let other = echo("127.7.10.3".parse().expect("an address")).await;
    let app = echo(db.ip).await;
    assert_eq!(connect_as(&node, &web, &db, &app.to_string()).await, Ok(()));
    let port = app.port();
    for authority in [
        other.to_string(),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.7.10.2]:{port}"),
        "169.254.169.254:80".to_owned(),
        format!("{}:{port}", web.ip),
        format!("db.shop.svc.cluster.local:{port}"),
        format!("{}:0", db.ip),
        format!("{}:15008", db.ip),
        format!("{}:15001", db.ip),
        format!("{}:15006", db.ip),
        format!("{}:15053", db.ip),
    ] {
        assert_eq!(
            connect_as(&node, &web, &db, &authority).await,
            Err(400),
            "{authority}"
        );
    }
    node.line(&["direction=inbound", "reason=bad_authority"])
        .await;
    node.line(&["direction=inbound", "reason=loop"]).await;
    let closed = TcpListener::bind((db.ip, 0))
        .await
        .expect("free")
        .local_addr()
        .expect("bound");
    assert_eq!(
        connect_as(&node, &web, &db, &closed.to_string()).await,
        Err(503)
    );
    node.line(&["direction=inbound", "reason=connect_refused"])
        .await;
    node.stop().await;
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_ends_and_is_counted() {
    let node = Node::start().await;
    let db = node.pod("db", "127.7.16.2", MtlsMode::Strict).await;
    let mut silent = TcpStream::connect((db.ip, 15008))
        .await
        .expect("the proxy listens");
    let mut noise = TcpStream::connect((db.ip, 15008))
        .await
        .expect("the proxy listens");
    noise
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("buffered");
    let ended = tokio::time::timeout(Duration::from_secs(10), silent.read(&mut [0; 16]))
        .await
        .expect("the deadline holds");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    node.line(&[
        "direction=inbound",
        "reason=tls_failure",
        "not finished in time",
    ])
    .await;
    let text = node.shared.observer.metrics().text().expect("text");
    for result in ["timeout", "error"] {
        assert!(
            text.contains(&format!(
                "warren_tunnel_handshakes_total{{result=\"{result}\"}} 1"
            )),
            "{result} in:\n{text}"
        );
    }
    node.stop().await;
}

#[tokio::test]
async fn a_rotated_certificate_makes_new_tunnels_and_breaks_no_flow() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.17.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.17.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    let mut long = node.dial(&web, app).await;
    ask(&mut long, b"one").await.expect("carried");
    for round in 0..5 {
        node.certificates.put(node.ca.issue(&web.workload.identity));
        node.certificates.put(node.ca.issue(&db.workload.identity));
        let mut fresh = node.dial(&web, app).await;
        ask(&mut fresh, b"new")
            .await
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
        ask(&mut long, b"old")
            .await
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
    node.stop().await;
}
