//! Paths in their one form, rewrites, redirects, header edits and the choice of a backend, by tables.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_model::{
    resilience::Share,
    route::http::{
        Asked, Backend, Cors, Crossing, HeaderEdits, PathRewrite, Pattern, Redirect, Rewrite, Text,
        choose,
        path::{Malformed, normalise},
    },
    testing::Rng,
};

#[test]
fn a_path_has_one_form() {
    let check = |raw: &str, expect: Result<&str, Malformed>| {
        let got = normalise(raw);
        assert_eq!(got.as_deref(), expect.as_ref().map(|s| *s), "{raw:?}");
    };
    for same in [
        "/", "/a", "/a/", "//a//b", "/a.b", "/.a", "/..a", "/a..", "/...", "*", "/a%2Fb", "/%25",
        "/%252E", "/ü", "/a;b=1", "/%C3%BC",
    ] {
        check(same, Ok(same));
    }
    check("", Ok("/"));
    check("/a/./b", Ok("/a/b"));
    check("/a/../b", Ok("/b"));
    check("/a/..", Ok("/"));
    check("/a/.", Ok("/a/"));
    check("/a/b/..", Ok("/a/"));
    check("/../../a", Ok("/a"));
    check("/..", Ok("/"));
    check("/a//../b", Ok("/a/b"));
    check("/%2e%2E/a", Ok("/a"));
    check("/a/%2e%2e/admin", Ok("/admin"));
    check("/a/.%2e/admin", Ok("/admin"));
    check("\\a\\..\\b", Ok("/b"));
    check("/a\\b", Ok("/a/b"));
    check("/%61dmin", Ok("/admin"));
    check("/%7euser%2d", Ok("/~user-"));
    check("/a%2fb", Ok("/a%2Fb"));
    check("/%c3%bc", Ok("/%C3%BC"));
    check("a", Err(Malformed::Relative));
    check("**", Err(Malformed::Relative));
    check("http://a/", Err(Malformed::Relative));
    check("/%", Err(Malformed::Escape));
    check("/%4", Err(Malformed::Escape));
    check("/%zz", Err(Malformed::Escape));
    check("/%+1", Err(Malformed::Escape));
    check("/%ü", Err(Malformed::Escape));
    check("/a%00b", Err(Malformed::Control));
    check("/a\0", Err(Malformed::Control));
    check("/a b", Err(Malformed::Control));
    check("/a\r\nb", Err(Malformed::Control));
    check("/a\x7f", Err(Malformed::Control));
    check("/a#b", Err(Malformed::Fragment));
    check("/a/..%2fadmin", Err(Malformed::HiddenDots));
    check("/a%2F..%2Fadmin", Err(Malformed::HiddenDots));
    check("/a%5c..%5cadmin", Err(Malformed::HiddenDots));
    check("/a%2f.", Err(Malformed::HiddenDots));
}

#[test]
fn normalising_twice_changes_nothing_and_leaves_no_dots() {
    let mut rng = Rng::with_seed(1);
    let parts = [
        "/", "/", "a", "B", ".", "..", "%2e", "%2E", "%2f", "%5C", "\\", "%25", "%41", "%c3", "ü",
        "~", "%7E", "%", "%0",
    ];
    let mut good = 0;
    for _ in 0..200_000 {
        let raw: String = (0..rng.usize(..8))
            .map(|_| parts[rng.usize(..parts.len())])
            .collect();
        let raw = format!("/{raw}");
        let Ok(once) = normalise(&raw) else { continue };
        good += 1;
        assert_eq!(normalise(&once).as_deref(), Ok(&*once), "{raw:?}");
        assert!(once.starts_with('/'), "{raw:?}: {once:?}");
        assert!(
            once.split('/').all(|s| s != "." && s != ".."),
            "{raw:?}: {once:?}"
        );
        // A server that decodes everything first, and then removes dots, must not see another directory.
        let decoded = once.replace("%2F", "/").replace("%5C", "/");
        assert!(
            decoded.split('/').all(|s| s != "." && s != ".."),
            "{raw:?}: {once:?}"
        );
    }
    assert!(good > 50_000, "{good}");
}

fn asked<'a>(
    authority: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    headers: &'a HeaderMap,
) -> Asked<'a> {
    Asked {
        namespace: None,
        groups: &[],
        port: 9080,
        method: "GET",
        scheme: "http",
        authority,
        path,
        query,
        headers,
    }
}

