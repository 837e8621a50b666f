//! That subjects are what they say: a capture between the nodes with or without the plaintext marker.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    subject::Subject,
    world::{MARKER, World},
};
use crate::lab::capture::contains;

/// Sends the marker through every subject between nodes while listening on the wire: in the clear without a
/// mesh, or the capture would prove nothing, and never with one.
pub async fn encrypted(world: &World) -> Result<Vec<Value>> {
    let mut shown = Vec::new();
    let between = [Subject::FarDirect, Subject::Far, Subject::Envoy];
    for subject in between.into_iter().filter(|s| world.subjects.contains(s)) {
        let capture = world.lab.capture("n1")?;
        let said = world.say_marker(subject).await;
        let packets = capture.stop()?;
        said?;
        let seen = contains(&packets, MARKER.as_bytes());
        ensure!(
            !packets.is_empty(),
            "{}: the capture saw no packet",
            subject.title()
        );
        ensure!(
            seen == subject.is_direct(),
            "{}: the marker was {}on the wire",
            subject.title(),
            if seen { "" } else { "not " }
        );
        shown.push(json!({"subject": subject.id(), "packets": packets.len(), "plaintext": seen}));
    }
    Ok(shown)
}

/// That the direct path is taken by `path`, and the tunnel by `tunnel`: by the counters of new flows.
pub async fn ways(world: &World) -> Result<()> {
    for (subject, expect) in [(Subject::Path, "direct"), (Subject::Tunnel, "hbone")] {
        if !world.subjects.contains(&subject) {
            continue;
        }
        // The first connection of a pair asks the proxy, which then tells the kernel.
        world.say_marker(subject).await?;
        let node = world.lab.node("n1");
        let before = node.access_log().await?.len();
        let line = async || {
            world.say_marker(subject).await?;
            let log = node.access_log().await?;
            let sought = [
                format!("path={expect}"),
                format!("src.namespace={}", subject.namespace()),
            ];
            let found = log.iter().skip(before).any(|l| {
                sought
                    .iter()
                    .all(|s| l.contains(s) || l.contains(&s.replace('=', "=\"")))
            });
            ensure!(
                found,
                "no flow of `{}` took the way {expect}",
                subject.title()
            );
            Ok(())
        };
        let mut last = line().await;
        for _ in 0..50 {
            if last.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            last = line().await;
        }
        last?;
    }
    Ok(())
}
