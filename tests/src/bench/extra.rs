//! The rows that are no load: memory, kernel programs, policy decisions.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{
    Bench, kernel, memory, policy,
    round::Summary,
    subject::Subject,
    table::{Fact, Line},
    world::World,
};

impl Bench {
    /// Memory before anything was carried.
    pub(super) async fn idle(&mut self, world: &World) -> Result<()> {
        let mut cells = [BTreeMap::new(), BTreeMap::new()];
        for subject in world.subjects.iter().filter(|s| !s.is_direct()) {
            for (end, held) in memory::held(world, *subject).await?.iter().enumerate() {
                cells[end].insert(*subject, held.resident as f64 / 1e6);
            }
        }
        self.memory_lines("memory, idle", "idle", "MB", cells);
        Ok(())
    }

    pub(super) async fn memory(&mut self, world: &mut World) -> Result<()> {
        let mut cells = [BTreeMap::new(), BTreeMap::new()];
        let through = [Subject::Tunnel, Subject::Far, Subject::Envoy];
        for subject in through {
            if !world.subjects.contains(&subject) {
                continue;
            }
            let count = memory::fitting(subject, self.options.idle)?;
            self.say(&format!("{count} idle connections, {}", subject.title()));
            match memory::per_connections(world, subject, count).await {
                Ok(grown) => {
                    self.held(subject, count);
                    for (end, bytes) in grown.iter().enumerate() {
                        cells[end].insert(subject, bytes / 1e6);
                    }
                }
                Err(e) => self
                    .findings
                    .failed
                    .push(format!("idle connections, {}: {e:#}", subject.title())),
            }
        }
        self.memory_lines(
            "memory, 1,000 idle connections",
            "idle-connections",
            "MB",
            cells,
        );
        let ours = [Subject::Tunnel, Subject::Path];
        if let Some(with) = ours.into_iter().find(|s| world.subjects.contains(s)) {
            self.say(&format!("{} known pods", self.options.known));
            match memory::per_known_pod(world, with, self.options.known).await {
                Ok(bytes) => self.findings.facts.push(Fact {
                    row: "memory",
                    what: format!("a known pod, of {}", self.options.known),
                    figures: vec![("bytes", bytes)],
                }),
                Err(e) => self.findings.failed.push(format!("known pods: {e:#}")),
            }
        }
        Ok(())
    }

    /// How many idle connections a figure is of.
    fn held(&mut self, subject: Subject, count: usize) {
        let why = match count < self.options.idle {
            true => " (no more descriptors: one proxy holds both ends)",
            false => "",
        };
        self.findings.facts.push(Fact {
            row: "memory",
            what: format!("idle connections, {}{why}", subject.title()),
            figures: vec![("connections", count as f64)],
        });
    }

    fn memory_lines(
        &mut self,
        title: &str,
        measure: &str,
        unit: &str,
        cells: [BTreeMap<Subject, f64>; 2],
    ) {
        for (end, cells) in ["client's proxy", "server's proxy"].into_iter().zip(cells) {
            if cells.is_empty() {
                continue;
            }
            let summary = |(s, value)| (s, Summary { value, ratio: None });
            self.findings.lines.push(Line {
                row: "memory".into(),
                title: title.to_owned(),
                measure: format!("{measure}-{}", &end[..6]),
                unit: format!("{unit}, {end}"),
                less: true,
                unsettled: Vec::new(),
                cells: cells.into_iter().map(summary).collect(),
            });
        }
    }

    pub(super) async fn kernel(&mut self, world: &World) -> Result<()> {
        let ways = [
            Subject::NearDirect,
            Subject::Path,
            Subject::Tunnel,
            Subject::Far,
        ];
        for subject in ways.into_iter().filter(|s| world.subjects.contains(s)) {
            self.say(&format!("kernel programs, {}", subject.title()));
            for cost in kernel::costs(world, subject, self.options.seconds.max(1.0)).await? {
                self.findings.facts.push(Fact {
                    row: "kernel",
                    what: format!("{}, {}", cost.program, subject.title()),
                    figures: vec![
                        ("ns a run", cost.nanoseconds),
                        ("runs a connection", cost.runs),
                    ],
                });
            }
        }
        Ok(())
    }

    pub(super) fn policy(&mut self) -> Result<()> {
        self.say("policy decisions");
        let example = std::env::current_exe()?
            .with_file_name("examples")
            .join("policy_cost");
        let Some(costs) = policy::costs(&example)? else {
            let why = format!(
                "policy: {} is not built; `cargo xtask bench` builds it",
                example.display()
            );
            self.findings.skipped.push(why);
            return Ok(());
        };
        self.findings.facts.extend(costs.into_iter().map(|c| Fact {
            row: "policy",
            what: format!("{} policies, by {}", c.policies, c.rules),
            figures: vec![("ns, no match", c.miss), ("ns, match", c.hit)],
        }));
        Ok(())
    }
}
