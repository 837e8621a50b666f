//! `mesh-ctl why`: what decides about a connection, asked of the functions that decide.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use mesh_k8s::ObjectRef;
use mesh_model::{
    explain::{self, Client, Explanation},
    mesh::{Enrolment, Mesh, Service, Workload},
    name::NetworkId,
};
use mesh_translate::{Severity, Status};
use serde::Serialize;

mod request;

use super::Form;
use crate::{
    status::{line_of, object_of},
    view::View,
    watch::read_folder,
};

/// Nothing can be said about the connection: a name is not known, or the manifests cannot be read.
const NO_ANSWER: u8 = 2;

/// Which connection to explain.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 when the connection passes, 1 when it is refused, 2 when the question has no answer."
)]
pub struct Args {
    /// Who dials: a pod as NAMESPACE/NAME, or its address.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// What is dialed, with a port where there are several: a service as NAMESPACE/NAME or host name, a pod as
    /// pod/NAMESPACE/NAME, or an address.
    #[arg(value_name = "DEST[:PORT]")]
    destination: String,
    /// The folder of manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    #[command(flatten)]
    request: request::Request,
    /// How to show the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// Whether a connection gets through.
    passes: bool,
    /// What holds besides, one line each.
    notes: Vec<String>,
    /// One explanation for each address that was meant.
    explanations: Vec<Explanation>,
    /// What decides about the request, once for each address.
    requests: Vec<request::Decided>,
    /// Where the policies that have a say were read.
    places: BTreeMap<String, String>,
}

/// Runs the command; it fails when no way leads to the destination.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        source,
        destination,
        manifests,
        request,
        output,
    } = args;
    let answer = match ask(&manifests, &source, &destination, &request) {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(NO_ANSWER));
        }
    };
    print!("{}", answer.render(output)?);
    Ok(ExitCode::from(answer.code()))
}

fn ask(
    manifests: &Path,
    source: &str,
    destination: &str,
    request: &request::Request,
) -> anyhow::Result<Answer> {
    let mut view = View::default();
    view.apply(read_folder(manifests)?);
    let refresh = view.refresh().unwrap_or_default();
    let (mesh, _) = Mesh::empty().apply(refresh.changes);
    let source = workload(&mesh, source)?;
    let dialed = destinations(&mesh, &source, destination)?;
    let enrolled = mesh
        .extra(&source.uid)
        .is_some_and(|extra| extra.enrolment == Enrolment::Enrolled);
    let explain = match enrolled {
        true => explain::connection,
        false => explain::outsider,
    };
    let explanations: Vec<Explanation> = dialed
        .iter()
        .map(|dialed| explain(&mesh, &source, *dialed))
        .collect();
    let mut notes = request::meanings(request);
    let mut requests = Vec::new();
    for (dialed, explanation) in dialed.into_iter().zip(&explanations) {
        // A waypoint is asked for the service, whatever was dialed.
        let handed = explanation.ways.iter().find_map(|w| w.handed.as_ref());
        if handed.is_none() && !enrolled && request.request.is_some() {
            notes.push(format!(
                "requests to {dialed} go to an endpoint and through no waypoint: no rule is looked at"
            ));
            continue;
        }
        let asked = handed.map_or(dialed, |handed| handed.asked);
        let client = Client {
            workload: &source,
            enrolled,
        };
        requests.extend(request::decide(&mesh, client, asked, request)?);
    }
    let statuses: BTreeMap<ObjectRef, Status> = refresh
        .statuses
        .into_iter()
        .filter_map(|(object, status)| Some((object, status?)))
        .collect();
    if !enrolled {
        notes.push(format!(
            "{} is not enrolled: it dials by itself, in plain text and without an identity",
            source.uid
        ));
    }
    let mut places = BTreeMap::new();
    for name in policies(&explanations) {
        let status = statuses.get(&object_of(&format!("policy/{name}")));
        if let Some(status) = status {
            places.insert(name.to_owned(), status.origin.to_string());
            notes.extend(concerns(status));
        }
    }
    let passes = explanations
        .iter()
        .any(|explanation| explanation.ways.iter().any(passes))
        && (requests.is_empty() || requests.iter().any(|r| r.answered));
    Ok(Answer {
        passes,
        notes,
        explanations,
        requests,
        places,
    })
}

