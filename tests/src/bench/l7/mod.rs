//! `cargo xtask bench l7`: requests through a waypoint of ours, through Envoy and through nginx, in one run.
//!
//! Invariants: every answer is checked; the ways are measured forth and back between two runs of the direct one, and
//! a round in which that one moved says nothing; a lost comparison is shown like a won one. Ours is the whole mesh: two
//! node proxies and a waypoint with HBONE between them. Envoy's is as long, with mutual TLS and without CONNECT, which is
//! less work; nginx's has no TLS at all and is there to compare with.

mod rig;
mod rules;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use self::{
    rig::Rig,
    rules::{Rules, SAID},
};
use super::{
    round::STEADY,
    usage::{Cpu, Memory},
};
use crate::{interrupt::unless_interrupted, lab::place::LabName};

/// How requests come to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Nothing between.
    Direct,
    /// Node proxy, waypoint, node proxy.
    Ours,
    /// Envoy at the client, Envoy that routes, Envoy at the server.
    Envoy,
    /// One nginx that routes, in the clear.
    Nginx,
}

impl Way {
    const ALL: [Self; 4] = [Self::Direct, Self::Ours, Self::Envoy, Self::Nginx];

    fn title(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::Ours => "ours",
            Self::Envoy => "Envoy",
            Self::Nginx => "nginx, no TLS",
        }
    }
}

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: LabName,
    /// Of each run.
    pub seconds: f64,
    /// Before each run, in seconds.
    pub warm_up: f64,
    /// Steady rounds of each row.
    pub rounds: usize,
}

/// One row: what is asked, and by which rules the proxies find the way.
struct Row {
    id: &'static str,
    title: &'static str,
    load: &'static [&'static str],
    rules: Rules,
    http2: bool,
}

const H1: &[&str] = &["--connections", "32"];
const H2: &[&str] = &["--connections", "4", "--streams", "8"];
const PACED: &[&str] = &["--connections", "16", "--rate", "1000"];
const ONE: Rules = Rules::Prefixes(1);
const HUNDRED: Rules = Rules::Prefixes(100);
const ROWS: [Row; 7] = [
    row("h1-1", "HTTP/1.1, 32 connections, 1 route", H1, ONE, false),
    row("h1-100", "the same, 100 routes", H1, HUNDRED, false),
    row(
        "h2-1",
        "HTTP/2, 4 connections of 8 streams, 1 route",
        H2,
        ONE,
        true,
    ),
    row("h2-100", "the same, 100 routes", H2, HUNDRED, true),
    row(
        "h1-headers",
        "HTTP/1.1, a header matched and three changed",
        H1,
        Rules::Headers,
        false,
    ),
    row(
        "h2-headers",
        "HTTP/2, a header matched and three changed",
        H2,
        Rules::Headers,
        true,
    ),
    row(
        "open-1",
        "HTTP/1.1 at 1,000/s, 16 connections, 1 route",
        PACED,
        ONE,
        false,
    ),
];

const fn row(
    id: &'static str,
    title: &'static str,
    load: &'static [&'static str],
    rules: Rules,
    http2: bool,
) -> Row {
    Row {
        id,
        title,
        load,
        rules,
        http2,
    }
}

/// One run of one way.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    rate: f64,
    p50: f64,
    p99: f64,
    /// Milliseconds for a thousand requests: of the proxy that routes, and of the whole machine.
    proxy: f64,
    machine: f64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    rows: Vec<(&'static str, &'static str, BTreeMap<Way, Figures>)>,
    memory: BTreeMap<Way, Memory>,
    notes: Vec<String>,
}

/// Measures; ends early and cleans up when a signal says so.
pub async fn run(options: Options) -> Result<Findings> {
    let mut findings = Findings::default();
    unless_interrupted(measure(&options, &mut findings)).await?;
    Ok(findings)
}

async fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let begun = Instant::now();
    let say = |what: &str| eprintln!("[{:>4} s] {what}", begun.elapsed().as_secs());
    say("starting the lab");
    let mut rig = Rig::up(&options.name, &mut findings.notes).await?;
    for row in &ROWS {
        rig.routes(row.rules).await?;
        let ways: Vec<Way> = Way::ALL.into_iter().filter(|w| rig.has(*w)).collect();
        // The direct way would need an application that speaks HTTP/2; the others speak it to their client only.
        let ways: Vec<Way> = match row.http2 {
            true => ways.into_iter().filter(|w| *w != Way::Direct).collect(),
            false => ways,
        };
        let mut steady: Vec<Vec<(Way, Figures)>> = Vec::new();
        for _ in 0..2 * options.rounds {
            let there = ways.iter().chain(ways.iter().rev());
            let mut round = Vec::new();
            for way in there {
                let figures = once(options, &rig, row, *way).await?;
                say(&format!(
                    "{}, {}: {:.0} per second, p99 {:.0} us",
                    row.title,
                    way.title(),
                    figures.rate,
                    figures.p99
                ));
                round.push((*way, figures));
            }
            let (first, last) = (round[0].1.rate, round[round.len() - 1].1.rate);
            let moved = (first - last).abs() / ((first + last) / 2.0);
            if moved <= STEADY {
                steady.push(round);
            } else {
                let note = format!("a round of `{}` moved by {:.0} %", row.title, moved * 100.0);
                say(&format!("dropped: {note}"));
                findings.notes.push(note);
            }
            if steady.len() == options.rounds {
                break;
            }
        }
        if steady.is_empty() {
            findings
                .notes
                .push(format!("`{}`: no round was steady", row.title));
            continue;
        }
        let mean = |way: Way| mean(steady.iter().flatten().filter(|(w, _)| *w == way));
        let cells = ways.iter().map(|way| (*way, mean(*way))).collect();
        findings.rows.push((row.id, row.title, cells));
    }
    for way in Way::ALL {
        let mut sum = Memory::default();
        for pid in rig.routers(way).await? {
            let of = Memory::of(pid)?;
            sum.resident += of.resident;
            sum.anonymous += of.anonymous;
        }
        if sum != Memory::default() {
            findings.memory.insert(way, sum);
        }
    }
    rig.down().await
}

fn mean<'a>(runs: impl Iterator<Item = &'a (Way, Figures)>) -> Figures {
    let (mut sum, mut count) = (Figures::default(), 0.0);
    for (_, run) in runs {
        sum.rate += run.rate;
        sum.p50 += run.p50;
        sum.p99 += run.p99;
        sum.proxy += run.proxy;
        sum.machine += run.machine;
        count += 1.0;
    }
    Figures {
        rate: sum.rate / count,
        p50: sum.p50 / count,
        p99: sum.p99 / count,
        proxy: sum.proxy / count,
        machine: sum.machine / count,
    }
}

async fn once(options: &Options, rig: &Rig, row: &Row, way: Way) -> Result<Figures> {
    let (client, to) = rig.target(way, row.http2).await?;
    let mut words = vec!["http".to_owned(), to, "--checked".to_owned()];
    words.extend(row.load.iter().chain(&SAID).map(|w| (*w).to_owned()));
    words.extend(["--seconds".into(), options.seconds.to_string()]);
    words.extend(["--warm-up".into(), options.warm_up.to_string()]);
    let pids = rig.routers(way).await?;
    let before = Cpu::now(&pids)?;
    let report = rig.load(&client, &words).await?;
    let used = Cpu::now(&pids)?.since(&before);
    figures(&report, &used)
}

fn figures(report: &Value, used: &Cpu) -> Result<Figures> {
    ensure!(report["failed"] == 0, "requests failed: {report}");
    let number = |at: &str| report.pointer(at).and_then(Value::as_f64).unwrap_or(0.0);
    let done = (number("/ok") + number("/warmUp")) / 1000.0;
    ensure!(done > 0.0, "nothing was asked: {report}");
    Ok(Figures {
        rate: number("/perSecond"),
        p50: number("/latencyUs/p50"),
        p99: number("/latencyUs/p99"),
        proxy: used.processes.iter().sum::<f64>() * 1e3 / done,
        machine: used.machine * 1e3 / done,
    })
}

impl Findings {
    /// Everything as JSON.
    pub fn to_json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(id, title, cells)| {
                let cells = cells.iter().map(|(way, f)| {
                    json!({"way": way.title(), "perSecond": f.rate, "p50Us": f.p50, "p99Us": f.p99,
                        "proxyCpuMsPer1000": f.proxy, "machineCpuMsPer1000": f.machine})
                });
                json!({"row": id, "title": title, "ways": cells.collect::<Vec<_>>()})
            })
            .collect();
        let memory = self.memory.iter().map(|(way, m)| {
            json!({"way": way.title(), "residentBytes": m.resident, "anonymousBytes": m.anonymous})
        });
        json!({"rows": rows, "memory": memory.collect::<Vec<_>>(), "notes": self.notes})
    }

    /// A table for people, with ours against Envoy where both are there.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        for (_, title, cells) in &self.rows {
            let _ = writeln!(text, "{title}");
            let _ = writeln!(
                text,
                "  {:<14} {:>10} {:>9} {:>9} {:>16} {:>18}",
                "", "per second", "p50 us", "p99 us", "proxy ms/1000", "machine ms/1000"
            );
            for (way, f) in cells {
                let _ = writeln!(
                    text,
                    "  {:<14} {:>10.0} {:>9.0} {:>9.0} {:>16.1} {:>18.1}",
                    way.title(),
                    f.rate,
                    f.p50,
                    f.p99,
                    f.proxy,
                    f.machine
                );
            }
            let _ = text.write_str(&against_envoy(cells).unwrap_or_default());
        }
        let _ = writeln!(text, "memory of the proxy that routes, after all that");
        for (way, memory) in &self.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let _ = writeln!(
                text,
                "  {:<14} {:>8.1} MiB resident, {:.1} MiB of its own",
                way.title(),
                mib(memory.resident),
                mib(memory.anonymous)
            );
        }
        let _ = text.write_str(&memory_against_envoy(&self.memory).unwrap_or_default());
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

