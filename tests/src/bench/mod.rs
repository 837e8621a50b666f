//! `cargo xtask bench l4`: the ways from pod to pod measured against each other in one lab, in one run. `l7` is below.
//!
//! Start reading at `run`. Invariants: nothing is shown that was not measured in this run; every load checks
//! what it receives; memory is that of fresh proxies; the lab goes away with the run, also after a failure or Ctrl-C.

pub mod app;
mod extra;
mod kernel;
pub mod l7;
mod memory;
mod peers;
mod policy;
mod proof;
mod round;
mod row;
mod subject;
mod table;
pub(crate) mod usage;
mod world;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;

use self::{
    peers::Pair,
    round::{Round, STEADY, order, summary},
    row::{Measure, ROWS, Row},
    table::Line,
    usage::Cpu,
    world::World,
};
pub use self::{
    subject::{GROUPS, Subject},
    table::{Fact, Findings},
};
use crate::{interrupt::unless_interrupted, lab::place::LabName, peers::envoy};

/// Rows that are no load.
const OTHERS: &[&str] = &["memory", "policy", "kernel"];

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: LabName,
    /// Rows by name or by the beginning of names; all of them when empty.
    pub rows: Vec<String>,
    /// Subjects; what they are compared with comes along.
    pub subjects: Vec<Subject>,
    /// Seconds of each run.
    pub seconds: f64,
    /// Seconds before each run.
    pub warm_up: f64,
    /// Steady rounds of each row.
    pub rounds: usize,
    /// Rounds at most, the unsteady ones included.
    pub attempts: usize,
    /// No round is repeated after this time.
    pub patience: Duration,
    /// Idle connections.
    pub idle: usize,
    /// Pods to know.
    pub known: usize,
    /// Worker threads of each proxy.
    pub threads: usize,
}

impl Options {
    /// A few minutes.
    pub fn quick(name: LabName) -> Self {
        Self {
            seconds: 0.4,
            warm_up: 0.15,
            rounds: 1,
            attempts: 2,
            patience: Duration::from_secs(100),
            idle: 1_000,
            known: 2_000,
            ..Self::full(name)
        }
    }

    /// Half an hour.
    pub fn full(name: LabName) -> Self {
        Self {
            name,
            rows: Vec::new(),
            subjects: Subject::all().collect(),
            seconds: 3.0,
            warm_up: 0.5,
            rounds: 3,
            attempts: 5,
            patience: Duration::from_secs(3600),
            idle: 10_000,
            known: 10_000,
            threads: std::thread::available_parallelism().map_or(2, Into::into),
        }
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|r| row.starts_with(r.as_str()))
    }

    /// Refuses names of rows that there are not, and adds what subjects are compared with.
    fn complete(&mut self) -> Result<()> {
        let all = || ROWS.iter().map(|r| r.id).chain(OTHERS.iter().copied());
        for wanted in &self.rows {
            ensure!(
                all().any(|r| r.starts_with(wanted.as_str())),
                "no row is called `{wanted}`; there are: {}",
                all().collect::<Vec<_>>().join(", ")
            );
        }
        for group in GROUPS {
            if group.iter().any(|s| self.subjects.contains(s)) {
                self.subjects.push(group[0]);
            }
        }
        self.subjects.sort();
        self.subjects.dedup();
        Ok(())
    }
}

/// Measures; ends early and cleans up when a signal says so.
pub async fn run(mut options: Options) -> Result<Findings> {
    options.complete()?;
    let mut bench = Bench {
        options,
        findings: Findings::default(),
        begun: Instant::now(),
    };
    unless_interrupted(bench.measure()).await?;
    Ok(bench.findings)
}

struct Bench {
    options: Options,
    findings: Findings,
    begun: Instant,
}

