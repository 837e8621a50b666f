//! The lab's own cluster, without the mesh: what later tests rest on.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{
    Lab, capture::contains, down, images::Images, place::Place, suite, supervisor::Spec,
};

const READY: Duration = Duration::from_secs(20);

const WORLD: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8000, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: hidden}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: httpbin, ports: [{name: http, containerPort: 80}], readinessProbe: {httpGet: {path: /status/200, port: http}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: n1, containers: [{name: c, image: idle}]}
"#;

fn bare() -> Spec {
    Spec {
        mesh: false,
        ..suite::spec()
    }
}

async fn up() -> Result<Lab> {
    let lab = Lab::up(bare()).await?;
    lab.apply(WORLD).await?;
    lab.wait_ready(READY).await?;
    Ok(lab)
}

async fn status_code(lab: &Lab, family: &str, url: &str) -> Result<String> {
    let ran = lab
        .exec(
            "client",
            &[
                "curl",
                family,
                "-s",
                "-m",
                "5",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                url,
            ],
        )
        .await?;
    Ok(ran.out)
}

pub async fn pods_reach_services_by_name_and_both_families() -> Result<()> {
    let lab = up().await?;
    let capture = lab.capture("n1")?;
    for family in ["-4", "-6"] {
        for _ in 0..8 {
            assert_eq!(
                status_code(&lab, family, "http://web:8000/status/200").await?,
                "200",
                "{family}"
            );
        }
    }
    assert_eq!(
        status_code(
            &lab,
            "-4",
            "http://hidden.default.svc.cluster.local/status/204"
        )
        .await?,
        "204"
    );
    let marked = lab
        .exec(
            "client",
            &[
                "curl",
                "-s",
                "-m",
                "5",
                "-H",
                "x-marker: seen-on-the-wire",
                "http://web:8000/headers",
            ],
        )
        .await?;
    assert_eq!(marked.code, 0, "{marked:?}");
    for _ in 0..20 {
        lab.exec(
            "client",
            &[
                "curl",
                "-s",
                "-m",
                "5",
                "-H",
                "x-marker: seen-on-the-wire",
                "http://web:8000/headers",
            ],
        )
        .await?;
    }
    let packets = capture.stop()?;
    assert!(
        contains(&packets, b"seen-on-the-wire"),
        "of 21 requests at least one went to the other node, in the clear"
    );
    let unknown = lab
        .exec("client", &["curl", "-s", "-m", "5", "http://nobody/"])
        .await?;
    assert_eq!(
        unknown.code, 6,
        "a name that nobody has does not resolve: {unknown:?}"
    );
    Ok(())
}

pub async fn scaling_rescheduling_and_deletion_by_apply() -> Result<()> {
    let lab = up().await?;
    let old: Vec<String> = web(&lab).await?.into_iter().map(|p| p.0).collect();
    lab.apply(&WORLD.replace("replicas: 2", "replicas: 4"))
        .await?;
    lab.wait_ready(READY).await?;
    let scaled = web(&lab).await?;
    assert_eq!(scaled.len(), 4);
    assert_eq!(
        scaled.iter().filter(|p| p.1 == "n1").count(),
        2,
        "spread over both nodes: {scaled:?}"
    );
    assert!(
        old.iter().all(|o| scaled.iter().any(|p| p.0 == *o)),
        "scaling up keeps what is there"
    );
    lab.apply(&WORLD.replace("replicas: 2", "replicas: 0"))
        .await?;
    lab.wait_for(READY, |s| {
        if s.pods.len() == 1 {
            Ok(())
        } else {
            bail!("{} pods", s.pods.len())
        }
    })
    .await?;
    assert_eq!(
        status_code(&lab, "-4", "http://web:8000/").await?,
        "000",
        "a service without pods refuses"
    );
    let pinned = WORLD.replace(
        "terminationGracePeriodSeconds: 1",
        "nodeSelector: {kubernetes.io/hostname: n2}",
    );
    lab.apply(&pinned).await?;
    lab.wait_for(READY, |s| {
        if s.pods.iter().filter(|p| p.ready && p.node == "n2").count() == 2 {
            Ok(())
        } else {
            bail!("not on n2")
        }
    })
    .await?;
    lab.delete("apiVersion: v1\nkind: Pod\nmetadata: {name: client}\n")
        .await?;
    lab.wait_for(READY, |s| {
        if s.pods.iter().all(|p| p.name != "client") {
            Ok(())
        } else {
            bail!("the client is there")
        }
    })
    .await?;
    Ok(())
}

async fn web(lab: &Lab) -> Result<Vec<(String, String)>> {
    let status = lab.status().await?;
    Ok(status
        .pods
        .into_iter()
        .filter(|p| p.name.starts_with("web-"))
        .map(|p| (p.name, p.node))
        .collect())
}

