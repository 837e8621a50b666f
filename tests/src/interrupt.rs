//! Ctrl-C and SIGTERM for programs that have something to take down.
//!
//! Invariant: the work is dropped before the program ends, and with it the lab that it holds.

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Works until the end or until a signal says stop. Then the work is dropped, which removes its lab.
pub async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    // A terminal tells the programs we started as well: what they say of it is not the reason to end.
    tokio::select! {
        biased;
        _ = interrupt.recv() => bail!("interrupted; the lab was removed"),
        _ = terminate.recv() => bail!("terminated; the lab was removed"),
        done = work => done,
    }
}
