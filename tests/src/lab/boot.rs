//! Bringing a lab's world up: directories, wires, then resolver, kubelets, controller and node proxies.
//!
//! Invariant: the order is that of need: the controller answers before a token is made, a token exists before
//! the node proxy that uses it starts.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};

use super::{
    cgroup,
    component::{Component, Recipe},
    down,
    enter::{Surroundings, in_netns},
    kubelet,
    net::{self, FABRIC, FABRIC_NAME, NodeIndex},
    place::{Place, private_dir},
    pod::{Happening, Programs, Reports, Settled, agent_socket},
    register,
    supervisor::Spec,
};

/// The controller's port for nodes.
pub const CONTROLLER_PORT: u16 = 15012;

/// Makes directories, cgroups and namespaces.
pub fn prepare(place: &Place, spec: &Spec) -> Result<()> {
    private_dir(place.run())?;
    let none: Option<&str> = None;
    mount(
        Some("warren-lab"),
        place.run(),
        Some("tmpfs"),
        MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
        Some("mode=0700,size=64m"),
    )
    .with_context(|| format!("mounting a tmpfs at {}", place.run().display()))?;
    let _ = none;
    fs::write(place.run().join("supervisor.pid"), down::own_mark()?)?;
    for dir in [place.manifests(), place.state().join("controller")] {
        private_dir(&dir)?;
    }
    cgroup::create(place.cgroup())?;
    net::build_world(place, spec.nodes)?;
    for node in (1..=spec.nodes).map(NodeIndex) {
        private_dir(&place.node_run(&node.name()))?;
        private_dir(&place.node_state(&node.name()))?;
        cgroup::create(&place.cgroup().join(node.name()).join("kubepods"))?;
    }
    Ok(())
}

/// Starts what runs all the time.
pub async fn components(
    place: &Arc<Place>,
    spec: &Spec,
    programs: &Programs,
    starts: mpsc::Sender<NodeIndex>,
) -> Result<BTreeMap<String, Component>> {
    let mut all = BTreeMap::new();
    let names = place.run().join("names.json");
    let lab = programs.lab.display().to_string();
    all.insert(
        "dns".into(),
        Component::launch(recipe(
            place,
            programs,
            "dns",
            FABRIC_NAME,
            "dns",
            vec![lab.clone(), "dns".into(), names.display().to_string()],
        )),
    );
    for node in (1..=spec.nodes).map(NodeIndex).map(NodeIndex::name) {
        let socket = kubelet::socket(&place.node_run(&node));
        let program = vec![lab.clone(), "kubelet".into(), socket.display().to_string()];
        all.insert(
            format!("{node}-kubelet"),
            Component::launch(recipe(
                place,
                programs,
                &format!("{node}-kubelet"),
                &node,
                "kubelet",
                program,
            )),
        );
    }
    if !spec.mesh {
        return Ok(all);
    }
    let controller = Component::launch(controller(place, spec, programs));
    let ca = wait_for_controller(place, &controller).await?;
    all.insert("controller".into(), controller);
    for node in (1..=spec.nodes).map(NodeIndex) {
        let token = make_token(
            place,
            programs,
            ("--node", &node.name()),
            &place.node_state(&node.name()),
        )?;
        let component = Component::launch(agent(place, spec, programs, node, &ca, &token));
        let mut condition = component.condition.clone();
        let starts = starts.clone();
        tokio::spawn(async move {
            let mut seen = 0;
            while let Ok(now) = condition
                .wait_for(|c| c.starts != seen)
                .await
                .map(|c| c.starts)
            {
                seen = now;
                if starts.send(node).await.is_err() {
                    return;
                }
            }
        });
        all.insert(node.name(), component);
    }
    Ok(all)
}

/// Asks a node proxy again and again how its pods are: enrolment changes with the configuration.
pub async fn follow(
    place: Arc<Place>,
    node: NodeIndex,
    told: mpsc::Sender<(NodeIndex, Vec<register::Listed>)>,
) {
    loop {
        sleep(Duration::from_millis(250)).await;
        let socket = agent_socket(&place, node);
        // A node proxy that is away answers nothing; what it said last stays true until it is back.
        if let Ok(Ok(pods)) =
            spawn_blocking(move || register::list(&socket, Duration::from_secs(5))).await
            && told.send((node, pods)).await.is_err()
        {
            return;
        }
    }
}

/// Tells a node proxy that has just started of a pod; gives up when it is not there within its time.
pub async fn introduce(place: Arc<Place>, pod: Arc<Settled>, ifindex: u32, reports: Reports) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = String::new();
    while Instant::now() < deadline {
        let (socket, registration) = (
            agent_socket(&place, pod.node),
            pod.registration(&place, ifindex),
        );
        match spawn_blocking(move || register::add(&socket, &registration, Duration::from_secs(10)))
            .await
        {
            Ok(Ok(answer)) => {
                let _ = reports
                    .send((
                        pod.key.clone(),
                        Happening::Registered(answer.state, answer.reason),
                    ))
                    .await;
                return;
            }
            Ok(Err(e)) => last = format!("{e:#}"),
            Err(e) => last = e.to_string(),
        }
        sleep(Duration::from_millis(100)).await;
    }
    let _ = reports
        .send((
            pod.key.clone(),
            Happening::Note(format!("the restarted node proxy does not take it: {last}")),
        ))
        .await;
}

