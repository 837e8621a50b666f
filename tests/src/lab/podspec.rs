//! What a pod's manifest asks for, in the terms of the lab: programs, probes, names.
//!
//! Invariants: pure but for the search of programs on this machine; an image nobody knows becomes an idle pod.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::{
    images::Images,
    waypoint::{self, is_waypoint},
};
use crate::apps::program_for_image;

/// What a container runs.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The program with its arguments; `None` for an idle container.
    pub program: Option<Vec<String>>,
    /// Why it is idle, where the user may not expect it.
    pub note: Option<String>,
    /// Whether it is a waypoint, which is told who it is.
    pub waypoint: bool,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub dir: Option<PathBuf>,
    /// The user and group it runs as.
    pub user: (Option<u32>, Option<u32>),
    /// TCP ports that a sample program will listen on: it is not ready before.
    pub sample_ports: Vec<u16>,
    /// Its readiness probe.
    pub readiness: Option<Check>,
    /// Its liveness probe.
    pub liveness: Option<Check>,
}

/// A probe with its rhythm.
#[derive(Clone, Debug)]
pub struct Check {
    /// What is done.
    pub action: Action,
    /// The time before the first.
    pub delay: Duration,
    /// The time between two.
    pub period: Duration,
    /// The time one may take.
    pub timeout: Duration,
    /// Failures in a row that count.
    pub failures: u64,
}

/// What a probe does.
#[derive(Clone, Debug)]
pub enum Action {
    /// GET this path of this port, with this `Host`.
    Http(u16, String, Option<String>),
    /// Connect to this port.
    Tcp(u16),
    /// Run this in the container.
    Exec(Vec<String>),
}

/// What a container may ask to be told of its pod.
#[derive(Clone, Debug)]
pub struct Facts {
    /// By `fieldPath`.
    pub fields: BTreeMap<String, String>,
    /// The program of the samples.
    pub samples: PathBuf,
    /// What the user has for images; it goes before the samples.
    pub images: Images,
}

/// The containers of a pod, those that run to their end first.
pub fn containers(pod: &Value, facts: &Facts) -> (Vec<Container>, Vec<Container>) {
    let read = |list: &Value| -> Vec<Value> { list.as_array().cloned().unwrap_or_default() };
    let spec = &pod["spec"];
    let (sidecars, first): (Vec<Value>, Vec<Value>) = read(&spec["initContainers"])
        .into_iter()
        .partition(|c| c["restartPolicy"] == "Always");
    let first = first.iter().map(|c| container(c, spec, facts)).collect();
    let main = sidecars
        .iter()
        .chain(&read(&spec["containers"]))
        .map(|c| container(c, spec, facts))
        .collect();
    (first, main)
}

