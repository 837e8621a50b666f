//! VirtualService as Istio's reference documents it, and the order of several as this mesh documents it.
//!
//! Source: istio.io/latest/docs/reference/config/networking/virtual-service. Where it says nothing: a client's own
//! namespace's come before those of the service's; of several hosts the most specific counts; several virtual services for one are
//! merged, the oldest first and rules that let everything in last.

use serde_json::Value;

use super::asked::{
    Request, Verdict, Whose, age, expression, header, list, parameter, rule_name, text,
};

const DOMAIN: &str = "svc.cluster.local";

pub fn find(objects: &[Value], q: &Request) -> Verdict {
    of(objects, q, Whose::Client)
        .or_else(|| of(objects, q, Whose::Service))
        .unwrap_or(Verdict::Unrouted)
}

/// What virtual services of one namespace say; `None` when none of them speaks of the request's service to its client.
pub fn of(objects: &[Value], q: &Request, whose: Whose) -> Option<Verdict> {
    let (owner, host) = q.service;
    let mut speaking: Vec<(usize, &Value)> = Vec::new();
    for object in objects.iter().filter(|o| o["kind"] == "VirtualService") {
        let own = text(object, "/metadata/namespace");
        let namespace = q.client.map(|client| client.namespace);
        let asked = match whose {
            Whose::Client => own != owner && namespace == Some(own),
            Whose::Service => own == owner,
        };
        let hosts = list(object, "/spec/hosts").iter();
        let covering = hosts.filter_map(|h| specificity(h.as_str().expect("text"), own, host));
        if asked
            && gateways_have_mesh(list(object, "/spec/gateways"))
            && exported(object, own, namespace)
            && !rules(objects, object).is_empty()
            && let Some(specific) = covering.max()
        {
            speaking.push((specific, object));
        }
    }
    let most = speaking.iter().map(|(specific, _)| *specific).max()?;
    speaking.retain(|(specific, _)| *specific == most);
    speaking.sort_by_key(|(_, object)| age(object));
    let mut all = Vec::new();
    for (_, object) in &speaking {
        all.extend(rules(objects, object));
    }
    if speaking.len() > 1 {
        // Stable: otherwise the order stays.
        all.sort_by_key(Rule::lets_everything_in);
    }
    let found = all.iter().find_map(|rule| Some((rule, rule.covered(q)?)));
    Some(match found {
        Some((rule, covered)) => Verdict::Rule {
            name: rule.name.clone(),
            covered: Some(covered),
            refused: rule.invalid(),
        },
        None => Verdict::NoRule,
    })
}

/// How specific a host is that covers a service's; one without a dot is a service of the writer's namespace.
fn specificity(host: &str, own: &str, service: &str) -> Option<usize> {
    if host == "*" {
        return Some(0);
    }
    if let Some(suffix) = host.strip_prefix('*') {
        return service.ends_with(suffix).then_some(suffix.len());
    }
    let full = match host.contains('.') {
        true => host.to_owned(),
        false => format!("{host}.{own}.{DOMAIN}"),
    };
    (full == service).then_some(usize::MAX)
}

/// "The reserved word `mesh` is used to imply all the sidecars in the mesh. When this field is omitted, the default gateway
/// (`mesh`) will be used."
fn gateways_have_mesh(gateways: &[Value]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
}

/// "A list of namespaces to which this virtual service is exported ... `.` is reserved ... the same namespace that the virtual
/// service is declared in ... `*` ... all namespaces."
fn exported(object: &Value, own: &str, to: Option<&str>) -> bool {
    let list = list(object, "/spec/exportTo");
    let reaches = |entry: &Value| match entry.as_str().expect("text") {
        "*" => true,
        "." => to == Some(own),
        name => to == Some(name),
    };
    list.is_empty() || list.iter().any(reaches)
}

/// A rule, with the conditions of whoever hands over to it.
struct Rule<'v> {
    name: String,
    /// Any of these, each of which is several that have to hold together; the last one's path counts.
    matches: Vec<Vec<&'v Value>>,
    /// Whether something else than its conditions is wrong with it.
    wrong: bool,
}

