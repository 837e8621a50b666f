//! The roots for nodes: the ConfigMap `warren-root`, key `root.pem`, kept by the leader.
//!
//! Invariant: a root is in the ConfigMap before anything is signed by it, because `prepare` comes before `switch`,
//! and what comes unannounced waits.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{interval, timeout},
};
use tracing::{info, warn};

use super::Authority;
use crate::FIELD_MANAGER;

/// The ConfigMap's name.
const NAME: &str = "warren-root";
/// How often the Secret and the ConfigMap are compared with what is in use.
const COMPARE: Duration = Duration::from_secs(3);
/// What the API server may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Follows the Secret and, on the leader, keeps the ConfigMap; certificates live for `ttl` at most. Never ends.
pub async fn keep(
    authority: Arc<Authority>,
    ttl: Duration,
    client: Client,
    namespace: String,
    leads: watch::Receiver<bool>,
) {
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let mut kept = authority.watch();
    let mut ticks = interval(COMPARE);
    let mut leading = leads.clone();
    let mut trouble = String::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = kept.changed() => if changed.is_err() { return },
            changed = leading.changed() => if changed.is_err() { return },
        }
        let reloaded = authority.reload(SystemTime::now(), ttl).await;
        let reloaded = reloaded.map_err(|e| e.to_string());
        let leads = *leads.borrow();
        let written = match (reloaded, leads) {
            (Ok(()), true) => write(&maps, &authority.roots()).await,
            (done, _) => done,
        };
        let said = written.err().unwrap_or_default();
        if said != trouble {
            match said.as_str() {
                "" => info!("the roots are where nodes read them again"),
                said => warn!("{said}"),
            }
            trouble = said;
        }
    }
}

/// Writes the roots where they are not there yet.
async fn write(maps: &Api<ConfigMap>, roots: &str) -> Result<(), String> {
    let failed = |error: kube::Error| {
        format!(
            "ConfigMap {NAME}: {error}; the Role of warren-controller has to allow get and patch on it, and create on configmaps"
        )
    };
    let both = async {
        let found = maps.get_opt(NAME).await.map_err(failed)?;
        let there = found.and_then(|map| map.data?.remove("root.pem"));
        if there.as_deref() == Some(roots) {
            return Ok(());
        }
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {"root.pem": roots}});
        let params = PatchParams::apply(FIELD_MANAGER).force();
        maps.patch(NAME, &params, &Patch::Apply(map))
            .await
            .map_err(failed)?;
        info!("the roots were written to ConfigMap {NAME}");
        Ok(())
    };
    let done = timeout(DEADLINE, both).await;
    done.unwrap_or_else(|_| {
        Err(format!(
            "ConfigMap {NAME}: the API server did not answer in time"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{apiserver::ApiServer, ca::SecretStore};

    #[tokio::test]
    async fn only_the_leader_writes_the_roots_and_puts_them_right() {
        let (server, client) = ApiServer::start().await;
        server.serve("/api/v1", "secrets", "Secret");
        server.serve("/api/v1", "configmaps", "ConfigMap");
        let dir = tempfile::tempdir().expect("a directory");
        let store = SecretStore::new(client.clone(), "warren-system");
        let domain = "cluster.local".into();
        let authority = Authority::open_in(store, dir.path(), None, domain).await;
        let authority = Arc::new(authority.expect("opens"));
        let (lead, leads) = watch::channel(false);
        let keeping = keep(
            authority.clone(),
            Duration::from_secs(3600),
            client,
            "warren-system".to_owned(),
            leads,
        );
        let keeping = tokio::spawn(keeping);
        let map = || server.object("/api/v1/configmaps", "warren-system/warren-root");
        let asks = || {
            server
                .requests()
                .iter()
                .filter(|r| r.contains("warren-ca"))
                .count()
        };
        let until = async |what: &str, wanted: &dyn Fn() -> bool| {
            let wait = async {
                while !wanted() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(30), wait).await.expect(what);
        };
        until("it looks at the Secret", &|| asks() > 3).await;
        assert_eq!(map(), None, "it does not lead yet");
        lead.send_replace(true);
        let roots = authority.roots();
        let right = || map().is_some_and(|map| map["data"]["root.pem"] == roots.as_str());
        until("the roots are written", &right).await;
        keeping.abort();
    }
}
