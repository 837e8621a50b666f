//! Tests of tidy: it finds what it must, and nothing else.

use std::collections::BTreeSet;

use super::{
    crates::{MAY_USE, dependencies},
    *,
};
use serde_json::{Value, json};

fn world(edges: &[(&str, &str, Value)]) -> Value {
    let names: BTreeSet<&str> = edges
        .iter()
        .flat_map(|(a, b, _)| [*a, *b])
        .chain(MAY_USE.iter().map(|(n, _)| *n))
        .collect();
    let deps = |from: &str| {
        edges
            .iter()
            .filter(|(a, ..)| *a == from)
            .map(|(_, b, kind)| json!({"pkg": b, "dep_kinds": [{"kind": kind}]}))
            .collect::<Vec<_>>()
    };
    json!({
        "packages": names.iter().map(|n| json!({"id": n, "name": n})).collect::<Vec<_>>(),
        "resolve": {"nodes": names.iter().map(|n| json!({"id": n, "deps": deps(n)})).collect::<Vec<_>>()},
    })
}

fn check(edges: &[(&str, &str, Value)]) -> Vec<String> {
    let mut found = Vec::new();
    dependencies(&world(edges), &mut found).expect("a readable graph");
    found
}

#[test]
fn bans_hold_through_other_crates_but_not_for_tests() {
    let chain = [
        ("mesh-model", "middle", Value::Null),
        ("middle", "tokio", Value::Null),
    ];
    assert_eq!(
        check(&chain),
        ["mesh-model must not use tokio: mesh-model -> middle -> tokio"]
    );
    assert_eq!(
        check(&[("mesh-model", "tokio", json!("dev"))]),
        [] as [&str; 0]
    );
}

#[test]
fn our_crates_use_only_what_is_theirs() {
    assert_eq!(
        check(&[("mesh-api", "mesh-loader", Value::Null)]),
        ["mesh-api must not use mesh-loader: mesh-api -> mesh-loader"]
    );
    assert_eq!(
        check(&[("mesh-node", "aya", Value::Null)]),
        ["mesh-node must not name aya: only mesh-loader does"]
    );
}

fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.into(),
        text: text.into(),
    }
}

#[test]
fn finds_orphans_only() {
    let files = [
        source(
            "a/src/lib.rs",
            "//! x\npub mod known;\nmod folder;\n#[path = \"odd/name.rs\"]\nmod odd;",
        ),
        source("a/src/known.rs", "#[cfg(test)] mod tests;"),
        source("a/src/known/tests.rs", ""),
        source("a/src/folder/mod.rs", "pub(crate) mod inner;"),
        source("a/src/folder/inner.rs", ""),
        source("a/src/odd/name.rs", ""),
        source("a/src/bin/tool.rs", ""),
        source("a/tests/whole.rs", ""),
        source("a/src/lost.rs", ""),
        source("a/src/folder/lost.rs", "// mod lost;"),
    ];
    let found = orphans(&files);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("a/src/lost.rs") && found[1].starts_with("a/src/folder/lost.rs"));
}

#[test]
fn steps_look_back_only() {
    let good = source(
        "mesh-node/src/dial/mod.rs",
        "use crate::accept::Accepted;\n#[cfg(test)]\nuse crate::relay::X;",
    );
    let bad = source("mesh-node/src/accept/mod.rs", "use crate::dial::Dialer;");
    let found = imports(&[good, bad]);
    assert_eq!(
        found,
        ["mesh-node/src/accept/mod.rs: `accept` imports the later step `dial`"]
    );
}

#[test]
fn headers_and_names() {
    let found = source("x/utils.rs", "use a;").findings();
    assert!(
        found[0].contains("//!") && found[1].contains("name"),
        "{found:?}"
    );
    assert!(source("x/good.rs", "//! Good.\n").findings().is_empty());
}
