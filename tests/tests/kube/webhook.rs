//! What authors hear of their objects: from the API server while they write, and afterwards by `kubectl describe`.
//!
//! Invariant: whatever becomes of the controller, objects can be written.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{Said, Space};
use serde_json::Value;

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
/// What the kind's own definition refuses, each with a part of what its author is told: one for each rule.
const IMPOSSIBLE: [(&str, &str); 7] = [
    ("trustDomain: 'no good'", "trustDomain has letters, digits"),
    (
        "rootNamespace: Mine",
        "rootNamespace is the name of a namespace",
    ),
    (
        "clusterDomain: cluster..local",
        "clusterDomain is a DNS name",
    ),
    ("clusterId: a/b", "clusterId must not contain '/'"),
    (
        "extensionProviders: [{name: one}, {name: one}]",
        "extensionProviders have a name each",
    ),
    (
        "extensionProviders: [{name: one, opentelemetry: {service: otel.shop.svc}}]",
        "opentelemetry of extensionProviders needs service and port",
    ),
    (
        "extensionProviders: [{name: one}], defaultProviders: {tracing: [other]}",
        "defaultProviders.tracing names one of extensionProviders",
    ),
];
/// Says something of each field that has a rule.
const POSSIBLE: &str = "trustDomain: td_1.example, rootNamespace: istio-system, clusterDomain: cluster.local., \
    clusterId: one, extensionProviders: [{name: otel, opentelemetry: {service: otel.shop.svc.cluster.local, port: 4317}}, \
    {name: other}], defaultProviders: {tracing: [otel]}";
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

/// The API server asks the reviewer, and believes it.
pub(super) async fn is_refused(space: &Space) -> Result<()> {
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
            the_definition_refuses(space).await?;
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

/// What could only be a mistake is refused by the kind's own definition, whoever reviews, and what means something is not.
async fn the_definition_refuses(space: &Space) -> Result<()> {
    let rules = space
        .cluster
        .json(&["get", "crd/meshconfigs.warren.dev"])
        .await?;
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations";
    let rules = rules.pointer(spec).and_then(Value::as_array);
    let rules = rules.context("the definition has rules")?;
    ensure!(
        rules.len() == IMPOSSIBLE.len(),
        "{} rules: {rules:?}",
        rules.len()
    );
    for (rule, (spec, told)) in rules.iter().zip(IMPOSSIBLE) {
        let message = rule["message"].as_str().unwrap_or_default();
        ensure!(message.starts_with(told), "{told:?} is not of {message:?}");
        let said = tried(space, &mesh_config(spec)).await?;
        let by_definition = said.err.contains(message) && !said.err.contains("denied the request");
        ensure!(
            !said.ok && by_definition,
            "{spec}: {}{}",
            said.out,
            said.err
        );
    }
    let said = tried(space, &mesh_config(POSSIBLE)).await?;
    ensure!(said.ok, "{}{}", said.out, said.err);
    Ok(())
}

fn mesh_config(spec: &str) -> String {
    format!(
        "apiVersion: warren.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: tried}}\nspec: {{{spec}}}\n"
    )
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
