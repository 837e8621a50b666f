//! Objects and requests by dice: few names and values, so that conditions often meet.

use mesh_model::testing::Rng;
use serde_json::{Map, Value, json};

use super::asked::{Client, EXPRESSIONS, NONE, Request};

const CLIENTS: &[Client] = &[
    Client {
        name: "web",
        namespace: "shop",
        labels: &[("app", "web"), ("version", "v1")],
    },
    Client {
        name: "teller",
        namespace: "bank",
        labels: &[("app", "teller"), ("version", "v2")],
    },
    Client {
        name: "guest",
        namespace: "club",
        labels: &[("app", "web")],
    },
];

const NAMESPACES: &[&str] = &["shop", "bank", "club"];
/// Services by namespace and name.
const SERVICES: &[(&str, &str)] = &[("shop", "a"), ("shop", "b"), ("bank", "a")];
const EXTERNAL: (&str, &str) = ("shop", "api.example.com");
const CALLED: &[(&str, &str)] = &[
    ("shop", "a.shop.svc.cluster.local"),
    ("shop", "a.shop.svc.cluster.local"),
    ("shop", "b.shop.svc.cluster.local"),
    ("bank", "a.bank.svc.cluster.local"),
];
const HOSTS: &[&str] = &[
    "a",
    "a.shop.svc.cluster.local",
    "a.shop.svc.cluster.local",
    "b",
    "*.shop.svc.cluster.local",
    "*.svc.cluster.local",
    "*.cluster.local",
    "*",
    "a.shop",
    "api.example.com",
    "*.example.com",
];
const PATHS: &[&str] = &[
    "/", "/a", "/A", "/a/", "/ab", "/a/b", "/a/B", "/a/b/", "/b", "/a/ab", "//a",
];
const PREFIXES: &[&str] = &["/", "/a", "/a/", "/A", "/a/b", "/ab"];
const CALLS: &[&str] = &["/a/ab", "/a/b", "/ab/a", "/b/b", "/A/ab", "/a", "/"];
const CALLABLE: &[&str] = &["a", "ab", "b"];
const VALUES: &[&str] = &["a", "ab", "b", "A", "a,b", "a b"];
const NAMES: &[&str] = &["x-a", "x-b", "x-c"];
const ASKED_NAMES: &[&str] = &["x-a", "x-a", "x-b", ":authority", "host"];
const QUERIES: &[&str] = &[
    "", "a", "a=", "a=a", "a=ab&a=b", "b=a&a=b", "a=%61", "%61=b", "a=a%20b", "a=a=b", "&&a=b",
];
const AUTHORITIES: &[&str] = &["a", "a:80", "ab"];
const METHODS: &[&str] = &["GET", "POST", "PUT"];
const PORTS: &[u16] = &[80, 8080];
const TIMES: &[&str] = &["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", ""];

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}

fn many<T>(rng: &mut Rng, max: usize, mut one: impl FnMut(&mut Rng) -> T) -> Vec<T> {
    let count = rng.usize(..=max);
    (0..count).map(|_| one(rng)).collect()
}

fn regex(rng: &mut Rng) -> &'static str {
    match one_in(rng, 10) {
        true => NONE,
        false => EXPRESSIONS[rng.usize(..EXPRESSIONS.len())].0,
    }
}

/// What is there in every round.
pub fn world() -> Vec<Value> {
    let mut all = Vec::new();
    for namespace in NAMESPACES {
        all.push(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"warren.dev/mesh": "enabled"}},
        }));
    }
    for (i, client) in CLIENTS.iter().enumerate() {
        let labels: Map<String, Value> = client
            .labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        all.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": client.name, "namespace": client.namespace, "labels": labels},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.1.1.{}", i + 1)}]},
        }));
    }
    for (i, (namespace, name)) in SERVICES.iter().enumerate() {
        all.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "clusterIP": format!("10.96.0.{}", i + 1),
                "ports": [{"name": "http", "port": 80}, {"name": "http-admin", "port": 8080}],
            },
        }));
    }
    all.push(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "api", "namespace": EXTERNAL.0},
        "spec": {
            "hosts": [EXTERNAL.1], "resolution": "DNS", "location": "MESH_EXTERNAL",
            "ports": [{"name": "http", "number": 80, "protocol": "HTTP"},
                      {"name": "http-admin", "number": 8080, "protocol": "HTTP"}],
        },
    }));
    all
}

