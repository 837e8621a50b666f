//! Ctrl-C: whatever a program was about, the machine is afterwards as it was before.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, PipeReader},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{
    place::{BPF_ROOT, LabName, NETNS_DIR, Place, shared},
    suite,
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{
    io::AsyncBufReadExt,
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

use super::tunnel::until;

/// Long enough for anything that has to happen at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// Given to what is interrupted, and by it to whatever it starts.
pub(super) const MARK: &str = "WARREN_INTERRUPTED_BY";

const BENCH: &[&str] = &[
    "l4",
    "--quick",
    "--rows",
    "rtt-1k",
    "--subjects",
    "path,far",
];

/// The benchmark as it begins, as its lab is built, and as it measures.
pub async fn an_interrupted_benchmark_leaves_nothing() -> Result<()> {
    let program = env!("CARGO_BIN_EXE_warren-bench");
    let begun = |_: &Traces| true;
    interrupt(program, BENCH, "starting the lab", begun, ctrl_c).await?;
    let half_built = |t: &Traces| t.namespaces.len() > 1;
    interrupt(program, BENCH, "starting the lab", half_built, ctrl_c).await?;
    let loaded = |t: &Traces| {
        t.programs.contains("warren-load") && !t.pins.is_empty() && !t.cgroups.is_empty()
    };
    interrupt(program, BENCH, "p50", loaded, ctrl_c).await
}

/// The demo in a step, and `lab up` before its pods are ready.
pub async fn an_interrupted_demo_and_lab_leave_nothing() -> Result<()> {
    let enrolled = |t: &Traces| !t.pins.is_empty();
    let demo = env!("CARGO_BIN_EXE_warren-demo");
    interrupt(demo, &[], "1. In the clear", enrolled, ctrl_c).await?;
    let served = |t: &Traces| t.programs.contains("mesh-node");
    let lab = env!("CARGO_BIN_EXE_warren-lab");
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples");
    interrupt(
        lab,
        &["up", "-f", samples],
        "starting 2 nodes",
        served,
        terminate,
    )
    .await
}

/// `| head`: the demo takes its lab down and says nothing more.
pub async fn a_demo_that_nobody_reads_ends_quietly() -> Result<()> {
    let name = suite::spec().name;
    let files = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren-demo"));
    command
        .args(["--name", &name.to_string()])
        .env(MARK, name.to_string())
        .env("TMPDIR", files.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("starting the demo")?;
    let out = child.stdout.take().context("it was piped")?;
    let mut lines = tokio::io::BufReader::new(out).lines();
    while let Some(line) = timeout(PATIENCE, lines.next_line())
        .await
        .context("no line")??
    {
        if line.contains("1. In the clear") {
            break;
        }
    }
    ensure!(
        !Traces::of(&name, files.path())?.pins.is_empty(),
        "the lab is up at the first step"
    );
    drop(lines);
    let done = timeout(PATIENCE, child.wait_with_output()).await;
    let done = done.context("it goes on")??;
    let err = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.code() == Some(141) && err.is_empty(),
        "{}: {err}",
        done.status
    );
    let after = Traces::of(&name, files.path())?;
    ensure!(after == Traces::default(), "it left {after:?}");
    Ok(())
}

/// A terminal tells the whole group.
fn ctrl_c(program: Pid) -> Result<()> {
    killpg(program, Signal::SIGINT).context("pressing Ctrl-C")
}

/// A service manager tells the program alone.
fn terminate(program: Pid) -> Result<()> {
    kill(program, Signal::SIGTERM).context("sending SIGTERM")
}

/// Runs a program of the lab, stops it once it has said `word` and left such traces, and expects all of them gone.
async fn interrupt(
    program: &str,
    words: &[&str],
    word: &str,
    there: impl Fn(&Traces) -> bool,
    stop: impl Fn(Pid) -> Result<()>,
) -> Result<()> {
    let name = suite::spec().name;
    let files = tempfile::tempdir()?;
    let look = || Traces::of(&name, files.path());
    let bases =
        || -> Result<Vec<PathBuf>> { Ok(shared()?.into_iter().filter(|d| d.exists()).collect()) };
    let others = bases()?;
    let before = look()?;
    ensure!(
        before == Traces::default(),
        "something is there already: {before:?}"
    );
    let (mut child, mut lines) = launch(program, words, &name, files.path())?;
    let pid = Pid::from_raw(i32::try_from(child.id().context("it runs")?)?);
    let ended = async {
        let mut said = String::new();
        while !said.contains(word) {
            let line = timeout(PATIENCE, lines.recv()).await;
            let line = line.with_context(|| format!("it did not say `{word}`: {said}"))?;
            said += &line.with_context(|| format!("it ended before it said `{word}`: {said}"))?;
        }
        until("traces of it", async || {
            let traces = look()?;
            ensure!(there(&traces), "only {traces:?}");
            Ok(())
        })
        .await?;
        stop(pid)?;
        let status = timeout(PATIENCE, child.wait())
            .await
            .context("it goes on")??;
        // Whoever still held its output would be a process that it left.
        while let Some(line) = timeout(PATIENCE, lines.recv())
            .await
            .context("it is held")?
        {
            said += &line;
        }
        check(status, &said)
    };
    let ended = ended.await;
    let after = look()?;
    if ended.is_err() || after != before {
        let _ = child.kill().await;
        mesh_tests::lab::down::down(&Place::new(name)?)?;
    }
    ended?;
    let left = bases()?;
    ensure!(
        left.iter().all(|dir| others.contains(dir)),
        "{left:?} are left, of which only {others:?} were there"
    );
    ensure!(after == before, "interrupted at `{word}` it left {after:?}");
    Ok(())
}

fn check(status: ExitStatus, said: &str) -> Result<()> {
    ensure!(!status.success(), "to be interrupted is no success");
    if !said.contains("the lab was removed") {
        bail!("it ended with {status} and no word of it: {said}");
    }
    Ok(())
}

/// Starts it in a process group of its own; both of its outputs come as lines.
fn launch(
    program: &str,
    words: &[&str],
    name: &LabName,
    files: &Path,
) -> Result<(Child, mpsc::UnboundedReceiver<String>)> {
    let (read, write) = std::io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(words)
        .args(["--name", &name.to_string()])
        .env(MARK, name.to_string())
        .env("TMPDIR", files)
        .process_group(0)
        .stdout(write.try_clone()?)
        .stderr(write);
    let child = command.spawn().context("starting it")?;
    let (say, lines) = mpsc::unbounded_channel();
    thread::spawn(move || read_lines(read, &say));
    Ok((child, lines))
}

fn read_lines(from: PipeReader, say: &mpsc::UnboundedSender<String>) {
    let mut from = BufReader::new(from);
    let mut line = String::new();
    while from.read_line(&mut line).is_ok_and(|n| n > 0) {
        if say.send(std::mem::take(&mut line)).is_err() {
            return;
        }
    }
}

/// What there is of a lab on this machine.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Traces {
    namespaces: BTreeSet<String>,
    pins: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    mounts: BTreeSet<String>,
    directories: BTreeSet<String>,
    /// Names of processes.
    programs: BTreeSet<String>,
}

