//! How long a request may take: what its rule says, what its client says, and what each try may.
//!
//! Invariant: a rule's time begins when all of the request came, as Envoy counts, so that whoever sends slowly or streams
//! is not cut off for it; a client's own (`grpc-timeout`) begins with the request, as gRPC counts.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::Kept;

/// The bounds of one request.
#[derive(Clone, Debug)]
pub struct Patience {
    kept: Kept,
    whole: Option<Duration>,
    until: Option<Instant>,
}

/// What is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The request's time.
    Request,
    /// Its client's.
    Client,
    /// The try's.
    Try,
}

/// Waits until a request's time is over.
pub type Waiting = Pin<Box<dyn Future<Output = Over>>>;

impl Patience {
    /// Of a request that came now: `whole` from when all of it came, `client` from now.
    pub fn new(kept: Kept, whole: Option<Duration>, client: Option<Duration>) -> Self {
        // What is too far away to be told is never reached either.
        let until = client.and_then(|client| Instant::now().checked_add(client));
        Self { kept, whole, until }
    }

    /// Waits until a try that began then, and may take so long `each`, has taken too long.
    pub async fn over(&self, began: Instant, each: Option<Duration>) -> Over {
        let bounded = async {
            if self.whole.is_none() && each.is_none() {
                return std::future::pending().await;
            }
            let received = self.kept.received().await;
            first(received, self.whole, began.max(received), each).await
        };
        tokio::select! {
            over = bounded => over,
            () = at(self.until) => Over::Client,
        }
    }

    /// The same for a response that has begun; `None` where nothing bounds it.
    pub fn rest(self) -> Option<Waiting> {
        let Self { kept, whole, until } = self;
        if whole.is_none() && until.is_none() {
            return None;
        }
        Some(Box::pin(async move {
            let bounded = async {
                let Some(whole) = whole else {
                    return std::future::pending().await;
                };
                let received = std::future::poll_fn(|cx| kept.poll_received(cx)).await;
                at(received.checked_add(whole)).await;
            };
            tokio::select! {
                () = bounded => Over::Request,
                () = at(until) => Over::Client,
            }
        }))
    }

    /// What an endpoint is told of it (`grpc-timeout`), where there is something to tell.
    pub fn told(&self, each: Option<Duration>) -> Option<String> {
        let left = self
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        let least = [left, self.whole, each].into_iter().flatten().min()?;
        // Eight digits at most; zero would be no time at all.
        Some(match least.as_millis().max(1) {
            ms @ ..100_000_000 => format!("{ms}m"),
            ms @ ..100_000_000_000 => format!("{}S", ms / 1000),
            ms => format!("{}H", (ms / 3_600_000).min(99_999_999)),
        })
    }
}

async fn first(
    received: Instant,
    whole: Option<Duration>,
    began: Instant,
    each: Option<Duration>,
) -> Over {
    let request = whole.and_then(|t| received.checked_add(t));
    let tried = each.and_then(|t| began.checked_add(t));
    tokio::select! {
        biased;
        () = at(request) => Over::Request,
        () = at(tried) => Over::Try,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
