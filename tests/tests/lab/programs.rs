//! Real programs, unchanged, through the mesh on both paths: by tunnel between nodes, and directly on one node.
//!
//! Every program runs over IPv4 and IPv6, is judged by its own figures, and the access log has to say that the
//! path in question really carried it. A program that is not installed makes its test say so and pass over.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, Ran, suite};
use serde_json::Value;

use super::{
    flows::{flows, logged},
    tunnel::{SOON, echo, pair, pair_in, until},
};

const NEAR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: n1, serviceAccountName: near, containers: [{name: c, image: idle}]}
"#;

/// A way to the server on n1, and how the log of the client's node names it.
struct Way {
    who: &'static str,
    node: &'static str,
    path: &'static str,
    direction: &'static str,
}

const WAYS: [Way; 2] = [
    Way {
        who: "shop/client",
        node: "n2",
        path: "hbone",
        direction: "outbound",
    },
    Way {
        who: "shop/near",
        node: "n1",
        path: "direct",
        direction: "direct",
    },
];

/// A server, and what its log lines have to show of each way and family at least.
struct Served {
    pod: &'static str,
    port: u16,
    flows: usize,
    bytes: u64,
}

/// The lab with a client beside the server and `more` pods, or `None` when one of the programs is missing.
async fn world(programs: &[&str], more: &str) -> Result<Option<Lab>> {
    if let Some(missing) = programs.iter().find(|p| !installed(p)) {
        println!("skipped: {missing} is not installed (cargo xtask provision programs)");
        return Ok(None);
    }
    let lab = pair().await?;
    lab.apply(&format!("{NEAR}---\n{more}")).await?;
    lab.wait_ready(SOON).await?;
    Ok(Some(lab))
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Runs `use_it` on both ways over both families until it is content, then expects the path in the access log.
async fn everywhere(
    lab: &Lab,
    server: &Served,
    use_it: impl AsyncFn(&Way, IpAddr) -> Result<()>,
) -> Result<()> {
    let status = lab.status().await?;
    let pod = status.pod(server.pod)?;
    for way in &WAYS {
        for ip in [IpAddr::V4(pod.ip), IpAddr::V6(pod.ip6)] {
            until(way.who, async || use_it(way, ip).await).await?;
            // On one node the first flow goes through the proxy, which tells the kernel of the next.
            use_it(way, ip)
                .await
                .with_context(|| format!("{} to {ip} once more", way.who))?;
            carried(lab, way, SocketAddr::new(ip, server.port), server).await?;
        }
    }
    Ok(())
}

/// The log of the client's node says that this way's path carried it.
async fn carried(lab: &Lab, way: &Way, to: SocketAddr, server: &Served) -> Result<()> {
    let (_, source) = way.who.split_once('/').context("namespace/name")?;
    let to = to.to_string();
    let wanted = [
        ("src.workload", source),
        ("dst.addr", &to),
        ("path", way.path),
        ("direction", way.direction),
    ];
    let enough = |found: &[super::flows::Flow]| {
        found.len() >= server.flows
            && found.iter().map(super::flows::Flow::bytes).sum::<u64>() >= server.bytes
    };
    let found = logged(lab, way.node, &wanted, enough).await?;
    let mtls = if way.path == "hbone" { "true" } else { "none" };
    ensure!(
        found.iter().all(|f| f.get("mtls") == mtls),
        "{} is mtls={mtls}: {found:?}",
        way.path
    );
    let strays = flows(lab, way.node, &[("dst.addr", &to), ("path", "plain")]).await?;
    ensure!(strays.is_empty(), "in the clear: {strays:?}");
    Ok(())
}

async fn run(lab: &Lab, way: &Way, program: &[&str]) -> Result<Ran> {
    let ran = lab.exec(way.who, program).await?;
    ensure!(ran.code == 0, "{program:?} in {}: {ran:?}", way.who);
    Ok(ran)
}

async fn shell(lab: &Lab, way: &Way, script: &str) -> Result<String> {
    Ok(run(lab, way, &["sh", "-c", script]).await?.out)
}

fn url(ip: IpAddr, port: u16) -> String {
    format!("http://{}/", SocketAddr::new(ip, port))
}

pub async fn redis_answers() -> Result<()> {
    let programs = ["redis-server", "redis-cli", "redis-benchmark"];
    let Some(lab) = world(&programs, "").await? else {
        return Ok(());
    };
    let server = "redis-server --port 6379 --bind 0.0.0.0 :: --protected-mode no --save ''";
    let _server = lab.spawn("shop/echo", &["sh", "-c", server]).await?;
    let served = Served {
        pod: "shop/echo",
        port: 6379,
        flows: 8,
        bytes: 2_000_000,
    };
    everywhere(&lab, &served, async |way, ip| {
        let cli = format!("redis-cli -h {ip}");
        // A value of a megabyte goes there and comes back as it was.
        let sums = format!(
            "head -c 1000000 /dev/urandom > \"$T\"; {cli} -x set big < \"$T\" >&2; \
             cksum < \"$T\"; {cli} --raw get big | head -c 1000000 | cksum"
        );
        let out = shell(&lab, way, &format!("T=$(mktemp); {sums}; rm \"$T\"")).await?;
        let lines: Vec<&str> = out.lines().collect();
        ensure!(lines.len() == 2 && lines[0] == lines[1], "{out}");
        let bench = format!("redis-benchmark -h {ip} -n 2000 -c 8 -P 4 -t set,get --csv");
        let out = shell(&lab, way, &bench).await?;
        ensure!(out.contains("\"SET\"") && out.contains("\"GET\""), "{out}");
        // The server sees its real client.
        let clients = shell(&lab, way, &format!("{cli} client list")).await?;
        let own = own_address(&lab, way, ip).await?;
        ensure!(clients.contains(&format!("addr={own}")), "{clients}");
        Ok(())
    })
    .await
}

/// The client's own address in the family of `peer`, as a server prints it in front of a port.
async fn own_address(lab: &Lab, way: &Way, peer: IpAddr) -> Result<String> {
    let status = lab.status().await?;
    let pod = status.pod(way.who)?;
    Ok(match peer {
        IpAddr::V4(_) => format!("{}:", pod.ip),
        IpAddr::V6(_) => format!("[{}]:", pod.ip6),
    })
}

pub async fn nginx_serves_wrk() -> Result<()> {
    let Some(lab) = world(&["nginx", "wrk", "curl"], "").await? else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let conf = dir.path().join("nginx.conf");
    std::fs::write(&conf, nginx_conf(dir.path()))?;
    let conf = conf.display().to_string();
    let _server = lab.spawn("shop/echo", &["nginx", "-c", &conf]).await?;
    let log = dir.path().join("access.log");
    let served = Served {
        pod: "shop/echo",
        port: 8080,
        flows: 16,
        bytes: 1_000_000,
    };
    everywhere(&lab, &served, async |way, ip| {
        let page = run(&lab, way, &["curl", "-sgm", "5", &url(ip, 8080)]).await?;
        ensure!(page.out == "from-nginx\n", "{page:?}");
        let before = served_to(&log, &lab, way, ip).await?;
        let to = url(ip, 8080);
        let wrk = run(&lab, way, &["wrk", "-t1", "-c16", "-d1s", "--latency", &to]).await?;
        ensure!(
            !wrk.out.contains("Socket errors") && !wrk.out.contains("Non-2xx"),
            "{wrk:?}"
        );
        let requests: usize = wrk
            .out
            .lines()
            .find_map(|l| l.split_once(" requests in"))
            .and_then(|(n, _)| n.trim().parse().ok())
            .with_context(|| format!("wrk counts its requests: {wrk:?}"))?;
        // wrk hangs up on what is under way at its end, so nginx may count a few more.
        let counted = served_to(&log, &lab, way, ip).await? - before;
        ensure!(
            requests > 100 && (requests..=requests + 16).contains(&counted),
            "wrk counts {requests}, nginx {counted}"
        );
        Ok(())
    })
    .await
}

fn nginx_conf(dir: &Path) -> String {
    let dir = dir.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|of| format!("{of}_temp_path {dir}; "))
        .collect();
    format!(
        "daemon off; user root; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;\nevents {{}}\n\
         http {{ {paths}log_format who '[$remote_addr]: $status'; access_log {dir}/access.log who;\n\
         server {{ listen 8080; listen [::]:8080; location / {{ return 200 \"from-nginx\\n\"; }} }} }}\n"
    )
}

