//! How long what the mesh needs is away in tests of outages, and how long a test may take for that.
//!
//! Invariant: who asks for a longer outage gets a test that may take as much longer, and no other change.

use std::{env, time::Duration};

use anyhow::{Context, Result};

use crate::lab::suite::{self, LIMIT};

/// Seconds that somebody wants: 300 for the five minutes of an outage as they happen.
const WANTED: &str = "WARREN_TEST_AWAY";
/// Longer than the controller's lease (15 s), the memory of accepted tokens (10 s), twice the time in which a
/// configuration stream is tried again, and the first pauses of whoever tries again. What takes longer, such as the end
/// of a certificate, is tested with injected time.
const USUAL: Duration = Duration::from_secs(30);

/// How long the controller or the API server is away.
pub fn away() -> Result<Duration> {
    wanted(env::var(WANTED).ok().as_deref())
}

fn wanted(seconds: Option<&str>) -> Result<Duration> {
    let Some(text) = seconds else {
        return Ok(USUAL);
    };
    let seconds = text.parse().map(Duration::from_secs);
    let seconds = seconds.with_context(|| format!("{WANTED} is {text:?}, no number of seconds"))?;
    anyhow::ensure!(
        seconds >= USUAL,
        "{WANTED} is {text:?}, and less than {USUAL:?} shows nothing"
    );
    Ok(seconds)
}

fn limit(away: Duration) -> Duration {
    LIMIT + away.saturating_sub(USUAL)
}

/// Drives a test to its end.
pub fn on_runtime(test: impl Future<Output = Result<()>>) -> Result<()> {
    suite::within(limit(away()?), test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_outage_is_a_longer_test() {
        let check = |said: Option<&str>, seconds: u64, limits: u64| {
            let away = wanted(said).expect("is understood");
            assert_eq!(away, Duration::from_secs(seconds), "{said:?}");
            assert_eq!(limit(away), Duration::from_secs(limits), "{said:?}");
        };
        check(None, 30, 240);
        check(Some("300"), 300, 510);
        for bad in ["", "5m", "5", "-1"] {
            assert!(wanted(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
