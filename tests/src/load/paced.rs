//! HTTP/1.1 keep-alive requests at a fixed rate, whatever the answers do.
//!
//! Invariants: latency counts from the moment a request was due, so that a stall is not hidden; each
//! connection has a thread that sleeps until that moment with the kernel's finest timer, because a runtime's
//! timer of a millisecond would be what is measured.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::{
    Report,
    http::{Load, answer},
};

/// The longest a connection waits for bytes before it counts as failed.
const LIMIT: Duration = Duration::from_secs(20);

/// `rate` requests a second over all of the load's connections.
pub fn run(load: &Load, rate: f64) -> Report {
    let begin = Instant::now();
    let mut report = Report::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..load.connections)
            .map(|index| {
                scope.spawn(move || {
                    let mut report = Report::default();
                    if let Err(e) = one(load, rate, begin, index, &mut report) {
                        report.fail(&e);
                    }
                    report
                })
            })
            .collect();
        for worker in workers {
            report.merge(worker.join().expect("a worker does not panic"));
        }
    });
    report.elapsed = load.time;
    report
}

fn one(
    load: &Load,
    rate: f64,
    begin: Instant,
    index: usize,
    report: &mut Report,
) -> io::Result<()> {
    nix::sys::prctl::set_timerslack(1)?;
    let mut stream = TcpStream::connect(load.to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let request = load.request();
    let gap = Duration::from_secs_f64(load.connections as f64 / rate);
    let mut due = begin + gap.mul_f64(index as f64 / load.connections as f64);
    let (mut buffer, mut held) = (vec![0; 64 * 1024], 0);
    while due.duration_since(begin) < load.warm_up + load.time {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(&request)?;
        let bytes = loop {
            match stream.read(&mut buffer[held..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => held += n,
            }
            if let Some(bytes) = answer(&buffer[..held], load.verify)? {
                break bytes;
            }
        };
        held = 0;
        if due.duration_since(begin) >= load.warm_up {
            report.succeed(due.elapsed(), bytes);
        } else {
            report.warm += 1;
        }
        due += gap;
    }
    Ok(())
}
