//! `mesh-ctl controller`: parses what to run into one checked value, sets up logging, and runs it.

use std::{
    fs,
    io::IsTerminal,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use mesh_model::name::{Identity, TrustDomain};
use tracing_subscriber::EnvFilter;

use crate::{
    app::{self, Input},
    ca::Given,
    listen::Names,
    watch::connect,
};

/// Names under which nodes reach the controller in any installation; the namespace comes in the place of `{}`.
const NAMES: [&str; 5] = [
    "warren-controller.{}.svc",
    "warren-controller.{}.svc.cluster.local",
    "mesh-ctl.{}.svc",
    "mesh-ctl",
    "localhost",
];
/// The port of monitoring, beside that of xDS and CA.
const MONITOR_PORT: u16 = 15014;
/// The port of the webhook, beside that of xDS and CA.
const WEBHOOK_PORT: u16 = 15017;

/// How to run the controller.
#[derive(clap::Args)]
pub struct Args {
    /// Read objects from YAML files here, also in folders below; changes are applied as they happen.
    #[arg(
        long,
        value_name = "DIR",
        env = "WARREN_CTL_MANIFESTS",
        required_unless_present = "kubernetes"
    )]
    manifests: Option<PathBuf>,
    /// Read objects from a cluster: the one this runs in, else the one of KUBECONFIG.
    #[arg(long, env = "WARREN_CTL_KUBERNETES", conflicts_with = "manifests")]
    kubernetes: bool,
    /// With --kubernetes: the namespace of the controller, its Secret, ConfigMap and Lease, and of the node agents.
    #[arg(
        long,
        value_name = "NAME",
        env = "WARREN_CTL_NAMESPACE",
        default_value = "warren-system"
    )]
    namespace: String,
    /// Where keys are kept; nobody else needs to read it, except the roots in `ca.pem`.
    #[arg(long, value_name = "DIR", env = "WARREN_CTL_STATE")]
    state: PathBuf,
    /// Where nodes subscribe and ask for certificates.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "WARREN_CTL_LISTEN",
        default_value = "0.0.0.0:15012"
    )]
    listen: SocketAddr,
    /// Metrics and health [default: port 15014 beside --listen].
    #[arg(long, value_name = "ADDRESS:PORT", env = "WARREN_CTL_MONITOR")]
    monitor: Option<SocketAddr>,
    /// With --kubernetes: where the API server asks about objects [default: port 15017 beside --listen].
    #[arg(long, value_name = "ADDRESS:PORT", env = "WARREN_CTL_WEBHOOK")]
    webhook: Option<SocketAddr>,
    /// A name or address under which nodes reach this controller; can be given several times.
    #[arg(
        long = "listen-name",
        value_name = "NAME",
        env = "WARREN_CTL_LISTEN_NAME",
        value_delimiter = ','
    )]
    listen_names: Vec<String>,
    /// The trust domain of the identities that are signed.
    #[arg(long, value_name = "NAME", env = "WARREN_CTL_TRUST_DOMAIN", default_value = "cluster.local", value_parser = trust_domain)]
    trust_domain: TrustDomain,
    /// How long certificates live.
    #[arg(long, value_name = "TIME", env = "WARREN_CTL_LEAF_TTL", default_value = "24h", value_parser = super::duration)]
    leaf_ttl: Duration,
    /// The first start's CA certificate, followed by those up to its root; without it one is made.
    #[arg(
        long,
        value_name = "FILE",
        requires = "ca_key",
        env = "WARREN_CTL_CA_CERT"
    )]
    ca_cert: Option<PathBuf>,
    /// Its key.
    #[arg(
        long,
        value_name = "FILE",
        requires = "ca_cert",
        env = "WARREN_CTL_CA_KEY"
    )]
    ca_key: Option<PathBuf>,
    /// With --kubernetes: take the taint warren.dev/not-ready off nodes whose node proxy is ready.
    #[arg(long, env = "WARREN_CTL_NODE_TAINT", requires = "kubernetes")]
    node_taint: bool,
    /// What to log, for example `info` or `mesh_ctl=debug`.
    #[arg(
        long,
        value_name = "FILTER",
        env = "WARREN_LOG",
        default_value = "info"
    )]
    log: String,
    /// How to log.
    #[arg(long, env = "WARREN_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: Format,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Runs the controller until it is told to stop.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        manifests,
        kubernetes: _,
        namespace,
        state,
        listen,
        monitor,
        webhook,
        listen_names,
        trust_domain,
        leaf_ttl,
        ca_cert,
        ca_key,
        node_taint,
        log,
        log_format,
    } = args;
    let filter = EnvFilter::try_new(&log).with_context(|| format!("--log {log:?}"))?;
    let output = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match log_format {
        Format::Text => output.init(),
        Format::Json => output.json().flatten_event(true).init(),
    }
    let read = |path: PathBuf| {
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let given = match ca_cert.zip(ca_key) {
        Some((cert, key)) => Some(Given {
            chain: read(cert)?,
            key: read(key)?,
        }),
        None => None,
    };
    let options = |from, namespace: &str| app::Options {
        from,
        state,
        listen,
        monitor: monitor.unwrap_or(SocketAddr::new(listen.ip(), MONITOR_PORT)),
        webhook: webhook.unwrap_or(SocketAddr::new(listen.ip(), WEBHOOK_PORT)),
        names: names(listen.ip(), namespace, listen_names, leaf_ttl),
        trust_domain,
        leaf_ttl,
        given,
        taint: node_taint,
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let from = match manifests {
                Some(folder) => Input::Manifests(folder),
                None => Input::Cluster(connect(&namespace).await?),
            };
            app::run(options(from, &namespace)).await
        })
}

fn names(listen: IpAddr, namespace: &str, told: Vec<String>, ttl: Duration) -> Names {
    let mut dns = NAMES.map(|name| name.replace("{}", namespace)).to_vec();
    let mut addresses = vec![
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    ];
    if !listen.is_unspecified() {
        addresses.push(listen);
    }
    for name in told {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => dns.push(name),
        }
    }
    dns.dedup();
    addresses.sort_unstable();
    addresses.dedup();
    Names {
        dns,
        addresses,
        ttl,
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    let identity: Result<Identity, _> = format!("spiffe://{text}/ns/a/sa/b").parse();
    identity
        .map(|i| i.trust_domain)
        .map_err(|_| "a trust domain has letters, digits, '.', '-' and '_' only".to_owned())
}