#[test]
fn prefixes_are_replaced_as_the_gateway_api_says() {
    let check = |path: &str, prefix: &str, new: &str, expect: &str| {
        let m = mesh_model::route::http::PathMatch::Segments(prefix.into());
        let covered = m.covered(path, false).expect("matches");
        let rewrite = Rewrite {
            authority: None,
            path: Some(PathRewrite::Prefix(new.into())),
        };
        assert_eq!(
            rewrite.target(path, None, covered).as_deref(),
            Some(expect),
            "{path} {prefix} {new}"
        );
    };
    check("/foo/bar", "/foo", "/xyz", "/xyz/bar");
    check("/foo/bar", "/foo", "/xyz/", "/xyz/bar");
    check("/foo/bar", "/foo/", "/xyz", "/xyz/bar");
    check("/foo/bar", "/foo/", "/xyz/", "/xyz/bar");
    check("/foo", "/foo", "/xyz", "/xyz");
    check("/foo/", "/foo", "/xyz", "/xyz/");
    check("/foo/bar", "/foo", "", "/bar");
    check("/foo/", "/foo", "", "/");
    check("/foo", "/foo", "", "/");
    check("/foo/", "/foo", "/", "/");
    check("/foo", "/foo", "/", "/");
    check("/foo", "/", "/xyz", "/xyz/foo");
}

#[test]
fn targets_are_rewritten() {
    let check =
        |path: PathRewrite, (from, query, covered): (&str, Option<&str>, usize), expect: &str| {
            let rewrite = Rewrite {
                authority: None,
                path: Some(path),
            };
            assert_eq!(
                rewrite.target(from, query, covered).as_deref(),
                Some(expect)
            );
        };
    let full = |t: &str| PathRewrite::Full(t.into());
    let prefix = |t: &str| PathRewrite::Prefix(t.into());
    let regex = |p: &str, t: &str| PathRewrite::Regex(Pattern::new(p).expect("one"), t.into());
    check(full("/new"), ("/old/x", Some("a=1"), 4), "/new?a=1");
    check(full("new"), ("/old", None, 4), "/new");
    check(full("/new?b=2"), ("/old", Some("a=1"), 4), "/new?b=2&a=1");
    // By bytes, as Istio does it.
    check(prefix("/v2"), ("/apis", None, 4), "/v2s");
    check(prefix("/"), ("/api/x", None, 4), "/x");
    check(prefix("/"), ("/api/x", None, 5), "/x");
    check(prefix("/new"), ("/whole/path", Some(""), 11), "/new?");
    check(
        regex("^/service/([^/]+)(/.*)$", r"\2/instance/\1"),
        ("/service/foo/v1/api", None, 0),
        "/v1/api/instance/foo",
    );
    check(
        regex("one", "two"),
        ("/xxx/one/yyy/one/zzz", Some("one"), 0),
        "/xxx/two/yyy/two/zzz?one",
    );
    check(
        regex("(?i)/xxx/", "/yyy/"),
        ("/aaa/XxX/bbb", None, 0),
        "/aaa/yyy/bbb",
    );
    check(regex("b", r"[\0\\]"), ("/abc", None, 0), r"/a[b\]c");
    check(regex("(x)?b", r"<\1>"), ("/ab", None, 0), "/a<>");
    check(regex("never", "x"), ("/ab", None, 0), "/ab");
    assert_eq!(Rewrite::default().target("/a", None, 0), None);
    let object = |template: &str| {
        Pattern::new("(a)(b)")
            .expect("one")
            .check_template(template)
    };
    assert_eq!(object(r"\0\1\2\\x"), Ok(()));
    assert!(object(r"\3").is_err() && object(r"\x").is_err() && object("\\").is_err());
}

