//! What a decision costs with 10, 1,000 and 10,000 policies of 10 rules in one namespace, and what a change costs.

use std::{
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_model::{
    authn::Transport,
    authz::{self, Conn},
    mesh::{
        Action, Change, Mesh, Policy, PolicyScope,
        policy::{Match, StringMatch},
    },
    testing::cast::*,
};

const RULES: usize = 10;

/// Makes the nth rule.
type Differ = fn(usize) -> Match;

/// How rules differ from each other.
const KINDS: [(&str, Differ); 6] = [
    ("principal", |n| Match {
        principals: Box::new([StringMatch::Exact(
            format!("cluster.local/ns/ns-{}/sa/account-{n}", n % 97).into(),
        )]),
        ..Match::default()
    }),
    ("prefix", |n| Match {
        principals: Box::new([StringMatch::Prefix(
            format!("cluster.local/ns/ns-{n}/").into(),
        )]),
        ..Match::default()
    }),
    ("namespace+port", |n| Match {
        namespaces: Box::new([StringMatch::Exact(format!("ns-{}", n % 400).into())]),
        destination_ports: Box::new([(n / 400) as u16 + 1]),
        ..Match::default()
    }),
    ("source range", |n| Match {
        source_ips: Box::new([format!("10.{}.{}.0/24", n >> 8 & 255, n & 255)
            .parse()
            .expect("a range")]),
        ..Match::default()
    }),
    ("same principal, own port", |n| Match {
        principals: Box::new([StringMatch::Exact("cluster.local/ns/shop/sa/web".into())]),
        destination_ports: Box::new([n as u16]),
        ..Match::default()
    }),
    ("mixed", |n| KINDS[n % 5].1(n)),
];

fn main() {
    println!(
        "{:<26} {:>8} {:>14} {:>14} {:>16} {:>14}",
        "rules differ by", "policies", "miss ns", "hit ns", "build us/policy", "change us"
    );
    for (name, rule) in KINDS {
        for count in [10, 1_000, 10_000] {
            row(name, rule, count);
        }
    }
}

fn row(name: &str, rule: Differ, count: usize) {
    let policy = |i: usize| -> Policy {
        let action = if i.is_multiple_of(2) {
            Action::Deny
        } else {
            Action::Allow
        };
        policy(
            "shop",
            &format!("p{i}"),
            PolicyScope::Namespace,
            action,
            (0..RULES).map(|r| rule(i * RULES + r)),
        )
    };
    let base = Mesh::empty()
        .apply(known(pod("shop", "server", "n1", "10.0.0.1")))
        .0
        .apply([Change::Config(config()), Change::Complete])
        .0;
    let start = Instant::now();
    let mesh = base.apply((0..count).map(|i| Change::Policy(policy(i)))).0;
    let built = start.elapsed();
    let hit_rule = (count - 1) * RULES;
    let conn = |transport, port, source: String| Conn {
        via: None,
        transport,
        source_ip: ip(&source),
        workload: mesh
            .workload(&uid("shop", "server"))
            .expect("known")
            .clone(),
        destination: SocketAddr::new(ip("10.0.0.1"), port),
    };
    let miss = conn(
        Transport::Mtls(identity("shop", "nobody")),
        60_000,
        "192.0.2.1".into(),
    );
    let hit = match name {
        "principal" | "mixed" => conn(
            Transport::Mtls(identity(
                &format!("ns-{}", hit_rule % 97),
                &format!("account-{hit_rule}"),
            )),
            1,
            "192.0.2.1".into(),
        ),
        "prefix" => conn(
            Transport::Mtls(identity(&format!("ns-{hit_rule}"), "any")),
            1,
            "192.0.2.1".into(),
        ),
        "namespace+port" => conn(
            Transport::Mtls(identity(&format!("ns-{}", hit_rule % 400), "any")),
            (hit_rule / 400) as u16 + 1,
            "192.0.2.1".into(),
        ),
        "source range" => conn(
            Transport::Plain,
            1,
            format!("10.{}.{}.7", hit_rule >> 8 & 255, hit_rule & 255),
        ),
        _ => conn(
            Transport::Mtls(identity("shop", "web")),
            hit_rule as u16,
            "192.0.2.1".into(),
        ),
    };
    assert!(authz::ingress(&mesh, miss.clone()).outcome.is_err());
    let changes: Vec<Duration> = (0..200)
        .map(|i| {
            let mut changed = policy(i % count);
            changed.dry_run = true;
            let change = Change::Policy(changed);
            let start = Instant::now();
            black_box(mesh.apply([change]));
            start.elapsed()
        })
        .collect();
    let per_change = changes.iter().sum::<Duration>() / changes.len() as u32;
    println!(
        "{name:<26} {count:>8} {:>14} {:>14} {:>16.1} {:>14.1}",
        cost(&mesh, &miss).as_nanos(),
        cost(&mesh, &hit).as_nanos(),
        built.as_secs_f64() * 1e6 / count as f64,
        per_change.as_secs_f64() * 1e6
    );
}

/// The median of many batches, so that a busy machine does not show.
fn cost(mesh: &Mesh, conn: &Conn) -> Duration {
    const BATCH: u32 = 1_000;
    let mut batches: Vec<Duration> = (0..51)
        .map(|_| {
            let conns: Vec<Conn> = (0..BATCH)
                .map(|_| Conn {
                    via: None,
                    workload: Arc::clone(&conn.workload),
                    ..conn.clone()
                })
                .collect();
            let start = Instant::now();
            for conn in conns {
                black_box(authz::ingress(mesh, conn).outcome.is_ok());
            }
            start.elapsed() / BATCH
        })
        .collect();
    batches.sort_unstable();
    batches[batches.len() / 2]
}