/// How many requests nginx has answered with 200 to this way's client in this family.
async fn served_to(log: &Path, lab: &Lab, way: &Way, ip: IpAddr) -> Result<usize> {
    let own = own_address(lab, way, ip).await?;
    let address = own.trim_end_matches(':').trim_matches(['[', ']']);
    let line = format!("[{address}]: 200");
    let text = std::fs::read_to_string(log)?;
    Ok(text.lines().filter(|l| *l == line).count())
}

pub async fn iperf_moves_bytes_both_ways() -> Result<()> {
    let Some(lab) = world(&["iperf3"], "").await? else {
        return Ok(());
    };
    let _server = lab.spawn("shop/echo", &["iperf3", "-s"]).await?;
    let served = Served {
        pod: "shop/echo",
        port: 5201,
        // A control connection and one or two for the data, there and back.
        flows: 5,
        bytes: 128 << 20,
    };
    everywhere(&lab, &served, async |way, ip| {
        let ip = ip.to_string();
        for reverse in [&[][..], &["-R"][..]] {
            let streams: &[&str] = if reverse.is_empty() {
                &["-P", "2"]
            } else {
                &[]
            };
            let program = [&["iperf3", "-J", "-c", &ip, "-n", "96M"], streams, reverse].concat();
            let report: Value = serde_json::from_str(&run(&lab, way, &program).await?.out)?;
            // A sender does not wait for what is still on its way when it is done, so the receiver may count less.
            let all = 96 << 20;
            let (end, least) = if reverse.is_empty() {
                ("sum_sent", all / 2)
            } else {
                ("sum_received", all)
            };
            let bytes = |end: &str| report["end"][end]["bytes"].as_u64().unwrap_or(0);
            ensure!(
                bytes(end) >= all && bytes("sum_received") >= least,
                "{program:?}: {}",
                report["end"]
            );
        }
        Ok(())
    })
    .await
}

