//! A node whose clock is wrong: it refuses what it cannot know to be in date, says so, and is well once the clock is.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, suite, supervisor::Spec};

use super::{
    load::flawless,
    tunnel::{SOON, echo, pair_in, until},
};

/// Where Debian's package `libfaketime` has what tells a program another time.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
const ECHO: &str = "10.244.1.2";
/// How long streams live: through every setting of the clock.
const LIVES: &str = "40";
const FAILED: &str = "istio_tcp_connections_failed_total";

/// The clocks of a lab's nodes, as differences to this machine's.
struct Clocks(tempfile::TempDir);

impl Clocks {
    fn new() -> Result<Self> {
        let clocks = Self(tempfile::tempdir()?);
        for node in ["n1", "n2"] {
            clocks.set(node, "+0")?;
        }
        Ok(clocks)
    }

    /// Sets a node's clock: `+2d`, `-1h`.
    fn set(&self, node: &str, by: &str) -> Result<()> {
        // In one step, for it is read at any time.
        let next = self.0.path().join("next");
        fs::write(&next, by)?;
        Ok(fs::rename(next, self.0.path().join(node))?)
    }

    /// A lab whose node proxies go by these clocks. What they measure durations by is left alone, as it is when a clock
    /// is set.
    fn spec(&self) -> Result<Spec> {
        let file = self.0.path().join("{node}").display().to_string();
        let library = library()?.display().to_string();
        let env = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ];
        Ok(Spec {
            agent_env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..suite::spec()
        })
    }
}

fn library() -> Result<PathBuf> {
    let found = fs::read_dir("/usr/lib")?.filter_map(|dir| {
        let file = dir.ok()?.path().join(LIBRARY);
        file.is_file().then_some(file)
    });
    let mut found: Vec<PathBuf> = found.collect();
    found
        .pop()
        .context("libfaketime is not installed: `cargo xtask provision lab` does that")
}

/// A clock that is set within what certificates allow for is noticed by nobody. On a node whose clock is days ahead every
/// certificate has expired, and on one whose clock is days behind none that comes is valid yet: connections that would need
/// one are refused, and counted with the reason. Streams go on, and all is well as soon as the clock is.
pub async fn a_clock_that_is_set_lets_nothing_in_and_is_made_good() -> Result<()> {
    let clocks = Clocks::new()?;
    let lab = pair_in(clocks.spec()?).await?;
    let streams = [
        "--seconds",
        LIVES,
        "streams",
        "10.244.1.2:9000",
        "--count",
        "20",
        "--every-ms",
        "200",
    ];
    let (streams, told) = tokio::join!(flawless(&lab, "shop/client", &streams), async {
        for by in ["+2h", "+0"] {
            clocks.set("n2", by)?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            echo(&lab, "shop/client", ECHO)
                .await
                .with_context(|| format!("with a clock set by {by}"))?;
        }
        for (by, name, refused) in [
            ("+2d", "early", &["client", "early"][..]),
            ("-2d", "late", &["late"]),
        ] {
            set_wrong(&lab, &clocks, by, name, refused)
                .await
                .with_context(|| format!("with a clock set by {by}"))?;
        }
        anyhow::Ok(())
    });
    told?;
    streams?;
    Ok(())
}

/// Sets the clock of n2, starts a pod there, and sets the clock right when the connections of `refused` were refused.
async fn set_wrong(
    lab: &Lab,
    clocks: &Clocks,
    by: &str,
    name: &str,
    refused: &[&str],
) -> Result<()> {
    let node = lab.node("n2");
    let counted = async || {
        node.metric(FAILED, &[("response_flags", "TLS_FAILURE")])
            .await
    };
    clocks.set("n2", by)?;
    lab.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop}}
spec: {{nodeName: n2, serviceAccountName: {name}, containers: [{{name: c, image: idle}}]}}
"
    ))
    .await?;
    lab.wait_ready(SOON).await?;
    for who in refused {
        let who = format!("shop/{who}");
        let before = counted().await?;
        for _ in 0..3 {
            let carried = echo(lab, &who, ECHO).await;
            ensure!(carried.is_err(), "a connection of {who} was carried");
        }
        let now = counted().await?;
        ensure!(
            now >= before + 3.0,
            "{who}: {before} refusals were counted, and now {now}"
        );
    }
    clocks.set("n2", "+0")?;
    for who in ["client", name] {
        let who = format!("shop/{who}");
        until(&format!("{who}, with the clock right again"), async || {
            echo(lab, &who, ECHO).await
        })
        .await?;
    }
    Ok(())
}
