//! Turning flags, environment and file into a [`Config`].
//!
//! Invariants: an error names the setting, where its value came from, and what would be right.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr, path::PathBuf, time::Duration};

use clap::{Arg, ArgMatches, Command, error::ErrorKind};
use mesh_loader::Leave;
use mesh_model::name::{ClusterId, Namespace, NodeName, ServiceAccount};

use super::{
    AfterHandover, Cni, Config, Control, Limits, LogFormat, OwnPod, Source, Takeover, Tc,
    settings::{SETTINGS, Setting},
};
use crate::{
    cni::command::Action,
    dns::{Resolvers, TtlBounds},
    role::Role,
};

/// What a process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Run a role.
    Run(Role),
    /// Work on the CNI plugin and end.
    Cni(Action),
    /// Take the node's pods out of the mesh, one step of it, and end.
    Leave(Leave),
    /// Restore the node and end; a running node proxy is waited for so long.
    Uninstall(Duration),
}

/// What the command line asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What to do.
    pub task: Task,
    /// The configuration.
    pub config: Config,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line is wrong, or asked for help or the version: text to print.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    /// The configuration file cannot be used.
    #[error("configuration file {path}: {why}")]
    File {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A setting has a value that cannot be used.
    #[error("--{flag} = {value:?} ({origin}): {why}")]
    Value {
        /// The setting's flag.
        flag: &'static str,
        /// The value.
        value: String,
        /// Where it came from.
        origin: String,
        /// What would be right.
        why: String,
    },
    /// A setting has no value and no default can be found.
    #[error("--{flag} is not set and cannot be found out: {why}")]
    Missing {
        /// The setting's flag.
        flag: &'static str,
        /// What to do.
        why: &'static str,
    },
}

impl ConfigError {
    /// Whether it is help or version text rather than a failure.
    pub fn is_help(&self) -> bool {
        matches!(self, Self::Usage(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion))
    }
}

/// Reads the command line (with the program's name first) and what the source holds.
pub fn parse(
    args: impl IntoIterator<Item = String>,
    source: &dyn Source,
) -> Result<Invocation, ConfigError> {
    let matches = command().try_get_matches_from(args)?;
    let (task, flags) = match matches.subcommand() {
        Some((CNI, sub)) => {
            let (name, sub) = sub.subcommand().expect("clap demands a subcommand");
            let mut actions = Action::ALL.into_iter();
            let action = actions.find(|a| a.name() == name);
            let action = action.expect("clap accepts declared actions only");
            (Task::Cni(action), sub)
        }
        Some((LEAVE, sub)) => {
            let (name, sub) = sub.subcommand().expect("clap demands a subcommand");
            let step = match name {
                OPEN => Leave::Open,
                _ => Leave::Release,
            };
            (Task::Leave(step), sub)
        }
        Some((UNINSTALL, sub)) => (Task::Uninstall(wait(sub)?), sub),
        Some((name, sub)) => {
            let role = Role::named(name).expect("clap accepts declared roles only");
            (Task::Run(role), sub)
        }
        None => (Task::Run(Role::Node), &matches),
    };
    let flag = |name: &str| flags.get_one::<String>(name).cloned();
    let path = flag("config").or_else(|| source.env("WARREN_CONFIG"));
    let file = path
        .map(|p| read_file(PathBuf::from(p), source))
        .transpose()?
        .unwrap_or_default();
    let values = Values {
        flag: &flag,
        source,
        file,
    };
    Ok(Invocation {
        task,
        config: values.config()?,
    })
}