/// PostgreSQL, as a user of its own without root, with a password: the server decides what is asked for.
const DATABASE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop}
spec:
  nodeName: n1
  serviceAccountName: db
  securityContext: {runAsUser: 65534, runAsGroup: 65534}
  containers:
  - name: db
    image: postgres:15
    workingDir: DIR
    command: [sh, -c, "echo secret > pw && BIN/initdb -D data -U app -A scram-sha-256 --pwfile=pw -N && echo 'host all all all scram-sha-256' >> data/pg_hba.conf && exec BIN/postgres -D data -h '*' -k DIR -F"]
    readinessProbe: {tcpSocket: {port: 5432}, periodSeconds: 1}
"#;

pub async fn postgres_answers_psql() -> Result<()> {
    let Some(bin) = postgres_programs() else {
        println!("skipped: PostgreSQL is not installed (cargo xtask provision programs)");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534))?;
    let here = dir.path().display().to_string();
    let database = DATABASE.replace("DIR", &here).replace("BIN", &bin);
    let Some(lab) = world(&["psql"], &database).await? else {
        return Ok(());
    };
    let served = Served {
        pod: "shop/db",
        port: 5432,
        flows: 2,
        bytes: 2_000_000,
    };
    everywhere(&lab, &served, async |way, ip| {
        let psql = |password: &str, sql: &[&str]| {
            let sql: String = sql.iter().map(|s| format!(" -c \"{s}\"")).collect();
            format!(
                "PGCONNECT_TIMEOUT=10 PGPASSWORD={password} \
                 psql -h {ip} -U app -d postgres -v ON_ERROR_STOP=1 -Atq{sql}"
            )
        };
        let rows = "select repeat(i::text, 1000) from generate_series(1, 400) i";
        let who = "select current_user || ' from ' || host(inet_client_addr())";
        let out = shell(&lab, way, &psql("secret", &[rows, who])).await?;
        let rows: Vec<&str> = out.lines().collect();
        ensure!(
            rows.len() == 401 && rows[399] == "400".repeat(1000),
            "{} rows",
            rows.len()
        );
        let own = own_address(&lab, way, ip).await?;
        let own = own.trim_end_matches(':').trim_matches(['[', ']']);
        ensure!(rows[400] == format!("app from {own}"), "{}", rows[400]);
        // Half a megabyte goes there by COPY, and is counted there.
        let steps = [
            "create temp table t(x int)",
            "copy t from stdin",
            "select count(*), sum(x) from t",
        ];
        let copy = format!("seq 1 100000 | {}", psql("secret", &steps));
        let out = shell(&lab, way, &copy).await?;
        ensure!(out.trim() == "100000|5000050000", "{out}");
        let wrong = psql("wrong", &["select 1"]);
        let wrong = lab.exec(way.who, &["sh", "-c", &wrong]).await?;
        ensure!(
            wrong.code != 0 && wrong.err.contains("password authentication failed"),
            "{wrong:?}"
        );
        Ok(())
    })
    .await
}

/// Where `initdb` and `postgres` are: on the path, or where Debian keeps the newest version.
fn postgres_programs() -> Option<String> {
    if installed("initdb") && installed("postgres") {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dir = std::env::split_paths(&path).find(|d| d.join("initdb").is_file())?;
        return Some(dir.display().to_string());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let bins = versions.flatten().map(|v| v.path().join("bin"));
    let newest = bins.filter(|b| b.join("initdb").is_file()).max()?;
    Some(newest.display().to_string())
}

const SAMPLES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c, image: httpbin, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: grpc, namespace: shop}
spec: {nodeName: n1, serviceAccountName: grpc, containers: [{name: c, image: grpc-echo, ports: [{containerPort: 8053}]}]}
"#;

