//! Ctrl-C and SIGTERM for programs that have something to take down.
//!
//! Invariant: the work is dropped before the program ends, and with it the lab that it holds.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// By how much one of our programs may hear of a signal before we do.
const SOON: Duration = Duration::from_millis(100);

/// Works until the end or until a signal says stop. Then the work is dropped, which removes its lab.
pub async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let mut told = async || {
        tokio::select! {
            biased;
            _ = interrupt.recv() => "interrupted",
            _ = terminate.recv() => "terminated",
        }
    };
    let how = tokio::select! {
        biased;
        how = told() => how,
        done = work => match done {
            Ok(done) => return Ok(done),
            // A terminal tells the programs we started as well, and theirs may be the first word that we hear of it:
            // what they say of it is not the reason to end.
            Err(error) => match timeout(SOON, told()).await {
                Ok(how) => how,
                Err(_) => return Err(error),
            },
        },
    };
    bail!("{how}; the lab was removed")
}