impl Traces {
    pub(super) fn of(name: &LabName, files: &Path) -> Result<Self> {
        let place = Place::new(name.clone())?;
        let own = |dir: &str, beginning: &str| -> BTreeSet<String> {
            let names = entries(Path::new(dir)).into_iter();
            names.filter(|n| n.starts_with(beginning)).collect()
        };
        let mounts = fs::read_to_string("/proc/mounts")?;
        let run = place.run().display().to_string();
        let mut directories: BTreeSet<String> = entries(files).into_iter().collect();
        for dir in [place.run(), place.state()] {
            directories.extend(dir.exists().then(|| dir.display().to_string()));
        }
        let mark = format!("{MARK}={name}");
        let cgroup = format!("/warren-lab/{name}/");
        let processes = entries(Path::new("/proc")).into_iter();
        let ours = processes.filter_map(|pid| {
            let of = |file| fs::read(format!("/proc/{pid}/{file}")).ok();
            let holds = |file, what: &str| {
                of(file).is_some_and(|t| t.windows(what.len()).any(|w| w == what.as_bytes()))
            };
            // What has ended and is not yet collected has no words any more.
            let lives = of("cmdline").is_some_and(|w| !w.is_empty());
            let ours = holds("environ", &mark) || holds("cgroup", &cgroup);
            (lives && ours).then(|| of("comm")).flatten()
        });
        Ok(Self {
            namespaces: own(NETNS_DIR, &place.netns_prefix()),
            pins: own(BPF_ROOT, &format!("{name}-")),
            cgroups: entries(place.cgroup()).into_iter().collect(),
            mounts: mounts
                .lines()
                .filter(|l| l.contains(&run))
                .map(str::to_owned)
                .collect(),
            directories,
            programs: ours
                .map(|comm| String::from_utf8_lossy(&comm).trim().to_owned())
                .collect(),
        })
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let found = fs::read_dir(dir).into_iter().flatten().flatten();
    found
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}
