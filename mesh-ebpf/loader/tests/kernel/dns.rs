//! DNS over UDP.

use std::net::SocketAddr;

use crate::world::{World, eventually};

/// Takes a query as the proxy, checks whom it was for, and answers.
fn serve(w: &World, resolver: SocketAddr, from_expected: Option<&str>) {
    let (four, six) = w.a.dns.as_ref().unwrap();
    let socket = if resolver.is_ipv4() { four } else { six };
    let mut buf = [0u8; 64];
    let (n, from) = socket
        .recv_from(&mut buf)
        .expect("the query arrives at the proxy");
    assert_eq!(&buf[..n], b"query");
    if let Some(expected) = from_expected {
        assert_eq!(from.to_string(), expected);
    }
    assert_eq!(
        w.dp().dns_resolver(from).unwrap(),
        Some(resolver),
        "the proxy knows who was asked"
    );
    socket.send_to(b"answer", from).unwrap();
}

fn nothing_left(w: &World) {
    let dp = w.dp();
    eventually("entries go with their sockets", || {
        dp.occupancy()
            .unwrap()
            .iter()
            .any(|(m, n)| *m == "asked" && *n == 0)
    });
    assert_eq!(dp.usage(w.a.info.as_ref().unwrap().id).dns, 0);
}

pub fn connected(w: &mut World) {
    for resolver in ["10.99.0.1:53", "[fd99::1]:53"] {
        let c = w.a.app.must(&format!("udp-connect {resolver}"));
        assert_eq!(c.words[1], resolver, "getpeername shows the resolver");
        w.a.app.must(&format!("send {} query", c.id));
        serve(w, resolver.parse().unwrap(), Some(&c.words[0]));
        assert_eq!(w.a.app.must(&format!("recv {}", c.id)).words, ["answer"]);
        w.a.app.must(&format!("close {}", c.id));
        nothing_left(w);
    }
    // Another port is not DNS.
    let before = w.dp().counter("decision", "dns_captured").unwrap();
    let c = w.a.app.must("udp-connect 10.99.0.1:5353");
    assert_eq!(c.words[1], "10.99.0.1:5353");
    w.a.app.must(&format!("close {}", c.id));
    assert_eq!(w.dp().counter("decision", "dns_captured").unwrap(), before);
}

pub fn unconnected(w: &mut World) {
    for (bind, first, second) in [
        ("0.0.0.0:0", "10.99.0.1:53", "10.99.0.4:53"),
        ("[::]:0", "[fd99::1]:53", "[fd99::4]:53"),
    ] {
        let u = w.a.app.must(&format!("udp {bind}"));
        for resolver in [first, second] {
            w.a.app.must(&format!("sendto {} {resolver} query", u.id));
            serve(w, resolver.parse().unwrap(), None);
            let said = w.a.app.must(&format!("recvfrom {}", u.id));
            assert_eq!(
                said.words,
                [resolver, "answer"],
                "the answer comes from the resolver that was asked"
            );
        }
        assert_eq!(
            w.dp().usage(w.a.info.as_ref().unwrap().id).dns,
            1,
            "one entry a socket"
        );
        w.a.app.must(&format!("close {}", u.id));
        nothing_left(w);
    }
}

pub fn tcp(w: &mut World) {
    use std::os::fd::AsFd;
    let (at, to) = (
        SocketAddr::new(w.a.v4, 15053),
        "10.99.0.1:53".parse::<SocketAddr>().unwrap(),
    );
    let l = mesh_loader::in_netns(w.a.netns.as_fd(), || std::net::TcpListener::bind(at)).unwrap();
    let c = w.a.app.must(&format!("connect {to}"));
    assert_eq!(c.words[1], to.to_string());
    let (s, peer) = crate::world::accept(&[&l]).expect("at the proxy's DNS port");
    let original = w
        .dp()
        .take_original(peer, s.local_addr().unwrap())
        .unwrap()
        .expect("published");
    assert_eq!(original.destination, to);
    w.a.app.must(&format!("close {}", c.id));
}
