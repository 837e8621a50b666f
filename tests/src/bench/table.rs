//! What a run found, as a table for people and as JSON for programs.
//!
//! Invariant: everything that was measured is shown, a lost comparison like a won one; what was left out, dropped
//! or failed is named.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Map, Value, json};

use super::{round::Summary, subject::Subject};

/// One figure of one row, for every subject.
#[derive(Clone, Debug)]
pub struct Line {
    /// The row's name.
    pub row: String,
    /// What people read of the row.
    pub title: String,
    /// The figure's name.
    pub measure: String,
    /// What people read of it, with its unit.
    pub unit: String,
    /// Whether less is better.
    pub less: bool,
    /// Subjects of which no round was steady: then their figures are those of rounds that were not.
    pub unsettled: Vec<Subject>,
    /// The figures.
    pub cells: BTreeMap<Subject, Summary>,
}

/// A figure without a subject.
#[derive(Clone, Debug)]
pub struct Fact {
    /// The row's name.
    pub row: &'static str,
    /// What was measured.
    pub what: String,
    /// The figures by name.
    pub figures: Vec<(&'static str, f64)>,
}

/// All that a run found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The rig: kernel, CPUs, mode.
    pub rig: Map<String, Value>,
    /// Comparisons.
    pub lines: Vec<Line>,
    /// Figures without comparison.
    pub facts: Vec<Fact>,
    /// Captures.
    pub proofs: Vec<Value>,
    /// Rounds that say nothing, and why.
    pub dropped: Vec<String>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
    /// What did not work.
    pub failed: Vec<String>,
}

/// What a figure is to reach.
struct Aim {
    what: &'static str,
    row: &'static str,
    measure: &'static str,
    subject: Subject,
    of: Of,
}

enum Of {
    /// At least so much of the direct way.
    AtLeast(f64),
    /// At most so much of the direct way.
    AtMost(f64),
    /// At most so much more than the direct way.
    Added(f64),
}

const AIMS: &[Aim] = &[
    Aim {
        what: "direct path, throughput",
        row: "flood-1",
        measure: "gbit",
        subject: Subject::Path,
        of: Of::AtLeast(0.95),
    },
    Aim {
        what: "direct path, p50",
        row: "rtt-1",
        measure: "p50",
        subject: Subject::Path,
        of: Of::AtMost(1.15),
    },
    Aim {
        what: "tunnel, p50 added at 1 connection",
        row: "rtt-1",
        measure: "p50",
        subject: Subject::Far,
        of: Of::Added(25.0),
    },
    Aim {
        what: "tunnel, requests/s at 64 connections",
        row: "http-64",
        measure: "rate",
        subject: Subject::Far,
        of: Of::AtLeast(0.50),
    },
    Aim {
        what: "tunnel, new connections/s",
        row: "conns-64",
        measure: "rate",
        subject: Subject::Far,
        of: Of::AtLeast(0.50),
    },
    Aim {
        what: "tunnel, throughput, 1 stream",
        row: "flood-1",
        measure: "gbit",
        subject: Subject::Far,
        of: Of::AtLeast(0.60),
    },
    Aim {
        what: "tunnel, throughput, 8 streams",
        row: "flood-8",
        measure: "gbit",
        subject: Subject::Far,
        of: Of::AtLeast(0.60),
    },
];

impl Findings {
    /// Everything as JSON.
    pub fn to_json(&self) -> Value {
        let rows: Vec<Value> = self.lines.iter().map(line_json).collect();
        let facts = self.facts.iter().map(|f| {
            let figures: Map<_, _> = f
                .figures
                .iter()
                .map(|(k, v)| ((*k).to_owned(), json!(v)))
                .collect();
            json!({"row": f.row, "what": f.what, "figures": figures})
        });
        json!({
            "rig": self.rig, "rows": rows, "facts": facts.collect::<Vec<_>>(), "aims": self.aims().iter().map(|a| json!({
                "what": a.0, "reached": a.1, "aim": a.2, "held": a.3})).collect::<Vec<_>>(),
            "proofs": self.proofs, "dropped": self.dropped, "skipped": self.skipped, "failed": self.failed,
        })
    }

