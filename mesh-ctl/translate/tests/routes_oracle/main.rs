//! Routes from users' objects against a naive reading of what the two APIs document, on generated objects and requests.
//!
//! Invariants: the reference reads the very JSON that a user would apply, and shares no code with translation or matcher;
//! objects go through the real reading, `translate` and `Routes::find`. A failure names its round:
//! `ROUND=17 cargo test -p mesh-translate --test routes_oracle` makes that one again.

mod asked;
mod gateway;
mod istio;
mod made;

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_model::{
    mesh::Change,
    route::http::{Action, Asked, Found, Routes},
    testing::Rng,
};
use mesh_translate::{ClusterView, Origin, translate};
use serde_json::Value;

use asked::{Request, Verdict};

/// How many worlds of objects are made for each test.
const ROUNDS: u64 = 1_000;
/// How many requests are asked about the objects of each round.
const REQUESTS: usize = 60;

/// The real thing: objects as they were written, translated.
struct Mesh {
    routes: BTreeMap<(String, String), Routes>,
    groups: BTreeMap<String, Vec<Arc<str>>>,
}

impl Mesh {
    fn of(objects: &[Value]) -> Self {
        let mut view = ClusterView::default();
        for object in objects {
            let parsed = mesh_k8s::read(object.clone()).unwrap_or_else(|e| panic!("{e}: {object}"));
            assert_eq!(parsed.unknown, [""; 0], "{object}");
            view.apply(parsed.object, Origin::default(), Arc::from([]));
        }
        let mut mesh = Self {
            routes: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        for change in translate(&view).changes {
            match change {
                Change::Routes(routes) => {
                    let name = &routes.service;
                    let key = (name.namespace.to_string(), name.hostname.to_string());
                    mesh.routes.insert(key, routes);
                }
                Change::WorkloadExtra(uid, extra) => {
                    mesh.groups.insert(uid.to_string(), extra.groups.to_vec());
                }
                _ => {}
            }
        }
        mesh
    }

    fn find(&self, q: &Request) -> Verdict {
        let service = (q.service.0.to_owned(), q.service.1.to_owned());
        let Some(routes) = self.routes.get(&service) else {
            return Verdict::Unrouted;
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &q.headers {
            let name = HeaderName::from_static(name);
            headers.append(name, HeaderValue::from_static(value));
        }
        let uid = q
            .client
            .map(|client| format!("Kubernetes//Pod/{}/{}", client.namespace, client.name));
        let found = routes.find(&Asked {
            namespace: q.client.map(|client| client.namespace.into()).as_ref(),
            groups: uid.as_ref().map_or(&[], |uid| &self.groups[uid]),
            port: q.port,
            method: q.method,
            scheme: q.scheme,
            authority: q.authority,
            path: q.path,
            query: q.query,
            headers: &headers,
        });
        match found {
            Found::Rule { rule, covered } => Verdict::Rule {
                name: rule.name.to_string(),
                covered: Some(covered),
                refused: matches!(rule.action, Action::Invalid(_)),
            },
            Found::NoRule => Verdict::NoRule,
            Found::Unrouted => Verdict::Unrouted,
            Found::Refused(reason) => panic!("{reason:?}: {q:?}"),
        }
    }
}

/// Rounds of objects, and what a reference says of requests; every verdict has to come up often enough to mean something.
fn check(
    objects: impl Fn(&mut Rng) -> Vec<Value>,
    request: impl Fn(&mut Rng) -> Request,
    reference: impl Fn(&[Value], &Request) -> Verdict,
) {
    let only: Option<u64> = std::env::var("ROUND")
        .ok()
        .map(|n| n.parse().expect("a number"));
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for round in only.map_or(0..ROUNDS, |round| round..round + 1) {
        let mut rng = Rng::with_seed(round);
        let user = objects(&mut rng);
        let all: Vec<Value> = made::world().into_iter().chain(user.clone()).collect();
        let mesh = Mesh::of(&all);
        for _ in 0..REQUESTS {
            let q = request(&mut rng);
            let (found, expect) = (mesh.find(&q), reference(&user, &q));
            assert!(
                found.is(&expect),
                "ROUND={round}: {found:?}, and documented is {expect:?}\n{q:#?}\n{}",
                user.iter().map(|o| format!("{o}\n")).collect::<String>()
            );
            *seen.entry(expect.kind()).or_default() += 1;
        }
    }
    let asked = ROUNDS * REQUESTS as u64;
    for kind in ["rule", "refused", "no rule", "unrouted"] {
        let share = seen.get(kind).copied().unwrap_or_default();
        assert!(
            only.is_some() || share > asked / 100,
            "{kind}: only {share} of {asked}; {seen:?}"
        );
    }
}

#[test]
fn virtual_services_lead_requests_as_istio_documents() {
    check(made::virtual_services, made::request, istio::find);
}

#[test]
fn http_routes_lead_requests_as_the_gateway_api_documents() {
    let objects = |rng: &mut Rng| made::routes(rng, &["HTTPRoute"]);
    check(objects, made::request, gateway::find);
}

#[test]
fn grpc_routes_lead_calls_as_the_gateway_api_documents() {
    let objects = |rng: &mut Rng| made::routes(rng, &["GRPCRoute"]);
    check(objects, made::call, gateway::find);
}

#[test]
fn beside_each_other_routes_of_either_kind_come_before_virtual_services() {
    let objects = |rng: &mut Rng| {
        let mut all = made::routes(rng, &["HTTPRoute", "GRPCRoute"]);
        all.truncate(2);
        all.extend(made::virtual_services(rng).into_iter().take(3));
        all
    };
    // What a client's own namespace says comes first; of one namespace's, the Gateway API's.
    let reference = |objects: &[Value], q: &Request| {
        for whose in [asked::Whose::Client, asked::Whose::Service] {
            let by_routes = gateway::of(objects, q, whose);
            if let Some(verdict) = by_routes.or_else(|| istio::of(objects, q, whose)) {
                return verdict;
            }
        }
        Verdict::Unrouted
    };
    check(objects, made::call, reference);
}
