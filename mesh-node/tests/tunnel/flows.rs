//! Flows through a tunnel behave as TCP would: bytes exact, half-close, reset, slow readers.

use std::time::Duration;

use mesh_model::reason::Reason;
use mesh_node::{
    tunnel::{CutSignal, Cutter, End, Meter, Side, copy},
    wire::{Headers, Limits},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::spawn_local,
};

use crate::support::*;

async fn send(socket: &mut TcpStream, data: &[u8]) {
    socket.write_all(data).await.unwrap();
    socket.shutdown().await.unwrap();
}

async fn receive(socket: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    socket.read_to_end(&mut got).await.unwrap();
    got
}

#[test]
fn many_streams_at_once_are_byte_exact_in_both_directions() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let mut tasks = Vec::new();
        for i in 0..60u64 {
            let path = path(&near, &mut far).await;
            tasks.push(spawn_local(async move {
                let size = if i % 20 == 0 {
                    9 << 20
                } else {
                    1 + (i as usize * 7919) % 70_000
                };
                let (up, down) = (bytes(i, size), bytes(1000 + i, size / 2));
                let (mut c_read, mut c_write) = path.client.into_split();
                let (mut s_read, mut s_write) = path.server.into_split();
                let (up_copy, down_copy) = (up.clone(), down.clone());
                let writers = (
                    spawn_local(async move { c_write.write_all(&up_copy).await.unwrap() }),
                    spawn_local(async move { s_write.write_all(&down_copy).await.unwrap() }),
                );
                let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
                let (a, b) = tokio::join!(
                    s_read.read_to_end(&mut got_up),
                    c_read.read_to_end(&mut got_down)
                );
                a.unwrap();
                b.unwrap();
                writers.0.await.unwrap();
                writers.1.await.unwrap();
                assert!(
                    got_up == up && got_down == down,
                    "flow {i} was changed on its way"
                );
                assert_eq!(
                    (path.near.await.unwrap(), path.far.await.unwrap()),
                    (End::clean(), End::clean())
                );
                assert_eq!(path.near_meter.forward(), up.len() as u64);
                assert_eq!(path.near_meter.backward(), down.len() as u64);
                assert_eq!(path.far_meter.forward(), down.len() as u64);
                assert_eq!(path.far_meter.backward(), up.len() as u64);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!((near.streams(), far.streams()), (0, 0));
    });
}

#[test]
fn each_direction_may_end_alone() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        for client_first in [true, false] {
            let mut path = path(&near, &mut far).await;
            let (first, second) = match client_first {
                true => (&mut path.client, &mut path.server),
                false => (&mut path.server, &mut path.client),
            };
            send(first, b"question").await;
            assert_eq!(receive(second).await, b"question");
            send(second, &bytes(1, 1 << 20)).await;
            assert_eq!(receive(first).await, bytes(1, 1 << 20));
            assert_eq!(
                (path.near.await.unwrap(), path.far.await.unwrap()),
                (End::clean(), End::clean())
            );
        }
    });
}

#[test]
fn a_server_may_speak_first() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let mut path = path(&near, &mut far).await;
        path.server.write_all(b"220 ready").await.unwrap();
        let mut got = [0; 9];
        path.client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"220 ready");
    });
}

fn is_reset(result: std::io::Result<usize>) {
    let error = result.expect_err("the connection should have been reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_travels_as_a_reset() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        for client_first in [true, false] {
            let path = path(&near, &mut far).await;
            let (first, mut second) = match client_first {
                true => (path.client, path.server),
                false => (path.server, path.client),
            };
            socket2::SockRef::from(&first)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(first);
            is_reset(second.read(&mut [0; 16]).await);
            let ends = (path.near.await.unwrap(), path.far.await.unwrap());
            let (here, there) = if client_first { ends } else { (ends.1, ends.0) };
            assert_eq!(
                (here.reason, here.side),
                (Some(Reason::PeerReset), Some(Side::First))
            );
            assert_eq!(
                (there.reason, there.side),
                (Some(Reason::PeerReset), Some(Side::Second))
            );
        }
        assert_eq!((near.streams(), far.streams()), (0, 0));
    });
}

#[test]
fn a_client_that_vanishes_is_noticed_while_its_flow_stands_still() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        // Blocked by the window, and half-closed: in neither case is anything read from the client.
        for blocked in [true, false] {
            let mut path = path(&near, &mut far).await;
            if blocked {
                let data = vec![1; 64 << 20];
                let write = path.client.write_all(&data);
                assert!(
                    tokio::time::timeout(Duration::from_millis(500), write)
                        .await
                        .is_err()
                );
            } else {
                path.client.shutdown().await.unwrap();
                assert_eq!(path.server.read(&mut [0; 1]).await.unwrap(), 0);
            }
            socket2::SockRef::from(&path.client)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(path.client);
            let end = path.near.await.unwrap();
            assert_eq!(
                (end.reason, end.side),
                (Some(Reason::PeerReset), Some(Side::First)),
                "{end:?}"
            );
            assert_eq!(path.far.await.unwrap().side, Some(Side::Second));
        }
    });
}

