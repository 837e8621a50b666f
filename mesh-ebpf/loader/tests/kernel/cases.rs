//! The cases.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_loader::abi::reason;
use mesh_loader::{EventKind, Outcome, Usage};

use crate::world::{World, accept, eventually};

/// Connects from pod `a` and takes the connection as its proxy; gives the dialed address that was recovered.
pub fn captured(w: &mut World, command: &str, to: SocketAddr) {
    let said = w.a.app.must(&format!("{command} {to}"));
    let all: Vec<_> = w.a.outbound.iter().chain(&w.a.outbound6).collect();
    let (stream, peer) = accept(&all).expect("the connection arrives at an outbound listener");
    let local = stream.local_addr().unwrap();
    let original = w
        .dp()
        .take_original(peer, local)
        .unwrap()
        .expect("published before accept");
    assert_eq!(original.destination, to);
    assert_eq!(original.pod, w.a.info.as_ref().unwrap().id);
    assert_eq!(original.cookie, w.a.info.as_ref().unwrap().cookie);
    assert_eq!(
        w.dp().take_original(peer, local).unwrap(),
        None,
        "it is taken once"
    );
    let shown: SocketAddr = said.words[1].parse().unwrap();
    assert_eq!(
        (shown.ip().to_canonical(), shown.port()),
        (to.ip(), to.port()),
        "getpeername shows what was dialed"
    );
    let own: SocketAddr = said.words[0].parse().unwrap();
    assert!(
        [w.a.v4, w.a.v6].contains(&own.ip().to_canonical()),
        "getsockname shows the pod's address, not {own}"
    );
    w.a.app.must(&format!("close {}", said.id));
}

pub fn capture_v4(w: &mut World) {
    captured(w, "connect", "203.0.113.7:80".parse().unwrap());
    captured(w, "connect", SocketAddr::new(w.b.v4, 8080));
}

pub fn capture_v6(w: &mut World) {
    captured(w, "connect", SocketAddr::new(w.b.v6, 8080));
}

pub fn capture_mapped(w: &mut World) {
    captured(w, "connect-mapped", SocketAddr::new(w.b.v4, 8080));
}

pub fn capture_mptcp(w: &mut World) {
    let to = SocketAddr::new(w.b.v4, 8080);
    let c = match w.a.app.ask(&format!("connect-mptcp {to}")) {
        Ok(c) => c,
        Err(e) if ["93", "92", "94"].contains(&e.as_str()) => {
            return println!("kernel: no Multipath TCP here (errno {e})");
        }
        Err(e) => panic!("errno {e}"),
    };
    let all: Vec<_> = w.a.outbound.iter().collect();
    let (stream, peer) = accept(&all).expect("captured");
    let original = w
        .dp()
        .take_original(peer, stream.local_addr().unwrap())
        .unwrap()
        .expect("published");
    assert_eq!(original.destination, to);
    w.a.app.must(&format!("close {}", c.id));
}

/// What a client sent that is gone before the proxy looks, and the end that the proxy reads.
fn sent_by_one_that_is_gone(w: &mut World, how: &str) -> (String, std::io::Result<usize>) {
    let to = SocketAddr::new(w.b.v4, 8080);
    let c = w.a.app.must(&format!("connect {to}")).id;
    w.a.app.must(&format!("send {c} farewell"));
    w.a.app.must(&format!("{how} {c}"));
    // Only now does the proxy look: the client's socket is gone.
    let all: Vec<_> = w.a.outbound.iter().collect();
    let (mut stream, peer) = accept(&all).expect("it waits");
    let original = w
        .dp()
        .take_original(peer, stream.local_addr().unwrap())
        .unwrap();
    assert_eq!(original.expect("still known").destination, to);
    let mut text = [0; 8];
    stream.read_exact(&mut text).unwrap();
    let end = stream.read(&mut [0]);
    (String::from_utf8_lossy(&text).into_owned(), end)
}

pub fn send_and_close(w: &mut World) {
    let (text, end) = sent_by_one_that_is_gone(w, "close");
    assert_eq!((&*text, end.unwrap()), ("farewell", 0));
}

