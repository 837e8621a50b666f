//! Whether whoever runs this may make an installation's objects, and whether the controller may do its work.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::{Api, api::PostParams};
use serde_json::Value;

use super::Finding;
use crate::install::{self, Asked, Values, cluster::Cluster, controller};

const CHECK: &str = "permissions";
/// What server-side apply and a comparison take.
const VERBS: [&str; 3] = ["get", "create", "patch"];

pub(super) async fn look(cluster: &Cluster, values: &Values) -> Finding {
    match missing(cluster, values).await {
        Ok((asked, missing)) if missing.is_empty() => {
            Finding::ok(CHECK, format!("all {asked} that an installation takes"))
        }
        Ok((_, missing)) => Finding::failed(
            CHECK,
            format!("missing: {}", missing.join(", ")),
            "run this as a cluster administrator, or have `mesh-ctl manifest` applied by one",
        ),
        Err(error) => Finding::unknown(CHECK, &error),
    }
}

async fn missing(cluster: &Cluster, values: &Values) -> anyhow::Result<(usize, Vec<String>)> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let objects = install::objects(values, &cluster.namespace);
    let resources: BTreeSet<(String, String, Option<String>)> = objects
        .iter()
        .map(|object| {
            let text = |field: &str| object[field].as_str().unwrap_or_default();
            let group = text("apiVersion").split_once('/').map_or("", |(g, _)| g);
            let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
            // Kinds of an installation have regular plurals.
            let plural = format!("{}s", text("kind").to_ascii_lowercase());
            (group.to_owned(), plural, namespace)
        })
        .collect();
    let (mut asked, mut missing) = (0, Vec::new());
    for (group, resource, namespace) in resources {
        for verb in VERBS {
            asked += 1;
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(ResourceAttributes {
                        group: Some(group.clone()),
                        resource: Some(resource.clone()),
                        namespace: namespace.clone(),
                        verb: Some(verb.to_owned()),
                        ..ResourceAttributes::default()
                    }),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await?;
            if !answer.status.is_some_and(|s| s.allowed) {
                missing.push(format!("{verb} {resource}"));
            }
        }
    }
    Ok((asked, missing))
}

/// Whether the controller's account has the rights that its installation gives it: somebody may have taken some.
pub(super) async fn of_the_controller(cluster: &Cluster) -> Finding {
    const CHECK: &str = "the controller's rights";
    match lacking(cluster).await {
        Ok((asked, lacking)) if lacking.is_empty() => {
            Finding::ok(CHECK, format!("all {asked} that it is given"))
        }
        Ok((_, lacking)) => Finding::failed(
            CHECK,
            format!("missing: {}", lacking.join(", ")),
            "`mesh-ctl upgrade` puts its roles and their bindings right",
        ),
        Err(error) => Finding::unknown(CHECK, &error),
    }
}

async fn lacking(cluster: &Cluster) -> anyhow::Result<(usize, Vec<String>)> {
    // Of an installation by other means nothing is remembered.
    let asked = install::remembered(cluster).await?;
    let values = asked.unwrap_or_else(Asked::default).values()?;
    let reviews: &Api<SubjectAccessReview> = &Api::all(cluster.client.clone());
    let namespace = &cluster.namespace;
    let user = &format!("system:serviceaccount:{namespace}:{}", controller::NAME);
    let rights: Vec<ResourceAttributes> = install::objects(&values, namespace)
        .iter()
        .flat_map(|object| rights(object, namespace))
        .collect();
    let count = rights.len();
    let allowed = stream::iter(rights).map(|right| async move {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.clone()),
                resource_attributes: Some(right.clone()),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        anyhow::Ok((!allowed).then(|| title(&right)))
    });
    let lacking: Vec<Option<String>> = allowed.buffered(AT_ONCE).try_collect().await?;
    Ok((count, lacking.into_iter().flatten().collect()))
}

/// So many questions are asked at once.
const AT_ONCE: usize = 16;

/// Every right that an object gives: by a Role in the installation's namespace, and by a ClusterRole everywhere; but
/// what waypoints take may be bound in that namespace alone.
fn rights(role: &Value, namespace: &str) -> Vec<ResourceAttributes> {
    let name = role["metadata"]["name"].as_str().unwrap_or_default();
    let within = match role["kind"].as_str() {
        Some("ClusterRole") if name == controller::NAME => None,
        Some("ClusterRole" | "Role") => Some(namespace.to_owned()),
        _ => return Vec::new(),
    };
    let texts = |rule: &Value, field: &str| -> Vec<String> {
        let all = rule[field].as_array().into_iter().flatten();
        all.filter_map(|t| Some(t.as_str()?.to_owned())).collect()
    };
    let mut found = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let names = match texts(rule, "resourceNames") {
            names if names.is_empty() => vec![None],
            names => names.into_iter().map(Some).collect(),
        };
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                let (resource, part) = match resource.split_once('/') {
                    Some((resource, part)) => (resource.to_owned(), Some(part.to_owned())),
                    None => (resource, None),
                };
                for verb in texts(rule, "verbs") {
                    found.extend(names.iter().map(|name| ResourceAttributes {
                        group: Some(group.clone()),
                        resource: Some(resource.clone()),
                        subresource: part.clone(),
                        name: name.clone(),
                        namespace: within.clone(),
                        verb: Some(verb.clone()),
                        ..ResourceAttributes::default()
                    }));
                }
            }
        }
    }
    found
}

fn title(right: &ResourceAttributes) -> String {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let mut title = format!("{} {}", text(&right.verb), text(&right.resource));
    if let Some(part) = &right.subresource {
        title += &format!("/{part}");
    }
    if let Some(name) = &right.name {
        title += &format!(" {name}");
    }
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_right_of_every_rule_is_asked_for() {
        let objects = install::objects(&Asked::default().values().expect("values"), "mesh");
        let all: Vec<_> = objects.iter().flat_map(|o| rights(o, "mesh")).collect();
        let has = |written: &str, namespace: Option<&str>| {
            all.iter()
                .any(|r| title(r) == written && r.namespace.as_deref() == namespace)
        };
        assert!(has("watch pods", None));
        assert!(has("patch httproutes/status", None));
        assert!(has("get secrets warren-ca", Some("mesh")));
        assert!(has("create deployments", Some("mesh")));
        assert!(!has("get secrets", None));
    }
}
