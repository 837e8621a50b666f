//! `cargo xtask demo`: the mesh at work in a lab, each step with the command it ran and what it saw.
//!
//! Invariants: a step that did not see what it must see fails, and with it the whole demo; nothing is shown
//! that was not measured in this run.

/// Prints a line of the demo; when nobody reads any more the demo breaks off.
macro_rules! say {
    ($($words:tt)*) => {
        $crate::out::line(format_args!($($words)*))?
    };
}

mod bars;
mod l7;
mod steps;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    lab::{
        Lab, Ran,
        capture::{Packet, contains},
        images::Images,
        place::LabName,
        supervisor::Spec,
    },
    out::ReaderGone,
};

const WORLD: &str = include_str!("world.yaml");
const BOOKINFO: &str = include_str!("../../../deploy/samples/bookinfo.yaml");
/// What must never be on the wire once a pod is in the mesh.
const MARKER: &str = "warren-demo-plaintext-marker";

/// How to show it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: LabName,
    /// Leave the lab running.
    pub keep: bool,
    /// Show requests through waypoints instead of connections.
    pub l7: bool,
}

/// Runs the demo; the exit code says whether all steps held.
pub async fn run(options: Options) -> Result<ExitCode> {
    let begun = Instant::now();
    say!(
        "Warren: a two-node cluster of network namespaces, {}, and the mesh.\n",
        match options.l7 {
            true => "two bookstores, a waypoint for each",
            false => "the bookstore",
        }
    );
    let spec = Spec {
        name: options.name.clone(),
        nodes: 2,
        mesh: true,
        agent_env: vec![("WARREN_DRAIN".into(), "3s".into())],
        // Short lives, so that certificates change while one watches.
        controller_args: vec!["--leaf-ttl".into(), "40s".into()],
        images: Images::default(),
    };
    let lab = Lab::up(spec).await?;
    let mut demo = Demo {
        lab,
        held: Vec::new(),
    };
    let outcome = match options.l7 {
        true => demo.requests().await,
        false => demo.all().await,
    };
    let failed = demo.held.iter().filter(|(_, held)| !held).count();
    say!("\n── Summary, after {:.0} s", begun.elapsed().as_secs_f32());
    for (title, held) in &demo.held {
        say!("   {} {title}", if *held { "✓" } else { "✗" });
    }
    if let Err(e) = &outcome {
        say!("   ✗ the demo broke off: {e:#}");
    }
    if options.keep {
        let who = if options.l7 {
            "books/client"
        } else {
            "demo/far"
        };
        say!(
            "\nThe lab goes on. Try:\n   cargo xtask lab --name {0} ps\n   cargo xtask lab --name {0} exec {who} -- curl -s http://productpage.bookinfo:9080/api/v1/products\n   cargo xtask lab --name {0} logs -f n1\n   cargo xtask lab --name {0} down",
            options.name
        );
        demo.lab.keep();
    } else {
        demo.lab.down().await?;
    }
    Ok(if failed == 0 && outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The demo under way.
pub struct Demo {
    lab: Lab,
    held: Vec<(&'static str, bool)>,
}

impl Demo {
    async fn all(&mut self) -> Result<()> {
        // Without its world the rest has nothing to show.
        self.prepare().await.context("starting the bookstore")?;
        self.step(
            "In the clear: before the mesh, the wire shows everything",
            steps::in_the_clear,
        )
        .await?;
        self.step(
            "Captured with no restart: a label puts running pods into the mesh",
            steps::captured,
        )
        .await?;
        self.step(
            "On one node the direct path: policy enforced, native TCP",
            steps::direct,
        )
        .await?;
        self.step(
            "STRICT: a client outside the mesh is refused",
            steps::strict,
        )
        .await?;
        self.step(
            "DENY and ALLOW, applied live, cut a live connection",
            steps::policy,
        )
        .await?;
        self.step("A certificate is rotated under load", steps::rotation)
            .await?;
        self.step("The node proxy is killed: nothing leaks", steps::killed)
            .await?;
        self.step(
            "The node proxy is upgraded under load: nothing is lost",
            steps::upgraded,
        )
        .await
    }

    async fn step(
        &mut self,
        title: &'static str,
        work: impl AsyncFnOnce(&Demo) -> Result<()>,
    ) -> Result<()> {
        say!("\n── {}. {title}", self.held.len() + 1);
        let done = work(self).await;
        match &done {
            Ok(()) => say!("   ✓ held"),
            Err(e) => say!("   ✗ {e:#}"),
        }
        self.held.push((title, done.is_ok()));
        Ok(())
    }

    async fn prepare(&self) -> Result<()> {
        let bookinfo = BOOKINFO.replace("warren.dev/mesh: enabled", "warren.dev/mesh: disabled");
        say!("$ lab apply -f bookinfo.yaml -f world.yaml     # nothing of it in the mesh yet");
        self.lab.apply(&bookinfo).await?;
        self.lab.apply(WORLD).await?;
        let status = self.lab.wait_ready(Duration::from_secs(30)).await?;
        say!(
            "   {} pods are ready on {}",
            status.pods.len(),
            status.nodes.join(" and ")
        );
        say!(
            "   in the namespaces demo and outside: echo and near on n1, far on n2; outside never joins the mesh"
        );
        Ok(())
    }

    /// Runs a command in a pod, showing it and the first lines of what it wrote.
    async fn exec(&self, who: &str, program: &[&str]) -> Result<Ran> {
        let words: Vec<String> = program
            .iter()
            .map(|w| {
                if w.contains([' ', '$', '>', '&']) {
                    format!("'{w}'")
                } else {
                    (*w).to_owned()
                }
            })
            .collect();
        say!("$ lab exec {who} -- {}", words.join(" "));
        let ran = self.lab.exec(who, program).await?;
        let said = if ran.out.trim().is_empty() {
            &ran.err
        } else {
            &ran.out
        };
        for line in said.trim().lines().take(3) {
            let short: String = line.chars().take(150).collect();
            say!("   {short}");
        }
        Ok(ran)
    }

    /// Applies a manifest, showing it in one line.
    async fn apply(&self, what: &str, yaml: &str) -> Result<()> {
        say!("$ lab apply -f - # {what}");
        for line in self.lab.apply(yaml).await? {
            say!("   {line}");
        }
        Ok(())
    }

    /// Takes objects away again.
    async fn delete(&self, what: &str, yaml: &str) -> Result<()> {
        say!("$ lab delete -f - # {what}");
        for line in self.lab.delete(yaml).await? {
            say!("   {line}");
        }
        Ok(())
    }

    /// Sends the marker to an echo and expects it back.
    async fn say_marker(&self, who: &str, to: &str) -> Result<Ran> {
        let script =
            format!("exec 3<>/dev/tcp/{to}/9000 && echo {MARKER} >&3 && timeout 5 head -1 <&3");
        self.exec(who, &["bash", "-c", &script]).await
    }

    /// One load run; its report.
    async fn load(&self, who: &str, words: &[&str]) -> Result<Value> {
        let program = std::env::current_exe()?
            .with_file_name("warren-load")
            .display()
            .to_string();
        say!("$ lab exec {who} -- warren-load {}", words.join(" "));
        let ran = self
            .lab
            .exec(who, &[&[program.as_str()], words].concat())
            .await?;
        let report: Value = serde_json::from_str(&ran.out)
            .with_context(|| format!("the load generator said: {}{}", ran.out, ran.err))?;
        say!(
            "   {} ok, {} failed, p50 {} us, {:.0}/s",
            report["ok"],
            report["failed"],
            report["latencyUs"]["p50"],
            report["perSecond"].as_f64().unwrap_or(0.0)
        );
        Ok(report)
    }

    /// The last line of a node's access log that holds all of `words`.
    async fn log_line(&self, node: &str, words: &[&str]) -> Result<String> {
        say!(
            "$ lab logs {node} | grep {} | tail -1",
            words.join(" | grep ")
        );
        let lines = self.lab.node(node).access_log().await?;
        let line = lines
            .iter()
            .rev()
            .find(|l| words.iter().all(|w| l.contains(w)));
        let line =
            line.with_context(|| format!("no line of {node}'s access log holds {words:?}"))?;
        say!("   {}", line.chars().take(400).collect::<String>());
        Ok(line.clone())
    }

    /// Tries until it succeeds: a change needs a moment to arrive.
    async fn until(
        &self,
        patience: Duration,
        mut good: impl AsyncFnMut() -> Result<()>,
    ) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            match good().await {
                Ok(()) => return Ok(begun.elapsed()),
                Err(e) if e.is::<ReaderGone>() => return Err(e),
                Err(e) if begun.elapsed() > patience => {
                    return Err(e.context(format!("still so after {patience:?}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// The packets must not show the marker, and must not be none.
fn no_marker(packets: &[Packet]) -> Result<()> {
    say!(
        "   the capture holds {} packets between the nodes",
        packets.len()
    );
    if contains(packets, MARKER.as_bytes()) {
        bail!("the marker was on the wire");
    }
    say!("   the marker is in none of them");
    Ok(())
}
