//! Asking pods in plaintext from outside the mesh, again and again, to see from when on they refuse.
//!
//! Invariants: every attempt is an HTTP request on a connection of its own; a moment is that at which an attempt's outcome
//! was seen, so that a time is never told too short; whatever is no answer is a refusal.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{interval_at, sleep, timeout},
};

use super::super::api::NETWORK;
use crate::lab::enter::in_netns;

const REQUEST: &[u8] = b"GET /status/200 HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200";
/// An attempt that has no answer by then has none.
const LIMIT: Duration = Duration::from_secs(1);
/// Between two looks at what was seen.
const LOOK: Duration = Duration::from_millis(20);

/// What a pod does, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether it answers.
    pub answers: bool,
    /// When an attempt first ended so, after which none ended otherwise.
    pub since: Instant,
}

/// The attempts that go on. They end with it.
pub(super) struct Asking {
    seen: Arc<Vec<Mutex<Option<Seen>>>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

impl Asking {
    /// Begins to ask each of these every so often.
    pub fn begin(targets: Vec<SocketAddr>, every: Duration) -> Self {
        let seen = Arc::new(targets.iter().map(|_| Mutex::new(None)).collect::<Vec<_>>());
        let stop = Arc::new(AtomicBool::new(false));
        let (written, told) = (seen.clone(), stop.clone());
        thread::spawn(move || {
            let asked = in_netns(Path::new(NETWORK), move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(ask_all(targets, every, written, told));
                Ok(())
            });
            if let Err(error) = asked {
                eprintln!("asking from outside ended: {error:#}");
            }
        });
        Self { seen, stop }
    }

    /// What each pod does at present; `None`: no attempt has ended yet.
    pub fn seen(&self) -> Vec<Option<Seen>> {
        let read = |one: &Mutex<_>| *one.lock().unwrap_or_else(PoisonError::into_inner);
        self.seen.iter().map(read).collect()
    }

    /// Waits until all have answered, or refused, for so long, and says since when each did.
    pub async fn settled(
        &self,
        answers: bool,
        hold: Duration,
        limit: Duration,
    ) -> Result<Vec<Instant>> {
        let deadline = Instant::now() + limit;
        loop {
            let now = Instant::now();
            let settled: Vec<Instant> = self
                .seen()
                .into_iter()
                .flatten()
                .filter(|s| s.answers == answers && now.duration_since(s.since) >= hold)
                .map(|s| s.since)
                .collect();
            if settled.len() == self.seen.len() {
                return Ok(settled);
            }
            let word = if answers { "answer" } else { "refuse" };
            ensure!(
                now < deadline,
                "only {} of {} pods {word} after {limit:?}",
                settled.len(),
                self.seen.len()
            );
            sleep(LOOK).await;
        }
    }
}

async fn ask_all(
    targets: Vec<SocketAddr>,
    every: Duration,
    seen: Arc<Vec<Mutex<Option<Seen>>>>,
    stop: Arc<AtomicBool>,
) {
    let begin = Instant::now();
    let all = u32::try_from(targets.len()).unwrap_or(u32::MAX);
    let mut workers = JoinSet::new();
    for (index, target) in (0..).zip(targets) {
        let (seen, stop) = (seen.clone(), stop.clone());
        // Spread over the period, so that they do not all come at once.
        let first = begin + every * index / all;
        workers.spawn(async move {
            let mut ticks = interval_at(first.into(), every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !stop.load(Relaxed) {
                ticks.tick().await;
                let answers = matches!(timeout(LIMIT, ask(target)).await, Ok(Ok(true)));
                let now = Seen {
                    answers,
                    since: Instant::now(),
                };
                let slot = &seen[usize::try_from(index).expect("an index")];
                let mut before = slot.lock().unwrap_or_else(PoisonError::into_inner);
                if before.is_none_or(|b| b.answers != answers) {
                    *before = Some(now);
                }
            }
        });
    }
    while workers.join_next().await.is_some() {}
}

async fn ask(target: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(REQUEST).await?;
    let mut begun = [0; ANSWER.len()];
    stream.read_exact(&mut begun).await?;
    Ok(begun == ANSWER)
}