const SAMPLE: &str = env!("CARGO_BIN_EXE_warren-sample");

pub async fn websocket_and_grpc_echo_every_message() -> Result<()> {
    let Some(lab) = world(&[], SAMPLES).await? else {
        return Ok(());
    };
    for (protocol, pod, port) in [("websocket", "shop/web", 80), ("grpc", "shop/grpc", 8053)] {
        let served = Served {
            pod,
            port,
            flows: 1,
            bytes: 200_000,
        };
        everywhere(&lab, &served, async |way, ip| {
            let to = SocketAddr::new(ip, port).to_string();
            let ask = [
                SAMPLE, "ask", protocol, &to, "--count", "200", "--size", "2000",
            ];
            let seen: Value = serde_json::from_str(&run(&lab, way, &ask).await?.out)?;
            let whole = match protocol {
                "grpc" => {
                    seen["pod"] == "grpc"
                        && seen["serverStream"] == 200
                        && seen["clientStream"] == 200
                        && seen["bidi"] == 200
                }
                _ => seen["messages"] == 200 && seen["closed"] == true,
            };
            ensure!(whole, "{seen}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// A server that speaks first is heard at once: nothing waits for the client's first byte.
pub async fn t21_a_server_that_speaks_first_is_heard_at_once() -> Result<()> {
    let Some(lab) = world(&[], "").await? else {
        return Ok(());
    };
    let banner = [
        SAMPLE,
        "tcp-echo",
        "--port",
        "2525",
        "--banner",
        "220 ready",
    ];
    let _server = lab.spawn("shop/echo", &banner).await?;
    let served = Served {
        pod: "shop/echo",
        port: 2525,
        flows: 1,
        bytes: 11,
    };
    everywhere(&lab, &served, async |way, ip| {
        let begun = Instant::now();
        let script = format!("exec 3<>/dev/tcp/{ip}/2525; timeout 5 head -1 <&3");
        let ran = run(&lab, way, &["bash", "-c", &script]).await?;
        let took = begun.elapsed();
        ensure!(
            ran.out.trim() == "220 ready" && took < Duration::from_secs(2),
            "{} after {took:?}: {ran:?}",
            way.who
        );
        Ok(())
    })
    .await
}

/// T21: a connection that is silent for longer than tunnels without flows are kept, and one that carries a byte at a
/// time, go on as if nobody were between.
pub async fn t21_a_connection_that_says_little_goes_on() -> Result<()> {
    let mut spec = suite::spec();
    spec.agent_env
        .push(("WARREN_TUNNEL_IDLE".into(), "500ms".into()));
    let lab = pair_in(spec).await?;
    lab.apply(NEAR).await?;
    lab.wait_ready(SOON).await?;
    let served = Served {
        pod: "shop/echo",
        port: 9000,
        flows: 1,
        bytes: 2 * 101,
    };
    let status = lab.status().await?;
    let pod = status.pod(served.pod)?;
    let dribble = "for i in {1..50}; do printf x >&3; read -r -N1 -t5 -u3 got; [ \"$got\" = x ] || exit 3; done";
    for way in &WAYS {
        let secured = [("reporter", "source")];
        let node = lab.node(way.node);
        let before = node
            .metric("istio_tcp_connections_opened_total", &secured)
            .await?;
        for ip in [IpAddr::V4(pod.ip), IpAddr::V6(pod.ip6)] {
            // On one node the first flow goes through the proxy, which tells the kernel of the next.
            for _ in 0..2 {
                echo(&lab, way.who, &ip.to_string()).await?;
            }
            let script = format!(
                "exec 3<>/dev/tcp/{ip}/9000; {dribble}; sleep 3; {dribble}; echo >&3; read -r -t5 -u3; echo whole"
            );
            let begun = Instant::now();
            let ran = run(&lab, way, &["bash", "-c", &script]).await?;
            let took = begun.elapsed();
            ensure!(ran.out.trim() == "whole", "{}: {ran:?}", way.who);
            // A hundred bytes there and back, each at once: less than the least delay of a segment that waits for more.
            ensure!(
                took < Duration::from_secs(3 + 4),
                "{} took {took:?}: bytes wait for others",
                way.who
            );
            carried(&lab, way, SocketAddr::new(ip, served.port), &served).await?;
        }
        let opened = node
            .metric("istio_tcp_connections_opened_total", &secured)
            .await?
            - before;
        ensure!(
            opened >= 2.0,
            "{} opened {opened} of 2 connections",
            way.who
        );
    }
    Ok(())
}
