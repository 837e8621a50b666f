//! Round trips over one kept connection to an echo server.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Report, check, fill};

/// Sends `size` bytes and waits for them, over and over, on `connections` connections at once.
pub async fn run(
    to: SocketAddr,
    size: usize,
    connections: usize,
    warm_up: Duration,
    time: Duration,
) -> Report {
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..connections {
        workers.spawn(one(to, size, warm_up, time));
    }
    let mut report = Report::default();
    while let Some(worker) = workers.join_next().await {
        report.merge(worker.expect("a worker does not panic"));
    }
    report
}

async fn one(to: SocketAddr, size: usize, warm_up: Duration, time: Duration) -> Report {
    let mut report = Report::default();
    let begin = Instant::now();
    if let Err(e) = rounds(to, size, warm_up, time, &mut report).await {
        report.fail(&e);
    }
    report.elapsed = begin.elapsed().saturating_sub(warm_up);
    report
}

async fn rounds(
    to: SocketAddr,
    size: usize,
    warm_up: Duration,
    time: Duration,
    report: &mut Report,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut out, mut back, mut at) = (vec![0; size], vec![0; size], 0u64);
    let begin = Instant::now();
    while begin.elapsed() < warm_up + time {
        fill(&mut out, at);
        let sent = Instant::now();
        stream.write_all(&out).await?;
        stream.read_exact(&mut back).await?;
        let took = sent.elapsed();
        check(&back, at)?;
        at += size as u64;
        if sent.duration_since(begin) >= warm_up {
            report.succeed(took, size as u64);
        } else {
            report.warm += 1;
        }
    }
    Ok(())
}
