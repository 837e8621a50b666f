//! Who keeps the installation that is there.
//!
//! Invariant: what another keeps, or what is elsewhere, is never taken over; the refusal says by whose command to go on.

use serde_json::Value;

use super::cluster::{MANAGED_BY, MANAGER};
use super::object::VERSION;

/// Why an installation is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Helm, or another program, keeps it.
    #[error(
        "{object} is kept by {keeper}: go on with that, or uninstall by it first; nothing was changed"
    )]
    Kept {
        /// What was found.
        object: String,
        /// Who keeps it.
        keeper: String,
    },
    /// There is one in another namespace, and a cluster holds one.
    #[error(
        "there is an installation in namespace {0} already, and a cluster holds one: pass -n {0}, or uninstall it first"
    )]
    Elsewhere(String),
    /// Another version is there.
    #[error(
        "version {0} is installed, and this is mesh-ctl {VERSION}: `mesh-ctl upgrade` replaces it"
    )]
    Version(String),
    /// None is there.
    #[error("nothing is installed in namespace {0}: `mesh-ctl install` installs")]
    Nothing(String),
}

/// What is known of an installation: its Deployment, and its ClusterRoleBinding, which tells the namespace.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The controller's Deployment in the namespace that was asked for.
    pub deployment: Option<Value>,
    /// The controller's ClusterRoleBinding.
    pub binding: Option<Value>,
}

impl Found {
    /// The version that is installed, if any.
    pub fn version(&self) -> Option<&str> {
        self.deployment.as_ref()?["metadata"]["labels"]["app.kubernetes.io/version"].as_str()
    }

    /// Whether this program may install; `upgrade`: over another version, but not where nothing is.
    pub fn admit(&self, namespace: &str, upgrade: bool) -> Result<(), Refusal> {
        self.is_ours(namespace)?;
        match self.version() {
            None if upgrade && self.deployment.is_none() => {
                Err(Refusal::Nothing(namespace.to_owned()))
            }
            Some(version) if !upgrade && version != VERSION => {
                Err(Refusal::Version(version.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Whether what there is, if anything, is this program's to change.
    pub fn is_ours(&self, namespace: &str) -> Result<(), Refusal> {
        let elsewhere = self
            .binding
            .as_ref()
            .and_then(|b| b["subjects"][0]["namespace"].as_str())
            .filter(|there| *there != namespace);
        if let Some(there) = elsewhere {
            return Err(Refusal::Elsewhere(there.to_owned()));
        }
        for object in [&self.deployment, &self.binding].into_iter().flatten() {
            let meta = &object["metadata"];
            let keeper = meta["labels"][MANAGED_BY].as_str();
            // Objects that came from `mesh-ctl manifest | kubectl apply` have no keeper, and are ours.
            if let Some(keeper) = keeper.filter(|k| *k != MANAGER) {
                let release = meta["annotations"]["meta.helm.sh/release-name"].as_str();
                return Err(Refusal::Kept {
                    object: super::cluster::title(object),
                    keeper: match release {
                        Some(release) => format!("{keeper} (release {release})"),
                        None => keeper.to_owned(),
                    },
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(version: &str, keeper: Option<&str>, namespace: &str) -> Found {
        let mut meta =
            json!({"name": "warren-controller", "labels": {"app.kubernetes.io/version": version}});
        if let Some(keeper) = keeper {
            meta["labels"][MANAGED_BY] = keeper.into();
        }
        Found {
            deployment: Some(json!({"kind": "Deployment", "metadata": meta})),
            binding: Some(json!({
                "kind": "ClusterRoleBinding", "metadata": meta, "subjects": [{"namespace": namespace}],
            })),
        }
    }

    #[test]
    fn only_what_is_ours_is_changed() {
        let check = |found: Found, upgrade: bool, expect: &str| {
            let said = found.admit("mesh", upgrade).map_err(|r| r.to_string());
            match said {
                Ok(()) => assert_eq!(expect, "", "{found:?}"),
                Err(said) => assert!(!expect.is_empty() && said.contains(expect), "{said}"),
            }
        };
        check(Found::default(), false, "");
        check(
            Found::default(),
            true,
            "nothing is installed in namespace mesh",
        );
        check(found(VERSION, Some(MANAGER), "mesh"), false, "");
        check(found(VERSION, None, "mesh"), false, "");
        check(found("0.0.1", Some(MANAGER), "mesh"), true, "");
        check(
            found("0.0.1", Some(MANAGER), "mesh"),
            false,
            "version 0.0.1 is installed",
        );
        check(
            found(VERSION, Some("Helm"), "mesh"),
            true,
            "Deployment warren-controller is kept by Helm",
        );
        check(
            found(VERSION, Some(MANAGER), "other"),
            false,
            "in namespace other already",
        );
    }
}
