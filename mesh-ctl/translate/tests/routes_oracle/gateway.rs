//! HTTPRoute and GRPCRoute as the Gateway API documents them, attached to services.
//!
//! Source: gateway-api.sigs.k8s.io, v1: HTTPRouteRule, HTTPRouteMatch, GRPCRouteRule, GRPCMethodMatch, GEP-1426. What it leaves
//! to implementations, as this mesh documents it: expressions come behind what is literal, and before what is not said.

use std::cmp::Reverse;

use serde_json::Value;

use super::asked::{
    NONE, Request, Verdict, Whose, age, expression, header, list, parameter, rule_name, text,
};

pub fn find(objects: &[Value], q: &Request) -> Verdict {
    of(objects, q, Whose::Client)
        .or_else(|| of(objects, q, Whose::Service))
        .unwrap_or(Verdict::Unrouted)
}

/// One match of one rule.
struct One<'v> {
    name: String,
    rule: &'v Value,
    matched: Value,
}

/// What routes of one namespace say; `None` when none of them is attached to the request's service and port for its client.
/// "Consumer routes ... affect only clients of their namespace", and come before producer routes.
pub fn of(objects: &[Value], q: &Request, whose: Whose) -> Option<Verdict> {
    let owner = q.service.0;
    let asked = |route: &&Value| {
        let own = text(route, "/metadata/namespace");
        let whose = match whose {
            Whose::Client => own != owner && q.client.is_some_and(|c| c.namespace == own),
            Whose::Service => own == owner,
        };
        let parents = list(route, "/spec/parentRefs");
        whose && parents.iter().any(|parent| is_parent(parent, own, q))
    };
    let routes: Vec<&Value> = objects.iter().filter(asked).collect();
    // "GRPCRoute ... MUST be given precedence": one of them keeps HTTP routes of the same port out.
    let kinds = ["GRPCRoute", "HTTPRoute"];
    let mut kinds = kinds.iter();
    let kind = kinds.find(|kind| routes.iter().any(|route| route["kind"] == **kind))?;
    let mut routes: Vec<&Value> = routes.into_iter().filter(|r| r["kind"] == **kind).collect();
    routes.sort_by_key(|route| age(route));
    // "If unspecified, the default is a prefix match on /", and so of rules.
    let default = [Value::Object(Default::default())];
    let mut all = Vec::new();
    for route in routes {
        let rules = match route.pointer("/spec/rules") {
            Some(_) => list(route, "/spec/rules"),
            None => &default,
        };
        for (i, rule) in rules.iter().enumerate() {
            let matches = match list(rule, "/matches") {
                [] => &default,
                given => given,
            };
            all.extend(matches.iter().map(|matched| One {
                name: rule_name(route, i, rule),
                rule,
                matched: matched.clone(),
            }));
        }
    }
    // Stable: of equals the older route's, then the rule that is listed first.
    match *kind {
        "HTTPRoute" => all.sort_by_key(|one| Reverse(http_precedence(&one.matched))),
        _ => all.sort_by_key(|one| Reverse(grpc_precedence(&one.matched))),
    }
    let holds = |one: &&One<'_>| match *kind {
        "HTTPRoute" => http_holds(&one.matched, q),
        _ => grpc_holds(&one.matched, q),
    };
    Some(match all.iter().find(holds) {
        Some(one) => Verdict::Rule {
            name: one.name.clone(),
            covered: covered(&one.matched, q),
            refused: one.rule["matches"].to_string().contains(NONE),
        },
        None => Verdict::NoRule,
    })
}

/// Whether a reference means the service and port. "When unspecified, it attaches to every port."
fn is_parent(parent: &Value, own: &str, q: &Request) -> bool {
    let namespace = match text(parent, "/namespace") {
        "" => own,
        namespace => namespace,
    };
    let host = format!("{}.{namespace}.svc.cluster.local", text(parent, "/name"));
    let ports = [("http", 80_u16), ("http-admin", 8080)];
    let has = |port: &(&str, u16)| {
        parent.get("port").is_none_or(|wanted| *wanted == port.1)
            && parent.get("sectionName").is_none_or(|name| *name == port.0)
    };
    (namespace, host.as_str()) == q.service
        && ports.iter().any(|port| port.1 == q.port && has(port))
}

