//! Host tests of the socket decisions and of the bytes that cross the border.

use super::*;
extern crate std;
use std::net::IpAddr;

fn ip(s: &str) -> Addr {
    s.parse::<IpAddr>().expect("an address").into()
}

fn pod() -> Pod {
    Pod::new(
        3,
        POD_CAPTURE | POD_DNS | POD_DIRECT,
        ip("10.1.1.5"),
        ip("fd00::5"),
        5,
    )
}

#[test]
fn an_address_is_its_sixteen_bytes() {
    assert_eq!(
        ip("10.1.1.5").octets(),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 1, 5]
    );
    assert_eq!(ip("fd00::5").octets()[15], 5);
    assert_eq!(ip("::ffff:10.1.1.5"), ip("10.1.1.5"));
    assert_eq!(
        IpAddr::from(ip("10.1.1.5")),
        "10.1.1.5".parse::<IpAddr>().expect("an address")
    );
    for (s, here, many) in [
        ("127.0.0.1", true, false),
        ("127.9.9.9", true, false),
        ("0.0.0.0", true, false),
        ("::1", true, false),
        ("::", true, false),
        ("128.0.0.1", false, false),
        ("10.0.0.1", false, false),
        ("fe80::1", false, false),
        ("::2", false, false),
        ("224.0.0.1", false, true),
        ("239.255.255.255", false, true),
        ("255.255.255.255", false, true),
        ("240.240.1.1", false, false),
        ("ff02::1", false, true),
        ("223.1.1.1", false, false),
    ] {
        assert_eq!((ip(s).is_this_host(), ip(s).is_many()), (here, many), "{s}");
    }
}

#[test]
fn scope_takes_tcp_and_dns_and_nothing_else() {
    use proto::*;
    for (kind, protocol, dst, port, expect) in [
        (STREAM, TCP, "10.1.1.9", 80, Scope::Tcp),
        (STREAM, MPTCP, "10.1.1.9", 80, Scope::Tcp),
        (STREAM, TCP, "fd00::9", 80, Scope::Tcp),
        (STREAM, TCP, "127.0.0.1", 80, Scope::Leave),
        (STREAM, TCP, "10.1.1.5", 80, Scope::Leave),
        (STREAM, TCP, "fd00::5", 80, Scope::Leave),
        (STREAM, TCP, "10.1.1.9", 53, Scope::Dns),
        (DGRAM, UDP, "10.1.1.9", 53, Scope::Dns),
        (DGRAM, UDP, "10.1.1.9", 54, Scope::Leave),
        (STREAM, 132, "10.1.1.9", 80, Scope::Leave),
        (DGRAM, UDP, "127.0.0.53", 53, Scope::Leave),
        (DGRAM, UDP, "224.0.0.251", 53, Scope::Leave),
    ] {
        assert_eq!(
            scope(&pod(), kind, protocol, &ip(dst), port),
            expect,
            "{kind} {protocol} {dst}:{port}"
        );
    }
    let v4_only = Pod::new(3, POD_CAPTURE, ip("10.1.1.5"), Addr::NONE, 1);
    assert_eq!(
        scope(&v4_only, STREAM, TCP, &ip("fd00::9"), 80),
        Scope::Leave,
        "no address of that family: the guard has the last word"
    );
    assert_eq!(
        scope(&v4_only, STREAM, TCP, &ip("10.1.1.9"), 53),
        Scope::Tcp,
        "without DNS capture port 53 is an ordinary port"
    );
    let off = Pod::new(3, 0, ip("10.1.1.5"), Addr::NONE, 1);
    assert_eq!(scope(&off, STREAM, TCP, &ip("10.1.1.9"), 80), Scope::Leave);
}

#[test]
fn the_gate_closes_when_the_agent_is_silent() {
    let state = |retired, beat, stale| State::new(retired, 0, beat, stale, 0, 0);
    assert_eq!(gate(&state(0, 100, 50), 150), Gate::Serve);
    assert_eq!(gate(&state(0, 100, 50), 151), Gate::Stale);
    assert_eq!(gate(&state(0, 100, 0), 9_999), Gate::Serve);
    assert_eq!(
        gate(&state(0, 0, 50), 9_999),
        Gate::Stale,
        "an agent that never showed life is stale"
    );
    assert_eq!(
        gate(&state(1, 100, 50), 9_999),
        Gate::Retired,
        "the newer programs refuse, not these"
    );
}

