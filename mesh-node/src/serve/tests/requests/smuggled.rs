//! Requests of HTTP/2 for an application that speaks HTTP/1.1, in which it could see another request, or other fields,
//! than the waypoint saw.
//!
//! Invariant: the application's bytes are judged by a reader that knows only what RFC 9112 allows, not by a library.

use super::{
    frames::{Outcome, Raw, frame, headers},
    *,
};
use crate::wire::frame as wire;

/// In the place of `v1`, an application that keeps all that each of its connections brought, and answers once it has a
/// whole request.
struct Recorder {
    /// Connections that are not at their end.
    open: Arc<AtomicU32>,
    brought: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    async fn of(w: &World) -> Self {
        w.v1.stop().await;
        let listener = TcpListener::bind(w.v1.address).await.expect("free again");
        let (open, brought) = (Arc::<AtomicU32>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (opens, keeps) = (open.clone(), brought.clone());
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                opens.fetch_add(1, SeqCst);
                let (opens, keeps) = (opens.clone(), keeps.clone());
                tokio::spawn(async move {
                    let (mut all, mut answered) = (Vec::new(), false);
                    while let Ok(1..) = tcp.read_buf(&mut all).await {
                        if !answered && matches!(Seen::read(&all), Ok(Some(_))) {
                            answered = true;
                            // The connection ends after it: whatever else is for it comes before that.
                            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
                            let _ = tcp.write_all(answer).await;
                        }
                    }
                    keeps.lock().expect("not poisoned").push(all);
                    opens.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { open, brought }
    }

    /// What connections brought since this was asked last, but for those of a request for `/after`, which is sent now.
    async fn brought(&self, w: &World) -> Vec<Vec<u8>> {
        // What was dialed before was accepted before.
        assert_eq!(w.get("/after").await.2, "ok");
        w.forget_connections().await;
        until(|| self.open.load(SeqCst) == 0).await;
        let mut all = std::mem::take(&mut *self.brought.lock().expect("not poisoned"));
        all.retain(|bytes| !bytes.is_empty());
        let after = all
            .iter()
            .position(|bytes| bytes.starts_with(b"GET /after "));
        all.remove(after.expect("it was answered"));
        all
    }
}

/// A request as an application sees it.
#[derive(Debug)]
struct Seen {
    method: String,
    path: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Seen {
    /// Reads the one request that there is; none while it is not whole.
    fn read(all: &[u8]) -> Result<Option<Self>, &'static str> {
        let Some(end) = all.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = std::str::from_utf8(&all[..end]).map_err(|_| "no text")?;
        let mut lines = head.split("\r\n");
        let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [method, path @ ("/first" | "/after"), "HTTP/1.1"] = first[..] else {
            return Err("not what was asked for");
        };
        let token = |text: &str| {
            let mark = |b| b"!#$%&'*+-.^_`|~".contains(&b);
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || mark(b))
        };
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(": ").ok_or("a line that is no field")?;
            let good = token(name) && value.bytes().all(|b| b == b'\t' || b >= b' ' && b != 0x7f);
            good.then_some(()).ok_or("a field that is none")?;
            fields.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let of = |wanted: &str| -> Vec<&str> {
            let all = fields.iter().filter(|(name, _)| name == wanted);
            all.map(|(_, value)| &**value).collect()
        };
        let rest = &all[end + 4..];
        let body = match (&of("content-length")[..], &of("transfer-encoding")[..]) {
            ([], []) => Some((Vec::new(), 0)),
            ([length], []) => {
                let length = length.parse().map_err(|_| "no length")?;
                rest.get(..length).map(|body| (body.to_vec(), length))
            }
            ([], ["chunked"]) => chunks(rest)?,
            _ => return Err("a body of two lengths"),
        };
        let Some((body, used)) = body else {
            return Ok(None);
        };
        if used < rest.len() {
            return Err("more than one request");
        }
        token(method).then_some(()).ok_or("no method")?;
        let [method, path] = [method, path].map(str::to_owned);
        Ok(Some(Self {
            method,
            path,
            fields,
            body,
        }))
    }
}

/// A body in chunks, without trailers, and how many bytes it took; none while it is not whole.
fn chunks(all: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = all[at..].windows(2).position(|two| two == b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&all[at..at + line]).map_err(|_| "no size")?;
        let size = usize::from_str_radix(size, 16).map_err(|_| "no size")?;
        at += line + 2;
        let Some(chunk) = all.get(at..at + size + 2) else {
            return Ok(None);
        };
        let data = chunk
            .strip_suffix(b"\r\n")
            .ok_or("a chunk without an end")?;
        body.extend(data);
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

/// A request that would be one of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n";

/// Names and values.
type Fields<'f> = &'f [(&'f str, &'f str)];

/// A good request, some of whose fields are others; a name twice is a field twice.
fn fields<'f>(others: Fields<'f>) -> Vec<(&'f str, &'f str)> {
    let base = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/first"),
        (":authority", "db"),
    ];
    let taken = |name: &str| others.iter().any(|(other, _)| *other == name);
    let mut all: Vec<_> = base.into_iter().filter(|(name, _)| !taken(name)).collect();
    all.extend(others);
    // Those of the request itself come first (RFC 9113, 8.3).
    all.sort_by_key(|(name, _)| !name.starts_with(':'));
    all
}

#[tokio::test]
async fn nothing_is_smuggled_out_of_http2() {
    let w = world("99", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    w.routes(vec![rule("/", to("v1"))]);
    let app = Recorder::of(&w).await;
    let path = format!("/first HTTP/1.1\r\nhost: db\r\n\r\n{SMUGGLED}");
    let target = "/first HTTP/1.1\r\nx-smuggled: 1\r\nx: ";
    let method = format!("{SMUGGLED}POST");
    let (value, chunked) = (
        format!("1\r\n\r\n{SMUGGLED}"),
        format!("0\r\n\r\n{SMUGGLED}"),
    );
    let length = SMUGGLED.len().to_string();
    let check = async |others: Fields<'_>, body: &str, trailers: Fields<'_>, good: bool| {
        let shown = format!("{others:?} {body:?} {trailers:?}");
        let mut client = Raw::dial(&w, &w.web).await;
        let (empty, last) = (body.is_empty(), trailers.is_empty());
        client
            .say(&headers(1, &fields(others), empty && last))
            .await;
        if !empty {
            let flags = if last { wire::END_STREAM } else { 0 };
            client
                .say(&frame(wire::DATA, flags, 1, body.as_bytes()))
                .await;
        }
        if !last {
            client.say(&headers(1, trailers, true)).await;
        }
        let outcome = client.outcome(1).await;
        drop(client);
        let brought = app.brought(&w).await;
        let seen: Vec<_> = brought.iter().map(|all| Seen::read(all)).collect();
        let told = || {
            let all = brought.iter().map(|all| all.escape_ascii().to_string());
            format!("{shown}: {outcome:?}, {:?}", all.collect::<Vec<_>>())
        };
        match outcome {
            Outcome::Answered(200) => {
                let [Ok(Some(seen))] = &seen[..] else {
                    panic!("{seen:?} of {}", told());
                };
                let method = ["POST", "GET"].contains(&&*seen.method);
                assert!(method && seen.path == "/first", "{}", told());
                assert_eq!(seen.body, body.as_bytes(), "{}", told());
                let hosts = seen.fields.iter().filter(|(name, _)| name == "host");
                let hosts: Vec<_> = hosts.map(|(_, value)| &**value).collect();
                assert_eq!(hosts, ["db"], "{}", told());
                let of_connection = ["connection", "upgrade", "keep-alive", "x-smuggled"];
                let other = |(name, _): &(String, String)| of_connection.contains(&&**name);
                assert!(!seen.fields.iter().any(other), "{}", told());
            }
            // A body that turns out to be wrong may have begun to be sent.
            Outcome::Answered(400) | Outcome::Reset(_) | Outcome::Ended(_) => {
                assert!(
                    seen.iter().all(|seen| matches!(seen, Ok(None))),
                    "{seen:?} of {}",
                    told()
                );
            }
            Outcome::Answered(_) => panic!("{}", told()),
        }
        assert_eq!(outcome == Outcome::Answered(200), good, "{}", told());
    };
    // What is good, so that what follows is refused for what it is.
    check(&[(":method", "GET")], "", &[], true).await;
    check(&[], SMUGGLED, &[], true).await;
    check(&[("content-length", &length)], SMUGGLED, &[], true).await;
    check(
        &[("host", "db"), ("x", "a b"), ("te", "trailers")],
        "",
        &[],
        true,
    )
    .await;
    // What was not announced does not come last in HTTP/1.
    check(&[], "12345", &[("x-smuggled", "1")], true).await;
    check(&[], "12345", &[(":path", "/smuggled")], true).await;
    let refused: &[(Fields<'_>, &str, Fields<'_>)] = &[
        // What becomes the first line.
        (&[(":path", &path)], "", &[]),
        (&[(":path", target)], "", &[]),
        (&[(":path", "/first\r\nx-smuggled: 1")], "", &[]),
        (&[(":path", "/first\nx-smuggled: 1")], "", &[]),
        (&[(":path", "/first /smuggled")], "", &[]),
        (&[(":path", "/first\0")], "", &[]),
        (&[(":path", "")], "", &[]),
        (&[(":path", "/first"), (":path", "/smuggled")], "", &[]),
        (&[(":method", &method)], "", &[]),
        (&[(":method", "POST /smuggled")], "", &[]),
        (&[(":method", "POST\r\nx-smuggled: 1")], "", &[]),
        (&[(":method", "POST\0")], "", &[]),
        (&[(":method", "")], "", &[]),
        (&[(":method", "POST"), (":method", "GET")], "", &[]),
        (&[(":scheme", "http\r\nx-smuggled: 1")], "", &[]),
        (&[(":smuggled", "1")], "", &[]),
        (&[(":status", "200")], "", &[]),
        // Who it is for.
        (&[(":authority", "db"), (":authority", "db")], "", &[]),
        (&[(":authority", "db"), (":authority", "smuggled")], "", &[]),
        (&[(":authority", "db\r\nx-smuggled: 1")], "", &[]),
        (&[(":authority", "db smuggled")], "", &[]),
        (&[(":authority", "db/smuggled")], "", &[]),
        (&[(":authority", "smuggled@db")], "", &[]),
        (&[(":authority", "db\0")], "", &[]),
        (&[("host", "smuggled")], "", &[]),
        (&[("host", "db:80")], "", &[]),
        (&[("host", "db"), ("host", "db")], "", &[]),
        (&[("host", "db"), ("host", "smuggled")], "", &[]),
        // Fields.
        (&[("x", "1\r\nx-smuggled: 1")], "", &[]),
        (&[("x", &value)], "", &[]),
        (&[("x", "1\nx-smuggled: 1")], "", &[]),
        (&[("x", "1\r")], "", &[]),
        (&[("x", "1\0")], "", &[]),
        (&[("x: 1\r\nx-smuggled", "1")], "", &[]),
        (&[("x\n", "1")], "", &[]),
        (&[("x\0", "1")], "", &[]),
        (&[("x-smuggled:", "1")], "", &[]),
        (&[("x smuggled", "1")], "", &[]),
        (&[("X-Smuggled", "1")], "", &[]),
        (&[("", "1")], "", &[]),
        // Of a connection of HTTP/1 (RFC 9113, 8.2.2).
        (&[("transfer-encoding", "chunked")], &chunked, &[]),
        (&[("transfer-encoding", "identity")], SMUGGLED, &[]),
        (&[("transfer-encoding", "\tchunked")], &chunked, &[]),
        (&[("Transfer-Encoding", "chunked")], &chunked, &[]),
        (&[("connection", "keep-alive")], "", &[]),
        (&[("connection", "host, x"), ("x", "1")], "", &[]),
        (&[("keep-alive", "5")], "", &[]),
        (&[("proxy-connection", "keep-alive")], "", &[]),
        (&[("upgrade", "websocket")], "", &[]),
        (&[("upgrade", "h2c"), ("http2-settings", "AAAA")], "", &[]),
        (&[("te", "gzip")], "", &[]),
        // Lengths that are not those of what comes.
        (&[("content-length", "0")], SMUGGLED, &[]),
        (&[("content-length", "5")], SMUGGLED, &[]),
        (&[("content-length", "100")], SMUGGLED, &[]),
        (&[("content-length", "100")], "", &[]),
        (&[("content-length", "+5")], "12345", &[]),
        (&[("content-length", "5, 5")], "12345", &[]),
        (&[("content-length", "0x5")], "12345", &[]),
        (&[("content-length", "")], "12345", &[]),
        (&[("content-length", "18446744073709551621")], "12345", &[]),
        (
            &[("content-length", "5"), ("content-length", "0")],
            "12345",
            &[],
        ),
        (
            &[("content-length", "0"), ("content-length", "5")],
            "12345",
            &[],
        ),
        // What comes last.
        (&[], "12345", &[("x", "1\r\nx-smuggled: 1")]),
        (&[], "12345", &[("transfer-encoding", "chunked")]),
    ];
    for (others, body, trailers) in refused {
        check(others, body, trailers, false).await;
    }
    w.node.stop().await;
}

#[test]
fn the_reader_of_requests_sees_what_was_smuggled() {
    let check = |text: &str, expect: Result<bool, &str>| {
        let seen = Seen::read(text.as_bytes()).map(|seen| seen.is_some());
        assert_eq!(seen, expect, "{text:?}");
    };
    let post = |rest: &str| format!("POST /first HTTP/1.1\r\nhost: db\r\n{rest}");
    check(&post(""), Ok(false));
    check(&post("\r\n"), Ok(true));
    check(
        &post(&format!("\r\n{SMUGGLED}")),
        Err("more than one request"),
    );
    check(&post("content-length: 5\r\n\r\n1234"), Ok(false));
    check(&post("content-length: 5\r\n\r\n12345"), Ok(true));
    check(
        &post("content-length: 5\r\n\r\n123456"),
        Err("more than one request"),
    );
    let two = "content-length: 5\r\ncontent-length: 0\r\n\r\n12345";
    check(&post(two), Err("a body of two lengths"));
    let chunked = "transfer-encoding: chunked\r\n";
    check(
        &post(&format!("{chunked}\r\n5\r\n12345\r\n0\r\n\r\n")),
        Ok(true),
    );
    check(
        &post(&format!("{chunked}\r\n5\r\n12345\r\n0\r\n")),
        Ok(false),
    );
    check(
        &post(&format!("{chunked}\r\n0\r\n\r\n{SMUGGLED}")),
        Err("more than one request"),
    );
    check(
        &post(&format!("{chunked}content-length: 5\r\n\r\n12345")),
        Err("a body of two lengths"),
    );
    check(&post("x: a\nb\r\n\r\n"), Err("a field that is none"));
    check(&post("x smuggled: a\r\n\r\n"), Err("a field that is none"));
    check(SMUGGLED, Err("not what was asked for"));
}
