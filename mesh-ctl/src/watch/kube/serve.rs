//! Whether, and in which version, a cluster serves a kind.

use kube::{
    Client,
    core::{ApiResource, response::Status},
};
use mesh_k8s::KindInfo;

/// Why a kind cannot be read at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// The cluster does not have it: its CRD is not installed.
    #[error("the cluster does not serve it")]
    Absent,
    /// The controller's role does not allow it.
    #[error("the ClusterRole of warren-controller lacks {verbs} on {resource}: {said}")]
    Forbidden {
        /// What is not allowed.
        verbs: &'static str,
        /// The resource and its group.
        resource: String,
        /// What the API server said.
        said: String,
    },
    /// The server cannot be reached, or is not well.
    #[error("{0}")]
    Failed(String),
}

impl Trouble {
    /// What an answer means that was no success.
    pub(super) fn of(error: &kube::Error, verbs: &'static str, resource: &str) -> Self {
        match error {
            kube::Error::Api(status) => Self::answered(status, verbs, resource),
            other => Self::Failed(chain(other)),
        }
    }

    /// What an error status means.
    pub(super) fn answered(status: &Status, verbs: &'static str, resource: &str) -> Self {
        // To a group or version that it does not have the API server says so in plain text, without a reason.
        if status.code == 404 {
            Self::Absent
        } else if status.is_forbidden() {
            Self::Forbidden {
                verbs,
                resource: resource.to_owned(),
                said: status.message.clone(),
            }
        } else {
            Self::Failed(format!(
                "{} {}: {}",
                status.code, status.reason, status.message
            ))
        }
    }
}

/// An error with everything below it: kube's own texts end before the cause.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// The resource of a kind in the first of its versions that the cluster serves.
pub(crate) async fn find(client: &Client, kind: &KindInfo) -> Result<ApiResource, Trouble> {
    for version in kind.versions {
        let (api_version, listed) = match kind.group {
            "" => (
                (*version).to_owned(),
                client.list_core_api_resources(version).await,
            ),
            group => {
                let api_version = format!("{group}/{version}");
                let listed = client.list_api_group_resources(&api_version).await;
                (api_version, listed)
            }
        };
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => match Trouble::of(&error, "get", &format!("/apis/{api_version}")) {
                Trouble::Absent => continue,
                trouble => return Err(trouble),
            },
        };
        // `pods/status` and the like have the kind of what they belong to.
        let found = listed
            .resources
            .iter()
            .find(|resource| resource.kind == kind.kind && !resource.name.contains('/'));
        if let Some(resource) = found {
            return Ok(ApiResource {
                group: kind.group.to_owned(),
                version: (*version).to_owned(),
                api_version,
                kind: kind.kind.to_owned(),
                plural: resource.name.clone(),
            });
        }
    }
    Err(Trouble::Absent)
}