/// The names of all policies that have a say, each once.
fn policies(explanations: &[Explanation]) -> Vec<&str> {
    let mut names: Vec<&str> = explanations
        .iter()
        .flat_map(|explanation| &explanation.ways)
        .flat_map(|way| &way.policies)
        .map(|policy| policy.name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What is wrong with an object that has a say.
fn concerns(status: &Status) -> impl Iterator<Item = String> {
    let grave = status
        .messages
        .iter()
        .filter(|message| message.severity > Severity::Info);
    grave.map(|message| {
        format!(
            "{}: {}: {}: {}",
            line_of(status, message),
            status.object,
            message.field,
            message.text
        )
    })
}

impl Answer {
    fn code(&self) -> u8 {
        u8::from(!self.passes)
    }

    fn render(&self, form: Form) -> anyhow::Result<String> {
        Ok(match form {
            Form::Json => serde_json::to_string_pretty(self)? + "\n",
            Form::Yaml => serde_saphyr::to_string(self)?,
            Form::Table => self.table(),
        })
    }

    /// The verdict first, then how it came about.
    fn table(&self) -> String {
        let ways = self.explanations.iter().flat_map(|e| &e.ways);
        let (all, open) = ways.fold((0, 0), |(all, open), way| {
            (all + 1, open + usize::from(passes(way)))
        });
        let mut text = match (self.passes, all == open) {
            (true, true) => "PASSES\n".to_owned(),
            (true, false) => format!("PASSES on {open} of {all} ways\n"),
            (false, _) => "REFUSED\n".to_owned(),
        };
        for explanation in &self.explanations {
            text.push_str(&explanation.to_string());
        }
        self.requests.iter().for_each(|r| r.write(&mut text));
        for (policy, place) in &self.places {
            let _ = writeln!(text, "where: {policy} is at {place}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

fn passes(way: &explain::Way) -> bool {
    way.decision
        .as_ref()
        .is_none_or(|decision| decision.allowed)
}

fn workload(mesh: &Mesh, name: &str) -> anyhow::Result<Arc<Workload>> {
    let ip = name.parse::<IpAddr>().ok();
    let name = name.strip_prefix("pod/").unwrap_or(name);
    let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
    let is_meant = |workload: &&Arc<Workload>| match ip {
        Some(ip) => !workload.host_network && workload.addresses.contains(&ip),
        None => workload.namespace.as_str() == namespace && &*workload.name == short,
    };
    let mut found: Vec<_> = mesh.workloads().filter(is_meant).collect();
    found.sort_by(|a, b| a.uid.cmp(&b.uid));
    let first = found.first().with_context(|| {
        let alike = mesh
            .workloads()
            .filter(|workload| *workload.name == *short)
            .map(|workload| format!("{}/{}", workload.namespace, workload.name));
        format!(
            "no workload {name} is known; name it as NAMESPACE/NAME or by address{}",
            did_you_mean(alike.collect())
        )
    })?;
    Ok(Arc::clone(first))
}

/// The addresses that a destination means: those of a service, or of its endpoints when it has none.
fn destinations(mesh: &Mesh, source: &Workload, text: &str) -> anyhow::Result<Vec<SocketAddr>> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        bail!("{ip} needs a port: write {}", SocketAddr::new(ip, 80));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (
            name,
            Some(
                port.parse::<u16>()
                    .with_context(|| format!("{port:?} is not a port"))?,
            ),
        ),
        None => (text, None),
    };
    if let Some(pod) = name.strip_prefix("pod/") {
        let workload = workload(mesh, pod)?;
        let port = port.with_context(|| format!("a pod needs a port: write {name}:80"))?;
        return Ok(workload
            .addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .collect());
    }
    let service = service(mesh, source, name)?;
    let ports: Vec<u16> = service.ports.iter().map(|port| port.port).collect();
    let port = match (port, ports.as_slice()) {
        (Some(port), _) => port,
        (None, [only]) => *only,
        (None, ports) => bail!(
            "{} has ports {ports:?}: add one, as in {name}:{}",
            service.name,
            ports.first().unwrap_or(&80)
        ),
    };
    let vips = service
        .vips
        .iter()
        .filter(|vip| vip.network == source.network || vip.network == NetworkId::from(""));
    let vips: Vec<_> = vips.map(|vip| SocketAddr::new(vip.ip, port)).collect();
    if !vips.is_empty() {
        return Ok(vips);
    }
    let endpoints = mesh.endpoints(&service.name);
    let own = |workload: &Arc<Workload>| {
        let member = workload
            .services
            .iter()
            .find(|member| member.service == service.name);
        let target = member
            .and_then(|member| member.ports.iter().find(|(from, _)| *from == port))
            .map_or(port, |(_, to)| *to);
        workload
            .addresses
            .first()
            .map(|ip| SocketAddr::new(*ip, target))
    };
    let found: Vec<_> = endpoints.iter().filter_map(own).collect();
    if found.is_empty() {
        bail!(
            "{} has neither an address of its own nor endpoints",
            service.name
        );
    }
    Ok(found)
}

/// A service by host name, `NAMESPACE/NAME`, `NAME.NAMESPACE` or a name in the source's own namespace.
fn service(mesh: &Mesh, source: &Workload, name: &str) -> anyhow::Result<Arc<Service>> {
    let rank = |service: &Service| {
        let (namespace, host) = (
            service.name.namespace.as_str(),
            service.name.hostname.as_str(),
        );
        let short = &*service.short;
        if host == name.trim_end_matches('.') {
            return Some(0);
        }
        if name.split_once('/') == Some((namespace, short))
            || name.split_once('.') == Some((short, namespace))
        {
            return Some(1);
        }
        (short == name && namespace == source.namespace.as_str()).then_some(2)
    };
    let found = mesh
        .services()
        .filter_map(|service| Some((rank(service)?, service)));
    let best = found.min_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.name.cmp(&y.name)));
    best.map(|(_, service)| Arc::clone(service))
        .with_context(|| {
            let wanted = name.rsplit('/').next().unwrap_or(name);
            let wanted = wanted.split('.').next().unwrap_or(wanted);
            let alike = mesh
                .services()
                .filter(|service| *service.short == *wanted)
                .map(|service| format!("{}/{}", service.name.namespace, service.short));
            format!(
                "no service {name} is known; pods are named pod/NAMESPACE/NAME{}",
                did_you_mean(alike.collect())
            )
        })
}

fn did_you_mean(mut alike: Vec<String>) -> String {
    alike.sort_unstable();
    alike.dedup();
    match alike.as_slice() {
        [] => String::new(),
        alike => format!("; did you mean {}?", alike.join(" or ")),
    }
}

#[cfg(test)]
mod tests;
