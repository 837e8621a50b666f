//! What an operator is told, word for word where the words matter.

use super::*;

const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: n1, serviceAccountName: client, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, serviceAccountName: web, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {nodeName: n2, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.2.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: nobody}, ports: [{port: 80}]}
"#;

const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{from: [{source: {serviceAccounts: [client]}}]}]
"#;

const LAYER7: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-get, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - to:
    - operation:
        methods: [GET]
"#;

const STRICT: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"#;

struct Manifests(tempfile::TempDir);

impl Manifests {
    fn new(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("cluster.yaml"), CLUSTER).expect("written");
        for (i, text) in more.iter().enumerate() {
            std::fs::write(
                folder.path().join(format!("more-{i}.yaml")),
                text.trim_start(),
            )
            .expect("written");
        }
        Self(folder)
    }

    fn ask(&self, source: &str, destination: &str) -> Result<Answer, String> {
        ask(
            self.0.path(),
            source,
            destination,
            &request::Request::default(),
        )
        .map_err(|e| format!("{e:#}"))
    }

    /// The table, with the folder's name left out.
    fn table(&self, source: &str, destination: &str) -> String {
        let answer = self.ask(source, destination).expect("an answer");
        answer
            .table()
            .replace(&format!("{}/", self.0.path().display()), "")
    }
}

#[test]
fn what_passes_is_said_with_its_way() {
    let text = Manifests::new(&[]).table("shop/client", "shop/web:80");
    assert_eq!(
        text,
        "PASSES\n\
         Kubernetes//Pod/shop/client (spiffe://cluster.local/ns/shop/sa/client)\n\
         dials 10.96.0.1:80: service shop/web.shop.svc.cluster.local port 80\n\
         1. hbone to 10.0.2.1:15008 for 10.0.2.1:8080, workload Kubernetes//Pod/shop/web-1 on node n2\n   \
         accepts: PERMISSIVE\n   => allowed\n"
    );
    let answer = Manifests::new(&[])
        .ask("shop/client", "web.shop:80")
        .expect("an answer");
    assert_eq!(answer.code(), 0);
}

#[test]
fn a_denial_names_the_policy_and_where_it_stands() {
    let manifests = Manifests::new(&[DENY]);
    let text = manifests.table("10.0.1.1", "web.shop.svc.cluster.local:80");
    assert!(text.starts_with("REFUSED\n"), "{text}");
    for part in [
        "policy shop/no-client (selector, DENY)",
        "=> refused by shop/no-client: ",
        "(policy_denied)",
        "where: shop/no-client is at more-0.yaml:1",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert_eq!(
        manifests
            .ask("shop/client", "shop/web:80")
            .expect("an answer")
            .code(),
        1
    );
    // The same policy does not concern the other port's service account.
    assert!(
        manifests
            .table("outside/stranger", "pod/shop/web-1:8080")
            .starts_with("PASSES\n")
    );
}

#[test]
fn a_policy_beyond_layer_4_is_explained() {
    let text = Manifests::new(&[LAYER7]).table("shop/client", "shop/web:80");
    assert!(text.starts_with("REFUSED\n"), "{text}");
    assert!(
        text.contains("note: more-0.yaml:9: AuthorizationPolicy shop/only-get: spec.rules[0].to[0].operation.methods: is only known at layer 7"),
        "{text}"
    );
}

#[test]
fn strict_and_outsiders_are_explained() {
    let text = Manifests::new(&[STRICT]).table("outside/stranger", "10.0.2.1:8080");
    assert!(text.starts_with("REFUSED\n"), "{text}");
    for part in [
        "Kubernetes//Pod/outside/stranger (nobody, to the mesh)",
        "plain to 10.0.2.1:8080",
        "accepts: STRICT",
        "(mtls_required)",
        "note: Kubernetes//Pod/outside/stranger is not enrolled",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let text = Manifests::new(&[]).table("outside/stranger", "shop/web:80");
    assert!(text.starts_with("PASSES\n"), "{text}");
    assert!(text.contains("plain to 10.0.2.1:8080"), "{text}");
}

/// A waypoint that was made by hand, and what demands it.
const GUARDED: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: warren-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: n1, serviceAccountName: wp, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.1.9}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels: {warren.dev/use-waypoint: wp, warren.dev/require-waypoint: "true"}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81}]}
"#;

