//! The demo of requests as its users run it, to its end, with no terminal to draw on.
//!
//! Invariant: the program's word that a step held is not enough; what it shows of each step is added up here.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::suite;
use tokio::process::Command;

use super::{
    interrupt::{MARK, Traces},
    waypoint::bounds,
};

/// What its steps are called, in their order.
const STEPS: [&str; 6] = [
    "Shares: three of four ratings are v1's",
    "A misbehaving version, and retries that hide it",
    "A circuit breaker leaves it out after its first 5xx",
    "Jason sees the new reviews, everybody else the old ones",
    "A canary: half of the reviews move to v3",
    "Faults put in on purpose, and how each shows in the log",
];

/// Who answered how often what a command of a step asked for.
type Answers<'a> = Vec<(&'a str, u32)>;

/// Every step holds and shows what it says of itself, the program says so by its exit status, and nothing is left.
pub async fn the_demo_of_requests_shows_each_step_to_its_end() -> Result<()> {
    let name = suite::spec().name;
    let files = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren-demo"));
    command
        .args(["--l7", "--name", &name.to_string()])
        .env(MARK, name.to_string())
        .env("TMPDIR", files.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let done = command.output().await.context("running the demo")?;
    let (said, err) = (
        String::from_utf8(done.stdout)?,
        String::from_utf8(done.stderr)?,
    );
    ensure!(done.status.success(), "{}: {said}{err}", done.status);
    ensure!(!said.contains('\u{1b}'), "it draws where nobody can see");
    let (steps, summary) = said.split_once("\n── Summary").context("no summary")?;
    let steps: Vec<&str> = steps.split("\n── ").skip(1).collect();
    ensure!(steps.len() == STEPS.len(), "{} steps: {said}", steps.len());
    for (at, (step, title)) in steps.iter().zip(STEPS).enumerate() {
        let begin = format!("{}. {title}\n", at + 1);
        let held = step.trim_end().ends_with("\n   ✓ held");
        ensure!(step.starts_with(&begin) && held, "{title}: {step}");
        ensure!(summary.contains(&format!("   ✓ {title}\n")), "{summary}");
        let applied = step.lines().any(|l| l.starts_with("$ lab apply "));
        ensure!(applied, "no command that makes it so: {step}");
        shown(at, &asked(step)?, step).with_context(|| format!("{title}: {step}"))?;
    }
    ensure!(!said.contains('✗'), "{said}");
    let after = Traces::of(&name, files.path())?;
    ensure!(after == Traces::default(), "it left {after:?}");
    println!("{}", summary.lines().next().unwrap_or_default().trim());
    Ok(())
}

/// What is shown of a step is what it is called after.
fn shown(step: usize, asked: &[Answers<'_>], text: &str) -> Result<()> {
    let of = |answers: &Answers<'_>, name: &str| {
        let found = answers.iter().find(|(who, _)| *who == name);
        found.map_or(0, |(_, count)| *count)
    };
    let names: Vec<Vec<&str>> = asked
        .iter()
        .map(|answers| answers.iter().map(|(name, _)| *name).collect())
        .collect();
    let logged = |key: &str| {
        text.lines()
            .any(|l| l.starts_with("   … ") && l.contains(key))
    };
    let as_told = match step {
        0 => bounds(400, 0.75).contains(&of(&asked[0], "v1")),
        // Half of the requests without retries are the second version's, as a coin says.
        1 => {
            names == [&["503", "v1"][..], &["v1"]]
                && bounds(100, 0.5).contains(&of(&asked[0], "503"))
                && logged("attempts=2")
        }
        2 => names == [["v1"]],
        3 => names == [["v1"], ["v2"]],
        4 => names == [["v1", "v3"]] && bounds(200, 0.5).contains(&of(&asked[0], "v3")),
        _ => {
            bounds(200, 0.2).contains(&of(&asked[0], "503"))
                && logged("response_flags=FI")
                && logged("response_flags=DI")
        }
    };
    ensure!(as_told, "{asked:?}");
    Ok(())
}

/// The bars of each command that asks many times; together they are as many as it asks for.
fn asked(step: &str) -> Result<Vec<Answers<'_>>> {
    let mut all: Vec<Answers<'_>> = Vec::new();
    let mut lines = step.lines().peekable();
    while let Some(line) = lines.next() {
        let times = line
            .strip_suffix("]'")
            .and_then(|l| l.rsplit_once("?[1-"))
            .filter(|_| line.starts_with("$ lab exec "));
        let Some((_, times)) = times else { continue };
        let mut answers = Answers::new();
        while let Some(bar) = lines.next_if(|l| l.ends_with(" %")) {
            let mut words = bar.split_whitespace();
            let name = words.next().context("a name")?;
            // Behind them are the share and its sign.
            let count = bar.split_whitespace().rev().nth(2).context("a count")?;
            answers.push((name, count.parse()?));
        }
        let sum: u32 = answers.iter().map(|(_, count)| count).sum();
        ensure!(
            sum == times.parse::<u32>()?,
            "{sum} of {times}: {answers:?}"
        );
        all.push(answers);
    }
    ensure!(!all.is_empty(), "nothing was asked: {step}");
    Ok(all)
}
