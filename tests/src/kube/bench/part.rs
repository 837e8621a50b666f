//! What controller and node proxies use, as processes of this machine: resident memory, the memory that their
//! container's limit counts, and CPU time.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    bench::{
        Fact,
        usage::{Cpu, Memory},
    },
    kube::{Cluster, SYSTEM, process},
};

/// Between two looks at memory.
const LOOK: Duration = Duration::from_secs(1);
const MB: f64 = 1e6;

/// A component's container.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Which, and where: `warren-node on n1`.
    pub name: String,
    /// Its process on this machine.
    pub pid: u32,
    /// The directory of its memory cgroup, where that is to be found.
    group: Option<PathBuf>,
}

impl Part {
    /// What the container's limit counts: all that is charged but file pages that can go at once.
    fn working_set(&self) -> Option<u64> {
        let group = self.group.as_ref()?;
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let used = read("memory.current").or_else(|| read("memory.usage_in_bytes"))?;
        let used: u64 = used.trim().parse().ok()?;
        let inactive = read("memory.stat").and_then(|text| {
            let names = ["total_inactive_file ", "inactive_file "];
            let line = names
                .iter()
                .find_map(|n| text.lines().find_map(|l| l.strip_prefix(n)))?;
            line.trim().parse::<u64>().ok()
        });
        Some(used.saturating_sub(inactive.unwrap_or(0)))
    }
}

/// The containers of Warren that run.
pub(super) async fn parts(cluster: &Cluster) -> Result<Vec<Part>> {
    let pods = cluster.json(&["-n", SYSTEM, "get", "pods"]).await?;
    let mut parts = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let component = text(&pod["metadata"]["labels"]["app.kubernetes.io/name"]);
        let id = text(&pod["status"]["containerStatuses"][0]["containerID"]);
        let id = id.rsplit('/').next().unwrap_or_default();
        // A pod that has not begun has no container.
        if id.is_empty() {
            continue;
        }
        let name = format!("{component} on {}", text(&pod["spec"]["nodeName"]));
        let (pid, group) = process::of(id).with_context(|| format!("no process of {name}"))?;
        parts.push(Part { name, pid, group });
    }
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(parts)
}

/// What the parts use for so long: memory at most, CPU on average.
pub(super) async fn usage(parts: &[Part], what: &str, time: Duration) -> Result<Vec<Fact>> {
    let pids: Vec<u32> = parts.iter().map(|p| p.pid).collect();
    let (begun, before) = (Instant::now(), Cpu::now(&pids)?);
    let mut most = vec![(0, 0); parts.len()];
    loop {
        for (part, most) in parts.iter().zip(&mut most) {
            most.0 = Memory::of(part.pid)?.resident.max(most.0);
            most.1 = part.working_set().unwrap_or(0).max(most.1);
        }
        if begun.elapsed() >= time {
            break;
        }
        sleep(LOOK.min(time)).await;
    }
    let used = Cpu::now(&pids)?.since(&before);
    let seconds = begun.elapsed().as_secs_f64();
    let mut facts = Vec::new();
    for ((part, most), cpu) in parts.iter().zip(most).zip(used.processes) {
        facts.push(Fact {
            row: "usage",
            what: format!("{}, {what}", part.name),
            figures: vec![
                ("resident MB", most.0 as f64 / MB),
                ("container MB", most.1 as f64 / MB),
                ("CPU m", cpu / seconds * 1e3),
            ],
        });
    }
    Ok(facts)
}

/// Resident bytes of the parts whose names begin so, together and how many they are.
pub(super) fn resident(parts: &[Part], component: &str) -> Result<(f64, usize)> {
    let of: Vec<&Part> = parts
        .iter()
        .filter(|p| p.name.starts_with(component))
        .collect();
    let mut sum = 0;
    for part in &of {
        sum += Memory::of(part.pid)?.resident;
    }
    Ok((sum as f64, of.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_process_uses_something() {
        let own = Part {
            name: "this".to_owned(),
            pid: std::process::id(),
            group: None,
        };
        let facts = usage(&[own], "a moment", Duration::from_millis(1))
            .await
            .expect("figures");
        assert_eq!(facts[0].what, "this, a moment");
        assert!(facts[0].figures[0].1 > 0.0 && facts[0].figures[1].1 == 0.0);
    }
}
