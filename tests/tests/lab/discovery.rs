//! Where services lead, what may be reached outside the mesh, names, and what can be asked of a running node.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, suite, supervisor::Spec};
use serde_json::Value;

use super::{
    play,
    tunnel::{SOON, echo, pair, pair_in, until},
};

const WORLD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: web, who: a}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c, image: idle, ports: [{name: http, containerPort: 7101}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop, labels: {app: web, who: b}}
spec: {nodeName: n2, serviceAccountName: web, containers: [{name: c, image: idle, ports: [{name: http, containerPort: 7102}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unready, namespace: shop, labels: {app: unready}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c, image: tcp-echo, ports: [{name: http, containerPort: 7101}], readinessProbe: {tcpSocket: {port: 1}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.78.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: shop}
spec: {clusterIP: 10.96.78.2, internalTrafficPolicy: Local, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: local-far, namespace: shop}
spec: {clusterIP: 10.96.78.3, internalTrafficPolicy: Local, selector: {who: a}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: shop}
spec: {clusterIP: 10.96.78.4, sessionAffinity: ClientIP, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: shop}
spec: {clusterIP: 10.96.78.5, trafficDistribution: PreferSameNode, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: near-far, namespace: shop}
spec: {clusterIP: 10.96.78.6, trafficDistribution: PreferSameNode, selector: {who: a}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: heads, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: early, namespace: shop}
spec: {clusterIP: 10.96.78.7, publishNotReadyAddresses: true, selector: {app: unready}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: waits, namespace: shop}
spec: {clusterIP: 10.96.78.8, selector: {app: unready}, ports: [{name: http, port: 80, targetPort: http}]}
"#;

/// Which endpoints many connections from the client reached, each by the pod's name; `none` for failures.
async fn reached(lab: &Lab, to: &str) -> Result<BTreeMap<String, usize>> {
    let ran = lab
        .exec("shop/client", &play::command("reached", &[to, "24"])?)
        .await?;
    let seen: BTreeMap<String, usize> =
        serde_json::from_str(&ran.out).with_context(|| format!("{to}: {ran:?}"))?;
    let status = lab.status().await?;
    let name = |at: &str| {
        let pod = status
            .pods
            .iter()
            .find(|p| at.starts_with(&format!("{}:", p.ip)));
        pod.map_or("none".to_owned(), |p| p.name.clone())
    };
    let mut named = BTreeMap::new();
    for (at, count) in seen {
        *named.entry(name(&at)).or_default() += count;
    }
    Ok(named)
}

/// Ports by name, policies of traffic, affinity, preference for what is near, readiness, headless names.
pub async fn services_lead_where_they_say() -> Result<()> {
    let lab = pair().await?;
    lab.apply(WORLD).await?;
    lab.wait_for(SOON, |s| {
        for name in ["a", "b", "unready"] {
            let pod = s.pod(&format!("shop/{name}"))?;
            ensure!(pod.mesh == "captured", "{name} is {}", pod.mesh);
        }
        Ok(())
    })
    .await?;
    let mut servers = Vec::new();
    for who in ["shop/a", "shop/b", "shop/unready"] {
        let server = play::command("where-server", &["7101", "7102"])?;
        servers.push(lab.spawn(who, &server).await?);
    }
    for (service, expect) in [
        ("10.96.78.1:80", &["a", "b"][..]),
        ("10.96.78.2:80", &["b"]),
        ("10.96.78.3:80", &["none"]),
        ("10.96.78.5:80", &["b"]),
        ("10.96.78.6:80", &["a"]),
        ("10.96.78.7:80", &["unready"]),
        ("10.96.78.8:80", &["none"]),
    ] {
        until(service, async || {
            let seen = reached(&lab, service).await?;
            ensure!(
                seen.keys().eq(expect.iter()),
                "{service} led to {seen:?}, not to {expect:?}"
            );
            Ok(())
        })
        .await?;
    }
    until("affinity", async || {
        let seen = reached(&lab, "10.96.78.4:80").await?;
        ensure!(
            seen.len() == 1 && !seen.contains_key("none"),
            "one client, several endpoints: {seen:?}"
        );
        Ok(())
    })
    .await?;
    let status = lab.status().await?;
    let ips = ["a", "b"].map(|n| status.pod(&format!("shop/{n}")).map(|p| p.ip.to_string()));
    // Over UDP, and as a resolver asks that is told to use TCP.
    for options in ["", "use-vc"] {
        until("the headless name", async || {
            let ask = format!("RES_OPTIONS={options} getent ahostsv4 heads.shop");
            let ran = lab.exec("shop/client", &["sh", "-c", &ask]).await?;
            for ip in &ips {
                let ip = ip.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?;
                ensure!(ran.out.contains(ip.as_str()), "{ip} is missing: {ran:?}");
            }
            Ok(())
        })
        .await?;
    }
    for transport in ["udp", "tcp"] {
        let answered = lab
            .node("n2")
            .metric(
                "warren_dns_requests_total",
                &[("transport", transport), ("result", "answered")],
            )
            .await?;
        ensure!(answered >= 1.0, "{answered} answers over {transport}");
    }
    let lines = lab.node("n2").access_log().await?;
    ensure!(
        lines.iter().any(|l| l.contains("reason=no_endpoints")),
        "the refusals are in the log"
    );
    for mut server in servers {
        // It ends with its pod if it has not by now.
        let _ = server.kill();
        let _ = server.wait();
    }
    Ok(())
}

const OUTSIDE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {nodeName: n1, containers: [{name: c, image: tcp-echo, ports: [{containerPort: 9000}]}]}
"#;

const REGISTRY_ONLY: &str = r#"
apiVersion: warren.dev/v1alpha1
kind: MeshConfig
metadata: {name: mesh, namespace: warren-system}
spec: {outboundTrafficPolicy: REGISTRY_ONLY}
"#;

const STRICT_BUT: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: echo, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  mtls: {mode: STRICT}
  portLevelMtls: {"9000": {mode: PERMISSIVE}}
"#;

/// REGISTRY_ONLY refuses what the mesh does not know; PeerAuthentication holds for a port of its own.
pub async fn what_is_outside_and_what_a_port_accepts() -> Result<()> {
    let lab = pair().await?;
    lab.apply(OUTSIDE).await?;
    lab.wait_ready(SOON).await?;
    let fabric = "172.30.0.1";
    let trap = super::hbone::Trap::set(
        &lab.place.netns_path("fabric"),
        vec![format!("{fabric}:9000").parse()?],
    )?;
    let dial = async |expect: &[i32]| -> Result<()> {
        let args = [&format!("{fabric}:9000"), "0"].map(String::from);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let script = format!("timeout 3 {}", play::command("connect", &args)?.join(" "));
        let ran = lab.exec("shop/client", &["sh", "-c", &script]).await?;
        let connect = serde_json::from_str::<play::Attempt>(&ran.out).map(|a| a.connect);
        // The trap never answers: a connection that was made ends by the time limit.
        let code = connect.unwrap_or(0);
        ensure!(expect.contains(&code), "{ran:?}");
        Ok(())
    };
    until("the way outside", async || {
        dial(&[0]).await?;
        ensure!(trap.caught().0 > 0, "nobody came");
        Ok(())
    })
    .await?;
    lab.apply(REGISTRY_ONLY).await?;
    until("REGISTRY_ONLY", async || dial(&[111]).await).await?;
    let lines = lab.node("n2").access_log().await?;
    ensure!(
        lines.iter().any(|l| l.contains("reason=outside_mesh")),
        "no line says outside_mesh:\n{}",
        lines.join("\n")
    );
    echo(&lab, "shop/client", "10.244.1.2").await?;
    lab.delete(REGISTRY_ONLY).await?;
    until("the way outside again", async || dial(&[0]).await).await?;
    lab.apply(STRICT_BUT).await?;
    let other = super::hbone::Trap::set(
        &lab.status().await?.pod("shop/echo")?.netns.clone(),
        vec!["10.244.1.2:7777".parse()?],
    )?;
    until("STRICT", async || {
        let script = "exec 3<>/dev/tcp/10.244.1.2/7777 && echo x >&3 && timeout 2 head -1 <&3";
        lab.exec("outside/stranger", &["bash", "-c", script])
            .await?;
        let lines = lab.node("n1").access_log().await?;
        ensure!(
            lines
                .iter()
                .any(|l| l.contains("reason=mtls_required") && l.contains(":7777")),
            "port 7777 is not STRICT yet"
        );
        Ok(())
    })
    .await?;
    let before = other.caught().0;
    echo(&lab, "outside/stranger", "10.244.1.2").await?;
    echo(&lab, "shop/client", "10.244.1.2").await?;
    ensure!(
        other.caught().0 == before,
        "nothing more on the STRICT port"
    );
    Ok(())
}

const BY_NAME: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 9000, name: tcp, protocol: TCP}]
"#;

/// A host outside the mesh that only a resolver can find: the node finds it, follows it, and says when it cannot.
pub async fn a_host_that_is_known_by_name_is_found_and_followed() -> Result<()> {
    const RESOLVER: &str = "172.30.0.1:5353";
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let spec = Spec {
        agent_env: vec![
            set("WARREN_RESOLVERS", RESOLVER),
            set("WARREN_NAME_TTL_MIN", "500ms"),
        ],
        ..suite::spec()
    };
    let lab = pair_in(spec).await?;
    lab.apply(OUTSIDE).await?;
    lab.apply(BY_NAME).await?;
    lab.wait_ready(SOON).await?;
    let refused = async || {
        let ran = echo(&lab, "shop/client", "db.example.com").await;
        ensure!(ran.is_err(), "it was reached");
        let lines = lab.node("n2").access_log().await?;
        ensure!(
            lines
                .iter()
                .any(|l| l.contains("reason=name_unresolved") && l.contains("db.example.com")),
            "no line says name_unresolved:\n{}",
            lines.join("\n")
        );
        Ok(())
    };
    until("a refusal without a resolver", refused).await?;
    let stranger = lab.status().await?.pod("outside/stranger")?.ip.to_string();
    let mut resolver = lab
        .spawn(
            "fabric",
            &play::command("resolver", &[RESOLVER, &stranger])?,
        )
        .await?;
    until("the host", async || {
        echo(&lab, "shop/client", "db.example.com").await
    })
    .await?;
    // What was found stays in use while the resolver is away.
    resolver.kill()?;
    resolver.wait()?;
    let failed = [("result", "failed")];
    let name = "warren_name_lookups_total";
    let before = lab.node("n2").metric(name, &failed).await?;
    until("a failed look-up", async || {
        echo(&lab, "shop/client", "db.example.com").await?;
        let now = lab.node("n2").metric(name, &failed).await?;
        ensure!(now > before, "nothing was asked for again");
        Ok(())
    })
    .await?;
    echo(&lab, "shop/client", "db.example.com").await?;
    let lines = lab.node("n2").access_log().await?;
    ensure!(
        lines
            .iter()
            .any(|l| l.contains("dst.service=db.example.com")
                && l.contains(&format!("dst.addr={stranger}:9000"))
                && l.contains("path=plain")),
        "no line says where it was:\n{}",
        lines.join("\n")
    );
    Ok(())
}

/// One request to a node's admin socket.
async fn admin(lab: &Lab, node: &str, method: &str, path: &str) -> Result<String> {
    let socket = lab
        .place
        .node_run(node)
        .join(lab.place.instance(node))
        .join("admin.sock");
    let socket = socket.display().to_string();
    let url = format!("http://admin{path}");
    let args = [
        "curl",
        "-s",
        "-m",
        "5",
        "-X",
        method,
        "--unix-socket",
        &socket,
        &url,
    ];
    let ran = lab.exec("fabric", &args).await?;
    ensure!(ran.code == 0, "{method} {path}: {ran:?}");
    Ok(ran.out)
}

/// The access log as JSON, the log's level and the configuration of a node that runs.
pub async fn a_running_node_tells_and_is_told() -> Result<()> {
    let spec = Spec {
        agent_env: vec![("WARREN_LOG_FORMAT".into(), "json".into())],
        ..suite::spec()
    };
    let lab = pair_in(spec).await?;
    until("a line of the access log", async || {
        let lines = lab.node("n1").access_log().await?;
        let line = lines.first().context("no line yet")?;
        let line: Value = serde_json::from_str(line).with_context(|| line.clone())?;
        for (key, value) in [
            ("direction", "inbound"),
            ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
            ("dst.workload", "echo"),
            ("path", "hbone"),
            ("mtls", "true"),
            ("policy", "allow"),
        ] {
            let found = line.get(key).or_else(|| line.get("fields")?.get(key));
            let found = found.map(|v| v.to_string().trim_matches('"').to_owned());
            ensure!(
                found.as_deref() == Some(value),
                "{key} is {found:?} in {line}"
            );
        }
        Ok(())
    })
    .await?;
    let debug = |log: &str| log.matches("DEBUG").count();
    ensure!(debug(&lab.node("n1").log()?) == 0, "it begins with info");
    admin(&lab, "n1", "POST", "/logging?level=debug").await?;
    until("lines of the new level", async || {
        echo(&lab, "shop/client", "10.244.1.2").await?;
        ensure!(debug(&lab.node("n1").log()?) > 0, "no debug line");
        Ok(())
    })
    .await?;
    ensure!(
        admin(&lab, "n1", "GET", "/logging")
            .await?
            .contains("debug"),
        "it says its level"
    );
    let dump: Value = serde_json::from_str(&admin(&lab, "n1", "GET", "/config_dump").await?)?;
    for key in [
        "workloads",
        "services",
        "policies",
        "certificates",
        "pods",
        "config",
        "version",
    ] {
        ensure!(dump.get(key).is_some(), "the dump has no {key}");
    }
    let text = dump.to_string();
    ensure!(
        text.contains("echo.shop.svc.cluster.local"),
        "the dump knows services"
    );
    ensure!(!text.contains("PRIVATE KEY"), "no key is ever in a dump");
    let refused = admin(&lab, "n1", "POST", "/logging?level=%5Bnonsense").await?;
    ensure!(!refused.is_empty(), "a bad filter is answered with why");
    Ok(())
}
