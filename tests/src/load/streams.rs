//! Long streams: many kept connections that exchange a checked message at a fixed rate until told to end.

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

/// Bytes of one message.
const MESSAGE: usize = 64;

/// Holds `count` streams open for `time`, each with a message every `every`. A stream that ends early or
/// carries a wrong byte is one failure; `ok` counts messages.
pub async fn run(to: SocketAddr, count: usize, every: Duration, time: Duration) -> Report {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    for i in 0..count {
        let offset = every.mul_f64(i as f64 / count as f64);
        workers.spawn(async move {
            let mut report = Report::default();
            if let Err(e) = hold(to, offset, every, time, &mut report).await {
                report.fail(&e);
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

async fn hold(
    to: SocketAddr,
    offset: Duration,
    every: Duration,
    time: Duration,
    report: &mut Report,
) -> io::Result<()> {
    let begin = Instant::now();
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut at = 0u64;
    let (mut out, mut back) = ([0; MESSAGE], [0; MESSAGE]);
    let mut due = begin + offset;
    while due < begin + time {
        tokio::time::sleep_until(due.into()).await;
        fill(&mut out, at);
        let sent = Instant::now();
        stream.write_all(&out).await?;
        stream.read_exact(&mut back).await?;
        check(&back, at)?;
        report.succeed(sent.elapsed(), MESSAGE as u64);
        at += MESSAGE as u64;
        due += every;
    }
    stream.shutdown().await?;
    match stream.read(&mut back).await? {
        0 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "bytes after the end",
        )),
    }
}
