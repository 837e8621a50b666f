//! Virtual services that have the rules for requests which others hand to them.
//!
//! Invariant: a delegate's rule holds only for requests that both its own conditions and the handing rule's let in;
//! where these contradict each other it holds for none.

use std::collections::BTreeMap;

use mesh_k8s::networking::{
    VirtualService,
    virtual_service::{Delegate, HttpMatchRequest, HttpRoute, StringMatch},
};

use crate::{
    traffic::{export::Export, reader::Reader},
    view::{ClusterView, Entry, Key},
};

/// The name of a delegate, as a virtual service of namespace `own` writes it.
pub(crate) fn key(own: &str, delegate: &Delegate) -> Key {
    let namespace = match delegate.namespace.as_str() {
        "" => own,
        namespace => namespace,
    };
    Key::new(namespace, &delegate.name)
}

/// The delegate, when it may be one; else why not.
pub(super) fn find<'v>(
    view: &'v ClusterView,
    own: &str,
    delegate: &Delegate,
) -> Result<&'v Entry<VirtualService>, String> {
    let key = key(own, delegate);
    let name = format!("VirtualService {}/{}", key.namespace, key.name);
    let entry = view
        .virtual_services
        .get(&key)
        .ok_or_else(|| format!("{name} is not known"))?;
    let spec = &entry.object.spec;
    if !spec.hosts.is_empty() {
        return Err(format!("{name} has hosts, and so is no delegate"));
    }
    let export = Export::read(&key.namespace, &spec.export_to, &mut Reader::default());
    if !export.reaches(own) {
        return Err(format!("{name} is not exported to namespace {own}"));
    }
    Ok(entry)
}

/// A delegate's rule under the rule that hands over; `None` when no request could satisfy both.
pub(super) fn merged(root: &HttpRoute, leaf: &HttpRoute) -> Option<HttpRoute> {
    let matches = match (root.matches.as_slice(), leaf.matches.as_slice()) {
        (all, []) | ([], all) => all.to_vec(),
        (roots, leaves) => {
            let both = |root| leaves.iter().filter_map(move |leaf| both(root, leaf));
            let all: Vec<_> = roots.iter().flat_map(both).collect();
            if all.is_empty() {
                return None;
            }
            all
        }
    };
    let mut merged = leaf.clone();
    merged.matches = matches;
    let mirrored = leaf.mirror.is_some() || !leaf.mirrors.is_empty();
    if !mirrored {
        merged.mirror.clone_from(&root.mirror);
        merged.mirrors.clone_from(&root.mirrors);
        merged.mirror_percent = root.mirror_percent;
        merged.mirror_percentage = root.mirror_percentage;
    }
    merged.rewrite = merged.rewrite.or_else(|| root.rewrite.clone());
    merged.timeout = merged.timeout.or_else(|| root.timeout.clone());
    merged.retries = merged.retries.or_else(|| root.retries.clone());
    merged.fault = merged.fault.or_else(|| root.fault.clone());
    merged.cors_policy = merged.cors_policy.or_else(|| root.cors_policy.clone());
    merged.headers = merged.headers.or_else(|| root.headers.clone());
    Some(merged)
}

