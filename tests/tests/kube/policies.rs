//! T35: NetworkPolicies, kept by an engine of other make, for pods in the mesh and, beside them, for the same pods without.
//!
//! Invariants: what a policy forbids without the mesh it forbids in the mesh, on one node and across nodes, as soon as no
//! older tunnel takes new flows; the engine
//! ends with the test, and its rules go with it.

use std::{cell::Cell, path::PathBuf, time::Instant};

use anyhow::{Result, ensure};
use mesh_tests::kube::{SAMPLES, Space};

use super::workloads::ENROLLED;

/// Set by `cargo xtask test kube` to the program of the engine.
const ENGINE: &str = "WARREN_KUBE_ROUTER";
/// The clients: where each is, and what policies know it by. Both of a pair are alike but for that.
const CLIENTS: [&str; 4] = ["near", "far", "near-other", "far-other"];
/// How long a tunnel takes new flows, in seconds: those do not meet a policy that came after their tunnel.
const TUNNELS_TAKE: u64 = 20;
const ALL: [bool; 4] = [true; 4];
const NONE: [bool; 4] = [false; 4];
const LISTED: [bool; 4] = [true, true, false, false];

/// The ports that a server has beside each other: the one that policies name, and one that none does.
const URL: &str = "http://web/status/200";
const UNNAMED: &str = "http://web:81/status/200";

/// What lets nobody in.
const DENY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
";

/// What lets the listed clients in, to these ports.
fn admits(ports: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: only-app}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  policyTypes: [Ingress]
  ingress:
  - from: [{{podSelector: {{matchLabels: {{role: client}}}}}}]
    ports: [{ports}]
"
    )
}

/// What lets the listed clients out, to these ports of the server besides asking for names.
fn lets_out(ports: &str) -> String {
    let rule = match ports {
        "" => String::new(),
        ports => format!(
            "  - to: [{{podSelector: {{matchLabels: {{app: web}}}}}}]\n    ports: [{ports}]\n"
        ),
    };
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: only-out}}
spec:
  podSelector: {{matchLabels: {{role: client}}}}
  policyTypes: [Egress]
  egress:
  - ports: [{{protocol: UDP, port: 53}}, {{protocol: TCP, port: 53}}]
{rule}"
    )
}

/// Says which port of the server may be used, by its own number.
const ONLY_APP: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-app}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{to: [{operation: {ports: ['8080']}}]}]
";

const APP: &str = "{protocol: TCP, port: 8080}";
const APP_AND_TUNNEL: &str = "{protocol: TCP, port: 8080}, {protocol: TCP, port: 15008}";

/// The same pods under the same policies, in the mesh and without it.
struct Pair<'s> {
    mesh: &'s Space,
    plain: &'s Space,
}

impl Pair<'_> {
    /// Both, so that the one without the mesh comes last: when its pods show a policy, the other's have it.
    async fn apply(&self, yaml: &str) -> Result<()> {
        self.mesh.apply(yaml).await?;
        self.plain.apply(yaml).await
    }

    async fn delete(&self, policy: &str) -> Result<()> {
        for space in [self.mesh, self.plain] {
            space.kubectl(&["delete", "networkpolicy", policy]).await?;
        }
        Ok(())
    }

    /// Waits until the policies show without the mesh, and then until nobody gets further in the mesh, which is as long
    /// as a tunnel takes new flows at most. Whom it reaches there.
    async fn holds(&self, what: &str, plain: [bool; 4]) -> Result<[bool; 4]> {
        let cluster = &self.plain.cluster;
        let shown = format!("{what}, without the mesh");
        cluster
            .until(&shown, 30, async || is(self.plain, plain).await)
            .await?;
        let begun = Instant::now();
        let last = Cell::new(NONE);
        let no_weaker = async || {
            let mesh = reaches(self.mesh, URL).await?;
            last.set(mesh);
            let weaker = CLIENTS.iter().zip(plain.iter().zip(&mesh));
            let weaker: Vec<_> = weaker.filter(|(_, (p, m))| **m && !**p).collect();
            ensure!(weaker.is_empty(), "weaker in the mesh: {weaker:?}");
            Ok(())
        };
        let within = format!("{what}, in the mesh");
        cluster.until(&within, TUNNELS_TAKE + 5, no_weaker).await?;
        let (mesh, after) = (last.get(), begun.elapsed().as_secs());
        println!("{what}: {CLIENTS:?} without the mesh {plain:?}, in it {mesh:?} after {after} s");
        Ok(mesh)
    }

    /// Waits until these are answered in the mesh, as they are when no older tunnel takes new flows: each thread of a node
    /// proxy has tunnels of its own, so that one may be without while another still has one.
    async fn settles(&self, what: &str, expect: [bool; 4]) -> Result<()> {
        let settled = async || is(self.mesh, expect).await;
        let within = format!("{what}, without older tunnels");
        self.mesh
            .cluster
            .until(&within, TUNNELS_TAKE + 5, settled)
            .await
    }
}

