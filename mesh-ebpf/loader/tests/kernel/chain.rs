//! Programs of others beside ours: on the interfaces, in `connect`, and around the host side of a veth.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mesh_loader::{Looked, Outcome, Tc};
use nix::sys::socket::{setsockopt, sockopt};

use crate::cases::captured;
use crate::foreign::{self, BEFORE, Insn};
use crate::packets::{claim, syn};
use crate::world::{World, accept, eventually, ip, run, run_words};

/// Attaches a classifier of somebody else's to an interface by TCX.
fn tcx(w: &World, ifindex: u32, insns: &[Insn], flags: u32) -> OwnedFd {
    let prog = foreign::load(foreign::SCHED_CLS, foreign::TCX_INGRESS, insns);
    w.on_node(|| foreign::attach(&prog, ifindex, foreign::TCX_INGRESS, flags))
}

/// Adds a filter of somebody else's to an interface's clsact.
fn filter(w: &World, interface: &str, priority: u32, insns: &[Insn]) {
    let path = format!("/sys/fs/bpf/{}-foreign", w.name());
    let prog = foreign::load(foreign::SCHED_CLS, 0, insns);
    foreign::pin(&prog, &std::ffi::CString::new(path.clone()).unwrap());
    // By a thread in the namespace: `tc -n` hides the pins behind mounts of its own.
    let added = w.on_node(|| {
        let _ = run("tc", &format!("qdisc add dev {interface} clsact"));
        let add = format!("filter add dev {interface} ingress prio {priority} bpf da");
        Ok(run("tc", &format!("{add} object-pinned {path}")))
    });
    std::fs::remove_file(path).unwrap();
    added.unwrap();
}

fn unfilter(w: &World, interface: &str, priority: u32) {
    run(
        "tc",
        &format!(
            "-n {}-n filter del dev {interface} ingress prio {priority}",
            w.name()
        ),
    )
    .unwrap();
}

fn look(w: &World) -> Looked {
    w.dp().look().unwrap()
}

/// Everything is in order, and was at the last look.
fn settled(w: &World) {
    let seen = look(w);
    assert!(seen.direct && seen.was_direct, "{seen:?}");
}

fn is_clsact(w: &World) -> bool {
    w.dp().tc() == Tc::Clsact
}

/// Whether a connection from `a` to `to` that was just allowed goes direct.
fn goes_direct(w: &mut World, to: SocketAddr) -> bool {
    let cookie = w.a.info.as_ref().unwrap().cookie;
    let dp = w.dp();
    dp.set_verdict(cookie, to, Outcome::Direct, dp.epoch(to.ip()), None)
        .unwrap();
    let before = dp.counter("decision", "connect_direct").unwrap();
    let l = w.b.app.must(&format!("listen {to}")).id;
    let c = w.a.app.must(&format!("connect {to}"));
    let direct = w.dp().counter("decision", "connect_direct").unwrap() > before;
    if !direct {
        let all: Vec<_> = w.a.outbound.iter().collect();
        let (stream, peer) = accept(&all).expect("what does not go direct goes to the proxy");
        let local = stream.local_addr().unwrap();
        assert!(w.dp().take_original(peer, local).unwrap().is_some());
    }
    w.a.app.must(&format!("close {}", c.id));
    w.b.app.must(&format!("close {l}"));
    let dp = w.dp();
    eventually("the flow is forgotten", || {
        dp.flows(None).unwrap().is_empty()
    });
    direct
}

