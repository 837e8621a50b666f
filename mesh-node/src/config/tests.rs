//! Configuration: precedence, validation and messages, without touching the process's own state.

use std::{collections::HashMap, io, net::IpAddr, path::Path};

use super::*;
use crate::{cni::command::Action, role::Role};

struct Fake {
    env: HashMap<&'static str, &'static str>,
    file: &'static str,
    address: Option<IpAddr>,
}

impl Source for Fake {
    fn env(&self, name: &str) -> Option<String> {
        self.env.get(name).map(|v| v.to_string())
    }
    fn read(&self, path: &Path) -> io::Result<String> {
        if path == Path::new("node.yaml") {
            Ok(self.file.into())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
    fn host_name(&self) -> Option<String> {
        Some("host-1".into())
    }
    fn default_address(&self) -> Option<IpAddr> {
        self.address
    }
    fn cpus(&self) -> usize {
        64
    }
}

fn run(
    args: &[&str],
    env: &[(&'static str, &'static str)],
    file: &'static str,
) -> Result<Invocation, String> {
    let source = Fake {
        env: env.iter().copied().collect(),
        file,
        address: "10.0.0.7".parse().ok(),
    };
    let args = std::iter::once("mesh-node")
        .chain(args.iter().copied())
        .map(str::to_owned);
    parse(args, &source).map_err(|e| e.to_string())
}

#[test]
fn defaults_need_no_flag() {
    let Invocation { task, config } = run(&[], &[], "").expect("defaults are valid");
    assert_eq!(task, Task::Run(Role::Node));
    assert_eq!(config.node_name.as_str(), "host-1");
    assert_eq!(config.instance, "host-1");
    assert_eq!(config.node_ip.to_string(), "10.0.0.7");
    assert_eq!(config.threads, 16);
    assert_eq!(config.run_dir, Path::new("/run/warren/host-1"));
    assert_eq!(config.drain, Duration::from_secs(30));
    assert_eq!(
        config.controller_namespace(),
        Some("warren-system".into()),
        "the default is a Service"
    );
}

#[test]
fn the_controllers_namespace_is_its_services() {
    let of = |url: &str| {
        let config = run(&["node", "--controller", url], &[], "").expect("valid");
        config.config.controller_namespace()
    };
    assert_eq!(
        of("https://ctl.mesh.svc.cluster.local:15012"),
        Some("mesh".into())
    );
    for url in [
        "https://172.30.0.1:15012",
        "https://ctl.example.com",
        "https://ctl",
        "https://[fd00::1]:15012",
    ] {
        assert_eq!(of(url), None, "{url}");
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let env = [
        ("WARREN_CONFIG", "node.yaml"),
        ("WARREN_THREADS", "3"),
        ("WARREN_DRAIN", "7s"),
    ];
    let file = "threads: 2\ndrain: 1s\naccessLog: off\nlog: debug\n";
    let config = run(&["node", "--threads", "4"], &env, file)
        .expect("valid")
        .config;
    assert_eq!(config.threads, 4);
    assert_eq!(config.drain, Duration::from_secs(7));
    assert!(!config.access_log);
    assert_eq!(config.log, "debug");
}

#[test]
fn what_is_wrong_is_named_with_its_origin() {
    let check =
        |args: &[&str], env: &[(&'static str, &'static str)], file: &'static str, expect: &str| {
            let error = run(args, env, file).expect_err("must be refused");
            assert!(
                error.contains(expect),
                "{error:?} does not contain {expect:?}"
            );
        };
    check(
        &["--threads", "0"],
        &[],
        "",
        "--threads = \"0\" (flag): expected a number from 1 to 256",
    );
    check(&[], &[("WARREN_DRAIN", "soon")], "", "WARREN_DRAIN");
    check(
        &["--config", "node.yaml"],
        &[],
        "thread: 2",
        "unknown setting \"thread\"",
    );
    check(&["--config", "node.yaml"], &[], "threads: [1]", "node.yaml");
    check(&["--config", "none.yaml"], &[], "", "none.yaml");
    check(
        &["--controller", "http://ctl:15010"],
        &[],
        "",
        "https://HOST:PORT",
    );
    check(&["--instance", "../x"], &[], "", "--instance");
    check(
        &["--resolvers", "10.0.0.53,dns"],
        &[],
        "",
        "\"dns\" is not an IP or IP:PORT",
    );
    check(
        &["--name-ttl-min", "10s", "--name-ttl-max", "9s"],
        &[],
        "",
        "no less than --name-ttl-min",
    );
    check(&["--takeover", "maybe"], &[], "", "auto, never");
    check(&["--no-such-flag"], &[], "", "--no-such-flag");
}

#[test]
fn commands_take_the_same_settings() {
    let task = |args: &[&str]| run(args, &[], "").expect("valid").task;
    assert_eq!(task(&["cni", "status"]), Task::Cni(Action::Status));
    assert_eq!(task(&["uninstall"]), Task::Uninstall(Duration::ZERO));
    assert_eq!(
        task(&["uninstall", "--wait", "2m"]),
        Task::Uninstall(Duration::from_secs(120))
    );
    let args = [
        "cni",
        "uninstall",
        "--cni-conf-dir",
        "/c",
        "--cni-fail-open",
        "on",
    ];
    let config = run(&args, &[("WARREN_CNI_BIN_DIR", "/b")], "")
        .expect("valid")
        .config;
    assert_eq!(config.cni.conf_dir.as_deref(), Some(Path::new("/c")));
    assert_eq!(config.cni.bin_dir.as_deref(), Some(Path::new("/b")));
    assert!(config.cni.fail_open && !config.cni.keep);
    assert!(run(&["cni"], &[], "").is_err());
    assert!(run(&["uninstall", "--wait", "soon"], &[], "").is_err());
}

#[test]
fn every_setting_is_in_the_help() {
    let help = run(&["--help"], &[], "").expect_err("help is not an invocation");
    for s in settings::SETTINGS {
        assert!(
            help.contains(&format!("--{}", s.flag)),
            "{} is missing",
            s.flag
        );
    }
}
