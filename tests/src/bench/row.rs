//! The rows that a load produces: what is run, and what is read from it.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::usage::Cpu;

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// Its name on the command line and in the JSON.
    pub id: &'static str,
    /// What people read.
    pub title: &'static str,
    /// The load generator's words; `TO` is the server, `BUNDLE` a certificate with its key.
    pub load: &'static [&'static str],
    /// Whether the access log is on meanwhile.
    pub logged: bool,
    /// Whether it dials the tunnel's port: then there is nothing direct to compare with.
    pub handshakes: bool,
    /// What is read; a round is judged by the first.
    pub measures: &'static [Measure],
}

/// One figure of a row.
#[derive(Debug)]
pub struct Measure {
    /// What people read, with its unit.
    pub title: &'static str,
    /// Its name in the JSON.
    pub id: &'static str,
    /// Whether less is better.
    pub less: bool,
    /// Where it comes from.
    pub of: Of,
}

/// Where a figure comes from.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// A number of the load's report, by JSON pointer.
    Report(&'static str),
    /// CPU of the client's proxy.
    Client(Per),
    /// CPU of the server's proxy; nothing when one proxy is both.
    Server(Per),
    /// Everything that the machine did.
    Machine(Per),
}

/// What CPU time is divided by.
#[derive(Clone, Copy, Debug)]
pub enum Per {
    /// A thousand operations; milliseconds.
    Thousand,
    /// A gigabit; milliseconds.
    Gigabit,
}

const fn told(id: &'static str, title: &'static str, less: bool, at: &'static str) -> Measure {
    Measure {
        id,
        title,
        less,
        of: Of::Report(at),
    }
}

const fn used(id: &'static str, title: &'static str, of: Of) -> Measure {
    Measure {
        id,
        title,
        less: true,
        of,
    }
}

const P50: Measure = told("p50", "p50 us", true, "/latencyUs/p50");
const P99: Measure = told("p99", "p99 us", true, "/latencyUs/p99");
const RATE: Measure = told("rate", "per second", false, "/perSecond");
const GBIT: Measure = told("gbit", "Gbit/s", false, "/gbitPerSecond");

const REQUESTS: &[Measure] = &[
    RATE,
    P50,
    P99,
    used(
        "cpu-client",
        "CPU ms/1000, client's proxy",
        Of::Client(Per::Thousand),
    ),
    used(
        "cpu-server",
        "CPU ms/1000, server's proxy",
        Of::Server(Per::Thousand),
    ),
    used(
        "cpu-machine",
        "CPU ms/1000, whole machine",
        Of::Machine(Per::Thousand),
    ),
];
const BYTES: &[Measure] = &[
    GBIT,
    used(
        "cpu-client",
        "CPU ms/Gbit, client's proxy",
        Of::Client(Per::Gigabit),
    ),
    used(
        "cpu-server",
        "CPU ms/Gbit, server's proxy",
        Of::Server(Per::Gigabit),
    ),
    used(
        "cpu-machine",
        "CPU ms/Gbit, whole machine",
        Of::Machine(Per::Gigabit),
    ),
];
const CONNECTIONS: &[Measure] = &[
    RATE,
    P99,
    used(
        "cpu-client",
        "CPU ms/1000, client's proxy",
        Of::Client(Per::Thousand),
    ),
    used(
        "cpu-server",
        "CPU ms/1000, server's proxy",
        Of::Server(Per::Thousand),
    ),
    used(
        "cpu-machine",
        "CPU ms/1000, whole machine",
        Of::Machine(Per::Thousand),
    ),
];
const HANDSHAKES: &[Measure] = &[
    RATE,
    used(
        "cpu-server",
        "CPU ms/1000, server's proxy",
        Of::Server(Per::Thousand),
    ),
];

const fn row(
    id: &'static str,
    title: &'static str,
    load: &'static [&'static str],
    measures: &'static [Measure],
) -> Row {
    Row {
        id,
        title,
        load,
        measures,
        logged: false,
        handshakes: false,
    }
}

