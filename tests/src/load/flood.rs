//! Throughput: streams of checked bytes from a source, or into a sink that answers how many came.

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

use super::{Report, check, fill};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the server (`tcp-echo --source`) to us.
    Receive,
    /// From us to the server (`tcp-echo --sink`).
    Send,
}

/// What asks the benchmark's application for a stream of bytes.
pub const ASK: &[u8] = b"S";

/// Receives on each of `streams` streams for `time` after `warm_up`, and counts what came in that time.
pub async fn timed(to: SocketAddr, streams: usize, warm_up: Duration, time: Duration) -> Report {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..streams {
        workers.spawn(async move {
            let mut report = Report::default();
            let counted = receive_from(to, begin + warm_up, begin + warm_up + time).await;
            match counted {
                Ok((early, counted)) => {
                    report.succeed(time, counted);
                    report.warm = early;
                }
                Err(e) => report.fail(&e),
            }
            report
        });
    }
    let mut report = Report::default();
    while let Some(worker) = workers.join_next().await {
        report.merge(worker.expect("a worker does not panic"));
    }
    report.elapsed = time;
    report
}

/// Bytes that came before `from`, and between `from` and `until`.
async fn receive_from(to: SocketAddr, from: Instant, until: Instant) -> io::Result<(u64, u64)> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(ASK).await?;
    let mut buffer = vec![0; 256 * 1024];
    let (mut at, mut early) = (0u64, 0);
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        check_blocks(&buffer[..n], at)?;
        at += n as u64;
        let now = Instant::now();
        if now < from {
            early = at;
        }
        if now >= until {
            return Ok((early, at - early));
        }
    }
}

/// Moves `bytes` on each of `streams` streams. `verify` compares each byte that is received, which costs speed.
pub async fn run(to: SocketAddr, way: Way, streams: usize, bytes: u64, verify: bool) -> Report {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..streams {
        workers.spawn(async move {
            let mut report = Report::default();
            let moved = match way {
                Way::Receive => receive(to, bytes, verify).await,
                Way::Send => send(to, bytes).await,
            };
            match moved {
                Ok(()) => report.succeed(begin.elapsed(), bytes),
                Err(e) => report.fail(&e),
            }
            report
        });
    }
    let mut report = Report::default();
    while let Some(worker) = workers.join_next().await {
        report.merge(worker.expect("a worker does not panic"));
    }
    report.elapsed = begin.elapsed();
    report
}

/// The source repeats one block of 256 KiB whose bytes are their position in the block modulo 251.
pub const BLOCK: u64 = 256 * 1024;

async fn receive(to: SocketAddr, bytes: u64, verify: bool) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    while at < bytes {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if verify {
            check_blocks(&buffer[..n], at)?;
        }
        at += n as u64;
    }
    Ok(())
}

/// Checks bytes that begin at position `at` of a source's stream.
fn check_blocks(bytes: &[u8], at: u64) -> io::Result<()> {
    let (mut rest, mut at) = (bytes, at);
    while !rest.is_empty() {
        let len = rest.len().min((BLOCK - at % BLOCK) as usize);
        check(&rest[..len], at % BLOCK)?;
        (rest, at) = (&rest[len..], at + len as u64);
    }
    Ok(())
}

async fn send(to: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    let mut block = vec![0; BLOCK as usize];
    fill(&mut block, 0);
    let mut left = bytes;
    while left > 0 {
        let n = left.min(BLOCK) as usize;
        stream.write_all(&block[..n]).await?;
        left -= n as u64;
    }
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    if answer.trim() == bytes.to_string() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the sink counted {:?}", answer.trim()),
        ))
    }
}