/// The cluster whose service has that waypoint.
fn guarded(more: &[&str]) -> Manifests {
    let manifests = Manifests::new(&[&[GUARDED], more].concat());
    let without = CLUSTER.replace(
        "metadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1",
        "metadata: {name: former, namespace: shop}\nspec: {clusterIP: 10.96.0.3",
    );
    let path = manifests.0.path().join("cluster.yaml");
    std::fs::write(path, without).expect("written");
    manifests
}

#[test]
fn what_is_handed_to_a_waypoint_is_said_with_it() {
    let manifests = guarded(&[ROUTES]);
    for dialed in ["shop/web:80", "pod/shop/web-1:8080"] {
        let text = manifests.table("outside/stranger", dialed);
        assert!(text.starts_with("PASSES\n"), "{text}");
        let part = "   handed to the waypoint of service shop/web.shop.svc.cluster.local at \
            10.0.1.9:15008 for 10.96.0.1:80, which returns it\n   => allowed\n";
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let asked = request::Request {
        request: Some("GET /other".to_owned()),
        ..request::Request::default()
    };
    let of = |from: &str, to: &str| ask(manifests.0.path(), from, to, &asked).expect("an answer");
    let answer = of("outside/stranger", "pod/shop/web-1:8080");
    assert!(!answer.passes && answer.table().contains("=> 404: none of the rules"));
    // Straight to the pod there is no way for who is in the mesh, and none to a port of no service.
    let text = manifests.table("shop/client", "pod/shop/web-1:8080");
    assert!(text.contains("(waypoint_required)"), "{text}");
    let text = manifests.table("outside/stranger", "pod/shop/web-1:9090");
    assert!(text.starts_with("REFUSED\n"), "{text}");
    assert!(text.contains("(waypoint_required)"), "{text}");
    let text = guarded(&[STRICT]).table("outside/stranger", "shop/web:80");
    assert!(text.contains("(mtls_required)"), "{text}");
}

#[test]
fn what_leads_nowhere_says_so() {
    let manifests = Manifests::new(&[]);
    let text = manifests.table("shop/client", "shop/empty");
    assert!(
        text.starts_with("REFUSED\n") && text.contains("(no_healthy_upstream)")
            || text.contains("(no_endpoints)"),
        "{text}"
    );
    let text = manifests.table("shop/client", "192.0.2.1:443");
    assert!(
        text.starts_with("PASSES\n") && text.contains("outside the mesh"),
        "{text}"
    );
}

#[test]
fn unknown_names_are_answered_with_a_hint() {
    let manifests = Manifests::new(&[]);
    let check = |source: &str, destination: &str, expect: &str| {
        let error = manifests.ask(source, destination).expect_err("no answer");
        assert_eq!(error, expect);
    };
    check(
        "shop/clint",
        "shop/web:80",
        "no workload shop/clint is known; name it as NAMESPACE/NAME or by address",
    );
    check(
        "client",
        "shop/web:80",
        "no workload client is known; name it as NAMESPACE/NAME or by address; did you mean shop/client?",
    );
    check(
        "shop/client",
        "bank/web:80",
        "no service bank/web is known; pods are named pod/NAMESPACE/NAME; did you mean shop/web?",
    );
    check(
        "shop/client",
        "shop/web",
        "shop/web.shop.svc.cluster.local has ports [80, 81]: add one, as in shop/web:80",
    );
    check(
        "shop/client",
        "shop/web:http",
        "\"http\" is not a port: invalid digit found in string",
    );
    check(
        "shop/client",
        "10.96.0.1",
        "10.96.0.1 needs a port: write 10.96.0.1:80",
    );
    check(
        "shop/client",
        "pod/shop/web-1",
        "a pod needs a port: write pod/shop/web-1:80",
    );
    let no_request = request::Request::default();
    assert!(ask(Path::new("/nowhere"), "a", "b", &no_request).is_err());
}

#[test]
fn programs_read_the_same() {
    let manifests = Manifests::new(&[DENY]);
    let answer = manifests
        .ask("shop/client", "shop/web:80")
        .expect("an answer");
    let json: serde_json::Value =
        serde_json::from_str(&answer.render(Form::Json).expect("JSON")).expect("JSON");
    assert_eq!(json["passes"], false);
    let way = &json["explanations"][0]["ways"][0];
    assert_eq!(way["decision"]["policy"], "shop/no-client");
    assert_eq!(way["expects"][0], "spiffe://cluster.local/ns/shop/sa/web");
    assert!(
        json["places"]["shop/no-client"]
            .as_str()
            .is_some_and(|place| place.ends_with("more-0.yaml:1"))
    );
    let yaml: serde_json::Value =
        serde_saphyr::from_str(&answer.render(Form::Yaml).expect("YAML")).expect("YAML");
    assert_eq!(yaml, json);
}

const ROUTES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - name: jason
    match: [{headers: {end-user: {exact: jason}}, uri: {prefix: /cart}}]
    timeout: 2s
    retries: {attempts: 3, perTryTimeout: 1s, retryOn: 5xx}
    fault: {delay: {percentage: {value: 0.1}, fixedDelay: 5s}}
    route: [{destination: {host: web, subset: v2}}]
  - name: cart
    match: [{uri: {prefix: /cart}}]
    route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 3}, http: {http1MaxPendingRequests: 3}}
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3m, maxEjectionPercent: 100}
  subsets: [{name: v1, labels: {version: v1}}]