pub async fn down_removes_what_a_killed_supervisor_left() -> Result<()> {
    let lab = up().await?;
    let place: Place = lab.place.clone();
    let pid = down::supervisor(&place).context("the supervisor runs")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid)?),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    let removed = lab.down().await?;
    ensure!(
        removed.namespaces >= 5,
        "fabric, two nodes and the pods: {removed:?}"
    );
    assert!(place.existing_netns().is_empty());
    assert!(!place.cgroup().exists() && !place.run().exists() && !place.state().exists());
    let again = down::down(&place)?;
    assert_eq!(again.namespaces, 0, "a second time there is nothing to do");
    Ok(())
}

/// Two labs with the mesh beside each other, in which everything has the same names and addresses: neither sees the
/// other, and one goes without the other.
pub async fn labs_side_by_side_do_not_meet() -> Result<()> {
    let first = super::tunnel::pair().await?;
    let name = format!("{}b", first.place.name).parse()?;
    let second = super::tunnel::pair_in(Spec {
        name,
        ..suite::spec()
    })
    .await?;
    let said = async |lab: &Lab| -> Result<usize> {
        let log = lab.node("n1").access_log().await?;
        Ok(log
            .iter()
            .filter(|l| l.contains("direction=inbound"))
            .count())
    };
    // The echo by which each was found ready has its line a moment later.
    for lab in [&first, &second] {
        super::tunnel::until("a lab tells of its first connection", async || {
            ensure!(said(lab).await? > 0, "of none");
            Ok(())
        })
        .await?;
    }
    let (one, two) = (said(&first).await?, said(&second).await?);
    for _ in 0..3 {
        super::tunnel::echo(&second, "shop/client", "echo").await?;
    }
    super::tunnel::until("the second lab tells of its connections", async || {
        ensure!(said(&second).await? == two + 3, "not of three");
        Ok(())
    })
    .await?;
    ensure!(said(&first).await? == one, "the first tells of them too");
    let (ip, same) = (first.status().await?, second.status().await?);
    ensure!(ip.pod("shop/echo")?.ip == same.pod("shop/echo")?.ip);
    let place = first.place.clone();
    first.down().await?;
    ensure!(place.existing_netns().is_empty() && place.existing_pins().is_empty());
    super::tunnel::echo(&second, "shop/client", "echo").await?;
    let removed = second.down().await?;
    ensure!(removed.namespaces >= 5, "{removed:?}");
    Ok(())
}

const OWN_IMAGE: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: own}
spec:
  replicas: 1
  template:
    metadata: {labels: {app: own}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - {name: c, image: "shop.test:5000/own:v3", args: ["--port", "8080"], ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /status/200, port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: unknown}
spec: {containers: [{name: c, image: nobody-knows, readinessProbe: {tcpSocket: {port: 1}}}]}
"#;

/// The user's map makes programs of images, for whatever is applied later; an image nobody knows is shown as idle.
pub async fn images_of_the_user_become_programs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("images.yaml");
    let sample = std::path::Path::new(env!("CARGO_BIN_EXE_warren-sample"));
    std::fs::write(&file, "shop.test:5000/own:*: [warren-sample, httpbin]\n")?;
    let images = Images::read(&file, sample.parent())?;
    let lab = Lab::up(Spec { images, ..bare() }).await?;
    lab.apply(WORLD).await?;
    lab.apply(OWN_IMAGE).await?;
    let status = lab.wait_ready(READY).await?;
    let ip = status.pod("own")?.ip;
    ensure!(!status.pod("own")?.idle, "its program runs");
    let code = status_code(&lab, "-4", &format!("http://{ip}:8080/status/204")).await?;
    ensure!(code == "204", "the program answered {code}");
    let unknown = status.pod("unknown")?;
    ensure!(unknown.idle && unknown.ready, "{unknown:?}");
    let shown = mesh_tests::lab::show::text(&status);
    let line = shown.lines().find(|l| l.contains("unknown"));
    ensure!(line.is_some_and(|l| l.contains("idle")), "{shown}");
    Ok(())
}

/// `ps` into a reader that has gone ends quietly.
pub async fn a_closed_pipe_ends_quietly() -> Result<()> {
    let lab = up().await?;
    let name = lab.place.name.to_string();
    for words in [&["ps"][..], &["ps", "-o", "json"], &["logs", "supervisor"]] {
        let (read, write) = std::io::pipe()?;
        drop(read);
        // Something is to be printed, whatever the supervisor had to say.
        let log = lab.place.log("supervisor");
        std::fs::write(&log, "a line\n")?;
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_warren-lab"));
        command.args(["--name", &name]).args(words).stdout(write);
        let done = tokio::task::spawn_blocking(move || command.output()).await??;
        let err = String::from_utf8_lossy(&done.stderr);
        ensure!(
            done.status.code() == Some(141) && err.is_empty(),
            "{words:?}: {}: {err}",
            done.status
        );
    }
    Ok(())
}
