//! Pods that take all they can get, and maps that are full: refused and counted, and nobody else loses anything.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_loader::abi::maps::size;
use mesh_loader::abi::{self, Addr, Original, Plain, Tuple, Use};
use mesh_loader::{LoadError, Outcome, PodId, VipSlot};

use crate::foreign;
use crate::world::{World, accept, eventually};

/// More connections than a pod may have waiting.
const TRIED: u32 = size::ORIGINALS_QUOTA + 500;

/// A connection of `b`'s is captured, and its original destination known.
fn neighbour(w: &mut World, port: u16) {
    let to = SocketAddr::new(w.a.v4, port);
    let c = w.b.app.must(&format!("connect {to}"));
    let all: Vec<_> = w.b.outbound.iter().collect();
    let (stream, peer) = accept(&all).expect("the neighbour is served");
    let o = w
        .dp()
        .take_original(peer, stream.local_addr().unwrap())
        .unwrap();
    assert_eq!(o.expect("its entry is there").destination, to);
    w.b.app.must(&format!("close {}", c.id));
}

fn occupied(w: &World, map: &str) -> usize {
    let all = w.dp().occupancy().unwrap();
    all.iter().find(|o| o.0 == map).unwrap().1
}

pub fn connects(w: &mut World) {
    let a = w.a.info.as_ref().unwrap().id;
    assert_eq!(w.dp().usage(a).originals, 0);
    let kept = SocketAddr::new(w.a.v4, 9100);
    let waiting = w.b.app.must(&format!("connect {kept}"));
    let all: Vec<_> = w.b.outbound.iter().collect();
    let (stream, peer) = accept(&all).expect("captured");
    let before = w.dp().counter("refused", "overloaded").unwrap();
    let flood = w.a.app.must(&format!("flood {} {TRIED}", w.b.v4));
    let refused = u64::from(TRIED - size::ORIGINALS_QUOTA);
    assert_eq!(
        flood.words,
        [size::ORIGINALS_QUOTA.to_string(), refused.to_string()],
        "what is beyond the quota is refused"
    );
    assert_eq!(w.dp().usage(a).originals, size::ORIGINALS_QUOTA.into());
    assert_eq!(
        w.dp().counter("refused", "overloaded").unwrap() - before,
        refused
    );
    let told = SocketAddr::new(w.b.v4, 80);
    assert_eq!(w.a.app.ask(&format!("connect {told}")).unwrap_err(), "111");
    // Others are served as before, and what waited still waits.
    for port in 9101..9111 {
        neighbour(w, port);
    }
    let o = w
        .dp()
        .take_original(peer, stream.local_addr().unwrap())
        .unwrap();
    assert_eq!(o.expect("nobody took its place").destination, kept);
    w.b.app.must(&format!("close {}", waiting.id));
    w.a.app.must(&format!("close {}", flood.id));
    tidy(w, a);
}

/// Takes what the flood left in the proxy's queues.
fn tidy(w: &mut World, pod: PodId) {
    let dp = w.dp.as_ref().unwrap();
    eventually("all is given back", || {
        while w.a.outbound.iter().any(|l| l.accept().is_ok()) {}
        dp.sweep(Duration::ZERO).unwrap();
        dp.usage(pod).originals == 0
    });
    assert_eq!(occupied(w, "originals"), 0);
}

pub fn resolvers(w: &mut World) {
    let a = w.a.info.as_ref().unwrap().id;
    let tried = size::ASKED_QUOTA + 10;
    let lost = w.dp().counter("decision", "dns_full").unwrap();
    let flood = w.a.app.must(&format!("flood-dns 10.96.0.10:53 {tried}"));
    assert_eq!(w.dp().usage(a).dns, size::ASKED_QUOTA.into());
    assert_eq!(w.dp().counter("decision", "dns_full").unwrap() - lost, 10);
    let ask = w.b.app.must("udp-connect 10.96.0.10:53");
    w.b.app.must(&format!("send {} q", ask.id));
    let (socket, _) = w.b.dns.as_ref().unwrap();
    let (_, from) = socket.recv_from(&mut [0; 16]).expect("the neighbour asks");
    let resolver = w.dp().dns_resolver(from).unwrap();
    assert_eq!(resolver, Some("10.96.0.10:53".parse().unwrap()));
    w.b.app.must(&format!("close {}", ask.id));
    w.a.app.must(&format!("close {}", flood.id));
    let dp = w.dp();
    eventually("all is given back", || dp.usage(a).dns == 0);
}

/// An entry of nobody's connection.
fn nobody(i: u32) -> (Tuple, Original) {
    let addr = |n: u32| Addr::from(IpAddr::from(Ipv4Addr::from(n)));
    (
        Tuple::new(
            addr(0xc612_0000),
            addr(0xc613_0000 + (i >> 16)),
            i as u16,
            1,
        ),
        Original::new(addr(1), 1, 1, 1000, 1),
    )
}

