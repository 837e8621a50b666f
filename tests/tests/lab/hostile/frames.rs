//! Frames that no honest peer sends, over TLS with a good certificate.

use std::io::Write;

use anyhow::{Context, Result, ensure};

use super::{
    STRANGER, TUNNEL, beside_good_streams, failures, from_outside, named, open, tls, until_ended,
    world,
};

/// Rounds of a flood at most: far more than any honest peer needs.
const ROUNDS: u32 = 40_000;

/// One HTTP/2 frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// The client's preface and empty SETTINGS.
pub(super) fn preface() -> Vec<u8> {
    [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(4, 0, 0, &[]),
    ]
    .concat()
}

/// A header block in literals without indexing.
pub(super) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in headers {
        out.push(0);
        for text in [name, value] {
            out.push(u8::try_from(text.len()).expect("short"));
            out.extend(text.as_bytes());
        }
    }
    out
}

/// The preface and one CONNECT.
pub fn connect(authority: &str) -> Vec<u8> {
    let block = block(&[(":method", "CONNECT"), (":authority", authority)]);
    [preface(), frame(1, 4, 1, &block)].concat()
}

/// The kinds of the whole frames in what a server sent.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, ..] = *bytes {
        let length = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        kinds.push(kind);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    kinds
}

/// Whether a HEADERS frame is among what a server sent.
pub fn answered(bytes: &[u8]) -> bool {
    kinds(bytes).contains(&1)
}

/// What is sent once the tunnel is open: some bytes, or the n-th round of a flood.
enum Attack {
    Once(Vec<u8>),
    Flood(fn(u32) -> Vec<u8>),
}

fn attacks() -> Vec<(&'static str, Attack)> {
    use Attack::{Flood, Once};
    let with = |bytes: Vec<u8>| Once([preface(), bytes].concat());
    let good = block(&[(":method", "CONNECT"), (":authority", "10.244.1.2:9000")]);
    let endless = |i: u32| match i {
        0 => frame(1, 0, 1, &block(&[(":method", "CONNECT")])),
        _ => frame(9, 0, 1, &[0; 9000]),
    };
    let reset = |i: u32| {
        let headers = block(&[(":method", "CONNECT"), (":authority", "10.244.1.2:9000")]);
        [
            frame(1, 4, 2 * i + 1, &headers),
            frame(3, 0, 2 * i + 1, &[0, 0, 0, 8]),
        ]
        .concat()
    };
    vec![
        (
            "HTTP/1.1 where the preface belongs",
            Once(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ),
        (
            "a frame longer than any limit",
            with(vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]),
        ),
        ("DATA on stream 0", with(frame(0, 0, 0, b"x"))),
        (
            "DATA on a stream that nobody opened",
            with(frame(0, 0, 7, b"x")),
        ),
        ("an even stream", with(frame(1, 4, 2, &good))),
        (
            "headers that are no HPACK",
            with(frame(1, 4, 1, &[0xff; 20])),
        ),
        ("CONTINUATION of nothing", with(frame(9, 4, 1, &good))),
        ("SETTINGS of five bytes", with(frame(4, 0, 0, &[0; 5]))),
        ("PING of seven bytes", with(frame(6, 0, 0, &[0; 7]))),
        (
            "RST_STREAM of a stream that nobody opened",
            with(frame(3, 0, 9, &[0, 0, 0, 8])),
        ),
        ("a window of zero more", with(frame(8, 0, 0, &[0; 4]))),
        (
            "a window that overflows",
            with(frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ),
        (
            "PUSH_PROMISE from a client",
            with(frame(5, 4, 1, &[0, 0, 0, 2])),
        ),
        ("a flood of PING", Flood(|_| frame(6, 0, 0, b"12345678"))),
        ("a flood of SETTINGS", Flood(|_| frame(4, 0, 0, &[]))),
        ("a flood of streams that are reset at once", Flood(reset)),
        ("headers without end", Flood(endless)),
    ]
}

/// Each ends its own tunnel, by GOAWAY, with a line in the log.
pub async fn hostile_frames_end_their_tunnel_and_no_other() -> Result<()> {
    let world = world().await?;
    let lab = &world.lab;
    let files = world.ca.issue("hostile", STRANGER)?;
    let config = tls(Some(&files), "h2")?;
    let attack = async {
        for (what, attack) in attacks() {
            let before = failures(lab, "tunnel_failure").await?;
            let config = config.clone();
            let answer = from_outside(lab, TUNNEL, move |tcp| {
                let mut stream = open(tcp, config)?;
                // It may be ended before all is written.
                let _ = match attack {
                    Attack::Once(bytes) => stream.write_all(&bytes),
                    Attack::Flood(round) => stream
                        .write_all(&preface())
                        .and_then(|()| (0..ROUNDS).try_for_each(|i| stream.write_all(&round(i)))),
                };
                let _ = stream.flush();
                until_ended(&mut stream)
            })
            .await
            .context(what)?;
            // A peer that is reset while it still writes may not get to read it.
            ensure!(
                answer.is_empty() || kinds(&answer).contains(&7) || what.contains("flood"),
                "{what}: no GOAWAY among {:?}",
                kinds(&answer)
            );
            named(lab, what, "tunnel_failure", before).await?;
        }
        // A frame that never ends: whoever goes away in the middle of it leaves nothing behind.
        let config = config.clone();
        let cut = [preface(), vec![0, 0, 100, 1, 4, 0, 0, 0, 1], vec![0; 10]].concat();
        from_outside(lab, TUNNEL, move |tcp| {
            let mut stream = open(tcp, config)?;
            stream.write_all(&cut)?;
            stream.conn.send_close_notify();
            stream.flush()?;
            stream.sock.shutdown(std::net::Shutdown::Write)?;
            until_ended(&mut stream)
        })
        .await
        .context("half a frame, then the end")?;
        Ok(())
    };
    beside_good_streams(lab, attack).await
}
