//! What processes and the machine use: CPU time and memory, read from /proc.
//!
//! Invariant: CPU of a process is the sum over its threads in nanoseconds; the machine's is everything that was
//! not idle, because work in softirqs belongs to no process.

use std::fs;

use anyhow::{Context, Result};

/// CPU time at one moment.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// Seconds of each process, in the order asked for.
    pub processes: Vec<f64>,
    /// Busy seconds of all CPUs together.
    pub machine: f64,
}

impl Cpu {
    /// What was used until now.
    pub fn now(pids: &[u32]) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Ok(Self {
            processes: pids.iter().map(|p| process(*p)).collect::<Result<_>>()?,
            machine: busy(&stat).context("/proc/stat begins with the sum of all CPUs")?,
        })
    }

    /// What was used since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.processes.iter().zip(&earlier.processes);
        Self {
            processes: pairs.map(|(now, then)| now - then).collect(),
            machine: self.machine - earlier.machine,
        }
    }
}

/// Ticks of /proc/stat in a second; the same on every Linux that we run on.
const TICKS: f64 = 100.0;

fn busy(stat: &str) -> Option<f64> {
    let fields: Vec<f64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|f| f.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq
    let [user, nice, system, _, _, irq, softirq, ..] = fields[..] else {
        return None;
    };
    Some((user + nice + system + irq + softirq) / TICKS)
}

fn process(pid: u32) -> Result<f64> {
    let dir = format!("/proc/{pid}/task");
    let mut nanoseconds = 0;
    for task in fs::read_dir(&dir).with_context(|| format!("process {pid} has ended"))? {
        let path = task?.path().join("schedstat");
        // A thread may end while we look.
        let text = fs::read_to_string(path).unwrap_or_default();
        nanoseconds += text
            .split(' ')
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident.
    pub resident: u64,
    /// Its own: heap, stacks, written data.
    pub anonymous: u64,
}

impl Memory {
    /// What the process holds now.
    pub fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid} has ended"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        };
        let of = |name| field(name).with_context(|| format!("/proc/{pid}/status has no {name}"));
        Ok(Self {
            resident: of("VmRSS:")? * 1024,
            anonymous: of("RssAnon:")? * 1024,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_busy_when_it_is_not_idle() {
        assert_eq!(
            busy("cpu  100 10 50 1000 7 3 37 9 0 0\ncpu0 1\n"),
            Some(2.0)
        );
        assert_eq!(busy("intr 1\n"), None);
    }

    #[test]
    fn a_process_uses_something() {
        let own = std::process::id();
        let cpu = Cpu::now(&[own]).expect("this process is there");
        assert!(cpu.processes[0] > 0.0 && cpu.machine > 0.0);
        let memory = Memory::of(own).expect("this process is there");
        assert!(memory.resident > memory.anonymous && memory.anonymous > 0);
    }
}
