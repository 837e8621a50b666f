//! The plugin itself: what it answers to each command.
//!
//! Invariants: ADD succeeds for a pod only when the node proxy said that its capture is complete or that it is not
//! to be captured. Without such a word the list of enrolled namespaces decides: pods of one of them fail (unless
//! `failOpen`), others pass. DEL, GC and VERSION never fail. The result of the plugins before us is passed through.

use std::{collections::BTreeSet, fs, fs::File, io, net::IpAddr, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    agent::{self, Pod, PodState, Registration, Reply, Request},
    call::{self, Command, Configuration, PodName},
    failure::{Code, Failure},
    network,
};

/// How long DEL and CHECK wait for an answer: nothing is to be waited for but the node proxy's own work.
const PROMPT: Duration = Duration::from_secs(10);

/// How many pages the list of a node's pods can have; each holds a hundred pods at least.
const PAGES: usize = 100;

/// What the runtime sets in the environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
}

/// What is to be told.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For standard output.
    pub stdout: Option<Value>,
    /// For standard error, which runtimes keep in their logs.
    pub notes: Vec<String>,
    /// Whether it failed.
    pub failed: bool,
}

/// Carries out a call. `interfaces` is [`network::INTERFACES`], except in tests.
pub fn run(environment: &Environment, input: &[u8], interfaces: &Path) -> Outcome {
    let mut notes = Vec::new();
    let done = match environment.command.as_str() {
        "VERSION" => Ok(Some(call::versions(input))),
        "DEL" => {
            if let Err(failure) = del(environment, input) {
                notes.push(format!("DEL went on without the node proxy: {failure}"));
            }
            Ok(None)
        }
        name => match Command::named(name) {
            None => Err(Failure::new(
                Code::Environment,
                "CNI_COMMAND is not a command",
                format!("{name:?} is none of ADD, DEL, CHECK, GC, STATUS and VERSION"),
            )),
            Some(command) => Configuration::read(input, command).and_then(|conf| match command {
                Command::Add => Call::new(environment, &conf, interfaces, &mut notes).add(),
                Command::Check => Call::new(environment, &conf, interfaces, &mut notes).check(),
                // The node proxy finds pods that are gone by itself. And pods that are not enrolled can be
                // added without it, so that its absence must not make the whole node unready.
                Command::Del | Command::Gc | Command::Status => Ok(None),
            }),
        },
    };
    match done {
        Ok(stdout) => Outcome {
            stdout,
            notes,
            failed: false,
        },
        Err(failure) => Outcome {
            stdout: Some(failure.json(&call::version_of(input))),
            notes,
            failed: true,
        },
    }
}

struct Call<'a> {
    environment: &'a Environment,
    conf: &'a Configuration,
    interfaces: &'a Path,
    notes: &'a mut Vec<String>,
}

impl<'a> Call<'a> {
    fn new(
        environment: &'a Environment,
        conf: &'a Configuration,
        interfaces: &'a Path,
        notes: &'a mut Vec<String>,
    ) -> Self {
        Self {
            environment,
            conf,
            interfaces,
            notes,
        }
    }

    fn add(&mut self) -> Result<Option<Value>, Failure> {
        let result = self.previous()?;
        if let Some(pod) = PodName::read(&self.environment.args) {
            let judged = self
                .register(&pod, result)
                .and_then(|reply| settled(&pod, reply.state, reply.reason.as_deref()));
            self.judge(&pod, judged)?;
        }
        Ok(Some(result.clone()))
    }

    fn check(&mut self) -> Result<Option<Value>, Failure> {
        let addresses = network::addresses(self.previous()?);
        if let Some(pod) = PodName::read(&self.environment.args) {
            let judged = self.look(&pod, &addresses);
            self.judge(&pod, judged)?;
        }
        Ok(None)
    }

    /// Registers the pod and waits for what became of it.
    fn register(&self, pod: &PodName, result: &Value) -> Result<Reply, Failure> {
        let uid = pod.uid.as_deref().ok_or_else(|| {
            let text = format!(
                "{}: CNI_ARGS has no K8S_POD_UID: update the container runtime",
                title(pod)
            );
            Failure::new(Code::Environment, "the pod's uid is not known", text)
        })?;
        let path = &self.environment.netns;
        let netns = File::open(path).map_err(|e| {
            let text = format!("{}: opening {path:?} (CNI_NETNS): {e}", title(pod));
            Failure::new(Code::Environment, "the pod's network is not there", text)
        })?;
        let request = Request::Add {
            pod: Registration {
                uid,
                namespace: &pod.namespace,
                name: &pod.name,
                addresses: &network::addresses(result),
                veth_ifindex: network::veth(result, self.interfaces),
            },
            timeout_ms: self.conf.timeout_ms,
        };
        ask(self.conf, &request, Some(&netns), self.conf.patience())
    }

    /// Looks whether the pod is as ADD left it.
    fn look(&self, pod: &PodName, addresses: &BTreeSet<IpAddr>) -> Result<(), Failure> {
        match find(self.conf, pod, addresses)? {
            Some(found) => settled(pod, Some(found.state), found.reason.as_deref()),
            None => Err(Failure::new(
                Code::TryAgain,
                "the pod is not registered",
                format!(
                    "{}: the node proxy does not list it; it has to be made anew",
                    title(pod)
                ),
            )),
        }
    }

