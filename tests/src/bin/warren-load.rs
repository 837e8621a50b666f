//! The load generator as a program: one JSON object on standard output; exit status 1 when anything failed.

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mesh_tests::load::{self, Report, conns, flood, http, rtt, streams};

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
    },
    /// HTTP/1.1 keep-alive GETs.
    Http {
        /// host:port
        to: String,
        /// Path to ask for.
        #[arg(long, default_value = "/")]
        path: String,
        /// Connections.
        #[arg(long, default_value_t = 64)]
        connections: usize,
        /// Requests a second over all connections; without it as fast as answers come.
        #[arg(long)]
        rate: Option<f64>,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let report = run(&cli).await?;
    println!("{}", report.to_json());
    std::process::exit(i32::from(!report.failed.is_empty()))
}

async fn run(cli: &Cli) -> Result<Report> {
    let (time, warm_up) = (
        Duration::from_secs_f64(cli.seconds),
        Duration::from_secs_f64(cli.warm_up),
    );
    Ok(match &cli.what {
        What::Rtt {
            to,
            size,
            connections,
        } => rtt::run(load::resolve(to).await?, *size, *connections, warm_up, time).await,
        What::Conns {
            to,
            rate: Some(rate),
            ..
        } => conns::open(load::resolve(to).await?, *rate, time).await,
        What::Conns { to, clients, .. } => {
            conns::closed(load::resolve(to).await?, *clients, time).await
        }
        What::Streams {
            to,
            count,
            every_ms,
        } => {
            streams::run(
                load::resolve(to).await?,
                *count,
                Duration::from_millis(*every_ms),
                time,
            )
            .await
        }
        What::Flood {
            to,
            streams,
            bytes,
            send,
            unchecked,
        } => {
            let way = if *send {
                flood::Way::Send
            } else {
                flood::Way::Receive
            };
            flood::run(load::resolve(to).await?, way, *streams, *bytes, !unchecked).await
        }
        What::Http {
            to,
            path,
            connections,
            rate,
        } => {
            let to_addr = load::resolve(to).await?;
            let load = http::Load {
                to: to_addr,
                host: to.clone(),
                path: path.clone(),
                connections: *connections,
                rate: *rate,
                warm_up,
                time,
            };
            http::run(load).await
        }
    })
}
