//! Connections into a pod.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use mesh_loader::in_netns;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use crate::world::{World, accept, eventually};

pub fn steer(w: &mut World) {
    for to in [SocketAddr::new(w.b.v4, 8200), SocketAddr::new(w.b.v6, 8200)] {
        // The application listens as well: the proxy must be reached all the same.
        let l = w.b.app.must(&format!("listen {to}")).id;
        let c = w.stranger.app.must(&format!("connect {to}"));
        let (four, six) = w.b.inbound.as_ref().unwrap();
        let (s, peer) = accept(&[four, six]).expect("steered");
        assert_eq!(
            s.local_addr().unwrap(),
            to,
            "the proxy sees where it was to go"
        );
        assert_eq!(peer.to_string(), c.words[0], "and from whom");
        assert!(!w.dp().is_probe(peer, to).unwrap());
        w.stranger.app.must(&format!("close {}", c.id));
        w.b.app.must(&format!("close {l}"));
    }
    let before = w.dp().counter("dropped", "no_listener").unwrap();
    let to = SocketAddr::new(w.b.v4, 8200);
    let inbound = w.b.inbound.take().unwrap();
    drop(inbound);
    assert!(
        w.stranger.app.ask(&format!("connect {to}")).is_err(),
        "no proxy, no connection"
    );
    assert!(w.dp().counter("dropped", "no_listener").unwrap() > before);
    let dp = w.dp.take().unwrap();
    w.b.outbound.clear();
    w.b.outbound6.clear();
    w.b.dns = None;
    crate::world::listen(&dp, &mut w.b).unwrap();
    let again = dp.enrol(&crate::world::spec("uid-b", &w.b)).unwrap();
    assert_eq!(
        Some(&again),
        w.b.info.as_ref(),
        "enrolling again changes nothing"
    );
    w.dp = Some(dp);
}

pub fn private_ports(w: &mut World) {
    for port in [15001, 15006, 15053] {
        let to = SocketAddr::new(w.b.v4, port);
        assert!(
            w.stranger.app.ask(&format!("connect {to}")).is_err(),
            "{to} can be reached from outside"
        );
    }
    let (dns, _) = w.b.dns.as_ref().unwrap();
    dns.set_nonblocking(true).unwrap();
    let u = w.stranger.app.must("udp 0.0.0.0:0").id;
    w.stranger
        .app
        .must(&format!("sendto {u} {}:15053 query", w.b.v4));
    let before = w.dp().counter("dropped", "bypass").unwrap();
    assert!(before >= 3);
    w.stranger.app.must(&format!("close {u}"));
    let dp = w.dp();
    eventually("the datagram is dropped", || {
        dp.counter("dropped", "bypass").unwrap() >= 4
    });
    assert!(
        dns.recv_from(&mut [0; 16]).is_err(),
        "the proxy's DNS port can be reached from outside"
    );
    dns.set_nonblocking(false).unwrap();
}

pub fn probe(w: &mut World) {
    let declared = SocketAddr::new(w.b.v4, 8081);
    let l = w.b.app.must(&format!("listen {declared}")).id;
    let c = w.kubelet.must(&format!("connect {declared}"));
    let s = w.b.app.must(&format!("accept {l}"));
    assert_eq!(s.words[0], c.words[0], "the application itself is probed");
    let client: SocketAddr = c.words[0].parse().unwrap();
    assert!(w.dp().is_probe(client, declared).unwrap());
    let other = SocketAddr::new(w.b.v4, 8082);
    let c2 = w.kubelet.must(&format!("connect {other}"));
    let (four, six) = w.b.inbound.as_ref().unwrap();
    accept(&[four, six]).expect("a port that is not declared goes to the proxy");
    let c3 = w.stranger.app.must(&format!("connect {declared}"));
    accept(&[four, six]).expect("somebody else goes to the proxy even at a declared port");
    w.b.app.must(&format!("close {}", s.id));
    w.b.app.must(&format!("close {l}"));
    w.kubelet.must(&format!("close {}", c.id));
    w.kubelet.must(&format!("close {}", c2.id));
    w.stranger.app.must(&format!("close {}", c3.id));
}

/// Dials as the proxy does: a socket made in the pod's namespace by this process.
fn dial(
    w: &World,
    netns: &std::fs::File,
    to: SocketAddr,
    client: Option<SocketAddr>,
) -> std::io::Result<TcpStream> {
    in_netns(netns.as_fd(), || {
        let family = if to.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let s = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        w.dp()
            .mark_own(s.as_fd(), client)
            .map_err(std::io::Error::other)?;
        connect(
            std::os::fd::AsRawFd::as_raw_fd(&s),
            &SockaddrStorage::from(to),
        )?;
        Ok(TcpStream::from(s))
    })
}

pub fn real_client(w: &mut World) {
    for (to, client) in [
        (SocketAddr::new(w.b.v4, 8300), "198.51.100.4:5555"),
        (SocketAddr::new(w.b.v6, 8300), "[2001:db8::4]:5556"),
        (SocketAddr::new(w.b.v6, 8301), "198.51.100.4:5557"),
    ] {
        let client: SocketAddr = client.parse().unwrap();
        let l = w.b.app.must(&format!("listen {to}")).id;
        let stream = dial(w, &w.b.netns, to, Some(client)).unwrap();
        let s = w.b.app.must(&format!("accept {l}"));
        for shown in &s.words {
            let shown: SocketAddr = shown.parse().unwrap();
            assert_eq!(
                (shown.ip().to_canonical(), shown.port()),
                (client.ip(), client.port()),
                "accept and getpeername"
            );
        }
        drop(stream);
        w.b.app.must(&format!("close {}", s.id));
        w.b.app.must(&format!("close {l}"));
    }
    let dp = w.dp();
    eventually("nothing is left", || {
        dp.occupancy()
            .unwrap()
            .iter()
            .any(|(m, n)| *m == "clients" && *n == 0)
    });
}

pub fn own_socket(w: &mut World) {
    let to = SocketAddr::new(w.stranger.v4, 8400);
    goes_out(w, to);
    let foreign = in_netns(w.a.netns.as_fd(), || {
        TcpStream::connect_timeout(&to, std::time::Duration::from_millis(300))
    });
    assert!(
        foreign.is_err(),
        "a socket in the pod that is neither captured nor the proxy's does not get out"
    );
}

/// A proxy that is a pod itself is below the pods' cgroup.
pub fn own_socket_below_the_pods(w: &mut World) {
    let enter = |w: &World, part: &str| {
        let procs = w.cgroup().join(part).join("cgroup.procs");
        std::fs::write(procs, std::process::id().to_string()).unwrap();
    };
    let captured = |w: &World| w.dp().counter("decision", "connect_captured").unwrap();
    let before = captured(w);
    enter(w, "pods");
    goes_out(w, SocketAddr::new(w.stranger.v4, 8401));
    enter(w, "node");
    let after = captured(w);
    assert_eq!(before, after, "its own connection was captured");
}

/// The proxy's socket in the pod reaches the stranger as the pod.
fn goes_out(w: &mut World, to: SocketAddr) {
    let l = w.stranger.app.must(&format!("listen {to}")).id;
    let stream = dial(w, &w.a.netns, to, None).expect("the guard lets the proxy out");
    let s = w.stranger.app.must(&format!("accept {l}"));
    assert_eq!(s.words[0], stream.local_addr().unwrap().to_string());
    assert_eq!(
        stream.local_addr().unwrap().ip(),
        w.a.v4,
        "the source address is the pod's"
    );
    w.stranger.app.must(&format!("close {}", s.id));
    w.stranger.app.must(&format!("close {l}"));
}
