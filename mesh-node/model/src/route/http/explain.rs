//! Which rule decides about a request, and why the rules before it did not, for `why` and `analyze`.
//!
//! Invariant: an explanation asks the very functions that decide; it decides nothing by itself.

use std::fmt;

use serde::Serialize;

use super::{
    Action, Asked, Backend, Found, Match, PathMatch, RouteSet, Routes, Rule, Text, find::Condition,
};
use crate::{explain::Why, mesh::Mesh, name::ServiceName, reason::Reason};

/// Why a request goes where it goes.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The service that was asked.
    pub service: String,
    /// `rule`, `no rule`, `unrouted` or `refused`.
    pub outcome: &'static str,
    /// Why it is refused.
    pub refused: Option<Why>,
    /// Features that are needed and not known.
    pub unknown: Vec<String>,
    /// Sets that do not speak of this client and port, and why.
    pub passed_over: Vec<String>,
    /// The rules that were tried, in order, up to the one that decides.
    pub tried: Vec<Tried>,
    /// What the rule that decides does.
    pub action: Option<String>,
    /// The path and query that it sends on, where they change.
    pub target: Option<String>,
    /// The backends that it draws from.
    pub backends: Vec<Choice>,
}

/// A rule that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// Its name.
    pub rule: String,
    /// Whether it decides.
    pub decides: bool,
    /// Why each of its matches does not hold.
    pub why_not: Vec<String>,
}

/// A backend of the rule that decides.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// The service.
    pub service: String,
    /// The port.
    pub port: u16,
    /// The subset.
    pub subset: Option<String>,
    /// Its weight, and the sum of all.
    pub weight: (u32, u64),
    /// Why its share of the requests fails.
    pub fails: Option<String>,
}

/// Explains a request to a service.
pub fn explain(mesh: &Mesh, service: &ServiceName, asked: &Asked<'_>) -> Explanation {
    let mut out = Explanation {
        service: service.to_string(),
        outcome: "unrouted",
        refused: None,
        unknown: Vec::new(),
        passed_over: Vec::new(),
        tried: Vec::new(),
        action: None,
        target: None,
        backends: Vec::new(),
    };
    let Some(routes) = mesh.routes(service) else {
        return out;
    };
    let found = routes.find(asked);
    if !matches!(found, Found::Refused(_)) {
        out.look(routes, asked);
    }
    match found {
        Found::Unrouted => {}
        Found::NoRule => out.outcome = "no rule",
        Found::Refused(reason) => {
            out.outcome = "refused";
            out.refused = Some(reason.into());
            let unknown = |f: &&std::sync::Arc<str>| !crate::mesh::knows_features(&[(*f).clone()]);
            let unknown = routes.features.iter().filter(unknown);
            out.unknown = unknown.map(ToString::to_string).collect();
        }
        Found::Rule { rule, covered } => {
            out.outcome = "rule";
            out.decided(mesh, rule, asked, covered);
        }
    }
    out
}

impl Explanation {
    /// Sets and rules in the order of looking.
    fn look(&mut self, routes: &Routes, asked: &Asked<'_>) {
        for set in routes.sets.iter().filter(|s| s.is_for_requests()) {
            if !set.speaks_of(asked) {
                self.passed_over.push(not_spoken_of(set, asked));
                continue;
            }
            for rule in &set.rules {
                let decides = rule.covers(asked).is_some();
                let why = |m: &Match| m.check(asked).err().map(|c| why_not(m, c, asked));
                self.tried.push(Tried {
                    rule: rule.name.to_string(),
                    decides,
                    why_not: match decides {
                        true => Vec::new(),
                        false => rule.matches.iter().filter_map(why).collect(),
                    },
                });
                if decides {
                    return;
                }
            }
            return;
        }
    }

    fn decided(&mut self, mesh: &Mesh, rule: &Rule, asked: &Asked<'_>, covered: usize) {
        self.action = Some(match &rule.action {
            Action::Forward(backends) if backends.iter().all(|b| b.weight == 0) => {
                "answers 500: no backend has any weight".to_owned()
            }
            Action::Forward(_) => "forwards".to_owned(),
            Action::Redirect(to) => format!(
                "redirects with {} to {}",
                to.status,
                to.location(asked, covered)
            ),
            Action::Respond(with) => format!("answers {}", with.status),
            Action::Invalid(why) => format!("answers 500, because it is invalid: {why}"),
        });
        if let Action::Forward(backends) = &rule.action {
            let rewrite = rule.filters.rewrite.as_ref();
            self.target = rewrite.and_then(|r| r.target(asked.path, asked.query, covered));
            let sum = backends.iter().map(|b| u64::from(b.weight)).sum();
            self.backends = backends
                .iter()
                .map(|b| Choice {
                    service: b.service.to_string(),
                    port: b.port.unwrap_or(asked.port),
                    subset: b.subset.as_deref().map(str::to_owned),
                    weight: (b.weight, sum),
                    fails: fails(mesh, b, asked.port),
                })
                .collect();
        }
    }
}

