//! Installing, step by step.
//!
//! Invariants: what another keeps is looked at before anything is changed; a definition that is not ours is left alone.

use anyhow::Context;
use serde_json::{Value, json};

use super::{
    Asked, Values,
    cluster::{Change, Cluster, title},
    controller, crds,
    object::PART_OF,
    objects,
    owner::Found,
    remembered,
};

/// What there is of an installation.
pub async fn found(cluster: &Cluster) -> anyhow::Result<Found> {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": controller::NAME, "namespace": cluster.namespace},
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": controller::NAME},
    });
    Ok(Found {
        deployment: cluster.get(&deployment).await?,
        binding: cluster.get(&binding).await?,
    })
}

/// Makes every object so, and remembers what was asked for; `say` hears of each. With `dry` the API server only says
/// what it would do. Says how many objects changed.
pub async fn install(
    cluster: &Cluster,
    asked: &Asked,
    dry: bool,
    mut say: impl FnMut(&str),
) -> anyhow::Result<usize> {
    let values = &asked.values()?;
    let istio: Vec<String> = crds::istio().iter().map(title).collect();
    let mut changed = 0;
    let mut absent = false;
    let kept = remembered::object(asked, &cluster.namespace)?;
    for object in objects(values, &cluster.namespace)
        .into_iter()
        .chain([kept])
    {
        let name = title(&object);
        if istio.contains(&name) {
            let there = cluster.get(&object).await?;
            if there.is_some_and(|there| !is_ours(&there)) {
                say(&format!("{name}: another's, left alone"));
                continue;
            }
        }
        // A server that only says what it would do finds no namespace to do it in.
        if absent && object["metadata"]["namespace"].is_string() {
            changed += 1;
            say(&format!("{name}: created"));
            continue;
        }
        let change = cluster.apply(&object, dry).await?;
        absent |= dry && change == Change::Created && object["kind"] == "Namespace";
        changed += usize::from(change != Change::Unchanged);
        say(&format!("{name}: {}", change.name()));
    }
    if !dry {
        established(cluster, values)
            .await
            .context("waiting for the definitions")?;
    }
    Ok(changed)
}

fn is_ours(definition: &Value) -> bool {
    definition["metadata"]["labels"]["app.kubernetes.io/part-of"] == PART_OF
}

/// Nothing of a kind can be written before its definition is in force.
async fn established(cluster: &Cluster, values: &Values) -> anyhow::Result<()> {
    const TRIES: u32 = 150;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);
    for definition in crds::objects(values) {
        let mut tries = 0;
        loop {
            let found = cluster.get(&definition).await?.unwrap_or_default();
            let conditions = found["status"]["conditions"].as_array();
            let in_force = |c: &Value| c["type"] == "Established" && c["status"] == "True";
            if conditions.into_iter().flatten().any(in_force) {
                break;
            }
            tries += 1;
            anyhow::ensure!(
                tries < TRIES,
                "{} is not in force after 30 seconds",
                title(&definition)
            );
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