/// What satisfies both; `None` when nothing can.
fn both(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> Option<HttpMatchRequest> {
    if root.ignore_uri_case != leaf.ignore_uri_case && root.uri.is_some() && leaf.uri.is_some() {
        return None;
    }
    let port = match (root.port, leaf.port) {
        (0, port) | (port, 0) => port,
        (a, b) if a == b => a,
        _ => return None,
    };
    let source_namespace = match (
        root.source_namespace.as_str(),
        leaf.source_namespace.as_str(),
    ) {
        ("", namespace) | (namespace, "") => namespace,
        (a, b) if a == b => a,
        _ => return None,
    };
    let mut source_labels = root.source_labels.clone();
    for (key, value) in &leaf.source_labels {
        if source_labels
            .insert(key.clone(), value.clone())
            .is_some_and(|own| own != *value)
        {
            return None;
        }
    }
    let gateways = match leaf.gateways.as_slice() {
        [] => root.gateways.clone(),
        own => own.to_vec(),
    };
    Some(HttpMatchRequest {
        name: [root.name.as_str(), leaf.name.as_str()]
            .join("-")
            .trim_matches('-')
            .to_owned(),
        uri: narrower(root.uri.as_ref(), leaf.uri.as_ref())?,
        scheme: narrower(root.scheme.as_ref(), leaf.scheme.as_ref())?,
        method: narrower(root.method.as_ref(), leaf.method.as_ref())?,
        authority: narrower(root.authority.as_ref(), leaf.authority.as_ref())?,
        headers: each(&root.headers, &leaf.headers)?,
        without_headers: both_without(&root.without_headers, &leaf.without_headers)?,
        query_params: each(&root.query_params, &leaf.query_params)?,
        port,
        source_labels,
        source_namespace: source_namespace.to_owned(),
        gateways,
        ignore_uri_case: match leaf.uri {
            Some(_) => leaf.ignore_uri_case,
            None => root.ignore_uri_case,
        },
        stat_prefix: String::new(),
    })
}

/// The leaf's condition where it is within the root's; `None` when that cannot be told, or is not so.
#[expect(
    clippy::option_option,
    reason = "outside: whether it can be; inside: whether there is one"
)]
fn narrower(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> Option<Option<StringMatch>> {
    let (root, leaf) = match (root, leaf) {
        (one, None) | (None, one) => return Some(one.cloned()),
        (Some(root), Some(leaf)) => (root, leaf),
    };
    let begin = leaf.exact.as_ref().or(leaf.prefix.as_ref());
    let within = match (&root.exact, &root.prefix, &root.regex) {
        // That it is there: whatever the leaf says of it is narrower.
        (None, None, None) => true,
        (Some(exact), None, None) => leaf.exact.as_ref() == Some(exact),
        (None, Some(prefix), None) => begin.is_some_and(|text| text.starts_with(prefix.as_str())),
        _ => root == leaf,
    };
    within.then(|| Some(leaf.clone()))
}

fn each(
    root: &BTreeMap<String, StringMatch>,
    leaf: &BTreeMap<String, StringMatch>,
) -> Option<BTreeMap<String, StringMatch>> {
    let mut all = root.clone();
    for (name, own) in leaf {
        let narrow = narrower(root.get(name), Some(own))?;
        all.extend(narrow.map(|narrow| (name.clone(), narrow)));
    }
    Some(all)
}

/// The same for what must not be: of two such conditions the one is narrower that excludes more.
fn both_without(
    root: &BTreeMap<String, StringMatch>,
    leaf: &BTreeMap<String, StringMatch>,
) -> Option<BTreeMap<String, StringMatch>> {
    let mut all = root.clone();
    for (name, own) in leaf {
        // What the root excludes has to be among what the leaf does.
        narrower(Some(own), root.get(name))?;
        all.insert(name.clone(), own.clone());
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(root: Value, leaf: Value, expect: Option<Value>) {
        let read = |value: &Value| -> HttpMatchRequest {
            serde_json::from_value(value.clone()).expect("a match")
        };
        let found = both(&read(&root), &read(&leaf));
        assert_eq!(found, expect.as_ref().map(read), "{root} and {leaf}");
    }

    #[test]
    fn conditions_that_must_not_hold_exclude_whatever_either_excludes() {
        let without = |value: Value| json!({"withoutHeaders": {"x": value}});
        let (a, ab) = (json!({"exact": "a"}), json!({"exact": "ab"}));
        let present = json!({});
        let begins = json!({"prefix": "a"});
        let narrower = |root: &Value, leaf: &Value, expect: Option<&Value>| {
            let expect = expect.map(|value| without(value.clone()));
            check(without(root.clone()), without(leaf.clone()), expect);
        };
        narrower(&a, &a, Some(&a));
        // The header has to be absent for the root, or not to begin so: what lets more in does not widen that.
        narrower(&present, &a, None);
        narrower(&begins, &ab, None);
        narrower(&a, &ab, None);
        narrower(&a, &present, Some(&present));
        narrower(&ab, &begins, Some(&begins));
        check(without(a.clone()), json!({}), Some(without(a.clone())));
        check(json!({}), without(a.clone()), Some(without(a)));
    }

    #[test]
    fn conditions_that_must_hold_are_the_leafs_where_they_are_within_the_roots() {
        let uri = |value: Value| json!({"uri": value});
        check(
            uri(json!({"prefix": "/a"})),
            uri(json!({"prefix": "/a/b"})),
            Some(uri(json!({"prefix": "/a/b"}))),
        );
        check(
            uri(json!({"prefix": "/a/b"})),
            uri(json!({"prefix": "/a"})),
            None,
        );
        check(json!({"port": 80}), json!({"port": 81}), None);
        check(json!({"port": 80}), json!({}), Some(json!({"port": 80})));
    }
}
