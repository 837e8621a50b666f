//! Whether whoever runs this may make an installation's objects.

use std::collections::BTreeSet;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, api::PostParams};

use super::Finding;
use crate::install::{self, Values, cluster::Cluster};

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