/// The command line, made from the table of settings.
fn command() -> Command {
    let mut command = Command::new("mesh-node")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The node proxy of Warren: carries the traffic of this node's enrolled pods in mutual TLS under policy")
        .after_help("Every setting can also come from the environment (WARREN_NODE_NAME for --node-name) or from the YAML file\ngiven by --config (nodeName for --node-name). A flag wins over the environment, the environment over the file.")
        .arg(Arg::new("config").long("config").value_name("FILE").global(true).help("YAML file with settings"));
    for s in SETTINGS {
        let help = format!("{} [{}; {}]", s.help, s.default, s.env());
        command = command.arg(
            Arg::new(s.flag)
                .long(s.flag)
                .value_name(s.value)
                .global(true)
                .help(help),
        );
    }
    let command = Role::ALL.iter().fold(command, |c, role| {
        c.subcommand(Command::new(role.name()).about(role.about()))
    });
    let cni = Command::new(CNI)
        .about("Install, remove or show the CNI plugin on this node")
        .subcommand_required(true);
    let cni = Action::ALL.into_iter().fold(cni, |c, action| {
        c.subcommand(Command::new(action.name()).about(action.about()))
    });
    let wait = Arg::new(WAIT)
        .long(WAIT)
        .value_name("TIME")
        .help("How long to wait for a node proxy that runs here to end [0s]");
    let uninstall = Command::new(UNINSTALL)
        .about("Restore this node: no plugin, no kernel programs, no files; its pods talk as if there were no mesh")
        .arg(wait);
    let leave = Command::new(LEAVE)
        .about("Take this node's pods out of the mesh before the node is restored; a node proxy that is started later takes them in again")
        .subcommand_required(true)
        .subcommand(Command::new(OPEN).about("Let everybody reach the pods, who themselves are still captured; on every node before any is released"))
        .subcommand(Command::new(RELEASE).about("Take the CNI plugin out and capture nothing any more; flows under way go on"));
    command
        .subcommand(cni)
        .subcommand(leave)
        .subcommand(uninstall)
}

/// Subcommands that are no roles, and what they take.
const CNI: &str = "cni";
const LEAVE: &str = "leave";
const OPEN: &str = "open";
const RELEASE: &str = "release";
const UNINSTALL: &str = "uninstall";
const WAIT: &str = "wait";

fn wait(matches: &ArgMatches) -> Result<Duration, ConfigError> {
    let Some(text) = matches.get_one::<String>(WAIT) else {
        return Ok(Duration::ZERO);
    };
    duration(text).map_err(|why| bad(WAIT, text.clone(), "flag".into(), why))
}

#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum Scalar {
    Bool(bool),
    Int(i64),
    Text(String),
}

fn read_file(
    path: PathBuf,
    source: &dyn Source,
) -> Result<BTreeMap<String, (String, String)>, ConfigError> {
    let fail = |why: String| ConfigError::File {
        path: path.clone(),
        why,
    };
    let text = source.read(&path).map_err(|e| fail(e.to_string()))?;
    let values: BTreeMap<String, Scalar> =
        serde_saphyr::from_str(&text).map_err(|e| fail(e.to_string()))?;
    let mut found = BTreeMap::new();
    for (key, value) in values {
        let setting = SETTINGS
            .iter()
            .find(|s| s.key() == key)
            .ok_or_else(|| fail(format!("unknown setting {key:?}; see mesh-node --help")))?;
        let text = match value {
            // YAML reads on and off as booleans.
            Scalar::Bool(b) => if b { "on" } else { "off" }.to_owned(),
            Scalar::Int(n) => n.to_string(),
            Scalar::Text(t) => t,
        };
        found.insert(
            setting.flag.to_owned(),
            (text, format!("{}: {key}", path.display())),
        );
    }
    Ok(found)
}

/// Looks values up in the order of precedence and parses them.
struct Values<'a> {
    flag: &'a dyn Fn(&str) -> Option<String>,
    source: &'a dyn Source,
    file: BTreeMap<String, (String, String)>,
}

