//! HTTP/1.1 keep-alive requests, closed loop or at a fixed rate.
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

use super::Report;

/// What to ask and how hard.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server.
    pub to: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The path.
    pub path: String,
    /// Connections.
    pub connections: usize,
    /// Requests a second over all connections; `None` is as fast as answers come.
    pub rate: Option<f64>,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub time: Duration,
}

/// Runs the load.
pub async fn run(load: Load) -> Report {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    for i in 0..load.connections {
        let load = load.clone();
        workers.spawn(async move {
            let mut report = Report::default();
            if let Err(e) = one(&load, begin, i, &mut report).await {
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

async fn one(load: &Load, begin: Instant, index: usize, report: &mut Report) -> io::Result<()> {
    let mut stream = TcpStream::connect(load.to).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", load.path, load.host);
    let mut buffer = Vec::with_capacity(64 * 1024);
    let gap = load
        .rate
        .map(|r| Duration::from_secs_f64(load.connections as f64 / r));
    let mut due = begin
        + gap.map_or(Duration::ZERO, |g| {
            g.mul_f64(index as f64 / load.connections as f64)
        });
    loop {
        let sent = match gap {
            Some(gap) => {
                tokio::time::sleep_until(due.into()).await;
                let intended = due;
                due += gap;
                intended
            }
            None => Instant::now(),
        };
        if sent.duration_since(begin) >= load.warm_up + load.time {
            return Ok(());
        }
        stream.write_all(request.as_bytes()).await?;
        let bytes = answer(&mut stream, &mut buffer).await?;
        if sent.duration_since(begin) >= load.warm_up {
            report.succeed(sent.elapsed(), bytes);
        }
    }
}

async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<u64> {
    buffer.clear();
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(end) = buffer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .map(|p| p + 4)
        else {
            continue;
        };
        let head = std::str::from_utf8(&buffer[..end]).map_err(|_| bad("head is not text"))?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(bad(head.lines().next().unwrap_or_default()));
        }
        let length = head
            .lines()
            .find_map(|l| {
                l.split_once(':')
                    .filter(|(n, _)| n.eq_ignore_ascii_case("content-length"))
            })
            .and_then(|(_, v)| v.trim().parse::<usize>().ok())
            .ok_or_else(|| bad("no content-length"))?;
        while buffer.len() < end + length {
            if stream.read_buf(buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        return Ok(length as u64);
    }
}
