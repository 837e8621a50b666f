//! What decides about a request: which rule takes it, where it goes, and what could fail it there.
//!
//! Invariants: rules are asked by the very function that a waypoint asks; what cannot be a request is said, never
//! taken for another one.

use std::{fmt::Write, net::SocketAddr, sync::Arc};

use anyhow::{Context, bail};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use mesh_model::{
    explain::{Client, Onward, onward},
    mesh::{AppProtocol, Mesh, Service},
    resilience::TrafficPolicy,
    route::http::{Action, Asked, Explanation, Found, explain, path},
};
use serde::Serialize;

/// Which request to explain, and what to say of the answer that it got.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Request {
    /// A request to the service, such as "GET /cart?id=1".
    #[arg(long, value_name = "METHOD PATH")]
    pub(super) request: Option<String>,
    /// Headers of the request, such as "end-user: jason".
    #[arg(long, value_name = "NAME: VALUE", requires = "request")]
    pub(super) header: Vec<String>,
    /// Response flags of an access log's line, such as UO or URX,UF.
    #[arg(long, value_name = "FLAGS", value_delimiter = ',')]
    pub(super) flags: Vec<String>,
}

/// What decides about a request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Decided {
    /// The request, in the form in which rules see it.
    request: String,
    /// What rules say of it.
    rules: Explanation,
    /// Whether it is answered by a backend, or by a rule that was made for it.
    pub(super) answered: bool,
    /// What bounds it, and what could fail it where it goes.
    bounds: Vec<String>,
    /// What the endpoints say of it, for each backend.
    onward: Vec<Onward>,
}

/// What the flags of a line mean.
pub(super) fn meanings(request: &Request) -> Vec<String> {
    let flags = request.flags.iter().map(|flag| flag.trim());
    let known = flags.map(|flag| {
        let known = MEANINGS.iter().find(|(name, _)| *name == flag);
        let meaning = known.map_or("is no flag that waypoints use", |(_, meaning)| meaning);
        format!("{flag}: {meaning}")
    });
    known.collect()
}

/// As waypoints use them (CONTRACTS.md, "Access log").
const MEANINGS: [(&str, &str); 13] = [
    (
        "-",
        "nothing was wrong on the way: the status is the application's own",
    ),
    (
        "NR",
        "404: no rule for the service matches the request; a route without a rule that takes everything refuses the rest",
    ),
    (
        "NC",
        "500: the rule leads to nothing that exists, or could not be understood; the object's status says why",
    ),
    (
        "UH",
        "503: no endpoint can take it: there is none in the subset, or all are left out by outlierDetection",
    ),
    (
        "UO",
        "503: a bound of the destination was reached: connectionPool or the number of retries at a time",
    ),
    (
        "UF",
        "503: an endpoint could not be connected to, or its TLS failed",
    ),
    (
        "UC",
        "503: the connection ended before the answer began: the application closed or crashed",
    ),
    ("UR", "503: the application refused the stream of HTTP/2"),
    (
        "UT",
        "504: the answer took longer than timeout or perTryTimeout",
    ),
    (
        "URX",
        "the last of the tries that retries allows failed as well; the flag beside it says how",
    ),
    ("DC", "the client went away before the answer was complete"),
    ("DI", "a fault of the rule delayed it on purpose"),
    ("FI", "a fault of the rule aborted it on purpose"),
];

/// Asks the rules of what was dialed.
pub(super) fn decide(
    mesh: &Mesh,
    client: Client<'_>,
    dialed: SocketAddr,
    request: &Request,
) -> anyhow::Result<Option<Decided>> {
    let Some(text) = &request.request else {
        return Ok(None);
    };
    let (source, enrolled) = (client.workload, client.enrolled);
    let found = mesh.service_at(&source.network, dialed.ip());
    let service = found.with_context(|| {
        format!("{dialed} is no service: requests are routed for services only, others go to the pod itself")
    })?;
    let (method, target) = match text.trim().split_once(char::is_whitespace) {
        Some((method, target)) => (method, target.trim()),
        None => ("GET", text.trim()),
    };
    let (raw, query) = match target.split_once('?') {
        Some((raw, query)) => (raw, Some(query)),
        None => (target, None),
    };
    let path = path::normalise(raw).with_context(|| format!("{raw:?} would be answered 400"))?;
    let (headers, authority) = headers(&request.header, service, dialed.port())?;
    // Of whoever proved nothing, rules know nothing.
    let extra = mesh.extra(&source.uid).filter(|_| enrolled);
    let asked = Asked {
        namespace: enrolled.then_some(&source.namespace),
        groups: extra.map_or(&[], |extra| &*extra.groups),
        port: dialed.port(),
        method,
        scheme: "http",
        authority: &authority,
        path: &path,
        query,
        headers: &headers,
    };
    let rules = explain(mesh, &service.name, &asked);
    let mut found = Finding {
        mesh,
        client,
        service,
        bounds: Vec::new(),
        onward: Vec::new(),
    };
    if service.waypoint.is_none() {
        found.bounds.push("the service has no waypoint: no rule is looked at, and the connection goes to an endpoint".to_owned());
    }
    let declared = service.ports.iter().find(|p| p.port == dialed.port());
    if let Some(AppProtocol::Tcp | AppProtocol::Tls) = declared.map(|p| p.protocol) {
        found
            .bounds
            .push("the port declares no HTTP: nothing is looked at as a request".to_owned());
    }
    let answered = found.answers(&asked, &rules);
    let Finding { bounds, onward, .. } = found;
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    Ok(Some(Decided {
        request: format!("{method} {path}{query} for {authority}"),
        rules,
        answered,
        bounds,
        onward,
    }))
}

