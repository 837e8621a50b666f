//! What T24 says of tunnels, for a waypoint's own HTTP/2: clients that mean ill harm themselves.
//!
//! Invariant: beside each abuse another client asks all the time, and is answered.

use std::{cell::Cell, process::Command};

use super::{
    frames::{CANCEL, Raw, block, frame, headers, settings},
    *,
};
use crate::wire::frame::{self as wire, setting};

/// `GET http://db/`, by the static table.
const HEAD: &[u8] = b"\x82\x86\x84\x01\x02db";

/// Frames that come again and again; a number that makes them new each time.
type Piece = Box<dyn Fn(u32) -> Vec<u8>>;

/// What a client does.
struct Abuse {
    name: &'static str,
    begin: Vec<u8>,
    piece: Piece,
    /// Whether the waypoint has to end the connection for it; else it may go on, as slow as it is taken.
    ends: bool,
}

fn abuse(name: &'static str, begin: Vec<u8>, piece: Piece, ends: bool) -> Abuse {
    Abuse {
        name,
        begin,
        piece,
        ends,
    }
}

/// Each stream is opened, and then closed by the waypoint for what its client does to it.
fn made_to_reset(then: impl Fn(u32) -> Vec<u8> + 'static) -> Piece {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/held"),
        (":authority", "db"),
        ("content-length", "5"),
    ];
    Box::new(move |n| [headers(2 * n + 1, &fields, false), then(2 * n + 1)].concat())
}

fn abuses() -> Vec<Abuse> {
    let request = |id| frame(wire::HEADERS, 0x5, id, HEAD);
    let cancel = |id| frame(wire::RST_STREAM, 0, id, &CANCEL.to_be_bytes());
    let more = |id, by: u32| wire::number(wire::WINDOW_UPDATE, id, by).to_vec();
    // A field of 4,000 bytes that is then said again by one byte each time: 64 MB in a frame of 16 KiB.
    let mut bomb = [HEAD, b"\x40\x01x\x7f\xa1\x1e"].concat();
    bomb.extend([b'v'; 4000]);
    bomb.extend([0xbe; 12_000]);
    vec![
        abuse(
            "resets",
            Vec::new(),
            Box::new(move |n| [request(2 * n + 1), cancel(2 * n + 1)].concat()),
            true,
        ),
        abuse(
            "continuations",
            frame(wire::HEADERS, 0x1, 1, HEAD),
            Box::new(|n| {
                let field = format!("x-{n:06}");
                let value = "v".repeat(64);
                frame(wire::CONTINUATION, 0, 1, &block(&[(&field, &value)]))
            }),
            true,
        ),
        abuse(
            "pings",
            Vec::new(),
            Box::new(|n| frame(wire::PING, 0, 0, &u64::from(n).to_be_bytes())),
            false,
        ),
        abuse(
            "settings",
            Vec::new(),
            Box::new(|n| settings(&[(setting::HEADER_TABLE_SIZE, n % 5000)])),
            false,
        ),
        abuse("windows", Vec::new(), Box::new(move |_| more(0, 1)), false),
        abuse(
            "headers from one field",
            Vec::new(),
            Box::new(move |n| frame(wire::HEADERS, 0x5, 2 * n + 1, &bomb)),
            true,
        ),
        abuse(
            "a window of 2^31",
            Vec::new(),
            Box::new(move |_| more(0, wire::MAX_WINDOW)),
            true,
        ),
        abuse(
            "windows of 2^31 for streams",
            Vec::new(),
            Box::new(|_| settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)])),
            true,
        ),
        abuse(
            "streams whose windows are too large",
            Vec::new(),
            made_to_reset(move |id| more(id, wire::MAX_WINDOW)),
            true,
        ),
        abuse(
            "streams whose windows grow by nothing",
            Vec::new(),
            made_to_reset(move |id| more(id, 0)),
            true,
        ),
        abuse(
            "streams with more than they said",
            Vec::new(),
            made_to_reset(|id| frame(wire::DATA, 0, id, &[0; 6])),
            true,
        ),
        abuse(
            "streams that depend on themselves",
            Vec::new(),
            made_to_reset(|id| {
                let itself = [&id.to_be_bytes()[..], &[0]].concat();
                frame(wire::PRIORITY, 0, id, &itself)
            }),
            true,
        ),
        abuse(
            "streams that go on after their end",
            Vec::new(),
            Box::new(move |n| {
                let id = 2 * n + 1;
                [request(id), frame(wire::DATA, 0, id, b"more")].concat()
            }),
            true,
        ),
    ]
}

