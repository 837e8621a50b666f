//! Waypoints that appear by themselves, because an object needs one or a Gateway asks for one, and go again.

use std::{fs, path::PathBuf, process::Child};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, suite};

use super::{
    tunnel::{SOON, until},
    waypoint::{WORLD, ask, bounds, weighted},
};

/// The waypoint that is made for the namespace.
const MADE: &str = "warren-system/waypoint-shop";

async fn world(more: &str) -> Result<Lab> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(&[WORLD, more].join("---\n")).await?;
    lab.wait_ready(SOON).await?;
    until("the first answer", async || {
        let asked = ask(&lab, "/rate/[1-4]").await?;
        ensure!(asked.answers == 4, "{asked:?}");
        Ok(())
    })
    .await?;
    Ok(lab)
}

/// A client that asks all the time, each time on a new connection, and writes down what came of it.
struct Asking {
    child: Child,
    codes: PathBuf,
}

impl Asking {
    async fn begin(lab: &Lab) -> Result<Self> {
        let codes = lab.place.state().join("codes");
        let script = format!(
            "while :; do curl -s -o /dev/null -m 20 -w '%{{http_code}}\\n' http://rating:8080/rate/1 >> {}; done",
            codes.display()
        );
        let child = lab.spawn("shop/client", &["sh", "-c", &script]).await?;
        Ok(Self { child, codes })
    }

    /// How often it was answered so far; every other outcome is a failure.
    fn flawless(&self) -> Result<usize> {
        let text = fs::read_to_string(&self.codes).context("reading what came of requests")?;
        let (good, bad): (Vec<&str>, Vec<&str>) = text.lines().partition(|code| *code == "200");
        ensure!(
            bad.is_empty(),
            "{} of {} requests failed: {:?}",
            bad.len(),
            good.len() + bad.len(),
            &bad[..bad.len().min(5)]
        );
        Ok(good.len())
    }

    fn end(mut self) -> Result<usize> {
        self.child.kill()?;
        self.child.wait()?;
        self.flawless()
    }
}

/// What the controller says of an object's condition `Programmed`: its reason, and all of its text.
fn programmed(lab: &Lab, kind: &str, name: &str) -> Result<(String, String)> {
    let file = lab.place.state().join("controller/statuses.json");
    let all: serde_json::Value = serde_json::from_slice(&fs::read(file)?)?;
    let statuses = all["statuses"].as_array().context("no statuses")?;
    let one = statuses
        .iter()
        .find(|s| s["object"]["kind"] == kind && s["object"]["name"] == name)
        .with_context(|| format!("no status of {kind} {name}"))?;
    let conditions = one["conditions"].as_array().context("no conditions")?;
    let found = conditions.iter().find(|c| c["type"] == "Programmed");
    let reason = found.context("no Programmed")?["reason"].clone();
    Ok((
        reason.as_str().unwrap_or_default().to_owned(),
        one.to_string(),
    ))
}

/// Waits until requests go through a waypoint, and so many of forty to the first version. Without one, all that are asked on
/// one connection go to one of both.
async fn goes_through(lab: &Lab, pod: &str, first: u32) -> Result<()> {
    until("requests through the waypoint", async || {
        let seen = lab.log_lines(pod, &["request complete"]).await?.len();
        let asked = ask(lab, "/rate/[1-40]").await?;
        ensure!(asked.answers == 40 && asked.first == first, "{asked:?}");
        let lines = lab.log_lines(pod, &["request complete"]).await?.len();
        ensure!(
            lines >= seen + 40,
            "the waypoint saw {} of 40",
            lines - seen
        );
        Ok(())
    })
    .await
}

async fn is_there(lab: &Lab, service: &str) -> Result<bool> {
    let status = lab.status().await?;
    let all = status.services.iter();
    let there = all.map(|s| format!("{}/{}", s.namespace, s.name));
    Ok(there.into_iter().any(|name| name == service))
}