impl Values<'_> {
    fn config(&self) -> Result<Config, ConfigError> {
        let node_name = self.or(
            "node-name",
            name,
            || self.source.host_name(),
            "pass --node-name",
        )?;
        let instance = self
            .text("instance")?
            .map_or(Ok(node_name.clone()), |(v, o)| {
                name(&v).map_err(|why| bad("instance", v, o, why))
            })?;
        let run_dir: PathBuf = self
            .get("run-dir", ok)?
            .unwrap_or_else(|| "/run/warren".into());
        let state_dir: PathBuf = self
            .get("state-dir", ok)?
            .unwrap_or_else(|| "/var/lib/warren".into());
        let node_ip = self.or(
            "node-ip",
            parsed::<IpAddr>,
            || self.source.default_address().map(|ip| ip.to_string()),
            "there is no default route; pass --node-ip",
        )?;
        Ok(Config {
            pod: self.pod(node_ip)?,
            node_ip,
            node_name: NodeName::new(node_name),
            run_dir: run_dir.join(&instance),
            state_dir: state_dir.join(&instance),
            instance,
            cluster_id: ClusterId::new(
                self.get("cluster-id", name)?
                    .unwrap_or_else(|| "Kubernetes".into()),
            ),
            controller: self
                .get("controller", controller)?
                .unwrap_or_else(|| "https://mesh-ctl.warren-system.svc:15012".into()),
            controller_ca: self
                .get("controller-ca", ok)?
                .unwrap_or_else(|| "/var/run/warren/ca.pem".into()),
            token_file: self
                .get("token-file", ok)?
                .unwrap_or_else(|| "/var/run/secrets/tokens/warren-token".into()),
            pods_cgroup: self.get("pods-cgroup", ok)?,
            cni: Cni {
                keep: self.get("cni", on_off)?.unwrap_or(false),
                bin_dir: self.get("cni-bin-dir", ok)?,
                conf_dir: self.get("cni-conf-dir", ok)?,
                fail_open: self.get("cni-fail-open", on_off)?.unwrap_or(false),
                plugin: self
                    .get("cni-plugin", ok)?
                    .unwrap_or_else(|| "/warren-cni".into()),
            },
            pod_scan: self.get("pod-scan", on_off)?.unwrap_or(true),
            kubelet_cgroup: self.get("kubelet-cgroup", ok)?,
            tc: self
                .get("tc", |t| {
                    choice(
                        t,
                        &[("auto", Tc::Auto), ("tcx", Tc::Tcx), ("clsact", Tc::Clsact)],
                    )
                })?
                .unwrap_or_default(),
            edition: self.get("edition", parsed)?.unwrap_or(0),
            threads: self
                .get("threads", |t| within(t, 1, 256))?
                .unwrap_or_else(|| self.source.cpus().clamp(1, 16)),
            log_format: self
                .get("log-format", |t| {
                    choice(t, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
                })?
                .unwrap_or(LogFormat::Text),
            log: self.get("log", ok)?.unwrap_or_else(|| "info".into()),
            access_log: self.get("access-log", on_off)?.unwrap_or(true),
            drain: self
                .get("drain", duration)?
                .unwrap_or(Duration::from_secs(30)),
            takeover: self
                .get("takeover", |t| {
                    choice(t, &[("auto", Takeover::Auto), ("never", Takeover::Never)])
                })?
                .unwrap_or(Takeover::Auto),
            after_handover: self
                .get("after-handover", |t| {
                    choice(
                        t,
                        &[("exit", AfterHandover::Exit), ("wait", AfterHandover::Wait)],
                    )
                })?
                .unwrap_or(AfterHandover::Exit),
            limits: self.limits()?,
            control: self.control()?,
            resolvers: self.get("resolvers", parsed)?.unwrap_or(Resolvers::System),
            name_ttl: self.name_ttl()?,
        })
    }

    fn pod(&self, node_ip: IpAddr) -> Result<Option<OwnPod>, ConfigError> {
        let (addresses, account) = (
            self.get("pod-ips", list_of_ips)?,
            self.get("service-account", name)?,
        );
        let Some(namespace) = self.get("pod-namespace", name)? else {
            return Ok(None);
        };
        let own = || self.source.host_name();
        Ok(Some(OwnPod {
            namespace: Namespace::from(namespace.as_str()),
            name: self.or("pod-name", name, own, "pass --pod-name")?,
            account: ServiceAccount::from(account.as_deref().unwrap_or("default")),
            addresses: addresses.unwrap_or_else(|| vec![node_ip]),
        }))
    }

    fn limits(&self) -> Result<Limits, ConfigError> {
        Ok(Limits {
            connect_timeout: self
                .get("connect-timeout", positive)?
                .unwrap_or(Duration::from_secs(10)),
            handshake_timeout: self
                .get("handshake-timeout", positive)?
                .unwrap_or(Duration::from_secs(10)),
            handshakes: self
                .get("max-handshakes", |t| within(t, 1, 1 << 20))?
                .unwrap_or(2048),
            handshakes_per_source: self
                .get("max-handshakes-per-source", |t| within(t, 1, 1 << 20))?
                .unwrap_or(256),
            flows: self
                .get("max-flows", |t| within(t, 1, 1 << 24))?
                .unwrap_or(200_000),
            tunnel_idle: self
                .get("tunnel-idle", positive)?
                .unwrap_or(Duration::from_secs(300)),
            waypoint_age: self
                .get("waypoint-age", positive)?
                .unwrap_or(Duration::from_secs(600)),
            http_idle: Limits::HTTP_IDLE,
            http_head: Limits::HTTP_HEAD,
        })
    }

    fn name_ttl(&self) -> Result<TtlBounds, ConfigError> {
        let least = self
            .get("name-ttl-min", positive)?
            .unwrap_or(Duration::from_secs(5));
        let most = self.get("name-ttl-max", |text| match positive(text)? {
            most if most < least => Err("expected no less than --name-ttl-min".into()),
            most => Ok(most),
        })?;
        Ok(TtlBounds {
            least,
            most: most.unwrap_or(least.max(Duration::from_secs(300))),
        })
    }

    fn control(&self) -> Result<Control, ConfigError> {
        Ok(Control {
            xds_timeout: self
                .get("xds-timeout", positive)?
                .unwrap_or(Duration::from_secs(5)),
            xds_backoff: self
                .get("xds-backoff", positive)?
                .unwrap_or(Duration::from_secs(15)),
            certificate_lifetime: self
                .get("certificate-lifetime", positive)?
                .unwrap_or(Duration::from_secs(24 * 3600)),
            metrics_port: self.get("metrics-port", parsed)?.unwrap_or(15020),
        })
    }

    /// The value's text and where it came from.
    fn text(&self, flag: &'static str) -> Result<Option<(String, String)>, ConfigError> {
        let setting: &Setting = SETTINGS
            .iter()
            .find(|s| s.flag == flag)
            .expect("every setting read is in the table");
        if let Some(text) = (self.flag)(flag) {
            return Ok(Some((text, "flag".into())));
        }
        if let Some(text) = self.source.env(&setting.env()) {
            return Ok(Some((text, setting.env())));
        }
        Ok(self.file.get(flag).cloned())
    }

    fn get<T>(
        &self,
        flag: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        self.text(flag)?
            .map(|(text, origin)| parse(&text).map_err(|why| bad(flag, text, origin, why)))
            .transpose()
    }

    fn or<T>(
        &self,
        flag: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
        default: impl Fn() -> Option<String>,
        why: &'static str,
    ) -> Result<T, ConfigError> {
        if let Some(value) = self.get(flag, &parse)? {
            return Ok(value);
        }
        default()
            .and_then(|text| parse(&text).ok())
            .ok_or(ConfigError::Missing { flag, why })
    }
}