/// Which clients get an answer.
async fn reaches(space: &Space, url: &str) -> Result<[bool; 4]> {
    let ask = |pod: &'static str| async move {
        let curl = [
            "curl",
            "-s",
            "-m",
            "4",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            url,
        ];
        anyhow::Ok(space.exec(pod, &curl).await?.out == "200")
    };
    let [near, far, near_other, far_other] = CLIENTS.map(ask);
    let (near, far, near_other, far_other) = tokio::try_join!(near, far, near_other, far_other)?;
    Ok([near, far, near_other, far_other])
}

async fn is(space: &Space, expect: [bool; 4]) -> Result<()> {
    let seen = reaches(space, URL).await?;
    ensure!(
        seen == expect,
        "of {CLIENTS:?} {seen:?} are answered, and {expect:?} were to be"
    );
    Ok(())
}

/// A server with two ports on the first node, and two clients on either node.
async fn world(space: &Space) -> Result<()> {
    let nodes = space.cluster.nodes()?;
    let second =
        format!("      - {{name: more, image: '{SAMPLES}', args: [httpbin, --port, '8081']}}\n");
    let server = Space::server("web", &nodes[0]).replace(
        "targetPort: 8080}]",
        "targetPort: 8080}, {name: http-more, port: 81, targetPort: 8081}]",
    );
    space.apply(&(server + &second)).await?;
    for (client, node) in CLIENTS.iter().zip([0, 1, 0, 1]) {
        let role = if client.ends_with("other") {
            "other"
        } else {
            "client"
        };
        let pod = Space::client(client, &nodes[node])
            .replace("labels: {", &format!("labels: {{role: {role}, "));
        space.apply(&pod).await?;
    }
    space.rolled_out("deployment/web").await?;
    for client in CLIENTS {
        space.ready(client).await?;
    }
    Ok(())
}

/// On one node and across nodes: who is not let in or out without the mesh is not in the mesh, the policy that lets only
/// an application's port through is named where it stands in the way of tunnels, and with the tunnels' port it is well.
pub async fn t35_network_policies_are_never_weaker_in_the_mesh() -> Result<()> {
    let Some(engine) = std::env::var_os(ENGINE).map(PathBuf::from) else {
        println!("SKIPPED: {ENGINE} names no policy engine: run `cargo xtask test kube`");
        return Ok(());
    };
    Space::with("policed", ENROLLED, async |mesh| {
        Space::with("policed-not", "", async |plain| {
            tokio::try_join!(world(mesh), world(plain))?;
            let pair = Pair { mesh, plain };
            mesh.cluster.policy_engine(Some(&engine)).await?;
            let outcome = incoming(&pair).await;
            let outcome = match outcome {
                Ok(()) => outgoing(&pair).await,
                failed => failed,
            };
            let ended = mesh.cluster.policy_engine(None).await;
            outcome?;
            ended
        })
        .await
    })
    .await
}

