//! What was asked for when the cluster was last installed or upgraded, kept in it: `upgrade` begins with that.
//!
//! Invariants: only what a user set is kept, so that defaults can be better ones in the next version; what is kept and
//! cannot be understood ends the upgrade, and is never left out.

use anyhow::Context;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{
    Asked, Profile,
    cluster::Cluster,
    object::meta,
    set::{SetError, document, invalid},
};

/// The name of the ConfigMap that holds it.
pub(super) const NAME: &str = "warren-values";
const PROFILE: &str = "profile";
const CHANGES: &str = "values.yaml";

/// The ConfigMap that keeps what was asked for.
pub(super) fn object(asked: &Asked, namespace: &str) -> anyhow::Result<Value> {
    let changes = serde_saphyr::to_string(&asked.changes).context("writing values as YAML")?;
    Ok(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(NAME, namespace),
        "data": {PROFILE: asked.profile.name(), CHANGES: changes},
    }))
}

/// What was asked for the last time; `None`: nothing is kept, as of an installation by other means.
pub async fn remembered(cluster: &Cluster) -> anyhow::Result<Option<Asked>> {
    let named = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": cluster.namespace}});
    let found = cluster.get(&named).await?;
    let asked = found.map(|object| read(&object)).transpose();
    asked.context(
        "what the installation was asked for cannot be understood; --reset-values leaves it out",
    )
}

fn read(object: &Value) -> Result<Asked, SetError> {
    let of = |key: &str| object["data"][key].as_str().unwrap_or_default();
    let what = |key: &str| format!("{key} of ConfigMap {NAME}");
    let profile = Profile::from_str(of(PROFILE), false)
        .map_err(|_| invalid(&what(PROFILE), &format!("{:?} is no profile", of(PROFILE))))?;
    let changes = document(&what(CHANGES), of(CHANGES))?;
    Ok(Asked { profile, changes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::Assignment;

    fn asked(profile: Profile, written: &str) -> Asked {
        let set = Assignment::parse(written, false).expect("assignments");
        Asked::default()
            .with(Some(profile), &[], set)
            .expect("changes")
    }

    #[test]
    fn what_was_asked_for_comes_back() {
        let first = asked(
            Profile::Minimal,
            "image.tag=dev,node.env.A=b,node.resources.limits=null,node.drain=7",
        );
        let kept = object(&first, "mesh").expect("an object");
        assert_eq!(kept["metadata"]["namespace"], "mesh");
        let back = read(&kept).expect("what was written");
        assert_eq!(back, first);
        assert_eq!(
            back.paths(),
            [
                "image.tag",
                "node.drain",
                "node.env.A",
                "node.resources.limits"
            ]
        );
        let values = back.values().expect("values");
        assert_eq!((values.node.drain, values.controller.replicas), (7, 1));
        assert!(values.node.resources.limits.is_empty(), "taken away");
        let plain = object(&Asked::default(), "mesh").expect("an object");
        assert_eq!(read(&plain).expect("nothing was set"), Asked::default());
    }

    #[test]
    fn what_is_asked_for_now_wins_and_the_rest_stays() {
        let now = Assignment::parse("node.drain=9", false).expect("an assignment");
        let files = [("a file".to_owned(), "log: {format: json}\n".to_owned())];
        let both = asked(Profile::Minimal, "image.tag=dev,node.drain=7").with(None, &files, now);
        let values = both.expect("changes").values().expect("values");
        assert_eq!((values.node.drain, values.image.tag.as_str()), (9, "dev"));
        assert_eq!(
            (values.log.format.as_str(), values.controller.replicas),
            ("json", 1)
        );
        let other =
            asked(Profile::Minimal, "image.tag=dev").with(Some(Profile::Default), &[], Vec::new());
        assert_eq!(
            other
                .expect("changes")
                .values()
                .expect("values")
                .controller
                .replicas,
            2
        );
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let check = |data: Value, expect: &str| {
            let said = read(&json!({"data": data}))
                .and_then(|a| a.values())
                .map_err(|e| e.to_string());
            let said = said.expect_err("is refused");
            assert!(said.contains(expect), "{said}");
        };
        check(json!({}), "\"\" is no profile");
        check(
            json!({"profile": "huge", "values.yaml": "{}"}),
            "\"huge\" is no profile",
        );
        check(
            json!({"profile": "minimal", "values.yaml": "- 1\n"}),
            "it is no mapping",
        );
        check(
            json!({"profile": "minimal", "values.yaml": "node: {gone: 1}\n"}),
            "unknown field `gone`",
        );
    }
}