"#;

/// What is said of a request, with what follows from each.
#[test]
fn a_request_is_explained_by_the_rule_that_takes_it() {
    let manifests = Manifests::new(&[ROUTES]);
    let check = |request: &str, header: &[&str], passes: bool, parts: &[&str]| {
        let asked = request::Request {
            request: Some(request.to_owned()),
            header: header.iter().map(|h| (*h).to_owned()).collect(),
            flags: Vec::new(),
        };
        let answer = ask(manifests.0.path(), "shop/client", "shop/web:80", &asked);
        let answer = answer.expect("an answer");
        let text = answer.table();
        assert_eq!(answer.passes, passes, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    };
    check(
        "GET /cart/../cart/1?x=1",
        &[],
        true,
        &[
            "request GET /cart/1?x=1 for web:80",
            "rule VirtualService/shop/web#jason: header end-user is not there",
            "rule VirtualService/shop/web#cart: decides",
            "at most 3 connections of each waypoint, then 503, UO",
            "is left out for 180s after 1 answers of 5xx in a row, at most 100 % of them",
            "the service has no waypoint",
        ],
    );
    check(
        "/cart",
        &["end-user: jason"],
        false,
        &[
            "rule VirtualService/shop/web#jason: decides",
            "no destination rule defines the subset v2",
            "the whole request may take 2s, then 504, UT",
            "3 more tries, 1s each",
            "0.1 % of such requests are delayed on purpose",
        ],
    );
    check("POST /other", &[], false, &["=> 404: none of the rules"]);
    for (request, header, expect) in [
        ("GET /a%00", "", "would be answered 400"),
        ("GET /", "nothing", "is no header"),
    ] {
        let asked = request::Request {
            request: Some(request.to_owned()),
            header: vec![header.to_owned()]
                .into_iter()
                .filter(|h| !h.is_empty())
                .collect(),
            flags: Vec::new(),
        };
        let error = ask(manifests.0.path(), "shop/client", "shop/web:80", &asked);
        let error = format!("{:#}", error.expect_err("no request"));
        assert!(error.contains(expect), "{error}");
    }
}

/// A service of another team, without a waypoint, to which a rule of `web` leads.
const ELSEWHERE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: vault-1, namespace: bank, labels: {app: vault}}
spec: {nodeName: n2, serviceAccountName: vault, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.2.5}]}
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: bank}
spec: {clusterIP: 10.96.0.5, selector: {app: vault}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /vault}}]
    route: [{destination: {host: vault.bank.svc.cluster.local}}]
  - route: [{destination: {host: web}}]