pub fn request(rng: &mut Rng) -> Request {
    let client = rng.usize(..CLIENTS.len() + 1);
    Request {
        client: CLIENTS.get(client),
        service: match one_in(rng, 8) {
            true => EXTERNAL,
            false => pick(rng, CALLED),
        },
        port: pick(rng, PORTS),
        method: pick(rng, METHODS),
        scheme: pick(rng, &["http", "https"]),
        authority: pick(rng, AUTHORITIES),
        path: pick(rng, PATHS),
        query: rng.bool().then(|| pick(rng, QUERIES)),
        headers: many(rng, 3, |r| (pick(r, NAMES), pick(r, VALUES))),
    }
}

pub fn call(rng: &mut Rng) -> Request {
    Request {
        method: "POST",
        path: pick(rng, CALLS),
        query: None,
        ..request(rng)
    }
}

fn metadata(rng: &mut Rng, name: String, namespace: &str) -> Value {
    let mut meta = json!({"name": name, "namespace": namespace});
    let time = pick(rng, TIMES);
    if !time.is_empty() {
        meta["creationTimestamp"] = json!(time);
    }
    meta
}

/// Some virtual services and, behind them, their delegates.
pub fn virtual_services(rng: &mut Rng) -> Vec<Value> {
    let mut all = Vec::new();
    let mut leaves = Vec::new();
    for i in 0..1 + rng.usize(..5) {
        let namespace = pick(rng, &["shop", "shop", "bank", "club"]);
        let http = many(rng, 3, |r| match one_in(r, 6) {
            true => handing(r, &mut leaves, namespace),
            false => leading(r),
        });
        let mut spec = json!({
            "hosts": [pick(rng, HOSTS)],
            "http": http,
        });
        if one_in(rng, 3) {
            spec["hosts"] = json!([pick(rng, HOSTS), pick(rng, HOSTS)]);
        }
        if one_in(rng, 4) {
            let lists: &[&[&str]] = &[&["edge"], &["mesh"], &["edge", "mesh"]];
            spec["gateways"] = json!(pick(rng, lists));
        }
        if one_in(rng, 4) {
            let lists: &[&[&str]] = &[&["."], &["*"], &["bank"], &["~"], &[".", "club"]];
            spec["exportTo"] = json!(pick(rng, lists));
        }
        all.push(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": metadata(rng, format!("v{i}"), namespace), "spec": spec,
        }));
    }
    all.extend(leaves);
    all
}

fn named(rng: &mut Rng, mut rule: Value) -> Value {
    if one_in(rng, 4) {
        rule["name"] = json!(pick(rng, &["one", "two"]));
    }
    rule
}

fn leading(rng: &mut Rng) -> Value {
    let mut rule = json!({"route": [{"destination": {"host": "b.shop.svc.cluster.local"}}]});
    if !one_in(rng, 6) {
        rule["match"] = json!(many(rng, 2, |r| condition(r, true)));
    }
    named(rng, rule)
}

