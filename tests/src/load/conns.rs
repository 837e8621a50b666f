//! New connections: connect, one byte there and back, close; closed loop or at a fixed rate.

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

/// The longest a connection may take before it counts as failed.
const LIMIT: Duration = Duration::from_secs(20);

/// Connections as fast as `clients` clients can make them, one after another each.
pub async fn closed(to: SocketAddr, clients: usize, warm_up: Duration, time: Duration) -> Report {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..clients {
        workers.spawn(async move {
            let mut report = Report::default();
            while begin.elapsed() < warm_up {
                once(to, Instant::now(), &mut report).await;
            }
            let warm = report.ok;
            report = Report {
                warm,
                failed: report.failed,
                ..Report::default()
            };
            while begin.elapsed() < warm_up + time {
                once(to, Instant::now(), &mut report).await;
            }
            report
        });
    }
    gather(workers, begin + warm_up).await
}

/// `rate` connections a second whatever happens; latency counts from the intended start.
pub async fn open(to: SocketAddr, rate: f64, time: Duration) -> Report {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    let total = (rate * time.as_secs_f64()) as u64;
    for i in 0..total {
        let due = begin + Duration::from_secs_f64(i as f64 / rate);
        tokio::time::sleep_until(due.into()).await;
        workers.spawn(async move {
            let mut report = Report::default();
            once(to, due, &mut report).await;
            report
        });
    }
    gather(workers, begin).await
}

async fn gather(mut workers: JoinSet<Report>, begin: Instant) -> Report {
    let mut report = Report::default();
    while let Some(worker) = workers.join_next().await {
        report.merge(worker.expect("a worker does not panic"));
    }
    report.elapsed = begin.elapsed();
    report
}

async fn once(to: SocketAddr, start: Instant, report: &mut Report) {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        stream.write_all(b"w").await?;
        let mut back = [0];
        stream.read_exact(&mut back).await?;
        (back == *b"w")
            .then_some(())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "wrong byte"))
    };
    match tokio::time::timeout(LIMIT, exchange).await {
        Ok(Ok(())) => report.succeed(start.elapsed(), 1),
        Ok(Err(e)) => report.fail(&e),
        Err(_) => report.fail(&io::ErrorKind::TimedOut.into()),
    }
}