"#;

/// What endpoints say of a request that a waypoint brings, by whom they see.
#[test]
fn the_endpoints_of_a_request_have_their_say() {
    let check = |more: &[&str], from: &str, request: &str, passes: bool, parts: &[&str]| {
        let manifests = guarded(more);
        let asked = request::Request {
            request: Some(request.to_owned()),
            ..request::Request::default()
        };
        let answer = ask(manifests.0.path(), from, "shop/web:80", &asked).expect("an answer");
        let text = answer.table();
        assert_eq!(answer.passes, passes, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    };
    let own = "endpoints of shop/web.shop.svc.cluster.local:80, as waypoint Kubernetes//Pod/shop/wp-1 asks them\n   \
        Kubernetes//Pod/shop/web-1 at 10.0.2.1:8080 sees the client\n   => ";
    let allowed = format!("{own}allowed\n");
    let denied = format!("{own}refused by shop/no-client: ");
    check(&[ELSEWHERE], "shop/client", "GET /", true, &[&allowed]);
    check(
        &[ELSEWHERE, DENY],
        "shop/client",
        "GET /",
        false,
        &[&denied],
    );
    let seen = "Kubernetes//Pod/bank/vault-1 at 10.0.2.5:8080 sees the waypoint\n   => allowed\n";
    check(&[ELSEWHERE], "shop/client", "GET /vault", true, &[seen]);
    let only_clients = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: clients, namespace: bank}
spec: {action: ALLOW, rules: [{from: [{source: {serviceAccounts: [shop/client]}}]}]}
"#;
    let refused = ["sees the waypoint\n   => refused: ", "(policy_not_allowed)"];
    let more = [ELSEWHERE, only_clients];
    check(&more, "shop/client", "GET /vault", false, &refused);
    // A client outside the mesh proves nothing: its own service may take that, another does not hear of it.
    let seen = "web-1 at 10.0.2.1:8080 sees nobody\n   => allowed\n";
    check(&[ELSEWHERE], "outside/stranger", "GET /", true, &[seen]);
    let refused = [
        "vault-1 at 10.0.2.5:8080 sees nobody\n   => refused: ",
        "(not_waypoint)",
    ];
    check(
        &[ELSEWHERE],
        "outside/stranger",
        "GET /vault",
        false,
        &refused,
    );
    let in_clear = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, trafficPolicy: {tls: {mode: DISABLE}}}
"#;
    let refused = ["sees nobody\n   => refused: ", "(mtls_required)"];
    check(&[in_clear, STRICT], "shop/client", "GET /", false, &refused);
}

#[test]
fn flags_of_the_log_are_said_in_words() {
    let manifests = Manifests::new(&[]);
    let asked = request::Request {
        flags: vec!["URX".to_owned(), "UF".to_owned(), "XX".to_owned()],
        ..request::Request::default()
    };
    let answer = ask(manifests.0.path(), "shop/client", "shop/web:80", &asked);
    let notes = answer.expect("an answer").notes;
    assert!(
        notes[0].starts_with("URX: the last of the tries"),
        "{notes:?}"
    );
    assert!(
        notes[1].starts_with("UF: 503: an endpoint could not be connected to"),
        "{notes:?}"
    );
    assert_eq!(notes[2], "XX: is no flag that waypoints use");
}
