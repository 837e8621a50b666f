//! Faults and copies of the articles, as many as they say.
//!
//! Invariant: a share is believed only of so many requests that none at all would be outside its bounds.

use std::{ops::Range, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{Lab, node::sum_metric};
use tokio::time::timeout;

use super::{CLIENT, POD, ask, route, routed, service, subsets, within, world};
use crate::{load::flawless, tunnel::until};

/// 0.1 % and 10 % are delayed by 5 s, 5 % are aborted, and each request is copied.
pub async fn faults_and_copies_are_as_many_as_the_articles_say() -> Result<()> {
    let lab = world(&[
        service("ratings"),
        subsets("ratings"),
        service("myapp"),
        service("httpbin"),
        subsets("httpbin"),
    ])
    .await?;
    for object in [
        seed!("ratings-delay"),
        seed!("myapp-faults"),
        seed!("httpbin-mirror"),
    ] {
        lab.apply(object).await?;
    }
    for name in ["ratings", "myapp", "httpbin"] {
        routed(&lab, name).await?;
    }
    each_is_copied(&lab).await?;
    one_in_a_thousand_is_delayed(&lab).await?;
    some_are_delayed_and_some_aborted(&lab).await
}

/// What the first version answers the second one gets, too.
async fn each_is_copied(lab: &Lab) -> Result<()> {
    // Copies of what was asked before may still be on their way.
    until("nothing but copies", async || {
        timeout(Duration::from_secs(1), copied(lab, 10)).await?
    })
    .await?;
    copied(lab, 300).await?;
    println!("300 requests, 300 copies");
    Ok(())
}

async fn copied(lab: &Lab, n: usize) -> Result<()> {
    let served = || anyhow::Ok([served(lab, "httpbin-v1")?, served(lab, "httpbin-v2")?]);
    let before = served()?;
    let asked = ask(lab, &format!("http://httpbin:8080/rate/[1-{n}]")).await?;
    ensure!(asked.first as usize == n, "{asked:?}");
    until("all copies", async || {
        let now = served()?;
        let each = [now[0] - before[0], now[1] - before[1]];
        ensure!(each == [n, n], "requests and copies: {each:?} of {n}");
        Ok(())
    })
    .await
}

/// Of one in a thousand a load is asked until there are enough of them.
async fn one_in_a_thousand_is_delayed(lab: &Lab) -> Result<()> {
    const SHARE: f64 = 0.001;
    let begun = Flags::of(lab, "ratings").await?;
    let mut asked = 0;
    while asked < least(SHARE) {
        let words = ["--seconds", "10", "http", "ratings:8080"];
        let more = ["--path", "/rate/1", "--connections", "24"];
        let report = flawless(lab, CLIENT, &[&words[..], &more].concat()).await?;
        asked += report["ok"].as_u64().context("no number of answers")?;
    }
    let seen = Flags::until(lab, "ratings", &begun, asked).await?;
    ensure!(seen.aborted == 0, "{seen:?}");
    within("delayed 0.1 %", seen.delayed, asked, SHARE)?;
    took_their_delay(lab, "ratings", seen.delayed).await
}

/// Users who go on after a failure, each with a connection of its own.
async fn some_are_delayed_and_some_aborted(lab: &Lab) -> Result<()> {
    const USERS: u64 = 128;
    const EACH: u64 = 12;
    const ALL: u64 = USERS * EACH;
    let begun = Flags::of(lab, "myapp").await?;
    let one = format!(
        "curl -sS -m 30 -o /dev/null -w '%{{http_code}} %{{time_total}}\\n' 'http://myapp:8080/rate/[1-{EACH}]'"
    );
    let users = format!("for user in $(seq {USERS}); do {one} & done; wait");
    let ran = lab.exec(CLIENT, &["sh", "-c", &users]).await?;
    let (mut good, mut aborted, mut late) = (0, 0, 0);
    for line in ran.out.lines() {
        let (code, seconds) = line.split_once(' ').context("a code and seconds")?;
        match code {
            "200" => good += 1,
            "500" => aborted += 1,
            _ => bail!("{line}: {}", ran.err),
        }
        let took = seconds.parse::<f64>()? * 1e3;
        late += u64::from(took >= DELAYED.start as f64);
    }
    ensure!(good + aborted == ALL, "{good} and {aborted} of {ALL}");
    let seen = Flags::until(lab, "myapp", &begun, ALL).await?;
    // What the waypoint says of itself is what its client sees.
    ensure!(
        (seen.delayed, seen.aborted) == (late, aborted),
        "{late} were late and {aborted} aborted: {seen:?}"
    );
    for share in [0.1, 0.05] {
        ensure!(ALL >= least(share), "{ALL} are too few for {share}");
    }
    within("delayed 10 %", seen.delayed, ALL, 0.1)?;
    within("aborted 5 %", seen.aborted, ALL, 0.05)?;
    took_their_delay(lab, "myapp", seen.delayed).await
}

/// So many requests that none at all would be outside the bounds of a share.
fn least(share: f64) -> u64 {
    (5e-7_f64.ln() / (1.0 - share).ln()).ceil() as u64 + 1
}

/// What a request takes that is delayed by 5 s, in milliseconds; without the delay it takes a few.
const DELAYED: Range<u64> = 5_000..15_000;

/// Each line of a delayed request says that it took its delay.
async fn took_their_delay(lab: &Lab, service: &str, delayed: u64) -> Result<()> {
    let route = route(service);
    let lines = lab.log_lines(POD, &[&route, "response_flags=DI"]).await?;
    ensure!(
        lines.len() as u64 >= delayed,
        "{} lines of {delayed} delayed requests",
        lines.len()
    );
    for line in &lines {
        let took = line
            .split(' ')
            .find_map(|key| key.strip_prefix("duration="));
        let took = took
            .and_then(|t| t.strip_suffix("ms"))
            .context("no duration")?;
        ensure!(DELAYED.contains(&took.parse()?), "{took} ms: {line}");
    }
    println!("{}", lines.last().context("none was delayed")?);
    Ok(())
}

/// Requests to a service: all, those that were delayed and those that were aborted.
#[derive(Clone, Copy, Debug)]
struct Flags {
    all: u64,
    delayed: u64,
    aborted: u64,
}

impl Flags {
    async fn of(lab: &Lab, service: &str) -> Result<Self> {
        let metrics = lab.waypoint_metrics(POD).await?;
        let counted = |flags: Option<&str>| {
            let service = ("destination_service_name", service);
            let flags = flags.map(|flags| ("response_flags", flags));
            let labels: Vec<_> = [service].into_iter().chain(flags).collect();
            sum_metric(&metrics, "istio_requests_total", &labels) as u64
        };
        let both = counted(Some("DI,FI"));
        Ok(Self {
            all: counted(None),
            delayed: counted(Some("DI")) + both,
            aborted: counted(Some("FI")) + both,
        })
    }

    /// What has been counted since, once that are so many.
    async fn until(lab: &Lab, service: &str, begun: &Self, all: u64) -> Result<Self> {
        let mut seen = *begun;
        until("the waypoint's counts", async || {
            let now = Self::of(lab, service).await?;
            seen = Self {
                all: now.all - begun.all,
                delayed: now.delayed - begun.delayed,
                aborted: now.aborted - begun.aborted,
            };
            ensure!(seen.all == all, "{seen:?} of {all}");
            Ok(())
        })
        .await?;
        Ok(seen)
    }
}

/// How many requests a pod has seen.
fn served(lab: &Lab, pod: &str) -> Result<usize> {
    let text = std::fs::read_to_string(lab.place.log(&format!("default/{pod}")))?;
    Ok(text.matches("Request ").count())
}