    /// Lets a failure count, or pass where the pod is not enrolled or may start without capture.
    fn judge(&mut self, pod: &PodName, judged: Result<(), Failure>) -> Result<(), Failure> {
        let Err(failure) = judged else { return Ok(()) };
        let enrolled = match failure.code {
            // The node proxy says so itself.
            Code::Refused => Ok(true),
            _ => is_enrolled(&self.conf.enrolled, &pod.namespace),
        };
        let why = match enrolled {
            Ok(false) => "its namespace is not enrolled",
            _ if self.conf.fail_open => "failOpen is set, so that it starts WITHOUT its capture",
            Ok(true) => return Err(failure),
            Err(error) => {
                let list = self.conf.enrolled.display();
                let text = format!(
                    "{failure}; and whether its namespace is enrolled cannot be seen: reading {list}: {error}"
                );
                return Err(Failure::new(
                    Code::Io,
                    "the list of enrolled namespaces cannot be read",
                    text,
                ));
            }
        };
        self.notes.push(format!("{failure}; let pass: {why}"));
        Ok(())
    }

    fn previous(&self) -> Result<&'a Value, Failure> {
        self.conf.prev_result.as_ref().ok_or_else(|| {
            let text = "it makes no network of its own and has to come after a plugin that does";
            Failure::new(Code::Configuration, "there is no prevResult", text)
        })
    }
}

/// Tells the node proxy, if it is this sandbox that it knows the pod by: when a pod got a new sandbox, the runtime
/// may delete the old one late, or more than once. Where the result of ADD is not known any more, the node proxy is
/// left to see by itself that the pod is gone.
fn del(environment: &Environment, input: &[u8]) -> Result<(), Failure> {
    let conf = Configuration::read(input, Command::Del)?;
    let (Some(pod), Some(result)) = (PodName::read(&environment.args), &conf.prev_result) else {
        return Ok(());
    };
    let addresses = network::addresses(result);
    match find(&conf, &pod, &addresses)? {
        Some(found) => ask(&conf, &Request::Del { uid: &found.uid }, None, PROMPT).map(|_| ()),
        None => Ok(()),
    }
}

/// The pod, as the node proxy lists it.
fn find(
    conf: &Configuration,
    pod: &PodName,
    addresses: &BTreeSet<IpAddr>,
) -> Result<Option<Pod>, Failure> {
    let mut after = None;
    for _ in 0..PAGES {
        let request = Request::List {
            after: after.take(),
        };
        let page = ask(conf, &request, None, PROMPT)?;
        let found = page.pods.into_iter().find(|p| same(p, pod, addresses));
        match (found, page.next) {
            (Some(found), _) => return Ok(Some(found)),
            (None, None) => return Ok(None),
            (None, next) => after = next,
        }
    }
    Err(Failure::new(
        Code::TryAgain,
        "the node proxy's list has no end",
        format!("{}: it went on after {PAGES} pages", title(pod)),
    ))
}

fn same(listed: &Pod, pod: &PodName, addresses: &BTreeSet<IpAddr>) -> bool {
    Some(listed.uid.as_str()) == pod.uid.as_deref() && listed.addresses == *addresses
}

/// Whether what became of a pod is an end that it can start with.
fn settled(pod: &PodName, state: Option<PodState>, why: Option<&str>) -> Result<(), Failure> {
    let why = why.unwrap_or("no reason was given");
    match state {
        Some(PodState::Captured | PodState::Out) => Ok(()),
        Some(PodState::Refused) => Err(Failure::new(
            Code::Refused,
            "the pod is to be captured and cannot be",
            format!("{}: {why}", title(pod)),
        )),
        Some(PodState::Waiting | PodState::Gone) | None => Err(Failure::new(
            Code::TryAgain,
            "the pod's capture is not complete",
            format!("{}: the node proxy has it as {state:?}: {why}", title(pod)),
        )),
    }
}

fn ask(
    conf: &Configuration,
    request: &Request<'_>,
    netns: Option<&File>,
    patience: Duration,
) -> Result<Reply, Failure> {
    let reply = agent::ask(&conf.socket, request, netns, patience).map_err(|e| {
        let socket = conf.socket.display();
        let text = format!("asking on {socket}: {e}; see that the node proxy runs on this node");
        Failure::new(Code::TryAgain, "the node proxy does not answer", text)
    })?;
    if reply.ok {
        return Ok(reply);
    }
    let text = reply.error.unwrap_or_else(|| "it does not say why".into());
    Err(Failure::new(
        Code::TryAgain,
        "the node proxy could not do it",
        text,
    ))
}

/// A list that was never written names nobody: the node proxy has not had its configuration on this node yet.
fn is_enrolled(list: &Path, namespace: &str) -> io::Result<bool> {
    match fs::read_to_string(list) {
        Ok(text) => Ok(text.lines().any(|line| line.trim() == namespace)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn title(pod: &PodName) -> String {
    format!("pod {}/{}", pod.namespace, pod.name)
}

#[cfg(test)]
mod tests;
