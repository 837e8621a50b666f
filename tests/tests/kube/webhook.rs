//! What authors hear of their objects: from the API server while they write, and afterwards by `kubectl describe`.
//!
//! Invariant: whatever becomes of the controller, objects can be written.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{Said, Space};

use super::workloads::ENROLLED;

/// The configuration by which the API server asks.
const NAME: &str = "warren-validator";
/// How long an author waits at most when nobody reviews: twice what the API server gives a reviewer, for one command.
const BEARABLE: Duration = Duration::from_secs(5);

/// Names a provider that spans cannot go to, which only a reviewer can tell.
const BAD: &str = "apiVersion: warren.dev/v1alpha1
kind: MeshConfig
metadata: {name: bad}
spec: {extensionProviders: [{name: nobody}], defaultProviders: {tracing: [nobody]}}
";
/// A trust domain that no identity can have, which the kind's own definition refuses.
const IMPOSSIBLE: &str = "apiVersion: warren.dev/v1alpha1
kind: MeshConfig
metadata: {name: impossible}
spec: {trustDomain: 'no good'}
";
/// Asks for what the mesh does not do.
const CUSTOM: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: custom}
spec: {action: CUSTOM, provider: {name: somebody}, selector: {matchLabels: {app: nothing}}, rules: [{}]}
";
const WARNED: &str = "Warning: spec.action: CUSTOM";

/// Tries to write an object without writing it.
async fn tried(space: &Space, yaml: &str) -> Result<Said> {
    let yaml = yaml.replacen(
        "metadata: {",
        &format!("metadata: {{namespace: {}, ", space.name),
        1,
    );
    let dry = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
    space.cluster.kubectl_with(&dry, &yaml).await
}

async fn is_refused(space: &Space) -> Result<()> {
    let said = tried(space, BAD).await?;
    let named = said.err.contains("denied the request")
        && said.err.contains("spec.defaultProviders.tracing[0]")
        && said.err.contains("nobody");
    ensure!(!said.ok && named, "{}{}", said.out, said.err);
    Ok(())
}

/// An object of our own that is wrong is refused with the reason, another's is written with a warning, and one of a
/// namespace that is not enrolled is not looked at. The configuration for that comes back when somebody deletes it, and
/// without a controller everything is written.
pub async fn authors_hear_what_is_wrong_and_can_always_write() -> Result<()> {
    Space::with("reviewed", ENROLLED, async |space| {
        Space::with("reviewed-not", "", async |other| {
            let cluster = &space.cluster;
            let refused = async || is_refused(space).await;
            cluster.until("a refusal", 20, refused).await?;
            // Our own kinds are looked at everywhere: a MeshConfig holds for the mesh wherever it is.
            is_refused(other).await?;
            let said = tried(space, IMPOSSIBLE).await?;
            let by_definition = said.err.contains("trustDomain has letters, digits");
            ensure!(!said.ok && by_definition, "{}{}", said.out, said.err);
            let warned = async || {
                let said = tried(space, CUSTOM).await?;
                ensure!(
                    said.ok && said.err.contains(WARNED),
                    "{}{}",
                    said.out,
                    said.err
                );
                Ok(())
            };
            // The reviewer hears of a namespace a moment after it is there.
            cluster.until("a warning", 20, warned).await?;
            let said = tried(other, CUSTOM).await?;
            ensure!(said.ok && !said.err.contains("Warning"), "{}", said.err);
            space.apply(CUSTOM).await?;
            described(space).await?;
            let delete = ["delete", "validatingwebhookconfiguration", NAME];
            cluster.kubectl(&delete).await?;
            cluster
                .until("the configuration to be back, and a refusal", 30, refused)
                .await?;
            let outcome = without_a_reviewer(space).await;
            // Whatever came of it, later tests need the controller.
            cluster.controllers(1).await?;
            outcome?;
            cluster.until("a refusal again", 40, refused).await
        })
        .await
    })
    .await
}

/// `kubectl describe` tells the field, as a condition and as an event.
async fn described(space: &Space) -> Result<()> {
    let told = async || {
        let text = space
            .kubectl(&["describe", "authorizationpolicy", "custom"])
            .await?;
        let (before, events) = text.split_once("Events:").context("no events")?;
        ensure!(
            before.contains("CUSTOM (provider") && events.contains("spec.action: CUSTOM"),
            "{text}"
        );
        Ok(())
    };
    space
        .cluster
        .until("the object's description", 20, told)
        .await
}

/// Nobody reviews, so that everything is written, and soon.
async fn without_a_reviewer(space: &Space) -> Result<()> {
    space.cluster.controllers(0).await?;
    for yaml in [BAD, CUSTOM] {
        let begun = Instant::now();
        let said = tried(space, yaml).await?;
        let took = begun.elapsed();
        ensure!(said.ok, "{}{}", said.out, said.err);
        ensure!(took < BEARABLE, "writing took {took:?}");
        println!("written within {took:?} while nobody reviews");
    }
    Ok(())
}