#[test]
fn a_verdict_holds_only_for_its_epoch_and_time() {
    let v = Verdict::new(1_000, 7, VERDICT_DIRECT, 0);
    assert_eq!(judge(Some(&v), 7, 999), Judged::Direct);
    assert_eq!(judge(Some(&v), 8, 999), Judged::Unknown, "epoch bumped");
    assert_eq!(judge(Some(&v), 7, 1_000), Judged::Unknown, "expired");
    assert_eq!(judge(None, 7, 0), Judged::Unknown);
    let refuse = Verdict::new(0, 7, VERDICT_REFUSE, 2);
    assert_eq!(judge(Some(&refuse), 7, u64::MAX), Judged::Refuse(2));
    let odd = Verdict::new(0, 7, 77, 2);
    assert_eq!(
        judge(Some(&odd), 7, 5),
        Judged::Proxy,
        "an unknown action never goes direct"
    );
    assert_ne!(Endpoint::epoch(4, 0), Endpoint::epoch(4, 1));
}

#[test]
fn connect_goes_direct_only_when_all_agree() {
    let idle = Use::new(0, 0, 0);
    let connect = |judged, able, used: &Use| connect(judged, able, used, used);
    assert_eq!(connect(Judged::Direct, true, &idle), Connect::Direct);
    assert_eq!(connect(Judged::Direct, false, &idle), Connect::Proxy);
    assert_eq!(connect(Judged::Proxy, true, &idle), Connect::Proxy);
    assert_eq!(connect(Judged::Unknown, true, &idle), Connect::Proxy);
    assert_eq!(connect(Judged::Refuse(7), true, &idle), Connect::Refuse(7));
    let full = Use::new(
        crate::maps::size::ORIGINALS_QUOTA as u64,
        crate::maps::size::DIRECT_QUOTA as u64,
        0,
    );
    assert_eq!(
        connect(Judged::Direct, true, &full),
        Connect::Refuse(reason::OVERLOADED)
    );
    assert_eq!(
        connect(Judged::Unknown, true, &Use::new(0, u64::MAX, 0)),
        Connect::Proxy
    );
}

#[test]
fn a_flow_that_would_find_no_place_is_diverted() {
    use crate::maps::size::{DIRECT, DIRECT_QUOTA, DIRECT_SLACK, ORIGINALS_QUOTA};
    let direct = |count: u32| Use::new(0, count.into(), 0);
    let (own, all) = (DIRECT_QUOTA - DIRECT_SLACK, DIRECT - DIRECT_SLACK);
    for (used, everybody, expect) in [
        (own - 1, all - 1, Connect::Direct),
        (own, all - 1, Connect::Diverted),
        (0, all, Connect::Diverted),
        (DIRECT_QUOTA, DIRECT, Connect::Diverted),
    ] {
        let (used, everybody) = (direct(used), direct(everybody));
        let got = connect(Judged::Direct, true, &used, &everybody);
        assert_eq!(got, expect, "{used:?} {everybody:?}");
        let unable = connect(Judged::Direct, false, &used, &everybody);
        assert_eq!(unable, Connect::Proxy, "it is not for want of room");
    }
    let waiting = Use::new(ORIGINALS_QUOTA.into(), own.into(), 0);
    let got = connect(Judged::Direct, true, &waiting, &direct(0));
    assert_eq!(got, Connect::Refuse(reason::OVERLOADED));
}

#[test]
fn a_vip_is_picked_within_its_slots() {
    let mut slots = [Slot::new(Addr::NONE, 0, 0); MAX_SLOTS];
    slots[0] = Slot::new(ip("10.1.1.7"), 80, 1);
    let vip = Vip::new(2, 0, slots);
    assert_eq!(pick(&vip, 0), Pick::Slot(0));
    assert_eq!(
        pick(&vip, 1),
        Pick::Proxy,
        "a remote endpoint: the proxy chooses"
    );
    assert_eq!(pick(&Vip::new(0, 0, slots), 0), Pick::Proxy);
    assert_eq!(pick(&Vip::new(0, 7, slots), 0), Pick::Refuse(7));
    assert_eq!(
        pick(&Vip::new(99, 0, slots), 40),
        Pick::Proxy,
        "a count past the table is not believed"
    );
}

#[test]
fn inbound_is_steered_unless_it_is_known() {
    let (client, server) = (ip("10.1.1.9"), ip("10.1.1.5"));
    assert_eq!(lookup_early(true, &server, &server, 8080), Early::Local);
    assert_eq!(
        lookup_early(true, &ip("127.0.0.1"), &ip("127.0.0.1"), 8080),
        Early::Local
    );
    assert_eq!(lookup_early(true, &client, &server, 8080), Early::Ask);
    assert_eq!(
        lookup_early(true, &client, &server, ports::HBONE),
        Early::Tunnel
    );
    assert_eq!(lookup_early(false, &client, &server, 8080), Early::Other);
    for port in [15001, 15002, 15003, 15004, 15005, 15006, 15053] {
        assert_eq!(
            lookup_early(true, &client, &server, port),
            Early::Drop(reason::BYPASS),
            "{port}"
        );
        assert_eq!(
            lookup_early(false, &client, &server, port),
            Early::Drop(reason::BYPASS),
            "{port}"
        );
        assert_eq!(
            lookup_early(true, &server, &server, port),
            Early::Local,
            "{port}"
        );
    }
    let a = Authorised::new(1, 3, 5, 6, server, 80, 0, 0, 0);
    assert_eq!(lookup(3, Some(&a), false, false, NOBODY), Inbound::Direct);
    assert_eq!(
        lookup(4, Some(&a), false, false, NOBODY),
        Inbound::Steer,
        "another pod has the address now"
    );
    assert_eq!(lookup(3, None, true, true, NOBODY), Inbound::Probe);
    assert_eq!(
        lookup(3, None, false, false, 3),
        Inbound::Own,
        "between two addresses of one pod"
    );
    assert_eq!(lookup(3, None, false, false, 2), Inbound::Steer);
    assert_eq!(lookup(3, None, true, false, NOBODY), Inbound::Steer);
    assert_eq!(lookup(3, None, false, true, NOBODY), Inbound::Steer);
}

