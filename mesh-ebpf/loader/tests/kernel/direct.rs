//! Direct flows: native TCP between two pods of the node, decided and watched by the kernel.

use std::net::SocketAddr;

use mesh_loader::{EventKind, Outcome, VipSlot};

use crate::world::{World, eventually};

fn allow(w: &World, to: SocketAddr) {
    let cookie = w.a.info.as_ref().unwrap().cookie;
    let dp = w.dp();
    dp.set_verdict(cookie, to, Outcome::Direct, dp.epoch(to.ip()), None)
        .unwrap();
}

pub fn direct(w: &mut World) {
    w.dp().events().unwrap().drain(100_000, |_| {});
    for (command, to, server_first) in [
        ("connect", SocketAddr::new(w.b.v4, 8100), false),
        ("connect", SocketAddr::new(w.b.v4, 8100), true),
        ("connect", SocketAddr::new(w.b.v6, 8100), true),
        ("connect-mapped", SocketAddr::new(w.b.v4, 8101), false),
    ] {
        let l = w.b.app.must(&format!("listen {to}")).id;
        allow(w, to);
        let c = w.a.app.must(&format!("{command} {to}"));
        let s = w.b.app.must(&format!("accept {l}"));
        let client: SocketAddr = c.words[0].parse().unwrap();
        assert_eq!(
            s.words[0],
            SocketAddr::new(client.ip().to_canonical(), client.port()).to_string(),
            "the server sees its client"
        );
        w.a.app.must(&format!("send {} hello", c.id));
        assert_eq!(w.b.app.must(&format!("recv {}", s.id)).words, ["hello"]);
        let flows = w.dp().flows(None).unwrap();
        assert_eq!(flows.len(), 1);
        assert_eq!((flows[0].server, flows[0].dialed), (to, to));
        assert_eq!(w.dp().usage(flows[0].client_pod).direct, 1);
        assert_eq!(w.dp().direct_entries(), 1);
        w.b.app.must(&format!("send {} back", s.id));
        assert_eq!(w.a.app.must(&format!("recv {}", c.id)).words, ["back"]);
        if server_first {
            w.b.app.must(&format!("close {}", s.id));
            assert!(
                w.a.app.must(&format!("recv {}", c.id)).words.is_empty(),
                "FIN"
            );
            w.a.app.must(&format!("close {}", c.id));
        } else {
            w.a.app.must(&format!("close {}", c.id));
            assert!(
                w.b.app.must(&format!("recv {}", s.id)).words.is_empty(),
                "FIN"
            );
            w.b.app.must(&format!("close {}", s.id));
        }
        w.b.app.must(&format!("close {l}"));
        let dp = w.dp();
        eventually("the flow is forgotten", || {
            dp.flows(None).unwrap().is_empty()
        });
        let (mut open, mut close) = (0, 0);
        dp.events().unwrap().drain(1000, |e| match e.kind {
            EventKind::DirectOpen => open += 1,
            EventKind::DirectClose => {
                assert_eq!(
                    (e.peer, e.sent, e.received, e.established),
                    (to, 5, 4, true)
                );
                close += 1;
            }
            _ => {}
        });
        assert_eq!((open, close), (1, 1), "{to}");
    }
    // The verdict is void: the same connection goes to the proxy.
    let to = SocketAddr::new(w.b.v4, 8100);
    w.dp().bump_epoch(to.ip());
    crate::cases::captured(w, "connect", to);
}

pub fn vip(w: &mut World) {
    let vip: SocketAddr = "10.200.0.1:80".parse().unwrap();
    let to = SocketAddr::new(w.b.v4, 8102);
    let l = w.b.app.must(&format!("listen {to}")).id;
    w.dp().set_vip(vip, &[VipSlot::Local(to)]).unwrap();
    crate::cases::captured(w, "connect", vip);
    allow(w, to);
    let c = w.a.app.must(&format!("connect {vip}"));
    assert_eq!(c.words[1], vip.to_string(), "the client sees the VIP");
    let s = w.b.app.must(&format!("accept {l}"));
    assert_eq!(s.words[0], c.words[0]);
    let flows = w.dp().flows(w.b.info.as_ref().map(|i| i.id)).unwrap();
    assert_eq!(
        flows
            .iter()
            .map(|f| (f.dialed, f.server))
            .collect::<Vec<_>>(),
        [(vip, to)]
    );
    for id in [s.id, l] {
        w.b.app.must(&format!("close {id}"));
    }
    w.a.app.must(&format!("close {}", c.id));
    w.dp().set_vip(vip, &[VipSlot::Proxy]).unwrap();
    crate::cases::captured(w, "connect", vip);
    w.dp().remove_vip(vip).unwrap();
}

pub fn cut(w: &mut World) {
    let to = SocketAddr::new(w.b.v4, 8103);
    let l = w.b.app.must(&format!("listen {to}")).id;
    allow(w, to);
    let c = w.a.app.must(&format!("connect {to}"));
    let s = w.b.app.must(&format!("accept {l}"));
    let client: SocketAddr = c.words[0].parse().unwrap();
    assert!(w.dp().cut(client, to).unwrap());
    assert_eq!(
        w.b.app.ask(&format!("recv {}", s.id)).unwrap_err(),
        "104",
        "the server sees a reset"
    );
    assert!(w.a.app.ask(&format!("recv {}", c.id)).is_err());
    assert!(!w.dp().cut(client, to).unwrap(), "gone");
    let dp = w.dp();
    eventually("the flow is forgotten", || {
        dp.flows(None).unwrap().is_empty()
    });
    for id in [s.id, l] {
        w.b.app.must(&format!("close {id}"));
    }
    w.a.app.must(&format!("close {}", c.id));
    for listener in w.a.outbound.iter().chain([
        &w.a.inbound.as_ref().unwrap().0,
        &w.b.inbound.as_ref().unwrap().0,
    ]) {
        // A listener that was destroyed would say EINVAL.
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock,
            "the proxy's listeners live"
        );
    }
}