impl Bench {
    async fn measure(&mut self) -> Result<()> {
        self.describe();
        let files = tempfile::tempdir()?;
        let pair = self.pair(files.path().to_owned())?;
        let rows: Vec<&Row> = ROWS.iter().filter(|r| self.options.wants(r.id)).collect();
        if !rows.is_empty() || self.options.wants("memory") || self.options.wants("kernel") {
            self.say("starting the lab");
            let mut world = World::up(&self.options, pair).await?;
            self.prove(&mut world).await?;
            if self.options.wants("memory") {
                self.idle(&world).await?;
            }
            self.warm(&world).await?;
            for row in rows {
                self.row(&mut world, row).await?;
            }
            if self.options.wants("memory") {
                self.memory(&mut world).await?;
            }
            if self.options.wants("kernel") {
                self.kernel(&world).await?;
            }
            world.lab.down().await?;
        }
        if self.options.wants("policy") {
            self.policy()?;
        }
        self.findings
            .rig
            .insert("seconds".into(), json!(self.begun.elapsed().as_secs()));
        Ok(())
    }

    fn say(&self, what: &str) {
        eprintln!("[{:>4} s] {what}", self.begun.elapsed().as_secs());
    }

    fn describe(&mut self) {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let profile = if cfg!(debug_assertions) {
            "dev"
        } else {
            "release"
        };
        let o = &self.options;
        let rig = json!({"kernel": kernel.trim(), "cpus": o.threads, "profile": profile, "threads": o.threads,
            "secondsPerRun": o.seconds, "warmUp": o.warm_up, "rounds": o.rounds});
        self.findings.rig = rig.as_object().cloned().unwrap_or_default();
    }

    /// The pair of Envoys, when it is wanted and there.
    fn pair(&mut self, dir: PathBuf) -> Result<Option<Pair>> {
        if !self.options.subjects.contains(&Subject::Envoy) {
            return Ok(None);
        }
        let Some(binary) = envoy::binary() else {
            let why = format!(
                "{}: no Envoy binary: set WARREN_ENVOY or run `cargo xtask provision`",
                Subject::Envoy.title()
            );
            self.findings.skipped.push(why);
            self.options.subjects.retain(|s| *s != Subject::Envoy);
            return Ok(None);
        };
        let pair = Pair {
            binary,
            dir,
            threads: self.options.threads,
            log: false,
        };
        pair.certify()?;
        Ok(Some(pair))
    }

    /// What is not what it says is not measured.
    async fn prove(&mut self, world: &mut World) -> Result<()> {
        self.say(
            "proving that the ways are what they say, and that nothing is on the wire in the clear",
        );
        world.access_log(true).await?;
        proof::ways(world).await?;
        self.findings.proofs = proof::encrypted(world).await?;
        world.access_log(false).await
    }

    /// Every way carries load once before anything counts.
    async fn warm(&self, world: &World) -> Result<()> {
        for subject in &world.subjects {
            let to = world.address(*subject).await?.to_string();
            let seconds = (self.options.seconds).to_string();
            let words = ["http", &to, "--checked", "--seconds", &seconds].map(str::to_owned);
            world.load(&subject.client(), &words).await?;
        }
        Ok(())
    }

    async fn row(&mut self, world: &mut World, row: &Row) -> Result<()> {
        if row.logged {
            world.access_log(true).await?;
        }
        let mut lines: Vec<Line> = row.measures.iter().map(|m| line(row, m)).collect();
        for group in GROUPS {
            let there =
                |s: &Subject| world.subjects.contains(s) && (!row.handshakes || !s.is_direct());
            let present: Vec<Subject> = group.iter().copied().filter(there).collect();
            // One way of ours is enough to dial, and the same server serves both.
            let skip = row.handshakes && group[0] == Subject::NearDirect;
            let others: Vec<Subject> = present.iter().copied().filter(|s| !s.is_direct()).collect();
            if others.is_empty() || skip {
                continue;
            }
            let direct = present.iter().copied().find(|s| s.is_direct());
            let rounds = self.rounds(world, row, direct, &others).await?;
            let steady: Vec<&Round> = rounds.iter().filter(|r| r.steady()).collect();
            let settled = !steady.is_empty();
            let counted = if settled {
                steady
            } else {
                rounds.iter().collect()
            };
            for (index, line) in lines.iter_mut().enumerate() {
                if !settled {
                    line.unsettled.extend(&present);
                }
                let of = |s: &Subject| Some((*s, summary(&counted, *s, direct, index)?));
                line.cells.extend(present.iter().filter_map(of));
            }
        }
        lines.retain(|l| !l.cells.is_empty());
        self.findings.lines.extend(lines);
        if row.logged {
            world.access_log(false).await?;
        }
        Ok(())
    }

