//! What is asked and answered, and how texts compare: said again by hand.

use serde_json::Value;

/// A client in the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub name: &'static str,
    pub namespace: &'static str,
    pub labels: &'static [(&'static str, &'static str)],
}

/// A request to a service (namespace, host); without a client it comes from outside the mesh.
#[derive(Clone, Debug)]
pub struct Request {
    pub client: Option<&'static Client>,
    pub service: (&'static str, &'static str),
    pub port: u16,
    pub method: &'static str,
    pub scheme: &'static str,
    pub authority: &'static str,
    pub path: &'static str,
    pub query: Option<&'static str>,
    pub headers: Vec<(&'static str, &'static str)>,
}

/// Whose namespace an object is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Client,
    Service,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A rule decides.
    Rule {
        name: String,
        /// How much of the path its prefix covers, where the API says so.
        covered: Option<usize>,
        /// Whether it could not be understood.
        refused: bool,
    },
    /// Somebody speaks of the client and port, and no rule matches.
    NoRule,
    /// Nobody speaks of them.
    Unrouted,
}

impl Verdict {
    pub fn kind(&self) -> &'static str {
        match self {
            Verdict::Rule { refused: false, .. } => "rule",
            Verdict::Rule { refused: true, .. } => "refused",
            Verdict::NoRule => "no rule",
            Verdict::Unrouted => "unrouted",
        }
    }

    /// Whether it is as expected, as far as the expectation goes.
    pub fn is(&self, expect: &Verdict) -> bool {
        let plain = |one: &Verdict| match one.clone() {
            Verdict::Rule { name, refused, .. } => Verdict::Rule {
                name,
                refused,
                covered: None,
            },
            other => other,
        };
        match expect {
            Verdict::Rule { covered: None, .. } => plain(self) == *expect,
            _ => self == expect,
        }
    }
}

type Expression = (&'static str, fn(&str) -> bool);

/// Expressions, each with what it means said again by hand.
pub const EXPRESSIONS: &[Expression] = &[
    (".*", |t| !t.contains('\n')),
    ("a|ab", |t| t == "a" || t == "ab"),
    ("/a(/.*)?", |t| t == "/a" || t.starts_with("/a/")),
    ("[ab]+", |t| {
        !t.is_empty() && t.chars().all(|c| c == 'a' || c == 'b')
    }),
    ("GET|PUT", |t| t == "GET" || t == "PUT"),
];

/// What is no expression.
pub const NONE: &str = "a)(b";

/// Whether a text matches an expression as a whole; `None` where it is none.
pub fn expression(source: &str, text: &str) -> Option<bool> {
    let known = EXPRESSIONS.iter().find(|(known, _)| *known == source);
    match known {
        Some((_, means)) => Some(means(text)),
        None if source == NONE => None,
        None => panic!("{source:?} is none of the expressions"),
    }
}

/// A request's header; of several by one name the values, joined.
pub fn header(q: &Request, name: &str) -> Option<String> {
    if name.eq_ignore_ascii_case("host") || name == ":authority" {
        return Some(q.authority.to_owned());
    }
    let mut values = Vec::new();
    for (known, value) in &q.headers {
        if known.eq_ignore_ascii_case(name) {
            values.push(*value);
        }
    }
    (!values.is_empty()).then(|| values.join(","))
}

/// The first parameter of a name, decoded.
pub fn parameter(q: &Request, name: &str) -> Option<String> {
    let plain = |text: &str| text.replace("%61", "a").replace("%20", " ");
    for pair in q.query?.split('&') {
        let mut halves = pair.splitn(2, '=');
        let key = plain(halves.next().unwrap_or_default());
        let value = plain(halves.next().unwrap_or_default());
        if key == name {
            return Some(value);
        }
    }
    None
}

/// The text at a path of an object; empty when there is none.
pub fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The list at a path of an object.
pub fn list<'v>(object: &'v Value, pointer: &str) -> &'v [Value] {
    let list = object.pointer(pointer).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

/// The oldest first, then by namespace and name; what has no time of creation is the youngest.
pub fn age(object: &Value) -> (bool, String, String, String) {
    let of = |name: &str| text(object, &format!("/metadata/{name}")).to_owned();
    let time = of("creationTimestamp");
    (time.is_empty(), time, of("namespace"), of("name"))
}

/// What a rule of an object is called.
pub fn rule_name(object: &Value, index: usize, rule: &Value) -> String {
    let label = match text(rule, "/name") {
        "" => index.to_string(),
        name => name.to_owned(),
    };
    let kind = text(object, "/kind");
    let (namespace, name) = (
        text(object, "/metadata/namespace"),
        text(object, "/metadata/name"),
    );
    format!("{kind}/{namespace}/{name}#{label}")
}