/// A virtual service of running pods brings a waypoint, and takes it along when it goes; no request fails meanwhile.
pub async fn a_waypoint_appears_for_a_rule_and_goes_with_it() -> Result<()> {
    let lab = world("").await?;
    let asking = Asking::begin(&lab).await?;
    lab.apply(&weighted(100)).await?;
    until("what it waits for", async || {
        let (reason, text) = programmed(&lab, "VirtualService", "rating")?;
        ensure!(
            (reason == "Pending" && text.contains("waypoint-shop")) || reason == "Programmed",
            "{text}"
        );
        Ok(())
    })
    .await?;
    goes_through(&lab, MADE, 40).await?;
    println!("{} requests answered until it split", asking.flawless()?);
    // The controller gathers statuses for a moment before it writes them.
    until("its status", async || {
        let (reason, text) = programmed(&lab, "VirtualService", "rating")?;
        ensure!(
            reason == "Programmed" && text.contains(&format!("go through waypoint {MADE}")),
            "{text}"
        );
        Ok(())
    })
    .await?;
    lab.apply(&weighted(80)).await?;
    until("the second split", async || {
        let asked = ask(&lab, "/rate/[1-40]").await?;
        ensure!(asked.answers == 40 && asked.first < 40, "{asked:?}");
        Ok(())
    })
    .await?;
    let asked = ask(&lab, "/rate/[1-500]").await?;
    let expected = bounds(500, 0.8);
    ensure!(
        asked.answers == 500 && expected.contains(&asked.first),
        "expected {expected:?} of 500: {asked:?}"
    );
    println!("v1 gave {} of 500, bounds {expected:?}", asked.first);
    let lines = lab.log_lines(MADE, &["request complete"]).await?;
    ensure!(lines.len() > 500, "{} lines of the waypoint", lines.len());
    lab.delete(&weighted(80)).await?;
    until("the end of the waypoint", async || {
        ensure!(lab.status().await?.pod(MADE).is_err(), "its pod is there");
        ensure!(!is_there(&lab, MADE).await?, "its service is there");
        Ok(())
    })
    .await?;
    let asked = ask(&lab, "/rate/[1-40]").await?;
    ensure!(asked.answers == 40, "{asked:?}");
    println!("{} requests were answered, none failed", asking.end()?);
    Ok(())
}

/// A Gateway and a label are enough; its waypoint is missed when its pods are gone, and comes back.
pub async fn a_gateway_brings_its_waypoint() -> Result<()> {
    let lab = world("").await?;
    let asking = Asking::begin(&lab).await?;
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: shop}\n\
        spec: {gatewayClassName: warren-waypoint, infrastructure: {labels: {team: a}}}\n";
    let label = "---\napiVersion: v1\nkind: Namespace\n\
        metadata: {name: shop, labels: {warren.dev/mesh: enabled, warren.dev/use-waypoint: wp}}\n---\n";
    lab.apply(&[gateway, label, &weighted(0)].concat()).await?;
    goes_through(&lab, "shop/wp", 0).await?;
    println!("{} requests answered, none failed", asking.end()?);
    let pod = lab.status().await?.pod("shop/wp")?.clone();
    ensure!(pod.labels["team"] == "a", "{:?}", pod.labels);
    ensure!(
        !is_there(&lab, MADE).await?,
        "the namespace has one of its own"
    );
    until("the gateway's status", async || {
        let (reason, text) = programmed(&lab, "Gateway", "wp")?;
        ensure!(reason == "Programmed", "{text}");
        Ok(())
    })
    .await?;
    lab.delete_pod("shop/wp").await?;
    until("service with another pod", async || {
        let new = lab.status().await?.pod("shop/wp")?.uid.clone();
        ensure!(new != pod.uid, "it is the old one");
        Ok(())
    })
    .await?;
    goes_through(&lab, "shop/wp", 0).await
}

/// Who demands a waypoint is refused until it is there, and served from then on.
pub async fn who_restricts_is_obeyed_from_the_first_moment() -> Result<()> {
    let lab = world("").await?;
    let kept = WORLD
        .split("---\n")
        .find(|part| part.contains("kind: Service"))
        .context("the service")?
        .replace(
            "namespace: shop}",
            "namespace: shop, labels: {warren.dev/require-waypoint: \"true\"}}",
        );
    lab.apply(&kept).await?;
    // It is refused first; how long depends on how fast the waypoint comes.
    until("a refusal", async || {
        let asked = ask(&lab, "/rate/[1-1]").await?;
        ensure!(asked.answers == 0, "{asked:?}");
        Ok(())
    })
    .await?;
    until("service through the waypoint", async || {
        let asked = ask(&lab, "/rate/[1-40]").await?;
        ensure!(asked.answers == 40, "{asked:?}");
        Ok(())
    })
    .await?;
    let lines = lab.log_lines(MADE, &["request complete"]).await?;
    ensure!(lines.len() >= 40, "{} lines of the waypoint", lines.len());
    Ok(())
}