pub fn send_and_reset(w: &mut World) {
    let (text, end) = sent_by_one_that_is_gone(w, "reset");
    assert_eq!(text, "farewell");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

pub fn sweep(w: &mut World) {
    let c =
        w.a.app
            .must(&format!("connect {}", SocketAddr::new(w.b.v4, 8080)))
            .id;
    w.a.app.must(&format!("close {c}"));
    let all: Vec<_> = w.a.outbound.iter().collect();
    drop(accept(&all).expect("captured"));
    let a = w.a.info.as_ref().unwrap().id;
    assert_eq!(w.dp().sweep(Duration::from_secs(3600)).unwrap(), 0);
    assert_eq!(w.dp().sweep(Duration::ZERO).unwrap(), 1);
    assert_eq!(w.dp().usage(a).originals, 0);
}

pub fn local(w: &mut World) {
    let before = w.dp().counter("decision", "connect_captured").unwrap();
    for address in [
        SocketAddr::new(w.a.v4, 7000),
        SocketAddr::new(w.a.v6, 7000),
        "127.0.0.1:7000".parse().unwrap(),
    ] {
        let l = w.a.app.must(&format!("listen {address}")).id;
        let c = w.a.app.must(&format!("connect {address}"));
        assert_eq!(c.words[1], address.to_string());
        let s = w.a.app.must(&format!("accept {l}"));
        assert_eq!(s.words[0], c.words[0]);
        for id in [l, c.id, s.id] {
            w.a.app.must(&format!("close {id}"));
        }
    }
    assert_eq!(
        w.dp().counter("decision", "connect_captured").unwrap(),
        before
    );
}

pub fn refuse(w: &mut World) {
    let cookie = w.a.info.as_ref().unwrap().cookie;
    let to = SocketAddr::new(w.b.v4, 8080);
    let dp = w.dp.as_ref().unwrap();
    for (reason, errno) in [(reason::POLICY_DENIED, "111"), (reason::NOT_READY, "113")] {
        dp.set_verdict(cookie, to, Outcome::Refuse(reason), dp.epoch(to.ip()), None)
            .unwrap();
        assert_eq!(w.a.app.ask(&format!("connect {to}")).unwrap_err(), errno);
        assert_eq!(
            w.a.app.ask(&format!("connect-mapped {to}")).unwrap_err(),
            errno
        );
    }
    assert_eq!(dp.counter("refused", "policy_denied").unwrap(), 2);
    dp.bump_epoch(to.ip());
    captured(w, "connect", to);
    let dp = w.dp.as_ref().unwrap();
    let vip: SocketAddr = "10.200.0.9:80".parse().unwrap();
    dp.refuse_vip(vip, reason::NO_ENDPOINTS).unwrap();
    assert_eq!(w.a.app.ask(&format!("connect {vip}")).unwrap_err(), "111");
    dp.remove_vip(vip).unwrap();
    let failed = |w: &World, epoch: u32, lasting: Duration| {
        let refused = Outcome::Refuse(reason::CONNECT_TIMEOUT);
        w.dp()
            .set_verdict(cookie, vip, refused, epoch, Some(lasting))
            .unwrap();
    };
    let epoch = dp.epoch(vip.ip());
    failed(w, epoch, Duration::from_secs(60));
    assert_eq!(w.a.app.ask(&format!("connect {vip}")).unwrap_err(), "113");
    w.dp().bump_epoch(vip.ip());
    captured(w, "connect", vip);
    failed(w, epoch, Duration::from_secs(60));
    captured(w, "connect", vip);
    failed(w, w.dp().epoch(vip.ip()), Duration::ZERO);
    captured(w, "connect", vip);
    let mut seen = 0;
    w.dp().events().unwrap().drain(10_000, |e| {
        seen += usize::from(
            e.kind == EventKind::Refused && e.reason == reason::POLICY_DENIED && e.peer == to,
        );
    });
    assert_eq!(seen, 2, "each refusal is told");
}

pub fn stale(w: &mut World) {
    let dp = w.dp.as_ref().unwrap();
    dp.set_stale_after(Duration::from_nanos(1));
    let to = SocketAddr::new(w.b.v4, 8080);
    assert_eq!(w.a.app.ask(&format!("connect {to}")).unwrap_err(), "113");
    dp.set_stale_after(Duration::from_secs(600));
    dp.heartbeat();
    captured(w, "connect", to);
}

pub fn no_leak(w: &mut World) {
    let to = SocketAddr::new(w.b.v4, 8080);
    for _ in 0..50 {
        let c = w.a.app.must(&format!("connect {to}")).id;
        let all: Vec<_> = w.a.outbound.iter().collect();
        // Accepted, not asked about, closed: as by a proxy that gave up.
        drop(accept(&all).unwrap());
        w.a.app.must(&format!("close {c}"));
    }
    let dp = w.dp();
    eventually("only verdicts remain", || {
        dp.occupancy()
            .unwrap()
            .iter()
            .all(|(map, n)| *map == "verdicts" || *n == 0)
    });
    let a = w.a.info.as_ref().unwrap().id;
    eventually("nothing is charged to the pod", || {
        dp.usage(a) == Usage::default()
    });
}

pub fn quota(w: &mut World) {
    let cookie = w.a.info.as_ref().unwrap().cookie;
    let dp = w.dp();
    let other = SocketAddr::new(w.b.v4, 9999);
    dp.set_verdict(7, other, Outcome::Proxy, 0, None).unwrap();
    let quota = mesh_loader::abi::maps::size::VERDICTS_QUOTA as usize;
    for i in 0..quota + 10 {
        let to = SocketAddr::new(Ipv4Addr::from(0x0a40_0000 + i as u32).into(), 80);
        dp.set_verdict(cookie, to, Outcome::Proxy, 0, None).unwrap();
    }
    let verdicts = dp
        .occupancy()
        .unwrap()
        .iter()
        .find(|o| o.0 == "verdicts")
        .unwrap()
        .1;
    assert_eq!(
        verdicts,
        quota + 1,
        "a pod displaces its own verdicts, not another's"
    );
    dp.remove_verdict(7, other).unwrap();
}
