//! No field of a VirtualService or a DestinationRule is dropped in silence, at whatever level it stands: each changes what
//! is made of the object, or what its author is told.
//!
//! Invariants: the samples have every field that the types know, which the test finds out by itself, so that a new field
//! fails until it is in a sample and honoured or told. Each field is tried alone, beside no more than it needs.

use std::sync::Arc;

use mesh_k8s::networking::{DestinationRule, VirtualService};
use mesh_translate::{ClusterView, Origin, translate};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// What the objects are tried beside: services with a waypoint, and a virtual service to delegate to.
fn world() -> Vec<Value> {
    let service = |name: &str, ip: u32| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": format!("10.96.0.{ip}"), "ports": [
                {"name": "http", "port": 80}, {"name": "tcp", "port": 90}, {"name": "tls", "port": 443}]}})
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"warren.dev/use-waypoint": "wp"}}}),
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "wp", "namespace": "shop"},
            "spec": {"gatewayClassName": "warren-waypoint"}}),
        service("wp", 1),
        service("a", 2),
        service("b", 3),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "leaf", "namespace": "shop"},
            "spec": {"http": [{"route": [{"destination": {"host": "b"}}]}]}}),
    ]
}

/// Everything that comes of an object.
fn outcome(kind: &str, object: &Value) -> String {
    let mut object = object.clone();
    object["apiVersion"] = json!("networking.istio.io/v1");
    object["kind"] = json!(kind);
    object["metadata"] = json!({"name": "tried", "namespace": "shop"});
    let mut view = ClusterView::default();
    for document in world().into_iter().chain([object]) {
        let parsed = mesh_k8s::read(document.clone()).unwrap_or_else(|e| panic!("{e}: {document}"));
        assert_eq!(parsed.unknown, [""; 0], "{document}");
        view.apply(parsed.object, Origin::default(), Arc::from([]));
    }
    let output = translate(&view);
    format!("{:?}\n{:?}", output.changes, output.statuses)
}

/// Adds what `more` says to a document, elements of lists by their place.
fn merge(document: &mut Value, more: &Value) {
    match (document, more) {
        (Value::Object(document), Value::Object(more)) => {
            for (name, value) in more {
                merge(document.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(document), Value::Array(more)) => {
            for (i, value) in more.iter().enumerate() {
                match document.get_mut(i) {
                    Some(own) => merge(own, value),
                    None => document.push(value.clone()),
                }
            }
        }
        (document, more) => document.clone_from(more),
    }
}

/// A document with one value at a path and nothing else.
fn alone(path: &[String], value: &Value) -> Value {
    path.iter()
        .rev()
        .fold(value.clone(), |inner, step| match step.parse::<usize>() {
            Ok(_) => json!([inner]),
            Err(_) => json!({step.as_str(): inner}),
        })
}

/// What is told as a whole, whatever it says.
const WHOLE: [&str; 3] = ["tunnel", "zoneAwareLbSetting", "workloadSelector"];

/// The paths of all values, those of lists of texts or numbers as one.
fn leaves(value: &Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, Value)>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) if !path.last().is_some_and(|name| WHOLE.contains(&&**name)) => {
            fields.iter().map(|(k, v)| (k.clone(), v)).collect()
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            assert_eq!(items.len(), 1, "{path:?}: one element has everything");
            items.iter().map(|item| ("0".to_owned(), item)).collect()
        }
        _ => return found.push((path.clone(), value.clone())),
    };
    for (step, value) in inner {
        path.push(step);
        leaves(value, path, found);
        path.pop();
    }
}

/// The paths at which a typed object says nothing.
fn empty(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                empty(value, &format!("{path}/{name}"), found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                empty(item, &format!("{path}/{i}"), found);
            }
        }
        Value::Null | Value::Bool(false) | Value::Object(_) | Value::Array(_) => {
            found.push(path.to_owned());
        }
        Value::String(text) if text.is_empty() => found.push(path.to_owned()),
        Value::Number(number) if number.as_f64() == Some(0.0) => found.push(path.to_owned()),
        Value::Bool(true) | Value::String(_) | Value::Number(_) => {}
    }
}