/// All rows that a load produces, in the order of the table.
pub const ROWS: &[Row] = &[
    row(
        "rtt-1",
        "round trip, 1 B",
        &["rtt", "TO", "--size", "1"],
        &[P50, P99],
    ),
    row(
        "rtt-1k",
        "round trip, 1 KiB",
        &["rtt", "TO", "--size", "1024"],
        &[P50, P99],
    ),
    row(
        "http-64",
        "HTTP, 64 connections, closed",
        &["http", "TO", "--checked", "--connections", "64"],
        REQUESTS,
    ),
    Row {
        logged: true,
        ..row(
            "http-64-log",
            "the same, access log on",
            &["http", "TO", "--checked", "--connections", "64"],
            REQUESTS,
        )
    },
    row(
        "open-1",
        "HTTP at 1,000/s, 1 connection",
        &[
            "http",
            "TO",
            "--checked",
            "--rate",
            "1000",
            "--connections",
            "1",
        ],
        &[P50, P99],
    ),
    row(
        "open-4",
        "HTTP at 1,000/s, 4 connections",
        &[
            "http",
            "TO",
            "--checked",
            "--rate",
            "1000",
            "--connections",
            "4",
        ],
        &[P50, P99],
    ),
    row(
        "open-16",
        "HTTP at 1,000/s, 16 connections",
        &[
            "http",
            "TO",
            "--checked",
            "--rate",
            "1000",
            "--connections",
            "16",
        ],
        &[P50, P99],
    ),
    row(
        "open-64",
        "HTTP at 1,000/s, 64 connections",
        &[
            "http",
            "TO",
            "--checked",
            "--rate",
            "1000",
            "--connections",
            "64",
        ],
        &[P50, P99],
    ),
    row(
        "flood-1",
        "throughput, 1 stream",
        &["flood", "TO", "--timed", "--streams", "1"],
        BYTES,
    ),
    row(
        "flood-2",
        "throughput, 2 streams",
        &["flood", "TO", "--timed", "--streams", "2"],
        BYTES,
    ),
    row(
        "flood-8",
        "throughput, 8 streams",
        &["flood", "TO", "--timed", "--streams", "8"],
        BYTES,
    ),
    row(
        "conns-1",
        "new connections, 1 client",
        &["conns", "TO", "--clients", "1"],
        CONNECTIONS,
    ),
    row(
        "conns-64",
        "new connections, 64 clients",
        &["conns", "TO", "--clients", "64"],
        CONNECTIONS,
    ),
    Row {
        logged: true,
        ..row(
            "conns-64-log",
            "the same, access log on",
            &["conns", "TO", "--clients", "64"],
            CONNECTIONS,
        )
    },
    Row {
        handshakes: true,
        ..row(
            "tunnels-full",
            "new tunnels, full handshake",
            &["handshakes", "TO", "--bundle", "BUNDLE"],
            HANDSHAKES,
        )
    },
    Row {
        handshakes: true,
        ..row(
            "tunnels-resumed",
            "new tunnels, resumed",
            &["handshakes", "TO", "--bundle", "BUNDLE", "--resume"],
            HANDSHAKES,
        )
    },
];

/// The figures of one run, in the order of the row's measures; `None` where there is no such figure.
pub fn figures(row: &Row, report: &Value, cpu: &Cpu) -> Result<Vec<Option<f64>>> {
    if report["failed"].as_u64() != Some(0) {
        bail!(
            "{} of {} failed: {}",
            report["failed"],
            report["ok"],
            report["failures"]
        );
    }
    let number = |at: &str| {
        let found = report.pointer(at).and_then(Value::as_f64);
        found.with_context(|| format!("the report has no {at}: {report}"))
    };
    // What was carried while CPU was counted, the warm-up included.
    let (ok, warm, bytes) = (number("/ok")?, number("/warmUp")?, number("/bytes")?);
    let cost = |seconds: f64, per: Per| match per {
        Per::Thousand => seconds * 1e3 / ((ok + warm) / 1e3),
        Per::Gigabit => seconds * 1e3 / ((bytes + warm) * 8.0 / 1e9),
    };
    let one = |measure: &Measure| {
        Ok(match measure.of {
            Of::Report(at) => Some(number(at)?),
            Of::Client(per) => cpu.processes.first().map(|s| cost(*s, per)),
            // A handshake has no client's proxy.
            Of::Server(per) if row.handshakes => cpu.processes.first().map(|s| cost(*s, per)),
            Of::Server(per) => cpu.processes.get(1).map(|s| cost(*s, per)),
            Of::Machine(per) => Some(cost(cpu.machine, per)),
        })
    };
    row.measures.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cpu_is_counted_for_all_that_was_carried() {
        let row = ROWS
            .iter()
            .find(|r| r.id == "http-64")
            .expect("it is there");
        let report = json!({"ok": 900, "warmUp": 100, "failed": 0, "bytes": 1, "perSecond": 450.0,
            "latencyUs": {"p50": 1.0, "p99": 2.0}});
        let cpu = Cpu {
            processes: vec![0.01],
            machine: 0.05,
        };
        let got = figures(row, &report, &cpu).expect("a good report");
        assert_eq!(
            got,
            [
                Some(450.0),
                Some(1.0),
                Some(2.0),
                Some(10.0),
                None,
                Some(50.0)
            ]
        );
        let bad = json!({"ok": 1, "failed": 2, "failures": {"reset": 2}});
        assert!(figures(row, &bad, &cpu).is_err());
    }

    #[test]
    fn names_differ() {
        let mut ids: Vec<_> = ROWS.iter().map(|r| r.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ROWS.len());
        assert!(
            ROWS.iter()
                .all(|r| r.load.contains(&"TO") && !r.measures.is_empty())
        );
    }
}