/// A row's ratios beside their aims, where both are there. Without a direct run nobody knows what the proxies have added.
fn against_envoy(cells: &BTreeMap<Way, Figures>) -> Option<String> {
    let (ours, envoy) = (cells.get(&Way::Ours)?, cells.get(&Way::Envoy)?);
    let p99 = match cells.get(&Way::Direct) {
        Some(direct) => format!(
            "added p99 {:.2} (aim <= 0.7)",
            (ours.p99 - direct.p99) / (envoy.p99 - direct.p99)
        ),
        None => format!(
            "whole p99 {:.2} (no direct run, so that the aim for added p99 does not apply)",
            ours.p99 / envoy.p99
        ),
    };
    Some(format!(
        "  ours / Envoy: CPU of the proxy {:.2} (aim <= 0.6), {p99}, rate {:.2}\n",
        ours.proxy / envoy.proxy,
        ours.rate / envoy.rate
    ))
}

fn memory_against_envoy(memory: &BTreeMap<Way, Memory>) -> Option<String> {
    let (ours, envoy) = (memory.get(&Way::Ours)?, memory.get(&Way::Envoy)?);
    let ratio = |of: fn(&Memory) -> u64| of(ours) as f64 / of(envoy) as f64;
    Some(format!(
        "  ours / Envoy: resident {:.2} (aim <= 0.3), of its own {:.2}\n",
        ratio(|m| m.resident),
        ratio(|m| m.anonymous)
    ))
}

/// Long enough for anything that has to happen at all.
const SOON: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_a_thousand_requests_and_failures_are_none() {
        let used = Cpu {
            processes: vec![0.5],
            machine: 2.0,
        };
        let report = json!({"ok": 900, "warmUp": 100, "failed": 0, "perSecond": 300.0, "latencyUs": {"p50": 1.0, "p99": 2.0}});
        let got = figures(&report, &used).expect("a good report");
        assert_eq!((got.proxy, got.machine, got.rate), (500.0, 2000.0, 300.0));
        let failed = json!({"ok": 1, "failed": 1});
        assert!(figures(&failed, &used).is_err());
        let twice = [(Way::Ours, got), (Way::Ours, Figures::default())];
        assert_eq!(mean(twice.iter()).rate, 150.0);
    }
    #[test]
    fn ratios_stand_beside_their_aims_and_added_latency_needs_a_direct_run() {
        let of = |p99: f64, proxy: f64| Figures {
            rate: 100.0 / proxy,
            p99,
            proxy,
            ..Figures::default()
        };
        let mut cells = BTreeMap::from([
            (Way::Direct, of(100.0, 0.0)),
            (Way::Ours, of(400.0, 1.0)),
            (Way::Envoy, of(600.0, 2.0)),
        ]);
        assert_eq!(
            against_envoy(&cells).as_deref(),
            Some(
                "  ours / Envoy: CPU of the proxy 0.50 (aim <= 0.6), added p99 0.60 (aim <= 0.7), rate 2.00\n"
            )
        );
        cells.remove(&Way::Direct);
        let alone = against_envoy(&cells).expect("both are there");
        assert!(
            alone.contains("whole p99 0.67 (no direct run") && !alone.contains("aim <= 0.7"),
            "{alone}"
        );
        cells.remove(&Way::Envoy);
        assert_eq!(against_envoy(&cells), None);
        let bytes = |resident, anonymous| Memory {
            resident,
            anonymous,
        };
        let memory = BTreeMap::from([(Way::Ours, bytes(20, 5)), (Way::Envoy, bytes(80, 50))]);
        assert_eq!(
            memory_against_envoy(&memory).as_deref(),
            Some("  ours / Envoy: resident 0.25 (aim <= 0.3), of its own 0.10\n")
        );
        assert_eq!(memory_against_envoy(&BTreeMap::new()), None);
    }

    #[test]
    fn the_table_says_of_each_row_what_its_ratios_are() {
        let figures = |p99| Figures {
            rate: 1.0,
            p50: 1.0,
            p99,
            proxy: 1.0,
            machine: 1.0,
        };
        let both = [(Way::Ours, figures(2.0)), (Way::Envoy, figures(4.0))];
        let found = Findings {
            rows: vec![("h2-1", "HTTP/2", BTreeMap::from(both))],
            memory: [Way::Ours, Way::Envoy]
                .map(|way| (way, Memory::default()))
                .into(),
            notes: Vec::new(),
        };
        let table = found.to_table();
        for word in ["whole p99 0.50", "(aim <= 0.6)", "(aim <= 0.3)"] {
            assert!(table.contains(word), "no {word}: {table}");
        }
    }
}
