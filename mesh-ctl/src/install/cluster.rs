//! Objects of an installation in a cluster: read, applied, deleted.
//!
//! Invariants: server-side apply under one field manager, so that applying twice changes nothing; every call has a
//! deadline; an error names the object and what was being done to it.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PropagationPolicy, ValidationDirective,
    },
};
use serde_json::Value;
use tokio::time::timeout;

use crate::watch::connect;

/// Who applies.
pub const MANAGER: &str = "mesh-ctl";
/// The label that tells who keeps an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// What applying an object did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    Created,
    /// It was different.
    Configured,
    /// It was as it should be.
    Unchanged,
}

impl Change {
    /// As a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// The name of an object, for people: `DaemonSet warren-node`.
pub fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{} {}",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}

/// A cluster's API.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The installation's namespace.
    pub namespace: String,
}

impl Cluster {
    /// The cluster that this process's kubeconfig names, or the one that it runs in.
    pub async fn connect(namespace: &str) -> anyhow::Result<Self> {
        Ok(Self {
            client: connect(namespace).await?,
            namespace: namespace.to_owned(),
        })
    }

    fn api(&self, object: &Value) -> anyhow::Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let version = text(&object["apiVersion"]);
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let kind = text(&object["kind"]);
        // The kinds of an installation all have a regular plural.
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let name = text(&object["metadata"]["name"]);
        if name.is_empty() {
            bail!("an object of kind {kind} without a name");
        }
        Ok((api, name))
    }

    /// The cluster's nodes.
    pub async fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        let api: Api<Node> = Api::all(self.client.clone());
        let listed = timeout(DEADLINE, api.list(&ListParams::default())).await;
        let listed = listed
            .map_err(anyhow::Error::from)
            .and_then(|got| got.map_err(anyhow::Error::from))
            .context("listing the nodes")?;
        Ok(listed.items)
    }

    /// The object of this kind, namespace and name, as the cluster has it.
    pub async fn get(&self, object: &Value) -> anyhow::Result<Option<Value>> {
        let (api, name) = self.api(object)?;
        let found = timeout(DEADLINE, api.get_opt(&name)).await;
        let found = found
            .map_err(anyhow::Error::from)
            .and_then(|got| got.map_err(anyhow::Error::from))
            .with_context(|| format!("reading {}", title(object)))?;
        found
            .map(|o| serde_json::to_value(o).context("an object of the API is JSON"))
            .transpose()
    }

    /// Makes the object so. With `dry` the API server only says what it would do.
    pub async fn apply(&self, object: &Value, dry: bool) -> anyhow::Result<Change> {
        let (api, name) = self.api(object)?;
        let before = self.get(object).await?;
        let mut wanted = object.clone();
        wanted["metadata"]["labels"][MANAGED_BY] = MANAGER.into();
        let params = PatchParams {
            dry_run: dry,
            // Whatever a person changed about our own objects by hand ends here.
            force: true,
            field_manager: Some(MANAGER.to_owned()),
            field_validation: Some(ValidationDirective::Strict),
        };
        let applied = timeout(DEADLINE, api.patch(&name, &params, &Patch::Apply(&wanted))).await;
        let after = applied
            .map_err(anyhow::Error::from)
            .and_then(|got| got.map_err(anyhow::Error::from))
            .with_context(|| format!("applying {}", title(object)))?;
        let after = serde_json::to_value(after).context("an object of the API is JSON")?;
        Ok(match before {
            None => Change::Created,
            Some(before) if same(&before, &after) => Change::Unchanged,
            Some(_) => Change::Configured,
        })
    }

    /// Deletes the object and whatever it owns; says whether it was there.
    pub async fn delete(&self, object: &Value) -> anyhow::Result<bool> {
        let (api, name) = self.api(object)?;
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        match timeout(DEADLINE, api.delete(&name, &params)).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(false),
            Ok(Err(error)) => Err(error).with_context(|| format!("deleting {}", title(object))),
            Err(error) => Err(error).with_context(|| format!("deleting {}", title(object))),
        }
    }
}

/// Whether an object did not change but for the notes that the API server keeps about it.
fn same(before: &Value, after: &Value) -> bool {
    let plain = |object: &Value| {
        let mut object = object.clone();
        for field in ["managedFields", "resourceVersion", "generation"] {
            if let Some(meta) = object["metadata"].as_object_mut() {
                meta.remove(field);
            }
        }
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        object
    };
    plain(before) == plain(after)
}