fn bad(flag: &'static str, value: String, origin: String, why: String) -> ConfigError {
    ConfigError::Value {
        flag,
        value,
        origin,
        why,
    }
}

fn ok<T: for<'a> From<&'a str>>(text: &str) -> Result<T, String> {
    Ok(text.into())
}

fn parsed<T: std::str::FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: T::Err| e.to_string())
}

fn list_of_ips(text: &str) -> Result<Vec<IpAddr>, String> {
    let ips = text.split(',').map(|ip| parsed::<IpAddr>(ip.trim()));
    ips.map(|ip| ip.map(|ip| ip.to_canonical())).collect()
}

/// A name that becomes part of paths.
fn name(text: &str) -> Result<String, String> {
    let fine = !text.is_empty()
        && text.len() <= 253
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    fine.then(|| text.to_owned())
        .ok_or_else(|| "expected letters, digits, dots, dashes and underscores".into())
}

fn controller(text: &str) -> Result<String, String> {
    let uri: http::Uri = parsed(text)?;
    let fine = uri.scheme_str() == Some("https") && uri.host().is_some();
    fine.then(|| text.to_owned()).ok_or_else(|| {
        "expected https://HOST:PORT; the controller is never talked to without TLS".into()
    })
}

fn within(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let n: usize = parsed(text)?;
    (least..=most)
        .contains(&n)
        .then_some(n)
        .ok_or_else(|| format!("expected a number from {least} to {most}"))
}

fn on_off(text: &str) -> Result<bool, String> {
    choice(text, &[("on", true), ("off", false)])
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices
        .iter()
        .find(|(t, _)| *t == text)
        .map(|(_, v)| *v)
        .ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(t, _)| *t).collect();
            format!("expected one of: {}", names.join(", "))
        })
}

fn positive(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|d| {
        if d.is_zero() {
            Err("expected more than nothing".into())
        } else {
            Ok(d)
        }
    })
}

/// A number with a unit: `500ms`, `30s`, `5m`, `24h`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .map_err(|_| "expected a number with a unit, e.g. 500ms, 30s, 5m, 24h".to_owned())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("expected a unit: ms, s, m or h".into()),
    };
    number
        .checked_mul(ms)
        .map(Duration::from_millis)
        .ok_or_else(|| "too long".into())
}