/// Ports that probes of the pod go to.
pub fn probe_ports(pod: &Value) -> Vec<u16> {
    let containers = pod["spec"]["containers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut ports: Vec<u16> = Vec::new();
    for c in &containers {
        for kind in ["readinessProbe", "livenessProbe", "startupProbe"] {
            for way in ["httpGet", "tcpSocket", "grpc"] {
                ports.extend(port_of(&c[kind][way]["port"], c));
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Named container ports.
pub fn named_ports(pod: &Value) -> BTreeMap<String, u16> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    ports
        .filter_map(|p| Some((p["name"].as_str()?.to_owned(), small(&p["containerPort"])?)))
        .collect()
}

fn container(c: &Value, spec: &Value, facts: &Facts) -> Container {
    let env: Vec<(String, String)> = c["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|e| variable(e, facts))
        .collect();
    let words = |v: &Value| -> Vec<String> {
        v.as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|w| expand(w, &env))
            .collect()
    };
    let (command, args) = (words(&c["command"]), words(&c["args"]));
    let image = c["image"].as_str().unwrap_or_default();
    let sample = || {
        let words = program_for_image(image)?;
        Some([vec![facts.samples.display().to_string()], words].concat())
    };
    let waypoint = || is_waypoint(image).then(|| waypoint::program(&facts.samples));
    let own = facts.images.program(image).or_else(waypoint);
    let is_sample = own.is_none() && command.is_empty() && sample().is_some();
    let stand_in = own.or_else(sample);
    let (program, note) = match (command.first(), stand_in) {
        (Some(name), _) if find_program(name).is_some() => {
            (Some([command.clone(), args].concat()), None)
        }
        (Some(name), _) => (
            None,
            Some(format!(
                "container {}: this machine has no program `{name}`; it idles",
                c["name"]
            )),
        ),
        (None, Some(stand_in)) => (Some([stand_in, args].concat()), None),
        (None, None) => (None, None),
    };
    let context = |field: &str| {
        let own = &c["securityContext"][field];
        let value = if own.is_null() {
            &spec["securityContext"][field]
        } else {
            own
        };
        value.as_u64().and_then(|n| u32::try_from(n).ok())
    };
    let ports = c["ports"].as_array().into_iter().flatten();
    let sample_ports = ports
        .filter(|p| is_sample && p["protocol"].as_str().is_none_or(|p| p == "TCP"))
        .filter_map(|p| small(&p["containerPort"]))
        .collect();
    Container {
        name: c["name"].as_str().unwrap_or("main").to_owned(),
        program,
        note,
        waypoint: is_waypoint(image) && command.is_empty(),
        env,
        dir: c["workingDir"].as_str().map(PathBuf::from),
        user: (context("runAsUser"), context("runAsGroup")),
        sample_ports,
        readiness: check(&c["readinessProbe"], c),
        liveness: check(&c["livenessProbe"], c),
    }
}

fn check(probe: &Value, container: &Value) -> Option<Check> {
    let port = |way: &str| port_of(&probe[way]["port"], container);
    let action = if let Some(port) = port("httpGet") {
        let headers = probe["httpGet"]["httpHeaders"]
            .as_array()
            .into_iter()
            .flatten();
        let host = headers
            .filter(|h| h["name"] == "Host")
            .find_map(|h| h["value"].as_str())
            .map(str::to_owned);
        Action::Http(
            port,
            probe["httpGet"]["path"].as_str().unwrap_or("/").to_owned(),
            host,
        )
    } else if let Some(port) = port("tcpSocket").or_else(|| port("grpc")) {
        Action::Tcp(port)
    } else {
        Action::Exec(
            probe["exec"]["command"]
                .as_array()?
                .iter()
                .filter_map(|w| w.as_str().map(str::to_owned))
                .collect(),
        )
    };
    let seconds =
        |field: &str, default: u64| Duration::from_secs(probe[field].as_u64().unwrap_or(default));
    Some(Check {
        action,
        delay: seconds("initialDelaySeconds", 0),
        period: seconds("periodSeconds", 10),
        timeout: seconds("timeoutSeconds", 1),
        failures: probe["failureThreshold"].as_u64().unwrap_or(3),
    })
}

fn port_of(port: &Value, container: &Value) -> Option<u16> {
    let named = |name: &str| {
        let ports = container["ports"].as_array().into_iter().flatten();
        ports
            .filter(|p| p["name"] == name)
            .find_map(|p| small(&p["containerPort"]))
    };
    small(port).or_else(|| {
        port.as_str()
            .and_then(|n| named(n).or_else(|| n.parse().ok()))
    })
}

fn small(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok())
}

fn variable(entry: &Value, facts: &Facts) -> Option<(String, String)> {
    let name = entry["name"].as_str()?.to_owned();
    if let Some(path) = entry["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
        return Some((name, facts.fields.get(path).cloned().unwrap_or_default()));
    }
    let value = &entry["value"];
    Some((
        name,
        value.as_str().map_or_else(
            || {
                if value.is_null() {
                    String::new()
                } else {
                    value.to_string()
                }
            },
            str::to_owned,
        ),
    ))
}

/// Replaces `$(NAME)` by the variable's value, as kubelet does; an unknown name stays as it is.
fn expand(word: &str, env: &[(String, String)]) -> String {
    env.iter().fold(word.to_owned(), |w, (name, value)| {
        w.replace(&format!("$({name})"), value)
    })
}

pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let is_file = |p: &Path| p.is_file();
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|p| is_file(p));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| is_file(p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts() -> Facts {
        Facts {
            fields: BTreeMap::from([("metadata.name".to_owned(), "p-1".to_owned())]),
            samples: "/bin/warren-sample".into(),
            images: Images::default(),
        }
    }

    fn only(container: Value) -> Container {
        containers(&json!({"spec": {"containers": [container]}}), &facts())
            .1
            .remove(0)
    }

    #[test]
    fn images_commands_and_idle_pods() {
        let sample = only(
            json!({"name": "c", "image": "docker.io/istio/examples-bookinfo-details-v1:1.20", "ports": [{"containerPort": 9080}]}),
        );
        assert_eq!(
            sample.program.expect("known"),
            ["/bin/warren-sample", "details"]
        );
        assert_eq!(sample.sample_ports, [9080]);
        assert!(
            only(json!({"name": "c", "image": "whatever"}))
                .program
                .is_none()
        );
        let own = only(
            json!({"name": "c", "image": "x", "command": ["sh", "-c", "echo $(ME) $(NOBODY)"], "env": [{"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
        );
        assert_eq!(
            own.program.expect("sh is everywhere")[2],
            "echo p-1 $(NOBODY)"
        );
        assert!(
            only(json!({"name": "c", "image": "x", "command": ["/no/such/program"]}))
                .note
                .expect("said why")
                .contains("/no/such/program")
        );
    }

    #[test]
    fn probes_by_number_and_name() {
        let c = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}], "readinessProbe": {"httpGet": {"path": "/ok", "port": "web"}, "periodSeconds": 2}, "livenessProbe": {"tcpSocket": {"port": 9}}});
        let pod = json!({"spec": {"containers": [c]}});
        assert_eq!(probe_ports(&pod), [9, 8080]);
        let read = only(c);
        assert!(
            matches!(read.readiness.expect("a probe"), Check { action: Action::Http(8080, path, None), period, .. } if path == "/ok" && period == Duration::from_secs(2))
        );
    }
}
