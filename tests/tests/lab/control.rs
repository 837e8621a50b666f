//! What the controller's coming, going and telling means for connections.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{Lab, component::Order};
use nix::sys::signal::Signal;

use super::{
    flows::flows,
    tunnel::{SOON, echo, pair, until},
};

/// A pod with a service, and the policy that refuses the client, as one file.
fn guarded(action: &str, account: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: late, namespace: shop}}
spec: {{selector: {{app: late}}, ports: [{{name: tcp, port: 9000}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: late, namespace: shop, labels: {{app: late}}}}
spec: {{nodeName: n1, serviceAccountName: late, containers: [{{name: c, image: tcp-echo, ports: [{{containerPort: 9000}}]}}]}}
---
{}"#,
        guard(action, account)
    )
}

fn guard(action: &str, account: &str) -> String {
    format!(
        r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: guard, namespace: shop}}
spec: {{selector: {{matchLabels: {{app: late}}}}, action: {action}, rules: [{{from: [{{source: {{serviceAccounts: [{account}]}}}}]}}]}}
"#
    )
}

/// How often T10's client must have been refused before it is stopped: once could be chance.
const TRIED: usize = 3;

/// T10: a workload and its policy arrive together; a client that tries all the time never gets through, by ALLOW and
/// by DENY.
pub async fn t10_a_workload_is_never_open_before_its_policy() -> Result<()> {
    let lab = pair().await?;
    for (action, account, reason) in [
        ("ALLOW", "friend", "reason=policy_not_allowed"),
        ("DENY", "client", "reason=policy_denied"),
    ] {
        let script = "end=$((SECONDS+60)); n=0; while [ $SECONDS -lt $end ] && [ ! -e /tmp/stop-NAME ]; do \
                      if (exec 3<>/dev/tcp/late/9000 && echo x >&3 && timeout 1 head -1 <&3 | grep -q x) 2>/dev/null; then echo through; fi; n=$((n+1)); done; echo tried $n";
        let stop = format!("/tmp/stop-{}-{action}", std::process::id());
        let script = script.replace("/tmp/stop-NAME", &stop);
        let program = ["bash", "-c", &script];
        let trying = lab.exec("shop/client", &program);
        let meanwhile = async {
            lab.apply(&guarded(action, account)).await?;
            lab.wait_ready(SOON).await?;
            let refused = until("refusals that are logged", async || {
                let mut most = 0;
                let mut lines = Vec::new();
                for node in ["n1", "n2"] {
                    let log = lab.node(node).access_log().await?;
                    let told = |l: &&String| l.contains("late") && l.contains(reason);
                    most = most.max(log.iter().filter(told).count());
                    lines.extend(log);
                }
                ensure!(
                    most >= TRIED,
                    "no node says {TRIED} times that the policy refused:\n{}",
                    lines.join("\n")
                );
                Ok(())
            })
            .await;
            std::fs::write(&stop, "").context("stopping the client")?;
            refused
        };
        let (tried, told) = tokio::join!(trying, meanwhile);
        std::fs::remove_file(&stop).context("the client was stopped")?;
        told?;
        let tried = tried?;
        ensure!(
            !tried.out.contains("through"),
            "{action}: the client got through: {tried:?}"
        );
        let count = tried
            .out
            .trim()
            .strip_prefix("tried ")
            .and_then(|n| n.parse::<usize>().ok());
        ensure!(
            count.is_some_and(|n| n >= TRIED),
            "{action}: hardly tried: {tried:?}"
        );
        // Without the policy it gets through: the test can fail.
        lab.delete(&guard(action, account)).await?;
        until("service without the policy", async || {
            echo(&lab, "shop/client", "late").await
        })
        .await?;
        lab.delete(&guarded(action, account)).await?;
    }
    Ok(())
}

/// How many resources a node was sent, of all types.
async fn sent(lab: &Lab, node: &str) -> Result<f64> {
    lab.node(node)
        .metric("warren_xds_resources_total", &[])
        .await
}

/// Whether the configuration stream is up.
async fn connected(lab: &Lab, node: &str, up: f64) -> Result<()> {
    until("the configuration stream", async || {
        let now = lab.node(node).metric("warren_xds_connected", &[]).await?;
        ensure!(
            (now - up).abs() < f64::EPSILON,
            "warren_xds_connected is {now}"
        );
        Ok(())
    })
    .await
}