#[test]
fn elephants_do_not_starve_a_small_flow() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let moved = std::rc::Rc::new(std::cell::Cell::new(0u64));
        for _ in 0..8 {
            let path = path(&near, &mut far).await;
            let (mut client, mut server, moved) = (path.client, path.server, moved.clone());
            spawn_local(async move {
                let data = vec![1; 256 << 10];
                while client.write_all(&data).await.is_ok() {}
            });
            spawn_local(async move {
                let mut buf = vec![0; 256 << 10];
                while let Ok(n @ 1..) = server.read(&mut buf).await {
                    moved.set(moved.get() + n as u64);
                }
            });
        }
        let small = path(&near, &mut far).await;
        let (mut client, mut server) = (small.client, small.server);
        spawn_local(async move {
            let mut buf = [0; 128];
            while server.read_exact(&mut buf).await.is_ok() && server.write_all(&buf).await.is_ok()
            {
            }
        });
        // Per answer of the small flow, the elephants may move what buffers between the two ends hold, not more.
        for _ in 0..50 {
            client.write_all(&[5; 128]).await.unwrap();
            client.read_exact(&mut [0; 128]).await.unwrap();
        }
        let each = moved.get() / 50;
        println!("elephants moved {each} bytes per answer of the small flow");
        assert!(moved.get() > 0 && each < 16 << 20, "{each} bytes");
    });
}

#[test]
fn a_cut_resets_one_flow_and_no_other() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let (cutter, signal) = Cutter::new();
        let mut cut = path_with(&near, &mut far, signal).await;
        let mut kept = path(&near, &mut far).await;
        cutter.cut(Reason::PolicyChanged);
        assert_eq!(cut.near.await.unwrap().reason, Some(Reason::PolicyChanged));
        is_reset(cut.client.read(&mut [0; 16]).await);
        is_reset(cut.server.read(&mut [0; 16]).await);
        send(&mut kept.client, b"still here").await;
        assert_eq!(receive(&mut kept.server).await, b"still here");
    });
}

#[test]
fn a_slow_reader_blocks_only_itself() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let slow = path(&near, &mut far).await;
        let (mut slow_client, slow_server) = (slow.client, slow.server);
        let total = 24 << 20;
        let writer = spawn_local(async move {
            slow_client.write_all(&bytes(7, total)).await.unwrap();
            slow_client.shutdown().await.unwrap();
        });
        for i in 0..20 {
            let mut fast = path(&near, &mut far).await;
            let data = bytes(i, 1 << 20);
            let mut client = fast.client;
            let copy = data.clone();
            spawn_local(async move { send(&mut client, &copy).await });
            assert!(receive(&mut fast.server).await == data);
        }
        assert!(
            !writer.is_finished(),
            "the window should have stopped the writer"
        );
        let mut server = slow_server;
        assert!(
            receive(&mut server).await == bytes(7, total),
            "nothing of the slow flow is lost"
        );
        writer.await.unwrap();
    });
}

#[test]
fn nothing_reaches_a_server_before_the_answer_or_after_a_refusal() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let answered = std::rc::Rc::new(std::cell::Cell::new(false));
        let flag = answered.clone();
        let open = spawn_local(async move {
            let stream = near.open(request("10.0.0.1:80")).await;
            assert!(flag.get(), "open returned before the answer");
            let refused = refused(near.open(request("10.0.0.2:80")).await);
            (stream, refused)
        });
        let incoming = far.next().await.unwrap();
        assert_eq!(incoming.authority(), "10.0.0.1:80");
        answered.set(true);
        let _stream = incoming.accept(Headers::new().with("baggage", "k8s.pod.name=a"));
        let incoming = far.next().await.unwrap();
        assert_eq!(incoming.authority(), "10.0.0.2:80");
        incoming.refuse(401, Headers::new().with("x-warren-reason", "policy_denied"));
        let (stream, (status, headers)) = open.await.unwrap();
        assert_eq!(
            stream.unwrap().response_headers().get("baggage"),
            Some("k8s.pod.name=a")
        );
        assert_eq!(
            (status, headers.get("x-warren-reason")),
            (401, Some("policy_denied"))
        );
    });
}

#[test]
fn two_sockets_are_copied_with_the_same_semantics() {
    run(async {
        let ((mut client, a), (b, mut server)) = (sockets().await, sockets().await);
        let meter = Meter::new();
        let copied = spawn_local(copy(a, b, &meter, CutSignal::never()));
        let data = bytes(3, 8 << 20);
        let sent = data.clone();
        let writer = spawn_local(async move {
            send(&mut client, &sent).await;
            receive(&mut client).await
        });
        assert!(receive(&mut server).await == data);
        send(&mut server, b"answer").await;
        assert_eq!(writer.await.unwrap(), b"answer");
        assert_eq!(copied.await.unwrap(), End::clean());
        assert_eq!((meter.forward(), meter.backward()), (8 << 20, 6));

        let ((client, a), (b, mut server)) = (sockets().await, sockets().await);
        let copied = spawn_local(copy(a, b, &meter, CutSignal::never()));
        socket2::SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(client);
        is_reset(server.read(&mut [0; 16]).await);
        assert_eq!(copied.await.unwrap().side, Some(Side::First));
    });
}