/// The rules of a virtual service that are for the mesh, those of delegates in their places.
fn rules<'v>(objects: &'v [Value], object: &'v Value) -> Vec<Rule<'v>> {
    let mut all = Vec::new();
    for (i, rule) in list(object, "/spec/http").iter().enumerate() {
        let name = rule_name(object, i, rule);
        let Some(matches) = matches(rule) else {
            continue;
        };
        let alone = |wrong| Rule {
            name: name.clone(),
            matches: matches.iter().map(|one| vec![*one]).collect(),
            wrong,
        };
        let Some(delegate) = rule.get("delegate") else {
            all.push(alone(false));
            continue;
        };
        let leaf = objects.iter().find(|leaf| {
            let namespace = match text(delegate, "/namespace") {
                "" => text(object, "/metadata/namespace"),
                namespace => namespace,
            };
            leaf["kind"] == "VirtualService"
                && text(leaf, "/metadata/name") == text(delegate, "/name")
                && text(leaf, "/metadata/namespace") == namespace
        });
        let Some(leaf) = leaf else {
            all.push(alone(true));
            continue;
        };
        for (i, inner) in list(leaf, "/spec/http").iter().enumerate() {
            let own = self::matches(inner).expect("delegates say nothing of gateways");
            let both: Vec<Vec<&Value>> = match (matches.is_empty(), own.is_empty()) {
                (true, _) => own.iter().map(|one| vec![*one]).collect(),
                (_, true) => matches.iter().map(|one| vec![*one]).collect(),
                _ => matches
                    .iter()
                    .flat_map(|root| own.iter().map(move |leaf| vec![*root, *leaf]))
                    .filter(|both| is_within(both[1], both[0]))
                    .collect(),
            };
            if both.is_empty() && !matches.is_empty() {
                continue;
            }
            let label = match text(inner, "/name") {
                "" => i.to_string(),
                name => name.to_owned(),
            };
            all.push(Rule {
                name: format!("{name}-{label}"),
                matches: both,
                wrong: false,
            });
        }
    }
    all
}

/// "The HTTPMatchRequest of the delegate is a strict subset of the root's, otherwise there is a conflict and the HTTPRoute will
/// not take effect." Of what delegates and their roots here have in common, that is.
fn is_within(leaf: &Value, root: &Value) -> bool {
    let ports = root.get("port").zip(leaf.get("port"));
    let uris = root.get("uri").zip(leaf.get("uri"));
    ports.is_none_or(|(root, leaf)| root == leaf)
        && uris.is_none_or(|(root, leaf)| {
            let begins = [text(leaf, "/exact"), text(leaf, "/prefix")].concat();
            begins.starts_with(text(root, "/prefix"))
        })
}

/// The conditions that are for the mesh; `None` when a rule has some and all of them are for gateways.
fn matches(rule: &Value) -> Option<Vec<&Value>> {
    let all = list(rule, "/match");
    let ours = all
        .iter()
        .filter(|one| gateways_have_mesh(list(one, "/gateways")));
    let ours: Vec<&Value> = ours.collect();
    (all.is_empty() || !ours.is_empty()).then_some(ours)
}