#[test]
fn clients_are_sent_elsewhere() {
    let headers = HeaderMap::new();
    let none = || Redirect {
        status: 302,
        scheme: None,
        host: None,
        port: None,
        path: None,
    };
    let check = |to: Redirect, authority: &str, expect: &str| {
        let asked = asked(authority, "/a/b", Some("q=1"), &headers);
        assert_eq!(to.location(&asked, 2), expect);
    };
    let scheme = |s: &str| Some(Arc::from(s));
    check(none(), "web:8000", "http://web:8000/a/b?q=1");
    check(none(), "web", "http://web:9080/a/b?q=1");
    check(
        Redirect {
            port: Some(80),
            ..none()
        },
        "web:8000",
        "http://web/a/b?q=1",
    );
    check(
        Redirect {
            scheme: scheme("https"),
            ..none()
        },
        "web:8000",
        "https://web/a/b?q=1",
    );
    check(
        Redirect {
            scheme: scheme("https"),
            port: Some(8443),
            ..none()
        },
        "web",
        "https://web:8443/a/b?q=1",
    );
    check(
        Redirect {
            scheme: scheme("http"),
            port: Some(443),
            ..none()
        },
        "web",
        "http://web:443/a/b?q=1",
    );
    check(
        Redirect {
            host: scheme("other"),
            ..none()
        },
        "web:8000",
        "http://other:8000/a/b?q=1",
    );
    check(
        Redirect {
            host: scheme("other:81"),
            ..none()
        },
        "web:8000",
        "http://other:81/a/b?q=1",
    );
    check(none(), "[fd00::1]:81", "http://[fd00::1]:81/a/b?q=1");
    check(
        Redirect {
            port: Some(80),
            ..none()
        },
        "[fd00::1]",
        "http://[fd00::1]/a/b?q=1",
    );
    let path = Some(PathRewrite::Prefix("/x".into()));
    check(Redirect { path, ..none() }, "web:80", "http://web/x/b?q=1");
}

#[test]
fn headers_are_edited_in_order_and_host_is_the_authority() {
    let name = |n: &'static str| HeaderName::from_static(n);
    let value = |v: &'static str| HeaderValue::from_static(v);
    let mut headers = HeaderMap::new();
    for (n, v) in [
        ("a", "1"),
        ("a", "2"),
        ("b", "1"),
        ("c", "1"),
        ("host", "old"),
    ] {
        headers.append(name(n), value(v));
    }
    let edits = HeaderEdits {
        remove: [name("a"), name("host"), name("absent")].into(),
        set: [(name("b"), value("2")), (name("host"), value("new"))].into(),
        add: [
            (name("a"), value("3")),
            (name("c"), value("2")),
            (name("d"), value("1")),
        ]
        .into(),
    };
    assert_eq!(edits.apply(&mut headers), Some(&value("new")));
    let all = |n: &str| -> Vec<String> {
        let values = headers.get_all(n).iter();
        values
            .map(|v| v.to_str().expect("text").to_owned())
            .collect()
    };
    assert_eq!(all("a"), ["3"]);
    assert_eq!(all("b"), ["2"]);
    assert_eq!(all("c"), ["1", "2"]);
    assert_eq!(all("d"), ["1"]);
    assert_eq!(all("host"), ["old"]);
    assert_eq!(HeaderEdits::default().apply(&mut HeaderMap::new()), None);
}

#[test]
fn origins_are_let_in_by_the_fetch_standard() {
    let cors = |credentials, forward_unmatched, star: bool| Cors {
        origins: [
            Text::Exact("https://a.example".into()),
            Text::Regex(Pattern::new(r"https://.*\.b\.example").expect("one")),
        ]
        .into(),
        methods: if star {
            ["*".into()].into()
        } else {
            ["GET".into(), "PUT".into()].into()
        },
        headers: if star {
            ["*".into()].into()
        } else {
            ["x-a".into(), "x-b".into()].into()
        },
        expose: ["x-c".into()].into(),
        max_age: Some(std::time::Duration::from_secs(600)),
        credentials,
        forward_unmatched,
    };
    let shown = |kind: &str, headers: &HeaderMap| {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(n, v)| {
                let name = n.as_str().trim_start_matches("access-control-");
                format!("{name}={}", v.to_str().expect("text"))
            })
            .collect();
        lines.sort();
        format!("{kind} {}", lines.join(" ")).trim().to_owned()
    };
    let look = |cors: Cors, method: &str, origin: Option<&'static str>, asks: bool| {
        let mut headers = HeaderMap::new();
        if let Some(origin) = origin {
            headers.insert("origin", HeaderValue::from_static(origin));
        }
        if asks {
            headers.insert(
                "access-control-request-method",
                HeaderValue::from_static("DELETE"),
            );
            headers.insert(
                "access-control-request-headers",
                HeaderValue::from_static("x-z"),
            );
        }
        match cors.look(method, &headers) {
            Crossing::Plain(h) => shown("plain", &h),
            Crossing::Marked(h) => shown("marked", &h),
            Crossing::Answered(h) => shown("answered", &h),
        }
    };
    let (a, b, no) = (
        Some("https://a.example"),
        Some("https://x.b.example"),
        Some("https://a.example.org"),
    );
    assert_eq!(
        look(cors(false, false, false), "GET", None, false),
        "plain vary=origin"
    );
    assert_eq!(
        look(cors(false, false, false), "GET", no, false),
        "plain vary=origin"
    );
    assert_eq!(
        look(cors(false, false, false), "GET", a, false),
        "marked allow-origin=https://a.example expose-headers=x-c vary=origin"
    );
    assert_eq!(
        look(cors(true, false, false), "OPTIONS", b, false),
        "marked allow-credentials=true allow-origin=https://x.b.example expose-headers=x-c vary=origin",
        "OPTIONS alone is no preflight"
    );
    assert_eq!(
        look(cors(false, false, false), "OPTIONS", b, true),
        "answered allow-headers=x-a,x-b allow-methods=GET,PUT allow-origin=https://x.b.example max-age=600"
    );
    assert_eq!(
        look(cors(false, false, true), "OPTIONS", a, true),
        "answered allow-headers=* allow-methods=* allow-origin=https://a.example max-age=600"
    );
    assert_eq!(
        look(cors(true, false, true), "OPTIONS", a, true),
        "answered allow-credentials=true allow-headers=x-z allow-methods=DELETE allow-origin=https://a.example max-age=600"
    );
    assert_eq!(
        look(cors(true, false, true), "OPTIONS", no, true),
        "answered"
    );
    assert_eq!(
        look(cors(true, true, true), "OPTIONS", no, true),
        "plain vary=origin"
    );
}