/// Tries each value of the sample alone, beside what `company` says that it needs.
fn check<K: Serialize + DeserializeOwned>(
    kind: &str,
    sample: &Value,
    company: impl Fn(&str) -> Value,
) {
    let typed: K = serde_json::from_value(json!({"spec": sample})).expect("the sample reads");
    let typed = serde_json::to_value(&typed).expect("and is written again");
    let mut lacking = Vec::new();
    empty(&typed["spec"], "", &mut lacking);
    assert_eq!(
        lacking, [""; 0],
        "the sample of a {kind} does not have every field"
    );
    let (mut all, mut silent) = (Vec::new(), Vec::new());
    leaves(sample, &mut Vec::new(), &mut all);
    assert!(all.len() > 50, "{all:?}");
    for (path, value) in all {
        let text = path.join(".");
        let (_, parent) = path.split_last().expect("a field");
        let mut without = company(&text);
        merge(&mut without, &alone(parent, &json!({})));
        let mut with = without.clone();
        merge(&mut with, &alone(&path, &value));
        let before = outcome(kind, &json!({"spec": without}));
        if outcome(kind, &json!({"spec": with})) == before {
            silent.push(text);
        }
    }
    assert_eq!(silent, [""; 0], "neither honoured nor told");
}

fn strings() -> Value {
    json!({"exact": "/x", "prefix": "/y", "regex": "/z.*"})
}

fn policy() -> Value {
    json!({
        "loadBalancer": {
            "simple": "ROUND_ROBIN",
            "consistentHash": {
                "httpHeaderName": "x", "useSourceIp": true, "httpQueryParameterName": "q",
                "httpCookie": {"name": "c", "path": "/p", "ttl": "5s", "attributes": [{"name": "SameSite", "value": "Lax"}]},
                "ringHash": {"minimumRingSize": 64}, "maglev": {"tableSize": 101}, "minimumRingSize": 32,
            },
            "localityLbSetting": {
                "distribute": [{"from": "r/*", "to": {"r/z": 100}}],
                "failover": [{"from": "r", "to": "s"}],
                "failoverPriority": ["rack"],
                "enabled": true,
            },
            "zoneAwareLbSetting": {"minClusterSize": 6},
            "warmup": {"duration": "10s", "minimumPercent": 20.0, "aggression": 2.0},
            "warmupDurationSecs": "5s",
        },
        "connectionPool": {
            "tcp": {
                "maxConnections": 1, "connectTimeout": "1s", "maxConnectionDuration": "2s", "idleTimeout": "3s",
                "tcpKeepalive": {"probes": 1, "time": "1s", "interval": "2s"},
            },
            "http": {
                "http1MaxPendingRequests": 1, "http2MaxRequests": 2, "maxRequestsPerConnection": 3, "maxRetries": 4,
                "idleTimeout": "5s", "h2UpgradePolicy": "UPGRADE", "useClientProtocol": true, "maxConcurrentStreams": 6,
                "http2KeepAlive": {"interval": "7s", "timeout": "8s"},
            },
        },
        "outlierDetection": {
            "consecutiveErrors": 1, "splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailures": 2,
            "consecutiveGatewayErrors": 3, "consecutive5xxErrors": 4, "interval": "1s", "baseEjectionTime": "2s",
            "maxEjectionPercent": 50, "minHealthPercent": 40, "outlierDetectionHttpErrorCodes": [418],
        },
        "tls": {
            "mode": "SIMPLE", "clientCertificate": "/c.pem", "privateKey": "/k.pem", "caCertificates": "/ca.pem",
            "credentialName": "secret", "subjectAltNames": ["b"], "sni": "b", "insecureSkipVerify": true, "caCrl": "/crl.pem",
        },
    })
}

/// A policy with what single ports cannot have, and a port with everything that they can.
fn whole_policy() -> Value {
    let (mut whole, mut port) = (policy(), policy());
    port["port"] = json!({"number": 80});
    whole["portLevelSettings"] = json!([port]);
    whole["tunnel"] = json!({"protocol": "POST", "targetHost": "b", "targetPort": 8443});
    whole["proxyProtocol"] = json!({"version": "V2"});
    whole["retryBudget"] = json!({"percent": {"value": 30.0}, "minRetryConcurrency": 5});
    whole
}