pub fn detached(w: &mut World) {
    let to = SocketAddr::new(w.b.v4, 8110);
    settled(w);
    assert!(goes_direct(w, to));
    let cookie = w.a.info.as_ref().unwrap().cookie;
    let dp = w.dp();
    dp.set_verdict(cookie, to, Outcome::Direct, dp.epoch(to.ip()), None)
        .unwrap();
    if is_clsact(w) {
        run("tc", &format!("-n {}-n qdisc del dev vc clsact", w.name())).unwrap();
    } else {
        let link = format!("links/if-{}-anchor", w.stranger.veth);
        std::fs::remove_file(w.dp().folder().join(link)).unwrap();
    }
    // The kernel lets go of a link a moment after its pin went.
    let until = Instant::now() + Duration::from_secs(5);
    while claim(w).is_some() {
        assert!(Instant::now() < until, "the anchor stays where it was");
    }
    let seen = look(w);
    assert!(
        !seen.direct && seen.was_direct && seen.open.is_empty(),
        "{seen:?}"
    );
    assert_eq!(
        seen.mended
            .iter()
            .map(|f| (f.ifindex, f.program))
            .collect::<Vec<_>>(),
        [(w.stranger.veth, "anchor")],
        "{seen:?}"
    );
    assert_eq!(claim(w), Some(1), "it is back");
    // What was decided before is void, and what is decided now does not go direct.
    captured(w, "connect", to);
    assert!(!goes_direct(w, to));
    let seen = look(w);
    assert!(seen.direct && !seen.was_direct, "{seen:?}");
    assert!(goes_direct(w, to));
}

/// A port that appears on the pods' bridge is anchored when it is heard of, before any look; what was missed is said.
pub fn announced(w: &mut World) {
    settled(w);
    while w.dp().hear().unwrap().more {}
    let node = |command: &str| ip(&format!("-n {}-n {command}", w.name())).unwrap();
    node("link add late0 type veth peer name late1");
    node("link set late0 master br0 up");
    let mut found = Vec::new();
    eventually("it is heard of", || {
        let heard = w.dp().hear().unwrap();
        assert!(!heard.look, "{heard:?}");
        found.extend(heard.found.into_iter().map(|f| f.name));
        !found.is_empty()
    });
    assert_eq!(found, ["late0"]);
    let seen = look(w);
    assert!(seen.direct && seen.found.is_empty(), "{seen:?}");
    // More than the kernel keeps for who does not listen.
    setsockopt(&w.dp().news(), sockopt::RcvBuf, &0).unwrap();
    for mtu in 1400..1440 {
        node(&format!("link set late0 mtu {mtu}"));
    }
    let heard = w.dp().hear().unwrap();
    assert!(heard.look && !heard.more, "{heard:?}");
    node("link del late0");
    eventually("it is forgotten", || {
        let gone = look(w);
        gone.direct && !gone.open.iter().any(|f| f.name == "late0")
    });
}

pub fn displaced(w: &mut World) {
    settled(w);
    let veth = w.a.veth;
    let foreign = if is_clsact(w) {
        filter(w, "va", 1, &foreign::always(foreign::OK));
        None
    } else {
        Some(tcx(w, veth, &foreign::always(foreign::OK), BEFORE))
    };
    assert_eq!(
        syn(w),
        None,
        "whoever says OK before the guard hides packets from it"
    );
    let seen = look(w);
    assert!(!seen.direct && seen.open.is_empty(), "{seen:?}");
    assert_eq!(
        seen.mended
            .iter()
            .map(|f| (f.ifindex, f.program))
            .collect::<Vec<_>>(),
        [(veth, "guard")],
        "{seen:?}"
    );
    assert_eq!(syn(w), Some(1), "the guard is first again");
    assert!(look(w).direct);
    if is_clsact(w) {
        // Programs of TCX come before every filter: there is nothing to be done but to say so.
        if mesh_has_tcx(w) {
            let first = tcx(w, veth, &foreign::always(foreign::NEXT), BEFORE);
            let seen = look(w);
            assert!(!seen.direct && seen.open.len() == 1, "{seen:?}");
            drop(first);
            look(w);
        }
        unfilter_foreign(w);
    }
    drop(foreign);
    // A restarted agent finds what was put back.
    let dp = w.dp.take().unwrap();
    drop(dp);
    w.dp = Some(mesh_loader::Datapath::open(&w.config).unwrap());
    w.dp().heartbeat();
    assert_eq!(syn(w), Some(1));
    let seen = look(w);
    assert!(seen.direct && !seen.was_direct, "{seen:?}");
}

