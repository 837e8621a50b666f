//! The load generator as a program: one JSON object on standard output; exit status 1 when anything failed.

use std::{
    convert::Infallible, io::Read, net::SocketAddr, path::PathBuf, process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use mesh_tests::{
    load::{self, Report, conns, flood, handshakes, http, http2, idle, paced, rtt, streams},
    out,
};

/// Checked load for TCP and HTTP servers.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Seconds that are measured.
    #[arg(long, global = true, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds before that.
    #[arg(long, global = true, default_value_t = 0.0)]
    warm_up: f64,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Round trips to an echo server.
    Rtt {
        /// host:port
        to: String,
        /// Bytes of a message.
        #[arg(long, default_value_t = 1)]
        size: usize,
        /// Connections at once.
        #[arg(long, default_value_t = 1)]
        connections: usize,
    },
    /// New connections to an echo server.
    Conns {
        /// host:port
        to: String,
        /// Connections a second; without it as fast as `clients` can.
        #[arg(long)]
        rate: Option<f64>,
        /// Clients of the closed loop.
        #[arg(long, default_value_t = 1)]
        clients: usize,
    },
    /// Long streams to an echo server.
    Streams {
        /// host:port
        to: String,
        /// Streams at once.
        #[arg(long, default_value_t = 100)]
        count: usize,
        /// Milliseconds between the messages of a stream.
        #[arg(long, default_value_t = 1000)]
        every_ms: u64,
    },
    /// Bytes from a source (`tcp-echo --source`), or into a sink with `--send`.
    Flood {
        /// host:port
        to: String,
        /// Streams at once.
        #[arg(long, default_value_t = 1)]
        streams: usize,
        /// Bytes on each stream.
        #[arg(long, default_value_t = 1 << 30)]
        bytes: u64,
        /// Send instead of receive.
        #[arg(long)]
        send: bool,
        /// Do not compare each byte.
        #[arg(long)]
        unchecked: bool,
        /// Ask the benchmark's application, and receive for `--seconds` instead of a number of bytes.
        #[arg(long, conflicts_with_all = ["bytes", "send", "unchecked"])]
        timed: bool,
    },
    /// Tunnel handshakes with an HBONE port: TLS and the first HTTP/2 frame.
    Handshakes {
        /// host:port
        to: String,
        /// File with the client's chain and key.
        #[arg(long)]
        bundle: PathBuf,
        /// Clients of the closed loop.
        #[arg(long, default_value_t = 4)]
        clients: usize,
        /// Resume sessions.
        #[arg(long)]
        resume: bool,
    },
    /// Connections that are kept, idle, until standard input ends.
    Idle {
        /// host:port
        to: String,
        /// How many.
        #[arg(long, default_value_t = 1000)]
        count: usize,
    },
    /// GETs: HTTP/1.1 with keep-alive, or HTTP/2.
    Http {
        /// host:port
        to: String,
        /// Path to ask for.
        #[arg(long, default_value = "/")]
        path: String,
        /// A header to send, as `name: value`; any number of them.
        #[arg(long, value_name = "NAME: VALUE", value_parser = http::header)]
        header: Vec<(String, String)>,
        /// Connections.
        #[arg(long, default_value_t = 64)]
        connections: usize,
        /// Requests a second over all connections; without it as fast as answers come.
        #[arg(long)]
        rate: Option<f64>,
        /// Bodies hold the pattern; compare them with it.
        #[arg(long)]
        checked: bool,
        /// HTTP/2 with prior knowledge, so many requests at once on each connection.
        #[arg(long, conflicts_with = "rate")]
        streams: Option<usize>,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = async {
        let report = run(&cli).await?;
        out::line(report.to_json())?;
        Ok(ExitCode::from(u8::from(!report.failed.is_empty())))
    };
    out::end("warren-load", done.await)
}

/// Opens connections, says so, and keeps them until standard input ends.
async fn keep(to: SocketAddr, count: usize) -> Result<Infallible> {
    let kept = idle::open(to, count).await?;
    out::line(format_args!("{{\"open\": {}}}", kept.len()))?;
    // Whatever it says, its end is the end.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(0)
}

async fn run(cli: &Cli) -> Result<Report> {
    let (time, warm_up) = (
        Duration::from_secs_f64(cli.seconds),
        Duration::from_secs_f64(cli.warm_up),
    );
    let addr = match &cli.what {
        What::Rtt { to, .. }
        | What::Conns { to, .. }
        | What::Streams { to, .. }
        | What::Flood { to, .. }
        | What::Handshakes { to, .. }
        | What::Idle { to, .. }
        | What::Http { to, .. } => load::resolve(to).await?,
    };
    Ok(match &cli.what {
        What::Rtt {
            size, connections, ..
        } => rtt::run(addr, *size, *connections, warm_up, time).await,
        What::Conns {
            rate: Some(rate), ..
        } => conns::open(addr, *rate, time).await,
        What::Conns { clients, .. } => conns::closed(addr, *clients, warm_up, time).await,
        What::Streams {
            count, every_ms, ..
        } => streams::run(addr, *count, Duration::from_millis(*every_ms), time).await,
        What::Flood {
            streams,
            timed: true,
            ..
        } => flood::timed(addr, *streams, warm_up, time).await,
        What::Flood {
            streams,
            bytes,
            send,
            unchecked,
            ..
        } => {
            let way = if *send {
                flood::Way::Send
            } else {
                flood::Way::Receive
            };
            flood::run(addr, way, *streams, *bytes, !unchecked).await
        }
        What::Handshakes {
            bundle,
            clients,
            resume,
            ..
        } => {
            let client = handshakes::Client::read(bundle, *resume)?;
            handshakes::run(addr, &client, *clients, warm_up, time).await?
        }
        What::Idle { count, .. } => match keep(addr, *count).await? {},
        What::Http {
            to,
            path,
            header,
            connections,
            rate,
            checked,
            streams,
        } => {
            let load = http::Load {
                to: addr,
                host: to.clone(),
                path: path.clone(),
                headers: header.clone(),
                connections: *connections,
                verify: *checked,
                warm_up,
                time,
            };
            match (*rate, *streams) {
                (Some(rate), _) => {
                    tokio::task::spawn_blocking(move || paced::run(&load, rate)).await?
                }
                (None, Some(streams)) => http2::run(load, streams).await,
                (None, None) => http::run(load).await,
            }
        }
    })
}