/// What a part of a policy needs beside itself.
fn beside(field: &str) -> Value {
    let starts = |start: &str| field.starts_with(start);
    if starts("loadBalancer.consistentHash.httpCookie") {
        return json!({"loadBalancer": {"consistentHash": {"httpCookie": {"name": "d"}}}});
    }
    if [".ringHash", ".maglev", ".minimumRingSize"]
        .iter()
        .any(|end| field.contains(end))
    {
        return json!({"loadBalancer": {"consistentHash": {"httpHeaderName": "y"}}});
    }
    if starts("loadBalancer.localityLbSetting.enabled") {
        return json!({"loadBalancer": {"localityLbSetting": {"enabled": false}}});
    }
    if starts("loadBalancer.warmup.") {
        return json!({"loadBalancer": {"warmup": {"duration": "9s"}}});
    }
    if starts("connectionPool.http.http2KeepAlive.timeout") {
        return json!({"connectionPool": {"http": {"http2KeepAlive": {"interval": "9s"}}}});
    }
    if starts("tls.") {
        return json!({"tls": {"mode": "MUTUAL", "clientCertificate": "/d.pem", "privateKey": "/l.pem"}});
    }
    json!({})
}

#[test]
fn every_field_of_a_destination_rule_is_honoured_or_told() {
    let sample = json!({
        "host": "a",
        "trafficPolicy": whole_policy(),
        "subsets": [{"name": "v1", "labels": {"v": "1"}, "trafficPolicy": whole_policy()}],
        "exportTo": ["."],
        "workloadSelector": {"matchLabels": {"app": "x"}},
    });
    check::<DestinationRule>("DestinationRule", &sample, |path| {
        let mut base = json!({"host": "b"});
        if path.starts_with("subsets.0") {
            base["subsets"] = json!([{"name": "other"}]);
        }
        let field = path.trim_start_matches("subsets.0.");
        let Some(field) = field.strip_prefix("trafficPolicy.") else {
            return base;
        };
        let level = &path[..path.len() - field.len() - 1];
        let (level, field) = match field.strip_prefix("portLevelSettings.0.") {
            Some(field) => (format!("{level}.portLevelSettings.0"), field),
            None => (level.to_owned(), field),
        };
        let mut needs = beside(field);
        if level.ends_with(".0") && !field.starts_with("port.") {
            needs["port"] = json!({"number": 80});
        }
        let steps: Vec<String> = level.split('.').map(str::to_owned).collect();
        merge(&mut base, &alone(&steps, &needs));
        base
    });
}