fn backend(name: &str, weight: u32) -> Backend {
    Backend {
        service: mesh_model::name::ServiceName {
            namespace: "shop".into(),
            hostname: name.into(),
        },
        port: None,
        subset: None,
        weight,
        filters: Default::default(),
        invalid: None,
    }
}

#[test]
fn weights_are_exact_over_all_draws() {
    // Draws in equal steps over the whole range: each backend gets its weight of them, to the last one.
    for weights in [
        &[80, 20][..],
        &[1, 0, 3],
        &[0, 0, 7],
        &[75, 25],
        &[1, 1, 1],
        &[u32::MAX, 1, 0],
    ] {
        let backends: Vec<Backend> = weights.iter().map(|w| backend("x", *w)).collect();
        let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let steps = sum.min(10_000) * 7;
        let mut got = vec![0u64; weights.len()];
        for i in 0..steps {
            let draw = ((u128::from(i) << 64) / u128::from(steps)) as u64 + 1;
            let chosen = choose(&backends, draw).expect("there is weight");
            let at = backends.iter().position(|b| std::ptr::eq(b, chosen));
            got[at.expect("one of them")] += 1;
        }
        for (w, got) in weights.iter().zip(&got) {
            let exact = u128::from(*w) * u128::from(steps) / u128::from(sum);
            assert!(
                u128::from(*got).abs_diff(exact) <= 1,
                "{weights:?}: {got} not {exact}"
            );
            assert!(*w > 0 || *got == 0, "one without weight was chosen");
        }
    }
    assert!(choose(&[], 5).is_none());
    assert!(choose(&[backend("x", 0)], u64::MAX).is_none());
    let last = [backend("a", 1), backend("b", 1), backend("c", 0)];
    assert_eq!(choose(&last, 0), Some(&last[0]));
    assert_eq!(choose(&last, u64::MAX), Some(&last[1]));
}

#[test]
fn a_share_covers_exactly_its_part_of_all_draws() {
    for parts in [0, 1, 1_000, 50_000, 333_333, 999_999, 1_000_000] {
        let share = Share::per_million(parts);
        // The draws at which a millionth begins, and the last ones before.
        let covered = (0..1_000_000u128)
            .filter(|i| {
                let begin = ((i << 64).div_ceil(1_000_000)) as u64;
                let end = ((((i + 1) << 64).div_ceil(1_000_000)) - 1) as u64;
                assert_eq!(share.covers(begin), share.covers(end), "{parts}: {i}");
                share.covers(begin)
            })
            .count();
        assert_eq!(covered, parts as usize);
    }
    assert_eq!(Share::percent(0.1), Some(Share::per_million(1_000)));
    assert_eq!(Share::percent(100.0), Some(Share::ALL));
    for bad in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
        assert_eq!(Share::percent(bad), None);
    }
}
