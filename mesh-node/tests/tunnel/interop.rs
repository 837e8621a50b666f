//! Foreign peers: the h2 crate as client and as server, over the same TLS.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, Uri, Version};
use mesh_node::{
    tunnel::{CutSignal, End, Meter, OpenError, accept, connect, splice},
    wire::{Headers, Limits},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::spawn_local,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::*;

fn connect_request(authority: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder().authority(authority).build().unwrap();
    request
        .headers_mut()
        .insert("baggage", "k8s.pod.name=foreign".parse().unwrap());
    request
}

/// Sends everything as the windows allow, then ends.
async fn send(mut stream: h2::SendStream<Bytes>, data: Vec<u8>) {
    let mut rest = Bytes::from(data);
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx))
            .await
            .unwrap()
            .unwrap();
        stream
            .send_data(rest.split_to(room.min(rest.len())), false)
            .unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
}

async fn receive(mut stream: h2::RecvStream) -> Vec<u8> {
    let mut got = Vec::new();
    while let Some(chunk) = stream.data().await {
        // A stream that is reset gives less than was expected, which the caller sees.
        let Ok(chunk) = chunk else { break };
        stream.flow_control().release_capacity(chunk.len()).unwrap();
        got.extend_from_slice(&chunk);
    }
    got
}

/// An application that sends back what it got, after it got all of it, and the flow that leads to it.
async fn echo(stream: mesh_node::tunnel::Stream) -> End {
    let (app, far) = sockets().await;
    spawn_local(async move {
        let mut far = far;
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        far.write_all(&all).await.unwrap();
        far.shutdown().await.unwrap();
    });
    splice(app, stream, &Meter::new(), CutSignal::never()).await
}

async fn foreign_client(window: u32, frame: u32) {
    let trust = trust();
    let (near, far) = sockets().await;
    let server = spawn_local(async move {
        let tunnel = accept(far, trust.server, Limits::server()).await.unwrap();
        serve(tunnel, |incoming| {
            assert_eq!(
                incoming.headers().get("baggage"),
                Some("k8s.pod.name=foreign")
            );
            if incoming.authority() == "10.0.0.2:80" {
                return incoming.refuse(401, Headers::new());
            }
            spawn_local(echo(
                incoming.accept(Headers::new().with("baggage", "k8s.pod.name=ours")),
            ));
        })
        .await
        .unwrap()
    });
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let tls = TlsConnector::from(trust.client)
        .connect(name, near)
        .await
        .unwrap();
    let (client, mut connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .max_frame_size(frame)
        .handshake::<_, Bytes>(tls)
        .await
        .unwrap();
    let mut ping = connection.ping_pong().unwrap();
    let connection = spawn_local(connection);
    let mut tasks = Vec::new();
    for i in 0..8u64 {
        let mut client = client.clone().ready().await.unwrap();
        tasks.push(spawn_local(async move {
            let (response, stream) = client
                .send_request(connect_request("10.0.0.1:80"), false)
                .unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["baggage"], "k8s.pod.name=ours");
            let data = bytes(i, if i == 0 { 20 << 20 } else { 300_000 });
            spawn_local(send(stream, data.clone()));
            assert!(receive(response.into_body()).await == data, "stream {i}");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    ping.ping(h2::Ping::opaque()).await.unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, stream) = client
        .send_request(connect_request("10.0.0.2:80"), false)
        .unwrap();
    assert_eq!(response.await.unwrap().status(), 401);
    drop(stream);
    let (response, stream) = client
        .send_request(Request::get("http://10.0.0.1/").body(()).unwrap(), true)
        .unwrap();
    assert_eq!(response.await.unwrap().status(), 400);
    drop((client, stream));
    connection.await.unwrap().unwrap();
    server.await.unwrap();
}

#[test]
fn a_foreign_client_is_served() {
    run(foreign_client(65_535, 16_384));
}

#[test]
fn a_foreign_client_with_large_frames_and_windows_is_served() {
    run(foreign_client(4 << 20, 1 << 20));
}

/// A server that echoes, changes windows in the middle, and knows a few special destinations.
async fn foreign_server(tcp: TcpStream, trust: Rc<Trust>, streams: u32) {
    let tls = TlsAcceptor::from(trust.server.clone())
        .accept(tcp)
        .await
        .unwrap();
    let mut connection = h2::server::Builder::new()
        .initial_window_size(65_535)
        .max_concurrent_streams(streams)
        .handshake::<_, Bytes>(tls)
        .await
        .unwrap();
    let (mut count, mut changes) = (0, 0);
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request.unwrap();
        assert_eq!(request.method(), Method::CONNECT);
        count += 1;
        // Refused only while the change before it was not acknowledged.
        changes += usize::from(
            connection
                .set_initial_window_size(if count % 2 == 0 { 100_000 } else { 1_000 })
                .is_ok(),
        );
        let authority = request.uri().authority().unwrap().to_string();
        match authority.as_str() {
            "denied:80" => {
                let response = Response::builder()
                    .status(503)
                    .header("x-why", "no")
                    .body(())
                    .unwrap();
                respond.send_response(response, true).unwrap();
            }
            "reset:80" => respond.send_reset(h2::Reason::REFUSED_STREAM),
            "away:80" => connection.graceful_shutdown(),
            _ => {
                let stream = respond.send_response(Response::new(()), false).unwrap();
                let body = request.into_body();
                spawn_local(async move { send(stream, receive(body).await).await });
            }
        }
    }
    assert!(changes > 5, "the window changed {changes} times only");
}

#[test]
fn a_foreign_server_is_used() {
    run(async {
        let trust = Rc::new(trust());
        let (near, far) = sockets().await;
        let server = spawn_local(foreign_server(far, trust.clone(), 50));
        let tunnel = connect(near, trust.client.clone(), Limits::client())
            .await
            .unwrap();
        let mut tasks = Vec::new();
        for i in 0..20u64 {
            let headers = Headers::new()
                .with("traceparent", "00-1-2-01")
                .with("baggage", "x".repeat(9_000));
            let request = mesh_node::tunnel::ConnectRequest {
                authority: "[fd00::1]:80".into(),
                headers,
            };
            let stream = tunnel.open(request).await.unwrap();
            let (app, mut client) = sockets().await;
            let flow = spawn_local(splice(app, stream, &Meter::new(), CutSignal::never()));
            tasks.push(spawn_local(async move {
                let data = bytes(i, if i == 0 { 8 << 20 } else { 200_000 });
                client.write_all(&data).await.unwrap();
                client.shutdown().await.unwrap();
                let mut got = Vec::new();
                client.read_to_end(&mut got).await.unwrap();
                assert!(got == data, "stream {i}");
                assert_eq!(flow.await.unwrap(), End::clean());
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(tunnel.capacity(), 50, "the peer's limit is known");
        let (status, headers) = refused(tunnel.open(request("denied:80")).await);
        assert_eq!((status, headers.get("x-why")), (503, Some("no")));
        let error = tunnel.open(request("reset:80")).await.unwrap_err();
        assert!(
            matches!(error, OpenError::Reset { code: 7 }) && error.may_retry(),
            "{error:?}"
        );
        let held = tunnel.open(request("10.0.0.1:80")).await.unwrap();
        let away =
            tokio::time::timeout(Duration::from_secs(5), tunnel.open(request("away:80"))).await;
        assert!(away.is_ok_and(|r| r.is_err()));
        assert!(tunnel.is_closed());
        drop(held);
        server.await.unwrap();
    });
}