/// Why requests that are drawn for a backend fail, as far as can be seen from anywhere.
fn fails(mesh: &Mesh, backend: &Backend, port: u16) -> Option<String> {
    if let Some(why) = &backend.invalid {
        return Some(why.to_string());
    }
    let Some(service) = mesh.service(&backend.service) else {
        return Some("the service does not exist".to_owned());
    };
    let port = backend.port.unwrap_or(port);
    if !service.ports.iter().any(|p| p.port == port) {
        return Some(Reason::NoSuchPort.shown().text.to_owned());
    }
    let destination = mesh.destination(&backend.service);
    if destination.is_some_and(|d| !crate::mesh::knows_features(&d.features)) {
        return Some(Reason::RouteInvalid.shown().text.to_owned());
    }
    let subset = backend.subset.as_deref()?;
    let known = destination.is_some_and(|d| d.subsets.iter().any(|s| *s.name == *subset));
    (!known).then(|| format!("no destination rule defines the subset {subset}"))
}

fn not_spoken_of(set: &RouteSet, asked: &Asked<'_>) -> String {
    match &set.clients {
        Some(clients) if asked.namespace != Some(clients) => {
            format!("rules for clients of namespace {clients} only")
        }
        Some(_) | None => {
            let ports: Vec<String> = set.ports.iter().map(ToString::to_string).collect();
            format!("rules for port {} only", ports.join(", "))
        }
    }
}

/// One line: what is, and what would have to be.
fn why_not(m: &Match, condition: Condition<'_>, asked: &Asked<'_>) -> String {
    let want = |t: &Option<Text>| t.as_ref().map(wanted).unwrap_or_default();
    match condition {
        Condition::Port => format!("port is {}, not {}", asked.port, m.port.unwrap_or_default()),
        Condition::SourceNamespace => {
            let is = asked.namespace.map_or("unknown", |n| n.as_str());
            let wanted = m.source_namespace.as_ref().map_or("", |n| n.as_str());
            format!("the client's namespace is {is}, not {wanted}")
        }
        Condition::Source => {
            let wanted = m.source.as_ref().map_or("", |s| &s.0);
            format!("the client's labels are not {wanted}")
        }
        Condition::Method => format!("method {:?} {}", asked.method, want(&m.method)),
        Condition::Scheme => format!("scheme {:?} {}", asked.scheme, want(&m.scheme)),
        Condition::Authority => format!("authority {:?} {}", asked.authority, want(&m.authority)),
        Condition::Path => {
            let wanted = match &m.path {
                Some(PathMatch::Exact(t)) => format!("is not {t:?}"),
                Some(PathMatch::Prefix(t)) => format!("does not begin with {t:?}"),
                Some(PathMatch::Segments(t)) => format!("is not {t:?} or below"),
                Some(PathMatch::Regex(p)) => format!("does not match {:?}", p.as_str()),
                None => String::new(),
            };
            let case = if m.ignore_case {
                ", whatever its case"
            } else {
                ""
            };
            format!("path {:?} {wanted}{case}", asked.path)
        }
        Condition::Header(h) => {
            let name = &h.name;
            match (h.negated, asked.headers.contains_key(name)) {
                (true, _) => format!("header {name} is there, and must not be as it is"),
                (false, true) => format!("header {name} {}", wanted(&h.value)),
                (false, false) => format!("header {name} is not there"),
            }
        }
        Condition::Query(q) => format!("query parameter {} {}", q.name, wanted(&q.value)),
    }
}

fn wanted(text: &Text) -> String {
    match text {
        Text::Exact(t) => format!("is not {t:?}"),
        Text::Prefix(t) => format!("does not begin with {t:?}"),
        Text::Regex(p) => format!("does not match {:?}", p.as_str()),
        Text::Present => "is not there".to_owned(),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for set in &self.passed_over {
            writeln!(f, "passed over: {set}")?;
        }
        for tried in &self.tried {
            match tried.decides {
                true => writeln!(f, "rule {}: decides", tried.rule)?,
                false => writeln!(f, "rule {}: {}", tried.rule, tried.why_not.join("; or "))?,
            }
        }
        match (self.outcome, &self.refused) {
            ("unrouted", _) => writeln!(f, "=> no rules: to {} itself", self.service)?,
            ("no rule", _) => {
                writeln!(f, "=> 404: none of the rules for {} matches", self.service)?
            }
            (_, Some(why)) => {
                writeln!(f, "=> refused: {} ({})", why.text, why.reason)?;
                for feature in &self.unknown {
                    writeln!(f, "   needs: {feature}")?;
                }
            }
            (_, None) => {}
        }
        if let Some(action) = &self.action {
            writeln!(f, "=> {action}")?;
        }
        if let Some(target) = &self.target {
            writeln!(f, "   as {target}")?;
        }
        self.backends.iter().try_for_each(|b| write!(f, "{b}"))
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (weight, sum) = self.weight;
        write!(f, "   {weight} of {sum}: {}:{}", self.service, self.port)?;
        if let Some(subset) = &self.subset {
            write!(f, " subset {subset}")?;
        }
        if let Some(why) = &self.fails {
            write!(f, ", fails: {why}")?;
        }
        writeln!(f)
    }
}
