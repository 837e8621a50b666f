//! The cases.

use std::net::SocketAddr;

use crate::world::{World, accept};

/// Connects from pod `a` and takes the connection as its proxy; gives the dialed address that was recovered.
fn captured(w: &mut World, command: &str, to: SocketAddr) {
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