    /// As many steady rounds as wanted, if that can be had.
    async fn rounds(
        &mut self,
        world: &World,
        row: &Row,
        direct: Option<Subject>,
        others: &[Subject],
    ) -> Result<Vec<Round>> {
        let mut rounds: Vec<Round> = Vec::new();
        let mut steady = 0;
        while steady < self.options.rounds && rounds.len() < self.options.attempts {
            let again = rounds.len() >= self.options.rounds;
            if again && self.begun.elapsed() > self.options.patience {
                break;
            }
            let mut round = Round::default();
            for subject in order(direct, others) {
                let cell = self.cell(world, row, subject).await?;
                let shown = match &cell {
                    Ok(figures) => {
                        format!("{:.1}", figures.first().copied().flatten().unwrap_or(0.0))
                    }
                    Err(why) => {
                        let note = format!("{}: {}: {why}", row.title, subject.title());
                        self.findings.failed.push(note);
                        why.clone()
                    }
                };
                self.say(&format!(
                    "{}, {}: {shown} {}",
                    row.title,
                    subject.title(),
                    row.measures[0].title
                ));
                round.cells.push((subject, cell));
            }
            if round.steady() {
                steady += 1;
            } else {
                let moved = round
                    .moved()
                    .map_or("failed".into(), |m| format!("moved by {:.0} %", m * 100.0));
                let note = format!(
                    "a round of `{}`: {} {moved} (limit {:.0} %)",
                    row.title,
                    direct.map_or("", Subject::title),
                    STEADY * 100.0
                );
                self.say(&format!("dropped: {note}"));
                self.findings.dropped.push(note);
            }
            rounds.push(round);
        }
        Ok(rounds)
    }

    async fn cell(&self, world: &World, row: &Row, subject: Subject) -> Result<round::Cell> {
        let (to, bundle, client) = if row.handshakes {
            let (to, bundle) = world.tunnel(subject).await?;
            (
                to,
                bundle.display().to_string(),
                Subject::FarDirect.client(),
            )
        } else {
            (
                world.address(subject).await?,
                String::new(),
                subject.client(),
            )
        };
        let word = |w: &&str| match *w {
            "TO" => to.to_string(),
            "BUNDLE" => bundle.clone(),
            w => w.to_owned(),
        };
        let mut words: Vec<String> = row.load.iter().map(word).collect();
        let Options {
            seconds, warm_up, ..
        } = &self.options;
        words.extend([
            "--seconds".into(),
            seconds.to_string(),
            "--warm-up".into(),
            warm_up.to_string(),
        ]);
        let mut proxies = world.proxies(subject).await?;
        if row.handshakes {
            // The load is the client; only the server has a proxy at work.
            proxies = proxies.split_off(proxies.len().saturating_sub(1));
        }
        let before = Cpu::now(&proxies)?;
        let report = world.load(&client, &words).await?;
        let used = Cpu::now(&proxies)?.since(&before);
        Ok(row::figures(row, &report, &used).map_err(|e| format!("{e:#}")))
    }
}

fn line(row: &Row, measure: &Measure) -> Line {
    Line {
        row: row.id.to_owned(),
        title: row.title.to_owned(),
        measure: measure.id.to_owned(),
        unit: measure.title.to_owned(),
        less: measure.less,
        unsettled: Vec::new(),
        cells: BTreeMap::new(),
    }
}