fn mesh_has_tcx(w: &World) -> bool {
    let prog = foreign::load(
        foreign::SCHED_CLS,
        foreign::TCX_INGRESS,
        &foreign::always(foreign::NEXT),
    );
    w.on_node(|| Ok(foreign::attach(&prog, 1, foreign::TCX_INGRESS, 0).is_ok()))
}

/// Removes the filter that always says OK, and leaves ours.
fn unfilter_foreign(w: &World) {
    let out = std::process::Command::new("tc")
        .args([
            "-n",
            &format!("{}-n", w.name()),
            "filter",
            "show",
            "dev",
            "va",
            "ingress",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text
        .lines()
        .find(|l| l.contains("handle") && !l.contains("warren:"))
        .expect("the foreign filter is there");
    let handle = line
        .split("handle ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    run(
        "tc",
        &format!(
            "-n {}-n filter del dev va ingress pref 1 handle {handle} bpf",
            w.name()
        ),
    )
    .unwrap();
}

/// Whether a datagram from `a` reaches `b` at a port.
fn arrives(w: &mut World, port: u16) -> bool {
    let to = SocketAddr::new(w.b.v4, port);
    let at = w.b.app.must(&format!("udp {to}")).id;
    let from = w.a.app.must("udp 0.0.0.0:0").id;
    w.a.app.must(&format!("sendto {from} {to} probe"));
    // The veth carries in order: what comes behind says that the first has been decided.
    let fence = SocketAddr::new(w.b.v4, 7799);
    let behind = w.b.app.must(&format!("udp {fence}")).id;
    w.a.app.must(&format!("sendto {from} {fence} fence"));
    w.b.app.must(&format!("recvfrom {behind}"));
    let came = w.b.app.ask(&format!("peek {at}")).is_ok();
    for id in [at, behind] {
        w.b.app.must(&format!("close {id}"));
    }
    w.a.app.must(&format!("close {from}"));
    came
}

pub fn honours(w: &mut World) {
    let (veth, to) = (w.a.veth, w.b.veth);
    // Once, so that both know each other's hardware addresses.
    assert!(arrives(w, 7770));
    filter(
        w,
        "va",
        100,
        &foreign::on_udp(7771, &foreign::verdict(foreign::SHOT)),
    );
    assert!(!arrives(w, 7771), "a legacy filter behind us is asked");
    assert!(arrives(w, 7770));
    assert_eq!(syn(w), Some(1), "and we before it");
    if !is_clsact(w) {
        let ok = tcx(
            w,
            veth,
            &foreign::on_udp(7771, &foreign::verdict(foreign::OK)),
            foreign::AFTER,
        );
        assert!(
            arrives(w, 7771),
            "OK ends the chain: the filter is not asked"
        );
        drop(ok);
        let shot = tcx(
            w,
            veth,
            &foreign::on_udp(7772, &foreign::verdict(foreign::SHOT)),
            foreign::AFTER,
        );
        assert!(!arrives(w, 7772), "a drop behind us is a drop");
        drop(shot);
        let redirect = tcx(
            w,
            veth,
            &foreign::on_udp(7771, &foreign::redirect(to)),
            foreign::AFTER,
        );
        assert!(arrives(w, 7771), "a redirect is one, past the filter");
        assert_eq!(syn(w), Some(1), "but only of what we let pass");
        drop(redirect);
        // Before us, a redirect takes packets away from the guard: until the next look.
        let redirect = tcx(
            w,
            veth,
            &foreign::on_tcp(8080, &foreign::redirect(to)),
            BEFORE,
        );
        assert_eq!(syn(w), None);
        assert_eq!(look(w).mended.len(), 1);
        assert_eq!(syn(w), Some(1));
        drop(redirect);
        look(w);
    } else {
        filter(w, "va", 50, &foreign::on_udp(7771, &foreign::redirect(to)));
        assert!(
            arrives(w, 7771),
            "a redirect is one, past the filter behind it"
        );
        assert_eq!(syn(w), Some(1), "but only of what we let pass");
        unfilter(w, "va", 50);
    }
    unfilter(w, "va", 100);
    settled(w);
}

pub fn past_the_veth(w: &mut World) {
    let (from, into) = (w.stranger.veth, w.b.veth);
    let to = SocketAddr::new(w.b.v4, 8200);
    let jump = if is_clsact(w) {
        for port in [8200, 15001] {
            filter(
                w,
                "vc",
                u32::from(port),
                &foreign::on_tcp(port, &foreign::redirect_peer(into)),
            );
        }
        Vec::new()
    } else {
        [8200, 15001]
            .map(|port| {
                tcx(
                    w,
                    from,
                    &foreign::on_tcp(port, &foreign::redirect_peer(into)),
                    foreign::AFTER,
                )
            })
            .into()
    };
    let c = w.stranger.app.must(&format!("connect {to}"));
    let (four, six) = w.b.inbound.as_ref().unwrap();
    let (s, _) = accept(&[four, six]).expect("it comes to the proxy all the same");
    assert_eq!(s.local_addr().unwrap(), to);
    w.stranger.app.must(&format!("close {}", c.id));
    let before = w.dp().counter("dropped", "bypass").unwrap();
    let private = SocketAddr::new(w.b.v4, 15001);
    assert!(w.stranger.app.ask(&format!("connect {private}")).is_err());
    assert!(w.dp().counter("dropped", "bypass").unwrap() > before);
    drop(jump);
    if is_clsact(w) {
        for port in [8200, 15001] {
            unfilter(w, "vc", port);
        }
    }
    settled(w);
}

pub fn balancer(w: &mut World) {
    let vip: SocketAddr = "10.200.0.7:80".parse().unwrap();
    let insns = foreign::balancer(Ipv4Addr::new(10, 200, 0, 7), Ipv4Addr::new(10, 99, 0, 1));
    let prog = foreign::load(foreign::CGROUP_SOCK_ADDR, foreign::CONNECT4, &insns);
    let above = std::fs::File::open(w.cgroup()).unwrap();
    let link = foreign::attach(&prog, above.as_raw_fd() as u32, foreign::CONNECT4, 0).unwrap();
    // It works for whoever is not ours: the node's own processes see its answer.
    let l = w.kubelet.must("listen 10.99.0.1:80").id;
    let c = w.kubelet.must(&format!("connect {vip}"));
    assert_eq!(c.words[1], "10.99.0.1:80", "the balancer balances");
    w.kubelet.must(&format!("close {}", c.id));
    w.kubelet.must(&format!("close {l}"));
    // Ours is asked first, and what the pod dialed is not lost.
    captured(w, "connect", vip);
    drop(link);
}

pub fn balancer_beside(w: &mut World) {
    let vip: SocketAddr = "10.200.0.7:80".parse().unwrap();
    let insns = foreign::balancer(Ipv4Addr::new(10, 200, 0, 7), Ipv4Addr::new(10, 99, 0, 1));
    let prog = foreign::load(foreign::CGROUP_SOCK_ADDR, foreign::CONNECT4, &insns);
    let pods = std::fs::File::open(&w.config.pods_cgroup).unwrap();
    // It was there before us.
    let dp = w.dp.take().unwrap();
    std::fs::remove_file(dp.folder().join("links/connect4")).unwrap();
    drop(dp);
    let attach = || foreign::attach(&prog, pods.as_raw_fd() as u32, foreign::CONNECT4, 0);
    let link = attach().unwrap();
    w.dp = Some(mesh_loader::Datapath::open(&w.config).unwrap());
    w.dp().heartbeat();
    // A kernel that knows no order within a cgroup cannot do better than say so.
    if foreign::before(&prog, &pods) {
        captured(w, "connect", vip);
    } else {
        println!("kernel: no order within a cgroup here (before 6.17)");
    }
    drop(link);
    // As after every start: nothing goes direct before the first look.
    look(w);
}

pub fn stranger_port(w: &mut World) {
    settled(w);
    let node = format!("{}-n", w.name());
    ip(&format!("-n {node} link add vx type veth peer name vy")).unwrap();
    ip(&format!("-n {node} link set vx master br0 up")).unwrap();
    let seen = look(w);
    assert!(seen.direct, "found and anchored at once: {seen:?}");
    assert_eq!(
        seen.found
            .iter()
            .map(|f| f.name.as_str())
            .collect::<Vec<_>>(),
        ["vx"]
    );
    let watched = seen.watched;
    assert!(look(w).found.is_empty(), "once");
    ip(&format!("-n {node} link del vx")).unwrap();
    assert_eq!(look(w).watched, watched - 1);
    assert_eq!(
        look(w).watched,
        watched - 1,
        "and forgotten with its interface"
    );
}

pub fn crowded(w: &mut World) {
    if is_clsact(w) {
        return taken(w);
    }
    settled(w);
    let node = format!("{}-n", w.name());
    ip(&format!("-n {node} link add vx type veth peer name vy")).unwrap();
    let vx = w.on_node(|| Ok(nix::net::if_::if_nametoindex("vx")?));
    let prog = || {
        foreign::load(
            foreign::SCHED_CLS,
            foreign::TCX_INGRESS,
            &foreign::always(foreign::NEXT),
        )
    };
    let attach = || w.on_node(|| Ok(foreign::attach(&prog(), vx, foreign::TCX_INGRESS, 0)));
    let mut crowd = Vec::new();
    while let Ok(link) = attach() {
        crowd.push(link);
    }
    assert!(crowd.len() > 30, "a chain is long: {}", crowd.len());
    ip(&format!("-n {node} link set vx master br0 up")).unwrap();
    open_until(w, "vx", || drop(crowd));
    ip(&format!("-n {node} link del vx")).unwrap();
    look(w);
    settled(w);
}

fn taken(w: &mut World) {
    settled(w);
    let node = format!("{}-n", w.name());
    ip(&format!("-n {node} link add vx type veth peer name vy")).unwrap();
    run("tc", &format!("-n {node} qdisc add dev vx clsact")).unwrap();
    // A priority belongs to one protocol.
    let add = "filter add dev vx ingress prio 1 protocol ip bpf bytecode";
    run_words(
        "tc",
        &format!("-n {node} {add}")
            .split(' ')
            .chain(["1,6 0 0 0,", "flowid", "1:1"])
            .collect::<Vec<_>>(),
    )
    .unwrap();
    ip(&format!("-n {node} link set vx master br0 up")).unwrap();
    let del = format!("-n {node} filter del dev vx ingress prio 1");
    open_until(w, "vx", || run("tc", &del).unwrap());
    ip(&format!("-n {node} link del vx")).unwrap();
    look(w);
    settled(w);
}

/// While an interface is open, nothing goes direct; when the hindrance is gone, it does again.
fn open_until(w: &mut World, name: &str, clear: impl FnOnce()) {
    let to = SocketAddr::new(w.b.v4, 8111);
    for _ in 0..2 {
        let seen = look(w);
        assert!(!seen.direct, "{seen:?}");
        assert_eq!(
            seen.open
                .iter()
                .map(|f| f.name.as_str())
                .collect::<Vec<_>>(),
            [name],
            "{seen:?}"
        );
        assert!(!goes_direct(w, to));
    }
    clear();
    look(w);
    assert!(look(w).direct);
    assert!(goes_direct(w, to));
}
