//! Cross-origin requests: who is told what, and that nobody is told less because something went wrong.

use super::*;

const ORIGIN: &str = "https://a.example";

fn crossed(path: &str, action: Action, credentials: bool) -> Rule {
    let mut rule = rule(path, action);
    rule.cors = Some(Cors {
        origins: Box::new([Text::Exact(ORIGIN.into())]),
        methods: Box::new(["*".into()]),
        headers: Box::new(["*".into()]),
        expose: Box::new(["x-app".into()]),
        max_age: Some(Duration::from_secs(600)),
        credentials,
        forward_unmatched: false,
    });
    rule
}

fn from(origin: &str, method: &str, path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("host", "db").header("origin", origin);
    request.body(Full::default()).expect("a request")
}

fn told(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = headers.get_all(format!("access-control-{name}")).iter();
    let value = values.next().map(|v| v.to_str().expect("text").to_owned());
    assert_eq!(values.next(), None, "{name} is told once");
    value
}

/// Fetch standard, 3.2.5: for a request with credentials `*` is a method and a header of that name.
#[tokio::test]
async fn a_preflight_with_credentials_is_told_what_it_asks_for_by_name() {
    let w = world("130", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    w.routes(vec![
        crossed("/named", to("v1"), true),
        crossed("/without", to("v1"), false),
    ]);
    let preflight = |path: &str| {
        let mut request = from(ORIGIN, "OPTIONS", path);
        let headers = request.headers_mut();
        headers.insert(
            "access-control-request-method",
            "DELETE".parse().expect("one"),
        );
        headers.insert(
            "access-control-request-headers",
            "x-z".parse().expect("one"),
        );
        request
    };
    for (path, credentials, methods, names) in [
        ("/named", Some("true"), "DELETE", "x-z"),
        ("/without", None, "*", "*"),
    ] {
        let (status, headers, body) = w.ask(preflight(path)).await;
        assert_eq!((status.as_u16(), &body[..]), (200, &b""[..]), "{path}");
        let told = |name| told(&headers, name);
        assert_eq!(told("allow-origin").as_deref(), Some(ORIGIN), "{path}");
        assert_eq!(told("allow-credentials").as_deref(), credentials, "{path}");
        assert_eq!(told("allow-methods").as_deref(), Some(methods), "{path}");
        assert_eq!(told("allow-headers").as_deref(), Some(names), "{path}");
        assert_eq!(told("max-age").as_deref(), Some("600"), "{path}");
    }
    assert_eq!(w.v1.asked.load(SeqCst), 0);
    w.node.stop().await;
}

#[tokio::test]
async fn a_script_sees_what_went_wrong_if_it_may_see_anything() {
    let w = world("131", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let mut aborted = crossed("/abort", to("v1"), true);
    aborted.fault = Some(Fault {
        delay: None,
        abort: Some((Share::ALL, Abort::Http(418))),
    });
    let mut late = crossed("/slow", to("v1"), true);
    late.timeout = Some(Duration::from_millis(100));
    let respond = Respond {
        status: 200,
        body: Bytes::from_static(b"said"),
    };
    w.routes(vec![
        aborted,
        late,
        crossed("/said", Action::Respond(respond), true),
        crossed("/invalid", Action::Invalid("for a reason".into()), true),
        crossed("/gone", to("v3"), true),
        crossed("/reset", to("v1"), true),
        crossed("/", to("v1"), true),
    ]);
    for (path, status) in [
        ("/abort", 418),
        ("/slow", 504),
        ("/said", 200),
        ("/invalid", 500),
        ("/gone", 503),
        ("/reset", 503),
        ("/a%00b", 400),
        ("/", 200),
    ] {
        let (got, headers, _) = w.ask(from(ORIGIN, "GET", path)).await;
        assert_eq!(got.as_u16(), status, "{path}");
        // What names no route has no rule either.
        let known = path != "/a%00b";
        let expect = known.then_some(ORIGIN);
        assert_eq!(told(&headers, "allow-origin").as_deref(), expect, "{path}");
        let yes = known.then_some("true");
        assert_eq!(
            told(&headers, "allow-credentials").as_deref(),
            yes,
            "{path}"
        );
        assert_eq!(headers.contains_key("vary"), known, "{path}");
        // Another origin is told nothing, but that it would not be the same for everybody.
        let (got, headers, _) = w.ask(from("https://b.example", "GET", path)).await;
        assert_eq!(got.as_u16(), status, "{path}");
        assert_eq!(told(&headers, "allow-origin"), None, "{path}");
        assert_eq!(headers.contains_key("vary"), known, "{path}");
    }
    w.node.stop().await;
}