fn recipe(
    place: &Place,
    programs: &Programs,
    name: &str,
    netns: &str,
    group: &str,
    program: Vec<String>,
) -> Recipe {
    Recipe {
        name: name.to_owned(),
        surroundings: Surroundings {
            netns: Some(place.netns_path(netns)),
            cgroup: Some(place.cgroup().join(netns).join(group)),
            ..Surroundings::default()
        },
        lab: programs.lab.clone(),
        program,
        env: Vec::new(),
        log: place.log(name),
    }
}

fn controller(place: &Place, spec: &Spec, programs: &Programs) -> Recipe {
    let state = controller_state(place);
    let mut program: Vec<String> = vec![
        beside(programs, "mesh-ctl").display().to_string(),
        "controller".into(),
        "--manifests".into(),
        place.manifests().display().to_string(),
        "--state".into(),
        state.display().to_string(),
        "--listen".into(),
        format!("{FABRIC}:{CONTROLLER_PORT}"),
        "--listen-name".into(),
        FABRIC.to_string(),
    ];
    program.extend(spec.controller_args.iter().cloned());
    recipe(
        place,
        programs,
        "controller",
        FABRIC_NAME,
        "controller",
        program,
    )
}

fn agent(
    place: &Place,
    spec: &Spec,
    programs: &Programs,
    node: NodeIndex,
    ca: &Path,
    token: &Path,
) -> Recipe {
    let name = node.name();
    let cgroup = |of: &str| place.cgroup().join(&name).join(of).display().to_string();
    let flags = [
        ("--node-name", name.clone()),
        ("--node-ip", node.ip().to_string()),
        ("--instance", place.instance(&name)),
        (
            "--controller",
            format!("https://{FABRIC}:{CONTROLLER_PORT}"),
        ),
        ("--controller-ca", ca.display().to_string()),
        ("--token-file", token.display().to_string()),
        ("--pods-cgroup", cgroup("kubepods")),
    ];
    let mut program = vec![beside(programs, "mesh-node").display().to_string()];
    program.extend(flags.into_iter().flat_map(|(k, v)| [k.to_owned(), v]));
    let mut made = recipe(place, programs, &name, &name, "agent", program);
    made.env = vec![
        (
            "WARREN_RUN_DIR".into(),
            place.node_run(&name).display().to_string(),
        ),
        (
            "WARREN_STATE_DIR".into(),
            place.node_state(&name).display().to_string(),
        ),
    ];
    // The lab registers its pods; a test of the search itself says otherwise.
    made.env.push(("WARREN_POD_SCAN".into(), "off".into()));
    let of_node = |(key, value): &(String, String)| (key.clone(), value.replace("{node}", &name));
    made.env.extend(spec.agent_env.iter().map(of_node));
    made
}

/// Where the controller keeps its keys.
pub fn controller_state(place: &Place) -> PathBuf {
    place.state().join("controller")
}

/// A program of the workspace, built into the same directory as the lab.
pub fn beside(programs: &Programs, name: &str) -> PathBuf {
    programs.lab.with_file_name(name)
}

/// Waits until the controller takes connections; returns the roots that it can be known by.
async fn wait_for_controller(place: &Arc<Place>, controller: &Component) -> Result<PathBuf> {
    let ca = controller_state(place).join("ca.pem");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let netns = place.netns_path(FABRIC_NAME);
        let up = spawn_blocking(move || {
            let to = SocketAddr::new(IpAddr::V4(FABRIC), CONTROLLER_PORT);
            in_netns(&netns, move || {
                Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok())
            })
        })
        .await
        .context("looking for the controller")??;
        if up && ca.exists() {
            return Ok(ca);
        }
        if Instant::now() > deadline {
            let last = controller.condition.borrow().last_end.clone();
            bail!(
                "the controller does not serve within 30 s ({}); see {}",
                if last.is_empty() { "it runs" } else { &last },
                place.log("controller").display()
            );
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Makes a join token for `who`, a flag with its value, and writes it to a file in `dir`.
pub(super) fn make_token(
    place: &Place,
    programs: &Programs,
    who: (&str, &str),
    dir: &Path,
) -> Result<PathBuf> {
    let done = Command::new(beside(programs, "mesh-ctl"))
        .args(["token", "create", who.0, who.1, "--ttl", "24h", "--state"])
        .arg(controller_state(place))
        .output()
        .context("running mesh-ctl token create")?;
    if !done.status.success() {
        bail!(
            "mesh-ctl token create {} {}: {}",
            who.0,
            who.1,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    let path = dir.join("token");
    fs::write(&path, &done.stdout).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(path)
}
