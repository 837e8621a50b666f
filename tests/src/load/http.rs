//! HTTP/1.1 keep-alive requests in a closed loop: each connection asks again as soon as it is answered.
//!
//! The client reads heads and `content-length` bodies only: enough for a measuring server, cheap enough not
//! to be what is measured.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{Report, check};

/// What to ask and how hard.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server.
    pub to: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The path.
    pub path: String,
    /// More headers.
    pub headers: Vec<(String, String)>,
    /// Connections.
    pub connections: usize,
    /// Whether bodies hold the pattern, and are compared with it.
    pub verify: bool,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub time: Duration,
}

impl Load {
    /// The bytes of one request.
    pub(super) fn request(&self) -> Vec<u8> {
        let line = |(name, value): &(String, String)| format!("{name}: {value}\r\n");
        let headers: String = self.headers.iter().map(line).collect();
        let (path, host) = (&self.path, &self.host);
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n").into_bytes()
    }
}

/// Reads `name: value`.
pub fn header(written: &str) -> Result<(String, String), String> {
    let (name, value) = written
        .split_once(':')
        .ok_or_else(|| format!("{written:?} is not NAME: VALUE"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Runs the load.
pub async fn run(load: Load) -> Report {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..load.connections {
        let load = load.clone();
        workers.spawn(async move {
            let mut report = Report::default();
            if let Err(e) = one(&load, begin, &mut report).await {
                report.fail(&e);
            }
            report
        });
    }
    let mut report = Report::default();
    while let Some(worker) = workers.join_next().await {
        report.merge(worker.expect("a worker does not panic"));
    }
    report.elapsed = begin.elapsed().saturating_sub(load.warm_up);
    report
}

async fn one(load: &Load, begin: Instant, report: &mut Report) -> io::Result<()> {
    let mut stream = TcpStream::connect(load.to).await?;
    stream.set_nodelay(true)?;
    let request = load.request();
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        let sent = Instant::now();
        if sent.duration_since(begin) >= load.warm_up + load.time {
            return Ok(());
        }
        stream.write_all(&request).await?;
        buffer.clear();
        let bytes = loop {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(bytes) = answer(&buffer, load.verify)? {
                break bytes;
            }
        };
        if sent.duration_since(begin) >= load.warm_up {
            report.succeed(sent.elapsed(), bytes);
        } else {
            report.warm += 1;
        }
    }
}

/// The length of the body once the answer is whole.
pub(super) fn answer(buffer: &[u8], verify: bool) -> io::Result<Option<u64>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&buffer[..end]).map_err(|_| bad("head is not text"))?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(bad(head.lines().next().unwrap_or_default()));
    }
    let named = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    };
    let length = head
        .lines()
        .find_map(named)
        .ok_or_else(|| bad("no content-length"))?;
    let body = &buffer[end + 4..];
    if body.len() < length {
        return Ok(None);
    }
    if verify {
        check(&body[..length], 0)?;
    }
    Ok(Some(length as u64))
}