impl Rule<'_> {
    /// What the first of its matches covers of the path. "All conditions inside a single match block have AND semantics, while
    /// the list of match blocks have OR semantics."
    fn covered(&self, q: &Request) -> Option<usize> {
        if self.matches.is_empty() {
            return Some(q.path.len());
        }
        let holding = self
            .matches
            .iter()
            .find(|all| all.iter().all(|one| holds(one, q)));
        let with_path = |one: &&&Value| one.get("uri").is_some();
        let uri = holding?.iter().rev().find(with_path).map(|one| &one["uri"]);
        let prefix = uri.map_or("", |uri| text(uri, "/prefix"));
        Some(match prefix {
            "" => q.path.len(),
            prefix => prefix.len(),
        })
    }

    /// A rule whose expressions are none refuses, for what is left of its conditions.
    fn invalid(&self) -> bool {
        let none = |one: &&Value| one.to_string().contains(super::asked::NONE);
        self.wrong || self.matches.iter().flatten().any(none)
    }

    fn lets_everything_in(&self) -> bool {
        let everything = |all: &Vec<&Value>| {
            let fields = all.iter().flat_map(|one| one.as_object().expect("a match"));
            fields.into_iter().all(|(name, value)| match name.as_str() {
                "ignoreUriCase" | "gateways" => true,
                "uri" => {
                    let regex = text(value, "/regex");
                    value["prefix"] == "/" || regex == ".*" || regex == super::asked::NONE
                }
                "headers" => value
                    .as_object()
                    .expect("a map")
                    .iter()
                    .all(|(name, value)| name == "method" || says_nothing(value)),
                "withoutHeaders" | "queryParams" => {
                    let mut all = value.as_object().expect("a map").values();
                    all.all(says_nothing)
                }
                _ => says_nothing(value),
            })
        };
        self.matches.is_empty() || self.matches.iter().any(everything)
    }
}

/// Whether it is a condition that is none.
fn says_nothing(value: &Value) -> bool {
    text(value, "/regex") == super::asked::NONE
}

fn holds(one: &Value, q: &Request) -> bool {
    let string = |name: &str, is: &str| {
        let wanted = one.get(name);
        wanted.is_none_or(|wanted| compares(wanted, is, false).unwrap_or(true))
    };
    // "Ignored in case of prefix ... and exact" means: only these heed it.
    let ignore = one["ignoreUriCase"] == true;
    let uri = one
        .get("uri")
        .is_none_or(|wanted| compares(wanted, q.path, ignore).unwrap_or(true));
    let labels = |labels: &Value| {
        let mut wanted = labels.as_object().expect("labels").iter();
        q.client.is_some_and(|client| {
            wanted.all(|(key, value)| client.labels.iter().any(|(k, v)| k == key && value == v))
        })
    };
    uri && string("scheme", q.scheme)
        && string("method", q.method)
        && string("authority", q.authority)
        && each(&one["headers"]).all(|(name, wanted)| {
            // "The keys uri, scheme, method, and authority will be ignored."
            name == "method"
                || match header(q, name) {
                    Some(is) => compares(wanted, &is, false).unwrap_or(true),
                    None => says_nothing(wanted),
                }
        })
        && each(&one["withoutHeaders"]).all(|(name, wanted)| match header(q, name) {
            Some(is) => !compares(wanted, &is, false).unwrap_or(false),
            None => true,
        })
        && each(&one["queryParams"]).all(|(name, wanted)| match parameter(q, name) {
            Some(is) => compares(wanted, &is, false).unwrap_or(true),
            None => says_nothing(wanted),
        })
        && one.get("port").is_none_or(|port| *port == q.port)
        && one.get("sourceLabels").is_none_or(labels)
        && one.get("sourceNamespace").is_none_or(|namespace| {
            q.client
                .is_some_and(|client| *namespace == client.namespace)
        })
}

fn each(map: &Value) -> impl Iterator<Item = (&String, &Value)> {
    map.as_object().into_iter().flatten()
}

/// Whether a text is as wanted; `None` when what is wanted cannot be understood. Nothing wanted is presence.
fn compares(wanted: &Value, is: &str, ignore_case: bool) -> Option<bool> {
    let case = |text: &str| match ignore_case {
        true => text.to_lowercase(),
        false => text.to_owned(),
    };
    let of = |name: &str| wanted.get(name).map(|v| v.as_str().expect("text"));
    if let Some(exact) = of("exact") {
        return Some(case(exact) == case(is));
    }
    if let Some(prefix) = of("prefix") {
        return Some(case(is).starts_with(&case(prefix)));
    }
    match of("regex") {
        Some(regex) => expression(regex, is),
        None => Some(true),
    }
}
