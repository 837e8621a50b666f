//! What the programs write for whoever works on them.

use std::net::SocketAddr;

use crate::cases::captured;
use crate::world::{World, eventually};

/// Which programs are under test decides what is expected: those for `cargo xtask ebpf --log` are told apart by their map.
pub fn written(w: &mut World) {
    let speaks = w.config.object.windows(8).any(|b| b == b"AYA_LOGS");
    let Some(mut lines) = w.dp().lines().unwrap() else {
        return assert!(!speaks, "the programs write lines that cannot be read");
    };
    assert!(speaks, "programs as they are shipped write nothing");
    lines.drain();
    captured(w, "connect", SocketAddr::new(w.b.v4, 8080));
    let mut seen = Vec::new();
    eventually("the capture was written about", || {
        seen.extend(lines.drain());
        let wanted =
            |line: &String| line.contains("connect: captured pod") && line.ends_with("port 8080");
        seen.iter().any(wanted)
    });
}