async fn incoming(pair: &Pair<'_>) -> Result<()> {
    let cluster = &pair.mesh.cluster;
    pair.holds("without a policy", ALL).await?;
    let open = async || is(pair.mesh, ALL).await;
    cluster
        .until("all to be let in in the mesh", 20, open)
        .await?;
    pair.apply(DENY).await?;
    pair.holds("nobody is let in", NONE).await?;
    pair.apply(&admits(APP)).await?;
    pair.holds("the application's port is opened", LISTED)
        .await?;
    // On one node it works, and across nodes it does not.
    pair.settles("the application's port alone", [true, false, false, false])
        .await?;
    named(pair.mesh).await?;
    pair.apply(&admits(APP_AND_TUNNEL)).await?;
    let listed = async || is(pair.mesh, LISTED).await;
    cluster.until("the listed to be let in", 20, listed).await?;
    pair.holds("the tunnels' port is opened too", LISTED)
        .await?;
    every_port_is_open(pair).await?;
    pair.delete("deny").await?;
    pair.delete("only-app").await
}

/// Who may come by a tunnel comes to every port that way, and an AuthorizationPolicy says which it may use. On one node it
/// is the network that says no, because connections are native there.
async fn every_port_is_open(pair: &Pair<'_>) -> Result<()> {
    let cluster = &pair.mesh.cluster;
    let becomes = async |expect: [bool; 4]| {
        let mesh = reaches(pair.mesh, UNNAMED).await?;
        ensure!(mesh == expect, "to {mesh:?}, and {expect:?} was to be");
        Ok(())
    };
    let plain = reaches(pair.plain, UNNAMED).await?;
    ensure!(plain == NONE, "another port is open to {plain:?}");
    let by_tunnel = async || becomes([false, true, false, false]).await;
    let what = "another port to be open to who comes by a new tunnel";
    cluster.until(what, TUNNELS_TAKE + 5, by_tunnel).await?;
    pair.mesh.apply(ONLY_APP).await?;
    let nobody = async || becomes(NONE).await;
    cluster
        .until("the other port to be refused", 10, nobody)
        .await?;
    let listed = async || is(pair.mesh, LISTED).await;
    cluster
        .until("the application's to be open", 10, listed)
        .await?;
    let delete = ["delete", "authorizationpolicy", "only-app"];
    pair.mesh.kubectl(&delete).await.map(drop)
}

async fn outgoing(pair: &Pair<'_>) -> Result<()> {
    let cluster = &pair.mesh.cluster;
    pair.holds("policies are gone", ALL).await?;
    let open = async || is(pair.mesh, ALL).await;
    cluster.until("all to be let in again", 20, open).await?;
    pair.apply(&lets_out("")).await?;
    let others = [false, false, true, true];
    let reached = pair.holds("nothing but names is let out", others).await?;
    ensure!(reached == others, "whom no policy is about is let out");
    pair.apply(&lets_out(APP)).await?;
    pair.holds("the application's port is let out", ALL).await?;
    pair.settles("the application's port alone", [true, false, true, true])
        .await?;
    pair.apply(&lets_out(APP_AND_TUNNEL)).await?;
    cluster.until("all to be let out", 20, open).await
}

/// The policy that opens the application's port alone is named to its author, and to whoever wonders why nobody answers.
async fn named(mesh: &Space) -> Result<()> {
    let of = "involvedObject.kind=NetworkPolicy,involvedObject.name=only-app";
    mesh.cluster
        .until("an event that names the tunnels' port", 20, async || {
            let events = mesh
                .kubectl(&["get", "events", "--field-selector", of])
                .await?;
            ensure!(
                events.contains("spec.ingress[0].ports") && events.contains("15008"),
                "{events}"
            );
            Ok(())
        })
        .await?;
    let nodes = mesh.cluster.nodes()?;
    let words = ["connection failed", "src.workload=far", "policed/only-app"];
    mesh.cluster.until_logged(&nodes[1], &words).await.map(drop)
}