#[test]
fn destinations_spread_over_the_outbound_ports() {
    let mut seen = std::collections::BTreeMap::new();
    for i in 0..250u8 {
        for j in 0..8u8 {
            *seen
                .entry(outbound_port(&pod(), &Addr::v4([10, 0, j, i]), 80))
                .or_insert(0) += 1;
        }
    }
    assert_eq!(
        seen.keys().copied().collect::<std::vec::Vec<_>>(),
        [15001, 15002, 15003, 15004, 15005]
    );
    assert!(seen.values().all(|&n| n > 250), "{seen:?}");
    assert_eq!(
        outbound_port(
            &Pod::new(1, 1, Addr::NONE, Addr::NONE, 0),
            &ip("10.0.0.1"),
            80
        ),
        15001
    );
    let same_v6: std::collections::BTreeSet<u16> = (0..200u8)
        .map(|i| outbound_port(&pod(), &ip(&std::format!("fd00::{i:x}")), 80))
        .collect();
    assert_eq!(same_v6.len(), 5);
}

#[test]
fn the_bytes_of_keys_are_what_the_programs_write() {
    let t = Tuple::new(ip("10.1.1.5"), ip("10.1.1.9"), 40000, 80);
    // SAFETY: Tuple is Plain: initialised, without padding.
    let bytes: [u8; 36] = unsafe { core::mem::transmute(t) };
    assert_eq!(&bytes[..16], &ip("10.1.1.5").octets());
    assert_eq!(&bytes[16..32], &ip("10.1.1.9").octets());
    assert_eq!(
        bytes[32..],
        [40000u16.to_ne_bytes(), 80u16.to_ne_bytes()].concat()[..]
    );
    assert_eq!(t.reversed().reversed(), t);
    // SAFETY: as above.
    let key: [u8; 32] = unsafe { core::mem::transmute(VerdictKey::new(1, ip("10.1.1.9"), 80)) };
    assert_eq!(&key[24..26], &80u16.to_ne_bytes());
    assert_eq!(&key[26..], [0; 6]);
}

#[test]
fn map_names_are_unique_and_fit_the_kernel() {
    let names: std::collections::BTreeSet<_> = crate::MAPS.iter().map(|r| r.name).collect();
    assert_eq!(names.len(), crate::MAPS.len());
    assert!(names.iter().all(|n| n.len() <= 15));
    assert_eq!(crate::layout_hash(), crate::layout_hash());
    assert!(crate::MAPS.iter().all(|r| r.quota <= r.capacity));
}

#[test]
fn a_flow_is_told_in_payload_bytes() {
    use tcp_state::*;
    let flow = |half| Authorised::new(1, 3, 5, 6, Addr::NONE, 80, 1, 0, half);
    // The client closed first, the server's FIN came with or after the acknowledgement.
    assert_eq!(payload(7, 11, &flow(10), FIN_WAIT2, true), (5, 10));
    // It closed first and went to TIME_WAIT without waiting for the server's.
    assert_eq!(payload(7, 10, &flow(10), FIN_WAIT2, true), (5, 10));
    // The server closed first.
    assert_eq!(payload(7, 11, &flow(0), LAST_ACK, true), (5, 10));
    assert_eq!(payload(6, 11, &flow(0), LAST_ACK, false), (5, 10));
    // A reset in the middle.
    assert_eq!(payload(6, 10, &flow(0), 1, true), (5, 10));
    // Never established.
    let never = Authorised::new(1, 3, 5, 6, Addr::NONE, 80, 0, 0, 0);
    assert_eq!(payload(0, 0, &never, 2, false), (0, 0));
}

#[test]
fn a_client_that_closed_or_reset_may_still_be_waiting() {
    use tcp_state::*;
    for last in [ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSING] {
        assert!(may_wait(last), "{last}");
    }
    // Never opened, or closed by the proxy, which then had accepted it.
    for last in [2, 3, CLOSE_WAIT, LAST_ACK] {
        assert!(!may_wait(last), "{last}");
    }
}
