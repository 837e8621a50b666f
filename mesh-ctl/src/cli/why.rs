//! `mesh-ctl why`: what decides about a connection, asked of the functions that decide.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use mesh_model::{
    explain::{self, Explanation},
    mesh::{Enrolment, Mesh, Service, Workload},
    name::NetworkId,
};

use crate::{view::View, watch::read_folder};

/// Which connection to explain.
#[derive(clap::Args)]
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
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command; it fails when no way leads to the destination.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        source,
        destination,
        manifests,
        json,
    } = args;
    let mut view = View::default();
    view.apply(read_folder(&manifests)?);
    let changes = view
        .refresh()
        .map(|refresh| refresh.changes)
        .unwrap_or_default();
    let (mesh, _) = Mesh::empty().apply(changes);
    let source = workload(&mesh, &source)?;
    let dialed = destinations(&mesh, &source, &destination)?;
    let explained: Vec<Explanation> = dialed
        .into_iter()
        .map(|dialed| explain::connection(&mesh, &source, dialed))
        .collect();
    let enrolled = mesh
        .extra(&source.uid)
        .is_some_and(|extra| extra.enrolment == Enrolment::Enrolled);
    if !enrolled {
        eprintln!(
            "note: {} is not enrolled: it dials by itself, in plain text and without an identity; \
             what follows holds once it is enrolled",
            source.uid
        );
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&explained)?);
    } else {
        explained
            .iter()
            .for_each(|explanation| print!("{explanation}"));
    }
    let passes = explained
        .iter()
        .any(|explanation| explanation.ways.iter().any(passes));
    Ok(if passes {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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
        format!("no workload {name} is known; name it as NAMESPACE/NAME or by address")
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
        .with_context(|| format!("no service {name} is known; pods are named pod/NAMESPACE/NAME"))
}