/// Headers, and the authority among them or what a client would write.
fn headers(given: &[String], service: &Service, port: u16) -> anyhow::Result<(HeaderMap, String)> {
    let mut headers = HeaderMap::new();
    let mut authority = format!("{}:{port}", service.short);
    for text in given {
        let (name, value) = text
            .split_once(':')
            .with_context(|| format!("{text:?} is no header: write \"NAME: VALUE\""))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("host") {
            value.clone_into(&mut authority);
            continue;
        }
        let name: HeaderName = name.trim().parse().with_context(|| format!("{name:?}"))?;
        let value: HeaderValue = value.parse().with_context(|| format!("{value:?}"))?;
        headers.append(name, value);
    }
    if authority.is_empty() {
        bail!("a request needs a host");
    }
    Ok((headers, authority))
}

/// What is found out about where a request goes.
struct Finding<'a> {
    mesh: &'a Mesh,
    client: Client<'a>,
    /// What was asked for.
    service: &'a Arc<Service>,
    bounds: Vec<String>,
    onward: Vec<Onward>,
}

impl Finding<'_> {
    /// Whether some endpoint of a backend may answer, and what bounds it there.
    fn reaches(&mut self, to: &Service, port: u16, subset: Option<&str>) -> bool {
        let Self {
            mesh,
            client,
            service,
            ..
        } = *self;
        let endpoints = mesh.endpoints(&to.name).len();
        if endpoints == 0 {
            self.bounds
                .push(format!("{} has no endpoints: 503, UH", to.name));
        }
        let destination = mesh.destination(&to.name);
        if let Some(policy) = destination.and_then(|d| d.policy(subset, port)) {
            limits(&to.name.to_string(), policy, &mut self.bounds);
        }
        // Without a waypoint the connection's own explanation says what endpoints say.
        if endpoints == 0 || service.waypoint.is_none() {
            return endpoints > 0;
        }
        let onward = onward(mesh, client, service, to, port, subset);
        let open = onward.is_open();
        self.onward.push(onward);
        open
    }

    /// Whether somebody answers it well, and what bounds it on its way.
    fn answers(&mut self, asked: &Asked<'_>, rules: &Explanation) -> bool {
        let (mesh, service) = (self.mesh, self.service);
        let found = mesh.routes(&service.name).map(|routes| routes.find(asked));
        let rule = match found {
            None | Some(Found::Unrouted) => return self.reaches(service, asked.port, None),
            Some(Found::NoRule | Found::Refused(_)) => return false,
            Some(Found::Rule { rule, .. }) => rule,
        };
        let answered = match &rule.action {
            Action::Redirect(_) | Action::Respond(_) => true,
            Action::Invalid(_) => false,
            Action::Forward(backends) => {
                let known = backends.iter().filter(|b| b.weight > 0);
                let mut all = known.map(|b| match mesh.service(&b.service) {
                    Some(to) => self.reaches(to, b.port.unwrap_or(asked.port), b.subset.as_deref()),
                    None => false,
                });
                let any = all.next().unwrap_or(false);
                all.fold(any, |any, one| any || one)
                    && rules
                        .backends
                        .iter()
                        .any(|b| b.fails.is_none() && b.weight.0 > 0)
            }
        };
        if let Some(timeout) = rule.timeout {
            self.bounds.push(format!(
                "the whole request may take {timeout:?}, then 504, UT"
            ));
        }
        if let Some(retries) = rule.retries.as_ref().filter(|r| r.attempts > 0) {
            let each = retries.per_try_timeout;
            let each = each.map_or_else(String::new, |t| format!(", {t:?} each"));
            self.bounds
                .push(format!("{} more tries{each}", retries.attempts));
        }
        if let Some(fault) = &rule.fault {
            for (what, share) in [
                ("delayed", fault.delay.as_ref().map(|(share, _)| share)),
                ("aborted", fault.abort.as_ref().map(|(share, _)| share)),
            ] {
                let percent = share.map(|share| f64::from(share.parts()) / 10_000.0);
                self.bounds.extend(
                    percent.map(|p| format!("{p} % of such requests are {what} on purpose")),
                );
            }
        }
        answered
    }
}

/// What a destination's policy bounds.
fn limits(service: &str, policy: &TrafficPolicy, bounds: &mut Vec<String>) {
    let pool = &policy.pool;
    for (what, most) in [
        ("connections", pool.max_connections),
        ("requests that wait for a connection", pool.max_pending),
        ("requests at a time", pool.max_requests),
        ("retries at a time", pool.max_retries),
    ] {
        bounds.extend(most.map(|most| {
            format!("{service}: at most {most} {what} of each waypoint, then 503, UO")
        }));
    }
    if let Some(outlier) = &policy.outlier {
        bounds.push(format!(
            "{service}: an endpoint is left out for {:?} after {} answers of 5xx in a row, at most {} % of them",
            outlier.base_ejection, outlier.consecutive_5xx, outlier.max_ejected
        ));
    }
}

impl Decided {
    /// As text, below what is said of the connection.
    pub(super) fn write(&self, text: &mut String) {
        let _ = writeln!(text, "request {}", self.request);
        text.push_str(&self.rules.to_string());
        for bound in &self.bounds {
            let _ = writeln!(text, "   {bound}");
        }
        for onward in &self.onward {
            let _ = write!(text, "{onward}");
        }
    }
}
