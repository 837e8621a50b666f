//! `Routes::find` against a naive reading of the documentation, on generated rules and requests.
//!
//! Invariant: the oracle shares no code with the matcher, and neither compiles expressions of the other.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_model::{
    name::{Namespace, ServiceName},
    reason::Reason,
    route::http::{
        Action, Asked, Found, HeaderMatch, Match, PathMatch, Pattern, QueryMatch, RouteSet, Routes,
        Rule, Selector, Text,
    },
    testing::Rng,
};

const ROUTES: usize = 8_000;
const REQUESTS: usize = 40;

type Expression = (&'static str, fn(&str) -> bool);

/// Expressions, each with what it means said again by hand.
const EXPRESSIONS: &[Expression] = &[
    (".*", |t| !t.contains('\n')),
    ("a|ab", |t| t == "a" || t == "ab"),
    ("/a(/.*)?", |t| t == "/a" || t.starts_with("/a/")),
    ("[ab]+", |t| {
        !t.is_empty() && t.chars().all(|c| c == 'a' || c == 'b')
    }),
    ("", str::is_empty),
];

const PATHS: &[&str] = &[
    "/", "/a", "/A", "/a/", "/ab", "/a/b", "/a/B", "/a/b/", "/b", "/a/ab", "//a",
];
const PREFIXES: &[&str] = &["/", "/a", "/a/", "/A", "/a/b", "/ab", ""];
const VALUES: &[&str] = &["a", "ab", "b", "", "A", "a,b", "a b"];
const NAMES: &[&str] = &["x-a", "x-b"];
const QUERIES: &[&str] = &[
    "", "a", "a=", "a=a", "a=ab&a=b", "b=a&a=b", "a=%61", "%61=b", "a=a+b", "a=a%20b", "a=a=b",
    "&&a=b",
];
const GROUPS: &[&str] = &["app=web", "app=web,version=v1", "version=v2"];
const NAMESPACES: &[&str] = &["shop", "bank"];

/// One request, owned.
#[derive(Debug)]
struct Request {
    namespace: Option<Namespace>,
    groups: Vec<Arc<str>>,
    port: u16,
    method: &'static str,
    scheme: &'static str,
    authority: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn some<T>(rng: &mut Rng, in_: u32, one: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    (rng.u32(..in_) == 0).then(|| one(rng))
}

fn list<T>(rng: &mut Rng, max: usize, one: impl Fn(&mut Rng) -> T) -> Vec<T> {
    (0..rng.usize(..=max)).map(|_| one(rng)).collect()
}

struct Maker {
    patterns: Vec<Pattern>,
}

impl Maker {
    fn text(&self, rng: &mut Rng, values: &[&'static str]) -> Text {
        match rng.u8(..4) {
            0 => Text::Exact(pick(rng, values).into()),
            1 => Text::Prefix(pick(rng, values).into()),
            2 => Text::Regex(self.pattern(rng)),
            _ => Text::Present,
        }
    }

    fn pattern(&self, rng: &mut Rng) -> Pattern {
        self.patterns[rng.usize(..self.patterns.len())].clone()
    }

    fn one_match(&self, rng: &mut Rng) -> Match {
        let path = some(rng, 2, |r| match r.u8(..4) {
            0 => PathMatch::Exact(pick(r, PATHS).into()),
            1 => PathMatch::Prefix(pick(r, PREFIXES).into()),
            2 => PathMatch::Segments(pick(r, PREFIXES).into()),
            _ => PathMatch::Regex(self.pattern(r)),
        });
        Match {
            path,
            ignore_case: rng.bool(),
            scheme: some(rng, 8, |r| self.text(r, &["http", "https", "ht"])),
            method: some(rng, 6, |r| self.text(r, &["GET", "POST", "G"])),
            authority: some(rng, 8, |r| self.text(r, &["a", "a:80", "b"])),
            headers: if rng.bool() {
                Vec::new()
            } else {
                list(rng, 2, |r| self.header(r))
            }
            .into(),
            query: if rng.bool() {
                Vec::new()
            } else {
                list(rng, 2, |r| self.parameter(r))
            }
            .into(),
            port: some(rng, 8, |r| pick(r, &[80, 8080])),
            source: some(rng, 6, |r| Selector(pick(r, GROUPS).into())),
            source_namespace: some(rng, 8, |r| pick(r, NAMESPACES).into()),
        }
    }

    fn header(&self, rng: &mut Rng) -> HeaderMatch {
        HeaderMatch {
            name: HeaderName::from_static(pick(rng, &["x-a", "x-b", "host"])),
            value: self.text(rng, VALUES),
            negated: rng.u8(..3) == 0,
        }
    }

    fn parameter(&self, rng: &mut Rng) -> QueryMatch {
        QueryMatch {
            name: pick(rng, &["a", "b"]).into(),
            value: self.text(rng, VALUES),
        }
    }

    fn routes(&self, rng: &mut Rng) -> Routes {
        let rule = |r: &mut Rng| Rule {
            name: "r".into(),
            matches: list(r, 2, |r| self.one_match(r)).into(),
            filters: Default::default(),
            action: Action::Forward([].into()),
            timeout: None,
            retries: None,
            fault: None,
            mirrors: [].into(),
            cors: None,
            session: None,
        };
        let set = |r: &mut Rng| RouteSet {
            clients: some(r, 2, |r| pick(r, NAMESPACES).into()),
            ports: list(r, 1, |r| pick(r, &[80, 8080])).into(),
            rules: list(r, 4, rule).into(),
            streams: [].into(),
        };
        Routes {
            service: ServiceName {
                namespace: "shop".into(),
                hostname: "web.shop.svc.cluster.local".into(),
            },
            sets: list(rng, 3, set).into(),
            features: list(rng, 1, |r| pick(r, &["l4", "l4", "l4", "x"]).into()).into(),
        }
    }
}

fn request(rng: &mut Rng) -> Request {
    Request {
        namespace: some(rng, 2, |r| pick(r, NAMESPACES).into()),
        groups: list(rng, 2, |r| pick(r, GROUPS).into()),
        port: pick(rng, &[80, 8080]),
        method: pick(rng, &["GET", "POST", "PUT"]),
        scheme: pick(rng, &["http", "https"]),
        authority: pick(rng, &["a", "a:80", "ab"]),
        path: pick(rng, PATHS),
        query: some(rng, 2, |r| pick(r, QUERIES)),
        headers: list(rng, 3, |r| (pick(r, NAMES), pick(r, VALUES))),
    }
}

/// What the documentation says, word by word.
mod oracle {
    use super::*;

    pub fn find(
        routes: &Routes,
        q: &Request,
    ) -> Result<Option<(usize, usize, usize)>, &'static str> {
        if routes.features.iter().any(|f| &**f == "x") {
            return Err("refused");
        }
        for (s, set) in routes.sets.iter().enumerate() {
            if let Some(clients) = &set.clients
                && q.namespace.as_ref() != Some(clients)
            {
                continue;
            }
            if !set.ports.is_empty() && !set.ports.contains(&q.port) {
                continue;
            }
            for (r, rule) in set.rules.iter().enumerate() {
                if rule.matches.is_empty() {
                    return Ok(Some((s, r, q.path.len())));
                }
                for m in &rule.matches {
                    if holds(m, q) {
                        return Ok(Some((s, r, covered(m, q.path))));
                    }
                }
            }
            return Ok(None);
        }
        Err("unrouted")
    }

    fn holds(m: &Match, q: &Request) -> bool {
        let headers = {
            let mut all: BTreeMap<&str, String> = BTreeMap::new();
            for (name, value) in &q.headers {
                let entry = all.entry(name);
                entry
                    .and_modify(|v| *v = format!("{v},{value}"))
                    .or_insert_with(|| (*value).to_owned());
            }
            all.insert("host", q.authority.to_owned());
            all
        };
        m.port.is_none_or(|p| p == q.port)
            && m.source_namespace.is_none_or_eq(&q.namespace)
            && m.source.as_ref().is_none_or(|s| q.groups.contains(&s.0))
            && m.method.as_ref().is_none_or(|t| text(t, q.method))
            && m.scheme.as_ref().is_none_or(|t| text(t, q.scheme))
            && m.authority.as_ref().is_none_or(|t| text(t, q.authority))
            && m.path
                .as_ref()
                .is_none_or(|p| path(p, q.path, m.ignore_case))
            && m.headers.iter().all(|h| {
                let is = headers
                    .get(h.name.as_str())
                    .is_some_and(|v| text(&h.value, v));
                if h.negated { !is } else { is }
            })
            && m.query.iter().all(|p| {
                let mut first = None;
                for pair in q.query.unwrap_or_default().split('&') {
                    let mut halves = pair.splitn(2, '=');
                    let key = plain(halves.next().unwrap_or_default());
                    let value = plain(halves.next().unwrap_or_default());
                    if q.query.is_some() && key == *p.name && first.is_none() {
                        first = Some(value);
                    }
                }
                first.is_some_and(|v| text(&p.value, &v))
            })
    }

    trait IsNoneOrEq {
        fn is_none_or_eq(&self, other: &Option<Namespace>) -> bool;
    }

    impl IsNoneOrEq for Option<Namespace> {
        fn is_none_or_eq(&self, other: &Option<Namespace>) -> bool {
            self.is_none() || self == other
        }
    }

    fn plain(text: &str) -> String {
        text.replace("%61", "a").replace("%20", " ")
    }

    fn text(t: &Text, value: &str) -> bool {
        match t {
            Text::Exact(want) => value == &**want,
            Text::Prefix(want) => value.find(&**want) == Some(0),
            Text::Regex(p) => expression(p, value),
            Text::Present => true,
        }
    }

    fn expression(p: &Pattern, value: &str) -> bool {
        let known = EXPRESSIONS.iter().find(|(source, _)| *source == p.as_str());
        known.expect("one of ours").1(value)
    }

    fn path(p: &PathMatch, path: &str, ignore: bool) -> bool {
        let case = |t: &str| {
            if ignore {
                t.to_lowercase()
            } else {
                t.to_owned()
            }
        };
        match p {
            PathMatch::Exact(want) => case(path) == case(want),
            PathMatch::Prefix(want) => case(path).starts_with(&case(want)),
            PathMatch::Segments(want) => {
                // "Matching is ... done on a path element by element basis ... a trailing slash is ignored."
                let want = case(want);
                let want: Vec<&str> = want.trim_end_matches('/').split('/').collect();
                let path = case(path);
                let is: Vec<&str> = path.split('/').collect();
                is.len() >= want.len() && is[..want.len()] == want[..]
            }
            PathMatch::Regex(p) => expression(p, path),
        }
    }

    fn covered(m: &Match, path: &str) -> usize {
        match &m.path {
            Some(PathMatch::Prefix(p)) => p.len(),
            Some(PathMatch::Segments(p)) => p.trim_end_matches('/').len(),
            Some(PathMatch::Exact(_) | PathMatch::Regex(_)) | None => path.len(),
        }
    }
}

#[test]
fn the_matcher_does_what_the_documentation_says() {
    let maker = Maker {
        patterns: EXPRESSIONS
            .iter()
            .map(|(source, _)| Pattern::new(source).expect("an expression"))
            .collect(),
    };
    let mut rng = Rng::with_seed(5);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for round in 0..ROUTES {
        let routes = maker.routes(&mut rng);
        for _ in 0..REQUESTS {
            let q = request(&mut rng);
            let mut headers = HeaderMap::new();
            for (name, value) in &q.headers {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let asked = Asked {
                namespace: q.namespace.as_ref(),
                groups: &q.groups,
                port: q.port,
                method: q.method,
                scheme: q.scheme,
                authority: q.authority,
                path: q.path,
                query: q.query,
                headers: &headers,
            };
            let (expect, kind) = match oracle::find(&routes, &q) {
                Ok(Some((s, r, covered))) => {
                    let rule = &routes.sets[s].rules[r];
                    (Found::Rule { rule, covered }, "rule")
                }
                Ok(None) => (Found::NoRule, "none"),
                Err("unrouted") => (Found::Unrouted, "unrouted"),
                Err(_) => (Found::Refused(Reason::RouteInvalid), "refused"),
            };
            let found = routes.find(&asked);
            let same = match (&found, &expect) {
                // Rules may be equal: it has to be the very one.
                (
                    Found::Rule {
                        rule: a,
                        covered: c,
                    },
                    Found::Rule {
                        rule: b,
                        covered: d,
                    },
                ) => std::ptr::eq(*a, *b) && c == d,
                (a, b) => a == b,
            };
            assert!(
                same,
                "round {round}: {found:?}, not {expect:?}\n{q:?}\n{routes:#?}"
            );
            *seen.entry(kind).or_default() += 1;
        }
    }
    for kind in ["rule", "none", "unrouted", "refused"] {
        let share = seen.get(kind).copied().unwrap_or_default();
        assert!(
            share > ROUTES * REQUESTS / 50,
            "{kind}: only {share} of {seen:?}"
        );
    }
}