/// "Exact" path match; "Prefix" path match with largest number of characters; method match; largest number of header matches;
/// largest number of query param matches.
fn http_precedence(one: &Value) -> [usize; 5] {
    let path = text(one, "/path/value");
    let path = if path.is_empty() { "/" } else { path };
    let kind = match text(one, "/path/type") {
        "Exact" => 2,
        "" | "PathPrefix" => 1,
        _ => 0,
    };
    [
        kind,
        path.len(),
        usize::from(one.get("method").is_some()),
        headers(one).len(),
        parameters(one).len(),
    ]
}

/// The largest number of characters in a matching service, in a matching method, of header matches.
fn grpc_precedence(one: &Value) -> [usize; 4] {
    let (service, method) = (text(one, "/method/service"), text(one, "/method/method"));
    let kind = match (text(one, "/method/type"), service, method) {
        (_, "", "") => 0,
        ("RegularExpression", ..) => 1,
        _ => 2,
    };
    [kind, service.len(), method.len(), headers(one).len()]
}

/// "If multiple entries specify equivalent header names, only the first entry with an equivalent name MUST be considered for a
/// match ... Due to the case-insensitivity of header names, foo and Foo are considered equivalent."
fn headers(one: &Value) -> Vec<&Value> {
    firsts(list(one, "/headers"), str::to_lowercase)
}

/// "If multiple entries specify equivalent query param names, only the first entry with an equivalent name MUST be considered
/// for a match." Names are matched exactly.
fn parameters(one: &Value) -> Vec<&Value> {
    firsts(list(one, "/queryParams"), str::to_owned)
}

/// The first of each name.
fn firsts(list: &[Value], name: fn(&str) -> String) -> Vec<&Value> {
    let mut seen = std::collections::BTreeSet::new();
    let new = |one: &&Value| seen.insert(name(text(one, "/name")));
    list.iter().filter(new).collect()
}

fn http_holds(one: &Value, q: &Request) -> bool {
    let wanted = text(one, "/path/value");
    let path = match text(one, "/path/type") {
        "Exact" => q.path == wanted,
        "RegularExpression" => expression(wanted, q.path).unwrap_or(true),
        // "Done on a path element by element basis ... When specified, a trailing / is ignored."
        _ => {
            let wanted: Vec<&str> = wanted.trim_end_matches('/').split('/').collect();
            let is: Vec<&str> = q.path.split('/').collect();
            is.len() >= wanted.len() && is[..wanted.len()] == wanted[..]
        }
    };
    path && one.get("method").is_none_or(|method| *method == q.method)
        && headers_hold(one, q)
        && parameters(one)
            .iter()
            .all(|param| value_is(param, parameter(q, text(param, "/name"))))
}

fn headers_hold(one: &Value, q: &Request) -> bool {
    let mut all = headers(one).into_iter();
    all.all(|wanted| value_is(wanted, header(q, text(wanted, "/name"))))
}

fn value_is(wanted: &Value, is: Option<String>) -> bool {
    let value = text(wanted, "/value");
    match (text(wanted, "/type"), is) {
        ("RegularExpression", Some(is)) => expression(value, &is).unwrap_or(true),
        ("RegularExpression", None) => value == NONE,
        (_, is) => is.as_deref() == Some(value),
    }
}

/// "If the service is not specified, all services match", and so of methods.
fn grpc_holds(one: &Value, q: &Request) -> bool {
    let mut parts = q.path.splitn(3, '/').skip(1);
    let call = parts.next().zip(parts.next());
    let wanted = [text(one, "/method/service"), text(one, "/method/method")];
    let regex = text(one, "/method/type") == "RegularExpression";
    let is = |wanted: &str, is: &str| match regex {
        _ if wanted.is_empty() => true,
        true => expression(wanted, is).unwrap_or(true),
        false => wanted == is,
    };
    // What cannot be understood asks for nothing: neither of service nor of method.
    let method = wanted == [""; 2]
        || wanted.contains(&NONE)
        || call.is_some_and(|(service, method)| is(wanted[0], service) && is(wanted[1], method));
    method && headers_hold(one, q)
}

/// How much of the path a prefix covers, which is what `ReplacePrefixMatch` replaces.
fn covered(one: &Value, q: &Request) -> Option<usize> {
    let path = one.get("path")?;
    let prefix = text(path, "/value").trim_end_matches('/');
    Some(match text(path, "/type") {
        "PathPrefix" => prefix.len(),
        _ => q.path.len(),
    })
}