/// Says whether this process has nothing to do but this test, whose memory is then its own; else has it done by one that
/// has not.
fn alone(test: &str) -> bool {
    const ALONE: &str = "WARREN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let (_, module) = module_path!().split_once("::").expect("a crate and more");
    let own = std::env::current_exe().expect("this program");
    let mut command = Command::new(own);
    command.args(["--exact", &format!("{module}::{test}")]);
    let done = command.env(ALONE, "1").output().expect("started");
    let said = String::from_utf8_lossy(&done.stdout);
    let good = done.status.success() && said.contains("1 passed");
    assert!(good, "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    false
}

/// Bytes of memory that this process has.
fn memory() -> u64 {
    let all = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = all.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    number.expect("a number") * 1024
}

/// What a client does at most: so many pieces, so many bytes.
const MOST: (u32, usize) = (2_000_000, 64 << 20);
/// A client that does not read, and is not listened to for so long, has found its bound.
const STALLED: Duration = Duration::from_millis(500);
/// What all of it may take of memory beside what is there before.
const MEMORY: u64 = 20 << 20;

/// Does it, and reads what comes back or does not. One that has to end is waited for until the waypoint ends it.
async fn suffer(w: &World, abuse: &Abuse, reads: bool) {
    let (mut read, mut write) = Raw::dial(w, &w.web).await.tcp.into_split();
    let ended = Cell::new(false);
    let send = async {
        // Whoever is not heard any more may be told so by a reset.
        if write.write_all(&abuse.begin).await.is_err() {
            return;
        }
        let (mut number, mut sent) = (0, 0);
        while !ended.get() && number < MOST.0 && sent < MOST.1 {
            let piece: Vec<u8> = (number..number + 32)
                .flat_map(|n| (abuse.piece)(n))
                .collect();
            (number, sent) = (number + 32, sent + piece.len());
            let writing = write.write_all(&piece);
            let written = match reads {
                true => writing.await.is_ok(),
                false => matches!(tokio::time::timeout(STALLED, writing).await, Ok(Ok(()))),
            };
            if !written {
                return;
            }
        }
        if !abuse.ends {
            let _ = write.shutdown().await;
        }
    };
    let listen = async {
        let mut some = vec![0; 64 << 10];
        while reads && matches!(read.read(&mut some).await, Ok(1..)) {}
        ended.set(reads);
    };
    let both = async { tokio::join!(send, listen) };
    let both = tokio::time::timeout(Duration::from_secs(60), both).await;
    assert!(
        both.is_ok(),
        "a connection with endless {} goes on",
        abuse.name
    );
}

#[tokio::test]
async fn abuse_of_http2_harms_its_own_connection_only() {
    if !alone("abuse_of_http2_harms_its_own_connection_only") {
        return;
    }
    let w = world("149", AppProtocol::Http2).await;
    let other = w.node.pod("other", "127.7.149.4", MtlsMode::Strict).await;
    let mut neighbours = Vec::new();
    for from in [&other, &w.web, &other, &w.web] {
        let tcp = w.node.dial(from, w.vip).await;
        let io = TokioIo::new(tcp);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (mut sender, connection) = handshake.expect("HTTP/2");
        tokio::spawn(connection);
        assert_eq!(ask2(&mut sender, "/").await.0, 200);
        neighbours.push(sender);
    }
    for abuse in abuses() {
        for reads in [true, false] {
            if abuse.ends && !reads {
                continue;
            }
            let asked = || w.v1.asked.load(SeqCst) + w.v2.asked.load(SeqCst);
            let (asked_before, memory_before) = (asked(), memory());
            let over = Cell::new(false);
            let (mut answered, mut most) = (0, 0);
            let suffering = async {
                suffer(&w, &abuse, reads).await;
                over.set(true);
            };
            let asking = async {
                while !over.get() {
                    for neighbour in &mut neighbours {
                        let (status, ..) = ask2(neighbour, "/").await;
                        assert_eq!(status, 200, "beside {}", abuse.name);
                        answered += 1;
                    }
                    most = most.max(memory().saturating_sub(memory_before));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::join!(suffering, asking);
            let asked = asked() - asked_before - answered;
            let shown = format!("{asked} requests, {answered} beside them, {most} bytes");
            assert!(answered > 0, "{}: {shown}", abuse.name);
            assert!(asked < 5_000, "{}: {shown}", abuse.name);
            assert!(most < MEMORY, "{}: {shown}", abuse.name);
        }
    }
    w.node.stop().await;
}
