//! What becomes of a process that has handed over, where whoever started it would start it again: it stays, idle.
//!
//! Invariants: being told to stop counts whenever it happens, also while flows were under way; a process that stays
//! holds no socket, no descriptor of a pod and no runtime of the data path; it ends by itself only when nobody serves in
//! its place, so that it is started again and takes the pods up from disk.

use std::{io, path::Path, time::Duration};

use tokio::{
    net::UnixStream,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

/// How often it is looked whether the successor serves.
const LOOK: Duration = Duration::from_secs(1);
/// How many looks in a row may find nobody: longer than a successor that was killed takes to be started and to serve
/// again.
const DESERTED: u32 = 10;

/// What ends the idleness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The process was told to stop.
    Stop,
    /// The successor is gone and nobody came in its place.
    Deserted,
}

/// Hears of SIGTERM and SIGINT from when it is made, beside whoever else does.
#[derive(Debug)]
pub struct Retirement {
    runtime: Runtime,
    term: Signal,
    interrupt: Signal,
}

impl Retirement {
    /// To be made before anything can be told to stop.
    pub fn prepare() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (term, interrupt) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
            )
        };
        Ok(Self {
            runtime,
            term,
            interrupt,
        })
    }

    /// Waits until the process was told to stop, or nobody serves on `socket` any more.
    pub fn wait(self, socket: &Path) -> Call {
        let Self {
            runtime,
            mut term,
            mut interrupt,
        } = self;
        let told = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let is_served = async || UnixStream::connect(socket).await.is_ok();
        runtime.block_on(idle(told, async || sleep(LOOK).await, is_served))
    }
}

/// Looks, and pauses between two looks.
async fn idle(
    told: impl Future<Output = ()>,
    mut pause: impl AsyncFnMut(),
    mut is_served: impl AsyncFnMut() -> bool,
) -> Call {
    let deserted = async {
        let mut in_vain = 0;
        while in_vain < DESERTED {
            in_vain = match is_served().await {
                true => 0,
                false => in_vain + 1,
            };
            pause().await;
        }
    };
    tokio::select! {
        biased;
        () = told => Call::Stop,
        () = deserted => Call::Deserted,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::{sync::Notify, task::yield_now};

    use super::*;

    #[tokio::test]
    async fn whoever_has_handed_over_stays_until_told_to_stop_or_needed_again() {
        // The look at which it is told to stop, whether a look finds somebody, what ends it, after how many looks.
        type Case = (u32, fn(u32) -> bool, Call, u32);
        let cases: [Case; 5] = [
            (1, |_| true, Call::Stop, 1),
            (4000, |_| true, Call::Stop, 4000),
            // A successor that is started again in time.
            (4000, |look| !(100..109).contains(&look), Call::Stop, 4000),
            (4000, |look| look < 100, Call::Deserted, 109),
            (105, |look| look < 100, Call::Stop, 105),
        ];
        for (number, (told, served, expect, after)) in cases.into_iter().enumerate() {
            let (looks, tell) = (Cell::new(0), Notify::new());
            let is_served = async || {
                looks.set(looks.get() + 1);
                if looks.get() == told {
                    tell.notify_one();
                }
                served(looks.get())
            };
            let call = idle(tell.notified(), async || yield_now().await, is_served).await;
            assert_eq!((call, looks.get()), (expect, after), "case {number}");
        }
    }

    #[test]
    fn being_told_to_stop_before_the_wait_counts() {
        let retirement = Retirement::prepare().expect("signals");
        // What the process does until it has handed over is in a runtime of its own, which ends first.
        let earlier = Runtime::new().expect("a runtime");
        earlier.block_on(async {
            let mut term = signal(SignalKind::terminate()).expect("signals");
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).expect("raised");
            term.recv().await;
        });
        earlier.shutdown_timeout(LOOK);
        assert_eq!(retirement.wait(Path::new("/nowhere")), Call::Stop);
    }
}
