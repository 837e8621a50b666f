//! What everything uses under load: new connections, long streams and requests, from node to node under STRICT.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::{Bench, part};
use crate::{bench::Fact, kube::Space};

/// New connections a second, streams at once, requests a second over kept connections.
const CONNECTIONS: &str = "500";
const STREAMS: &str = "200";
const REQUESTS: &str = "2000";
/// Until the load is what it will be.
const SETTLE: Duration = Duration::from_secs(4);

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let cluster = bench.cluster.clone();
    let nodes = cluster.nodes()?;
    let (server, client) = (&nodes[0], &nodes[nodes.len() - 1]);
    Space::with("loaded", "warren.dev/mesh: enabled", async |space| {
        let what =
            format!("{CONNECTIONS} new connections/s, {STREAMS} streams, {REQUESTS} requests/s");
        bench.say(&format!("usage: {what}"));
        space.apply(super::label::STRICT).await?;
        space.apply(&Space::echo("echo", server)).await?;
        space.apply(&Space::server("web", server)).await?;
        space.ready("echo").await?;
        space.rolled_out("deployment/web").await?;
        let time = bench.options.time;
        let seconds = (time + 3 * SETTLE).as_secs().to_string();
        let loads = [
            ("conns", vec!["conns", "echo:9000", "--rate", CONNECTIONS]),
            (
                "streams",
                vec![
                    "streams",
                    "echo:9000",
                    "--count",
                    STREAMS,
                    "--every-ms",
                    "500",
                ],
            ),
            (
                "http",
                vec![
                    "http",
                    "web:80",
                    "--path",
                    "/status/200",
                    "--connections",
                    "64",
                    "--rate",
                    REQUESTS,
                ],
            ),
        ];
        for (name, words) in &loads {
            let args = [&["--seconds", seconds.as_str()][..], words].concat();
            space.apply(&Space::load(name, client, &args)).await?;
        }
        for (name, _) in &loads {
            space.ready(name).await?;
        }
        sleep(SETTLE).await;
        let parts = part::parts(&cluster).await?;
        let facts = part::usage(&parts, "under load", time).await?;
        bench.findings.facts.extend(facts);
        for (name, _) in &loads {
            let report = space.report(name, 120).await?;
            let number = |field: &str| report[field].as_f64().unwrap_or(0.0);
            bench.findings.facts.push(Fact {
                row: "usage",
                what: format!("the load itself: {name}"),
                figures: vec![("ok", number("ok")), ("failed", number("failed"))],
            });
            if report["failed"] != 0 {
                bench.findings.failed.push(format!("load {name}: {report}"));
            }
        }
        Ok(())
    })
    .await
}