    /// Everything as a table.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        let shown: Vec<Subject> = Subject::all()
            .filter(|s| self.lines.iter().any(|l| l.cells.contains_key(s)))
            .collect();
        if !self.lines.is_empty() {
            let _ = write!(out, "{:<32} {:<28}", "", "");
            for subject in &shown {
                let _ = write!(out, " {:>19}", subject.title());
            }
            out.push('\n');
        }
        let mut last = "";
        for line in &self.lines {
            let title = if last == line.title { "" } else { &line.title };
            last = &line.title;
            let _ = write!(out, "{title:<32} {:<28}", line.unit);
            for subject in &shown {
                let cell = line.cells.get(subject).map_or_else(|| "-".to_owned(), text);
                let mark = if line.unsettled.contains(subject) {
                    "~"
                } else {
                    ""
                };
                let _ = write!(out, " {:>19}", format!("{mark}{cell}"));
            }
            out.push('\n');
        }
        if self.lines.iter().any(|l| !l.unsettled.is_empty()) {
            out.push_str(
                "~ no round was steady: the direct way moved by more than 10 % within each\n",
            );
        }
        self.write_notes(&mut out);
        out
    }

    fn write_notes(&self, out: &mut String) {
        for fact in &self.facts {
            let figures = fact
                .figures
                .iter()
                .map(|(k, v)| format!("{k} {}", number(*v)));
            let _ = writeln!(
                out,
                "{:<12} {:<36} {}",
                fact.row,
                fact.what,
                figures.collect::<Vec<_>>().join("   ")
            );
        }
        for (what, reached, aim, held) in self.aims() {
            let word = if held { "reached" } else { "missed" };
            let _ = writeln!(out, "aim {word}: {what}: {reached} ({aim})");
        }
        for proof in &self.proofs {
            let (who, n, seen) = (&proof["subject"], &proof["packets"], &proof["plaintext"]);
            let _ = writeln!(
                out,
                "on the wire: {who}: {n} packets, plaintext marker seen: {seen}"
            );
        }
        for (word, notes) in [
            ("dropped", &self.dropped),
            ("skipped", &self.skipped),
            ("FAILED", &self.failed),
        ] {
            for note in notes {
                let _ = writeln!(out, "{word}: {note}");
            }
        }
    }

    /// What was aimed at: its name, what was reached, the aim, whether it was reached.
    fn aims(&self) -> Vec<(&'static str, String, String, bool)> {
        let one = |aim: &Aim| {
            let line = self
                .lines
                .iter()
                .find(|l| l.row == aim.row && l.measure == aim.measure)?;
            let Summary { value, ratio } = *line.cells.get(&aim.subject)?;
            let ratio = ratio?;
            Some(match aim.of {
                Of::AtLeast(least) => (
                    aim.what,
                    format!("{ratio:.2}x"),
                    format!("at least {least:.2}x"),
                    ratio >= least,
                ),
                Of::AtMost(most) => (
                    aim.what,
                    format!("{ratio:.2}x"),
                    format!("at most {most:.2}x"),
                    ratio <= most,
                ),
                Of::Added(most) => {
                    let added = value - value / ratio;
                    (
                        aim.what,
                        format!("{added:.1} us"),
                        format!("at most {most:.0} us"),
                        added <= most,
                    )
                }
            })
        };
        AIMS.iter().filter_map(one).collect()
    }
}

fn line_json(line: &Line) -> Value {
    let cells: Map<String, Value> = line
        .cells
        .iter()
        .map(|(s, c)| {
            (
                s.id().to_owned(),
                json!({"value": c.value, "ratio": c.ratio, "settled": !line.unsettled.contains(s)}),
            )
        })
        .collect();
    json!({"row": line.row, "title": line.title, "measure": line.measure, "unit": line.unit,
        "lowerIsBetter": line.less, "subjects": cells})
}

fn text(cell: &Summary) -> String {
    match cell.ratio {
        Some(ratio) => format!("{} ({ratio:.2}x)", number(cell.value)),
        None => number(cell.value),
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(far: f64) -> Findings {
        let summary = |value, ratio| Summary {
            value,
            ratio: Some(ratio),
        };
        Findings {
            lines: vec![Line {
                row: "http-64".into(),
                title: "HTTP".into(),
                measure: "rate".into(),
                unit: "per second".into(),
                less: false,
                unsettled: vec![Subject::Far],
                cells: BTreeMap::from([
                    (Subject::FarDirect, summary(1000.0, 1.0)),
                    (Subject::Far, summary(1000.0 * far, far)),
                ]),
            }],
            skipped: vec!["Envoy: not here".into()],
            ..Findings::default()
        }
    }

    #[test]
    fn a_lost_comparison_is_shown_like_a_won_one() {
        for (far, word) in [(0.4, "missed"), (0.6, "reached")] {
            let table = findings(far).to_table();
            assert!(
                table.contains(&format!(
                    "aim {word}: tunnel, requests/s at 64 connections: {far:.2}x"
                )),
                "{table}"
            );
            assert!(
                table.contains(&format!("{:.0} ({far:.2}x)", far * 1000.0)),
                "{table}"
            );
            assert!(
                table.contains("~") && table.contains("skipped: Envoy: not here"),
                "{table}"
            );
        }
        let json = findings(0.4).to_json();
        assert_eq!(json["rows"][0]["subjects"]["far"]["ratio"], 0.4);
        assert_eq!(json["aims"][0]["held"], false);
    }
}
