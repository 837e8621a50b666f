//! Frames sent past the stack.

use std::net::IpAddr;

use crate::world::{Pod, World};

fn eth(from: &Pod, to: &Pod, kind: u16) -> Vec<u8> {
    [&to.mac[..], &from.mac[..], &kind.to_be_bytes()[..]].concat()
}

fn v4(ip: IpAddr) -> [u8; 4] {
    let IpAddr::V4(a) = ip else { panic!("IPv4") };
    a.octets()
}

fn v6(ip: IpAddr) -> [u8; 16] {
    let IpAddr::V6(a) = ip else { panic!("IPv6") };
    a.octets()
}

fn ipv4(src: IpAddr, dst: IpAddr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut h = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    h[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    h[6..8].copy_from_slice(&fragment.to_be_bytes());
    h.extend(v4(src));
    h.extend(v4(dst));
    let sum: u32 = h
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    h[10..12].copy_from_slice(&sum.to_be_bytes());
    h.extend(payload);
    h
}

fn ipv6(src: IpAddr, dst: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut h = vec![0x60, 0, 0, 0, 0, 0, next, 255];
    h[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    h.extend(v6(src));
    h.extend(v6(dst));
    h.extend(payload);
    h
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut h = vec![
        0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0,
    ];
    h.truncate(20);
    h
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|b| format!("{b:02x}")).collect()
}

/// Sends from one pod; gives by how much a drop counter rose. The veth hands the frame over before `sendto`
/// returns, or a moment later: a marked datagram behind it tells when it has been seen.
fn rise(w: &mut World, enrolled: bool, reason: &str, frame: Vec<u8>) -> u64 {
    let before = w.dp().counter("dropped", reason).unwrap();
    let app = if enrolled {
        &mut w.a.app
    } else {
        &mut w.stranger.app
    };
    app.must(&format!("packet eth0 {}", hex(&frame)));
    // A frame that is certainly dropped and counted, behind the other in the same queue.
    let (from, marker, fence) = if enrolled {
        (
            &w.a,
            [
                eth(&w.a, &w.stranger, 0x0800),
                ipv4(w.a.v4, w.stranger.v4, 6, 0x2000, &tcp(0x10)),
            ]
            .concat(),
            "unparsable",
        )
    } else {
        (
            &w.stranger,
            [
                eth(&w.stranger, &w.b, 0x0800),
                ipv4(w.b.v4, w.b.v4, 17, 0, &[0; 8]),
            ]
            .concat(),
            "address_claimed",
        )
    };
    let _ = from;
    let at = w.dp().counter("dropped", fence).unwrap();
    let extra = u64::from(fence == reason);
    let app = if enrolled {
        &mut w.a.app
    } else {
        &mut w.stranger.app
    };
    app.must(&format!("packet eth0 {}", hex(&marker)));
    let dp = w.dp.as_ref().unwrap();
    crate::world::eventually("the fence is seen", || {
        dp.counter("dropped", fence).unwrap() > at
    });
    dp.counter("dropped", reason).unwrap() - before - extra
}

/// A SYN from `a` that no socket of the proxy's sent: by how much the guard's drops rise, or `None` when the
/// guard does not see what comes from there.
pub fn syn(w: &mut World) -> Option<u64> {
    let (to, from) = (w.stranger.v4, w.a.v4);
    let frame = [
        eth(&w.a, &w.stranger, 0x0800),
        ipv4(from, to, 6, 0, &tcp(0x02)),
    ]
    .concat();
    seen(w, true, "bypass", frame)
}

/// A packet of the stranger's that claims `b`'s address: by how much the anchor's drops rise, or `None` when
/// the anchor does not see what comes from there.
pub fn claim(w: &mut World) -> Option<u64> {
    let frame = [
        eth(&w.stranger, &w.a, 0x0800),
        ipv4(w.b.v4, w.a.v4, 17, 0, &[0; 8]),
    ]
    .concat();
    seen(w, false, "address_claimed", frame)
}

/// Sends a frame, and behind it one datagram to the other pod that says when both have been decided.
fn seen(w: &mut World, enrolled: bool, reason: &str, frame: Vec<u8>) -> Option<u64> {
    let before = w.dp().counter("dropped", reason).unwrap();
    let fence = std::net::SocketAddr::new(w.b.v4, 7798);
    let at = w.b.app.must(&format!("udp {fence}")).id;
    let app = if enrolled {
        &mut w.a.app
    } else {
        &mut w.stranger.app
    };
    app.must(&format!("packet eth0 {}", hex(&frame)));
    let from = app.must("udp 0.0.0.0:0").id;
    app.must(&format!("sendto {from} {fence} fence"));
    app.must(&format!("close {from}"));
    w.b.app.must(&format!("recvfrom {at}"));
    w.b.app.must(&format!("close {at}"));
    let rise = w.dp().counter("dropped", reason).unwrap() - before;
    (rise > 0).then_some(rise)
}

pub fn guard(w: &mut World) {
    let (a, a6) = (w.a.v4, w.a.v6);
    let (c, c6) = (w.stranger.v4, w.stranger.v6);
    let four = |w: &World, fragment, payload: &[u8]| {
        [
            eth(&w.a, &w.stranger, 0x0800),
            ipv4(a, c, 6, fragment, payload),
        ]
        .concat()
    };
    let six = |w: &World, next, payload: &[u8]| {
        [eth(&w.a, &w.stranger, 0x86dd), ipv6(a6, c6, next, payload)].concat()
    };
    let options = |payload: &[u8]| [&[6u8, 0, 1, 4, 0, 0, 0, 0][..], payload].concat();
    let fragment = |payload: &[u8]| [&[6u8, 0, 0, 0, 0, 0, 0, 9][..], payload].concat();

    let frame = four(w, 0, &tcp(0x02));
    assert_eq!(
        rise(w, true, "bypass", frame),
        1,
        "a SYN that no socket of the proxy's sent"
    );
    let frame = six(w, 6, &tcp(0x02));
    assert_eq!(rise(w, true, "bypass", frame), 1, "the same over IPv6");
    let frame = four(w, 0, &tcp(0x10));
    assert_eq!(rise(w, true, "bypass", frame), 0, "an ACK begins nothing");
    let frame = four(w, 0x2000, &tcp(0x02));
    let before = w.dp().counter("dropped", "unparsable").unwrap();
    rise(w, true, "bypass", frame);
    assert_eq!(
        w.dp().counter("dropped", "unparsable").unwrap() - before,
        2,
        "a first fragment, and the fence"
    );
    for (what, frame) in [
        (
            "behind destination options",
            six(w, 60, &options(&tcp(0x02))),
        ),
        ("in a fragment", six(w, 44, &fragment(&tcp(0x02)))),
        (
            "behind options and a fragment",
            six(
                w,
                60,
                &[&[44u8, 0, 1, 4, 0, 0, 0, 0][..], &fragment(&tcp(0x02))].concat(),
            ),
        ),
        (
            "cut off",
            [
                eth(&w.a, &w.stranger, 0x0800),
                ipv4(a, c, 6, 0, &[1, 2, 3, 4]),
            ]
            .concat(),
        ),
    ] {
        let before = w.dp().counter("dropped", "unparsable").unwrap();
        rise(w, true, "bypass", frame);
        assert_eq!(
            w.dp().counter("dropped", "unparsable").unwrap() - before,
            2,
            "TCP {what}, and the fence"
        );
    }
    let mut told = 0;
    w.dp().events().unwrap().drain(10_000, |e| {
        told += usize::from(e.reason == 27 && e.client.port() == 40000)
    });
    assert!(told >= 2, "drops are told");
    w.dp().set_audit(true);
    let before = w.dp().counter("decision", "guard_would_drop").unwrap();
    let frame = four(w, 0, &tcp(0x02));
    w.a.app.must(&format!("packet eth0 {}", hex(&frame)));
    let dp = w.dp();
    crate::world::eventually("audited", || {
        dp.counter("decision", "guard_would_drop").unwrap() > before
    });
    dp.set_audit(false);
}

pub fn anchor(w: &mut World) {
    let (b, b6) = (w.b.v4, w.b.v6);
    let (c, c6) = (w.stranger.v4, w.stranger.v6);
    let arp = |w: &World, sender: IpAddr| {
        let body = [
            &[0, 1, 8, 0, 6, 4, 0, 2][..],
            &w.stranger.mac,
            &v4(sender),
            &w.a.mac,
            &v4(w.a.v4),
        ]
        .concat();
        [eth(&w.stranger, &w.a, 0x0806), body].concat()
    };
    let advert = |w: &World, target: IpAddr| {
        let body = [
            &[136, 0, 0, 0, 0x60, 0, 0, 0][..],
            &v6(target),
            &[2, 1],
            &w.stranger.mac,
        ]
        .concat();
        [eth(&w.stranger, &w.a, 0x86dd), ipv6(c6, w.a.v6, 58, &body)].concat()
    };
    let frame = arp(w, b);
    assert_eq!(
        rise(w, false, "address_claimed", frame),
        1,
        "ARP for a pod's address"
    );
    let frame = arp(w, c);
    assert_eq!(
        rise(w, false, "address_claimed", frame),
        0,
        "ARP for its own"
    );
    let frame = advert(w, b6);
    assert_eq!(
        rise(w, false, "address_claimed", frame),
        1,
        "a neighbour advertisement for a pod's address"
    );
    let frame = advert(w, c6);
    assert_eq!(
        rise(w, false, "address_claimed", frame),
        0,
        "one for its own"
    );
    let frame = [
        eth(&w.stranger, &w.a, 0x0800),
        ipv4(b, w.a.v4, 6, 0, &tcp(0x02)),
    ]
    .concat();
    assert_eq!(
        rise(w, false, "address_claimed", frame),
        1,
        "a pod's address as source"
    );
    let frame = [
        eth(&w.stranger, &w.a, 0x86dd),
        ipv6(b6, w.a.v6, 6, &tcp(0x02)),
    ]
    .concat();
    assert_eq!(
        rise(w, false, "address_claimed", frame),
        1,
        "the same over IPv6"
    );
    // An enrolled pod cannot speak for another either.
    let before = w.dp().counter("dropped", "address_claimed").unwrap();
    let frame = [eth(&w.a, &w.stranger, 0x0800), ipv4(b, c, 17, 0, &[0; 8])].concat();
    rise(w, true, "bypass", frame);
    assert_eq!(
        w.dp().counter("dropped", "address_claimed").unwrap() - before,
        1
    );
}