/// A rule that hands over, to somebody that may be missing.
fn handing(rng: &mut Rng, leaves: &mut Vec<Value>, namespace: &str) -> Value {
    let name = format!("leaf{}", leaves.len());
    let home = match one_in(rng, 3) {
        true => pick(rng, NAMESPACES),
        false => namespace,
    };
    let mut delegate = json!({"name": name});
    if home != namespace || one_in(rng, 3) {
        delegate["namespace"] = json!(home);
    }
    if one_in(rng, 6) {
        delegate["name"] = json!("nobody");
    }
    let http = many(rng, 2, |r| {
        let mut rule = json!({"directResponse": {"status": 200}});
        if !one_in(r, 4) {
            rule["match"] = json!(many(r, 2, |r| condition(r, false)));
        }
        named(r, rule)
    });
    leaves.push(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": home}, "spec": {"http": http},
    }));
    let mut rule = json!({"delegate": delegate});
    if rng.bool() {
        let mut root = json!({"uri": {"prefix": pick(rng, &["/", "/a"])}});
        if one_in(rng, 4) {
            root["port"] = json!(pick(rng, PORTS));
        }
        rule["match"] = json!([root]);
    }
    named(rng, rule)
}

fn string(rng: &mut Rng, values: &[&str]) -> Value {
    match rng.u8(..3) {
        0 => json!({"exact": pick(rng, values)}),
        1 => json!({"prefix": pick(rng, values)}),
        _ => json!({"regex": regex(rng)}),
    }
}

fn string_or_presence(rng: &mut Rng, values: &[&str]) -> Value {
    match one_in(rng, 4) {
        true => json!({}),
        false => string(rng, values),
    }
}

/// One match of a virtual service's rule. A delegate's, which is not `free`, is within what any handing rule asks of paths.
fn condition(rng: &mut Rng, free: bool) -> Value {
    let mut one = Map::new();
    let mut add = |name: &str, value: Value| {
        one.insert(name.to_owned(), value);
    };
    if !one_in(rng, 3) {
        add(
            "uri",
            match (free, rng.u8(..3)) {
                (false, 0) => json!({"prefix": pick(rng, &["/a", "/a/b", "/a/"])}),
                (false, _) | (true, 0) => json!({"exact": pick(rng, PATHS)}),
                (true, 1) => json!({"prefix": pick(rng, PREFIXES)}),
                (true, _) => json!({"regex": regex(rng)}),
            },
        );
        if free && one_in(rng, 3) {
            add("ignoreUriCase", json!(true));
        }
    }
    if one_in(rng, 8) {
        add("scheme", string(rng, &["http", "https", "ht"]));
    }
    if one_in(rng, 6) {
        add("method", string(rng, &["GET", "POST", "P"]));
    }
    if one_in(rng, 8) {
        add("authority", string(rng, &["a", "a:80", "b"]));
    }
    for (name, most) in [("headers", 2), ("withoutHeaders", 1)] {
        if one_in(rng, 3) {
            let some = many(rng, most, |r| {
                (pick(r, ASKED_NAMES), string_or_presence(r, VALUES))
            });
            let mut map: Map<String, Value> =
                some.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            if name == "headers" && one_in(rng, 8) {
                map.insert("method".to_owned(), json!({"exact": "PATCH"}));
            }
            add(name, Value::Object(map));
        }
    }
    if one_in(rng, 4) {
        let value = match one_in(rng, 5) {
            true => json!({"exact": ""}),
            false => string_or_presence(rng, VALUES),
        };
        add("queryParams", json!({pick(rng, &["a", "b"]): value}));
    }
    if one_in(rng, 8) {
        add("port", json!(pick(rng, PORTS)));
    }
    if one_in(rng, 6) {
        let labels = [
            json!({"app": "web"}),
            json!({"app": "web", "version": "v1"}),
            json!({"version": "v2"}),
        ];
        add("sourceLabels", labels[rng.usize(..3)].clone());
    }
    if one_in(rng, 8) {
        add("sourceNamespace", json!(pick(rng, NAMESPACES)));
    }
    if free && one_in(rng, 8) {
        let lists: &[&[&str]] = &[&["edge"], &["mesh"], &["edge", "mesh"]];
        add("gateways", json!(pick(rng, lists)));
    }
    Value::Object(one)
}