#[test]
fn every_field_of_a_virtual_service_is_honoured_or_told() {
    let place = || json!({"host": "a", "subset": "v1", "port": {"number": 80}});
    let operations = || json!({"set": {"x": "1"}, "add": {"y": "2"}, "remove": ["z"]});
    let headers = || json!({"request": operations(), "response": operations()});
    let percent = || json!({"value": 50.0});
    let connection = |own: Value| {
        let mut all = json!({"destinationSubnets": ["10.0.0.0/8"], "port": 90, "sourceLabels": {"app": "x"},
            "gateways": ["edge"], "sourceNamespace": "bank"});
        merge(&mut all, &own);
        json!([{"match": [all], "route": [{"destination": place(), "weight": 5}]}])
    };
    let sample = json!({
        "hosts": ["a"],
        "gateways": ["mesh", "edge"],
        "exportTo": ["."],
        "http": [{
            "name": "rule",
            "match": [{
                "name": "condition", "uri": strings(), "scheme": strings(), "method": strings(), "authority": strings(),
                "headers": {"x": strings()}, "withoutHeaders": {"x": strings()}, "queryParams": {"q": strings()},
                "port": 80, "sourceLabels": {"app": "x"}, "sourceNamespace": "bank", "gateways": ["edge"],
                "ignoreUriCase": true, "statPrefix": "p",
            }],
            "route": [{"destination": place(), "weight": 5, "headers": headers()}],
            "redirect": {"uri": "/n", "authority": "n", "port": 81, "derivePort": "FROM_PROTOCOL_DEFAULT", "scheme": "https", "redirectCode": 302},
            "directResponse": {"status": 201, "body": {"string": "s", "bytes": "aGVsbG8="}},
            "delegate": {"name": "leaf", "namespace": "bank"},
            "rewrite": {"uri": "/n", "authority": "n", "uriRegexRewrite": {"match": "/x(.*)", "rewrite": "/y\\1"}},
            "timeout": "1s",
            "retries": {"attempts": 3, "perTryTimeout": "1s", "retryOn": "5xx", "retryRemoteLocalities": true,
                "retryIgnorePreviousHosts": true, "backoff": "2s"},
            "fault": {
                "delay": {"percent": 40, "percentage": percent(), "fixedDelay": "1s", "exponentialDelay": "2s"},
                "abort": {"percentage": percent(), "httpStatus": 503, "grpcStatus": "UNAVAILABLE", "http2Error": "x"},
            },
            "mirror": place(),
            "mirrors": [{"destination": place(), "percentage": percent()}],
            "mirrorPercent": 40,
            "mirrorPercentage": percent(),
            "corsPolicy": {
                "allowOrigin": ["a"], "allowOrigins": [strings()], "allowMethods": ["GET"], "allowHeaders": ["x"],
                "exposeHeaders": ["y"], "maxAge": "1s", "allowCredentials": true, "unmatchedPreflights": "IGNORE",
            },
            "headers": headers(),
        }],
        "tls": connection(json!({"sniHosts": ["a.example"], "port": 443})),
        "tcp": connection(json!({"sourceSubnet": "10.0.0.0/8"})),
    });
    check::<VirtualService>("VirtualService", &sample, |path| {
        let to_b = || json!([{"destination": {"host": "b"}}]);
        let (first, second) = (
            json!({"destination": {"host": "b"}, "weight": 1}),
            json!({"destination": {"host": "b"}, "weight": 2}),
        );
        let mut base = json!({"hosts": ["b"], "http": [{}, {"name": "last", "route": to_b()}]});
        let rule = path.strip_prefix("http.0.").unwrap_or_default();
        base["http"][0] = match rule.split('.').next().unwrap_or_default() {
            "redirect" | "delegate" => json!({}),
            "directResponse" => json!({"directResponse": {"status": 200}}),
            "route" => json!({"route": [first, second]}),
            _ => json!({"route": to_b()}),
        };
        let more = match rule {
            "match.0.ignoreUriCase" => json!({"match": [{"uri": {"prefix": "/"}}]}),
            "redirect.derivePort" => json!({"redirect": {"port": 8080}}),
            _ if rule.starts_with("retries.") => json!({"retries": {"attempts": 1}}),
            "fault.delay.percent" => json!({"fault": {"delay": {"fixedDelay": "3s"}}}),
            _ if rule.starts_with("fault.delay.") => {
                json!({"fault": {"delay": {"fixedDelay": "3s", "percentage": {"value": 10.0}}}})
            }
            _ if rule.starts_with("fault.abort.percentage") => {
                json!({"fault": {"abort": {"httpStatus": 500}}})
            }
            "mirrorPercent" | "mirrorPercentage.value" => json!({"mirror": {"host": "b"}}),
            _ if rule.starts_with("mirror.") => json!({"mirror": {"host": "b"}}),
            _ if rule.starts_with("mirrors.") => {
                json!({"mirrors": [{"destination": {"host": "b"}}]})
            }
            _ => json!({}),
        };
        merge(&mut base["http"][0], &more);
        for kind in ["tls", "tcp"] {
            if path.starts_with(&format!("{kind}.0.")) {
                base[kind] = json!([{"match": [{"sniHosts": ["b.example"]}], "route": to_b()}]);
                if kind == "tcp" {
                    base[kind] = json!([{"match": [{"port": 91}], "route": to_b()}]);
                }
                if path.contains(".route.") {
                    base[kind][0]["route"] = json!([first, second]);
                }
            }
        }
        base
    });
}