pub fn full(w: &mut World) {
    let path = w.dp().folder().join("maps/ORIGINALS");
    let map = foreign::open(&path);
    let kept = SocketAddr::new(w.a.v4, 9200);
    let waiting = w.b.app.must(&format!("connect {kept}"));
    let mut made = 0;
    while made <= size::ORIGINALS {
        let (key, value) = nobody(made);
        if foreign::put(&map, bytes(&key), bytes(&value)).is_err() {
            break;
        }
        made += 1;
    }
    assert!(made < size::ORIGINALS, "the map took {made}");
    let lost = w.dp().counter("decision", "originals_full").unwrap();
    let c =
        w.a.app
            .must(&format!("connect {}", SocketAddr::new(w.b.v4, 80)));
    let all: Vec<_> = w.a.outbound.iter().collect();
    let (stream, peer) = accept(&all).expect("it comes to the proxy");
    let o = w.dp().take_original(peer, stream.local_addr().unwrap());
    assert_eq!(o.unwrap(), None, "which resets what it knows nothing about");
    assert_eq!(
        w.dp().counter("decision", "originals_full").unwrap(),
        lost + 1
    );
    w.a.app.must(&format!("close {}", c.id));
    let all: Vec<_> = w.b.outbound.iter().collect();
    let (stream, peer) = accept(&all).expect("it waited");
    let o = w.dp().take_original(peer, stream.local_addr().unwrap());
    assert_eq!(o.unwrap().expect("its entry is there").destination, kept);
    w.b.app.must(&format!("close {}", waiting.id));
    assert!(w.dp().sweep(Duration::ZERO).unwrap() as u32 >= made);
    let a = w.a.info.as_ref().unwrap().id;
    tidy(w, a);
}

/// When there is no room for a direct flow, it takes the tunnel, and the application notices nothing.
pub fn diverts(w: &mut World) {
    let to = SocketAddr::new(w.b.v4, 8300);
    let cookie = w.a.info.as_ref().unwrap().cookie;
    let uses = foreign::open(&w.dp().folder().join("maps/USES"));
    let say = |direct: u32| {
        let everybody = Use::new(0, direct.into(), 0);
        foreign::put(&uses, &abi::EVERYBODY.to_ne_bytes(), bytes(&everybody)).unwrap();
    };
    let l = w.b.app.must(&format!("listen {to}")).id;
    let count = |w: &World, name| w.dp().counter("decision", name).unwrap();
    for (entries, diverted) in [
        (0, false),
        (size::DIRECT - size::DIRECT_SLACK, true),
        (size::DIRECT, true),
        (0, false),
    ] {
        say(entries);
        let dp = w.dp();
        dp.set_verdict(cookie, to, Outcome::Direct, dp.epoch(to.ip()), None)
            .unwrap();
        let before = ["direct_diverted", "connect_direct", "direct_full"].map(|n| count(w, n));
        let c = w.a.app.must(&format!("connect {to}"));
        if diverted {
            let all: Vec<_> = w.a.outbound.iter().collect();
            let (stream, peer) = accept(&all).expect("it comes to the proxy");
            let o = w.dp().take_original(peer, stream.local_addr().unwrap());
            assert_eq!(o.unwrap().expect("its entry is there").destination, to);
        } else {
            let s = w.b.app.must(&format!("accept {l}"));
            w.b.app.must(&format!("close {}", s.id));
        }
        let after = ["direct_diverted", "connect_direct", "direct_full"].map(|n| count(w, n));
        let one = u64::from(diverted);
        assert_eq!(
            after,
            [before[0] + one, before[1] + 1 - one, before[2]],
            "with {entries} entries"
        );
        w.a.app.must(&format!("close {}", c.id));
        let dp = w.dp();
        eventually("the flow is forgotten", || {
            dp.flows(None).unwrap().is_empty()
        });
        assert_eq!(dp.direct_entries(), entries.into(), "each is given back");
    }
    w.b.app.must(&format!("close {l}"));
}

pub fn full_for_us(w: &mut World) {
    let vip = |i: u32| SocketAddr::new(Ipv4Addr::from(0x0ac8_0000 + i).into(), 80);
    let local = [VipSlot::Local(SocketAddr::new(w.b.v4, 8080))];
    let had = w.dp().vips().unwrap().len() as u32;
    for i in had..size::VIPS {
        w.dp().set_vip(vip(i), &local).unwrap();
    }
    let error = w.dp().set_vip(vip(size::VIPS), &local).unwrap_err();
    assert!(
        matches!(&error, LoadError::Full { limit, .. } if *limit == size::VIPS),
        "{error}"
    );
    assert!(error.to_string().contains("VIPS"), "{error}");
    assert_eq!(w.dp().counter("full", "VIPS").unwrap(), 1);
    // A VIP that is not in it goes to the proxy.
    crate::cases::captured(w, "connect", vip(size::VIPS));
    for i in had..size::VIPS {
        w.dp().remove_vip(vip(i)).unwrap();
    }
    w.dp().set_vip(vip(1), &local).unwrap();
    w.dp().remove_vip(vip(1)).unwrap();
}

fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: a type that is Plain has no padding, so every byte of it is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