/// T08: the controller is away while things change; what is in force stays, what changed comes within two seconds of
/// its return, and nothing else is sent again.
pub async fn t08_an_outage_with_churn_is_caught_up_without_sending_all_again() -> Result<()> {
    let lab = pair().await?;
    lab.apply(&guarded("DENY", "client")).await?;
    lab.wait_ready(SOON).await?;
    until("the policy", async || {
        ensure!(
            echo(&lab, "shop/client", "late").await.is_err(),
            "not refused yet"
        );
        Ok(())
    })
    .await?;
    lab.until_logged("n1", &["dst.workload=late", "reason=policy_denied"])
        .await?;
    lab.component("controller", Order::Stop).await?;
    connected(&lab, "n2", 0.0).await?;
    let before = sent(&lab, "n2").await?;
    // Churn: the policy goes, another one comes.
    lab.delete(&guard("DENY", "client")).await?;
    lab.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: shop}\nspec: {selector: {matchLabels: {app: echo}}}\n").await?;
    ensure!(
        echo(&lab, "shop/client", "late").await.is_err(),
        "the last policy holds without a controller"
    );
    echo(&lab, "shop/client", "10.244.1.2")
        .await
        .context("what was allowed stays allowed")?;
    lab.component("controller", Order::Start).await?;
    connected(&lab, "n2", 1.0).await?;
    let back = tokio::time::Instant::now();
    until("the churn is caught up", async || {
        ensure!(
            echo(&lab, "shop/client", "10.244.1.2").await.is_err(),
            "the new policy is not in force"
        );
        echo(&lab, "shop/client", "late")
            .await
            .context("the old policy is still in force")
    })
    .await?;
    // Two seconds are the aim; a machine that compiles besides gets more.
    ensure!(
        back.elapsed() < Duration::from_secs(10),
        "caught up after {:?}",
        back.elapsed()
    );
    let more = sent(&lab, "n2").await? - before;
    // A policy gone, one new, the two workloads that they select; readiness may have moved a little besides.
    ensure!(
        (2.0..=8.0).contains(&more),
        "{more} resources were sent for two policies"
    );

    // Nothing changes: nothing is sent.
    lab.component("controller", Order::Stop).await?;
    connected(&lab, "n2", 0.0).await?;
    let before = sent(&lab, "n2").await?;
    lab.component("controller", Order::Start).await?;
    connected(&lab, "n2", 1.0).await?;
    until("a change after the return", async || {
        lab.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: marker, namespace: nowhere}\nspec: {}\n").await?;
        ensure!(sent(&lab, "n2").await? > before, "nothing came yet");
        Ok(())
    })
    .await?;
    let more = sent(&lab, "n2").await? - before;
    ensure!(
        (more - 1.0).abs() < f64::EPSILON,
        "{more} resources were sent for one new policy"
    );
    Ok(())
}

/// A second name of the echo.
const ALSO: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: also, namespace: shop}
spec: {selector: {app: echo}, ports: [{name: tcp, port: 9000}]}
"#;

const ALSO_HOST: &str = "also.shop.svc.cluster.local";

/// So many hosts outside, each a resource for every node.
fn hosts(count: usize) -> String {
    let host = |i: usize| {
        let (high, low) = (i / 256, i % 256);
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: host-{i}, namespace: shop}}\n\
             spec: {{hosts: [host-{i}.test], addresses: [240.240.{high}.{low}], location: MESH_EXTERNAL, resolution: STATIC, \
             ports: [{{number: 80, name: tcp, protocol: TCP}}], endpoints: [{{address: 192.0.2.1}}]}}\n"
        )
    };
    (0..count).map(host).collect::<Vec<_>>().join("---\n")
}

/// T11: the controller ends in the middle of a list: what it has not sent yet is not taken for gone.
pub async fn t11_a_list_that_breaks_off_removes_nothing() -> Result<()> {
    let lab = pair().await?;
    for many in [8_000, 32_000] {
        lab.apply(ALSO).await?;
        // By the node proxy: the cluster's own way to a new name is open before the node has heard of it.
        let led = async || flows(&lab, "n2", &[("dst.service", ALSO_HOST)]).await;
        let already = led().await?.len();
        until("service by the second name", async || {
            echo(&lab, "shop/client", "also").await?;
            ensure!(
                led().await?.len() > already,
                "the node does not know the name"
            );
            Ok(())
        })
        .await?;
        lab.component("controller", Order::Stop).await?;
        connected(&lab, "n2", 0.0).await?;
        let before = sent(&lab, "n2").await?;
        // While it is away the name goes, and many hosts come.
        lab.delete(ALSO).await?;
        lab.apply(&hosts(many)).await?;
        lab.component("controller", Order::Start).await?;
        until("the beginning of the list", async || {
            ensure!(sent(&lab, "n2").await? > before, "nothing came yet");
            Ok(())
        })
        .await?;
        let kill = Order::SignalAndLeave(Signal::SIGKILL as i32);
        lab.component("controller", kill).await?;
        connected(&lab, "n2", 0.0).await?;
        let came = sent(&lab, "n2").await? - before;
        println!("T11: {came} of more than {many} resources came");
        let broke_off = came < many as f64;
        if broke_off {
            for _ in 0..5 {
                echo(&lab, "shop/client", "also")
                    .await
                    .context("a name that a broken list did not have")?;
            }
            ensure!(
                lab.node("n2")
                    .log()?
                    .contains("the last good configuration stays in use"),
                "the log says what is in force"
            );
        }
        lab.component("controller", Order::Start).await?;
        connected(&lab, "n2", 1.0).await?;
        until("the whole list", async || {
            ensure!(
                echo(&lab, "shop/client", "also").await.is_err(),
                "the name is still known"
            );
            Ok(())
        })
        .await?;
        if broke_off {
            return Ok(());
        }
        lab.delete(&hosts(many)).await?;
    }
    bail!("no list was long enough to be broken off")
}
