//! Throughput: streams of checked bytes from a source, or into a sink that answers how many came.

use std::{io, net::SocketAddr, time::Instant};

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
const BLOCK: u64 = 256 * 1024;

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
            let (mut from, mut pos) = (0usize, at);
            while from < n {
                let len = (n - from).min((BLOCK - pos % BLOCK) as usize);
                check(&buffer[from..from + len], pos % BLOCK)?;
                (from, pos) = (from + len, pos + len as u64);
            }
        }
        at += n as u64;
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