/// Routes of these kinds for services.
pub fn routes(rng: &mut Rng, kinds: &[&str]) -> Vec<Value> {
    let count = 1 + rng.usize(..5);
    (0..count)
        .map(|i| {
            let kind = pick(rng, kinds);
            let count = 1 + usize::from(one_in(rng, 3));
            let parents: Vec<Value> = (0..count).map(|_| parent(rng)).collect();
            let mut spec = json!({"parentRefs": parents});
            if !one_in(rng, 12) {
                let count = 1 + rng.usize(..3);
                spec["rules"] = (0..count).map(|_| rule(rng, kind)).collect();
            }
            let namespace = pick(rng, &["shop", "shop", "bank", "club"]);
            // Names that are not in the order of making.
            let name = format!("r{}", (i * 3) % 5);
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
                "metadata": metadata(rng, name, namespace), "spec": spec,
            })
        })
        .collect()
}

fn parent(rng: &mut Rng) -> Value {
    let (namespace, name) = match one_in(rng, 3) {
        true => pick(rng, SERVICES),
        false => SERVICES[0],
    };
    let mut parent = json!({"group": "", "kind": "Service", "namespace": namespace, "name": name});
    if one_in(rng, 3) {
        parent["port"] = json!(pick(rng, &[80, 8080, 9999]));
    }
    if one_in(rng, 4) {
        parent["sectionName"] = json!(pick(rng, &["http", "http-admin"]));
    }
    parent
}

fn rule(rng: &mut Rng, kind: &str) -> Value {
    let backend = json!({"name": "b", "namespace": "shop", "port": 80});
    let mut rule = json!({"backendRefs": [backend]});
    if !one_in(rng, 6) {
        let count = 1 + rng.usize(..2);
        rule["matches"] = (0..count)
            .map(|_| match kind {
                "HTTPRoute" => http_match(rng),
                _ => grpc_match(rng),
            })
            .collect();
    }
    named(rng, rule)
}

fn named_value(rng: &mut Rng, name: &str) -> Value {
    match rng.u8(..3) {
        0 => json!({"name": name, "type": "RegularExpression", "value": regex(rng)}),
        1 => json!({"name": name, "type": "Exact", "value": pick(rng, VALUES)}),
        _ => json!({"name": name, "value": pick(rng, VALUES)}),
    }
}

fn header_matches(rng: &mut Rng, one: &mut Value) {
    if one_in(rng, 3) {
        let names = &["x-a", "X-A", "x-b", "Host"];
        one["headers"] = json!(many(rng, 2, |r| {
            let name = pick(r, names);
            named_value(r, name)
        }));
    }
}

fn http_match(rng: &mut Rng) -> Value {
    let mut one = json!({});
    if !one_in(rng, 4) {
        one["path"] = match rng.u8(..4) {
            0 => json!({"type": "Exact", "value": pick(rng, PATHS)}),
            1 => json!({"type": "RegularExpression", "value": regex(rng)}),
            _ => json!({"type": "PathPrefix", "value": pick(rng, PREFIXES)}),
        };
    }
    if one_in(rng, 4) {
        one["method"] = json!(pick(rng, METHODS));
    }
    header_matches(rng, &mut one);
    if one_in(rng, 4) {
        let names = &["a", "b", "A"];
        one["queryParams"] = json!(many(rng, 2, |r| {
            let name = pick(r, names);
            named_value(r, name)
        }));
    }
    one
}

fn grpc_match(rng: &mut Rng) -> Value {
    let mut one = json!({});
    if !one_in(rng, 5) {
        let mut method = Map::new();
        let kind = pick(rng, &["", "Exact", "RegularExpression"]);
        if !kind.is_empty() {
            method.insert("type".to_owned(), json!(kind));
        }
        for part in ["service", "method"] {
            if !one_in(rng, 3) {
                let value = match kind {
                    "RegularExpression" => regex(rng),
                    _ => pick(rng, CALLABLE),
                };
                method.insert(part.to_owned(), json!(value));
            }
        }
        one["method"] = Value::Object(method);
    }
    header_matches(rng, &mut one);
    one
}
