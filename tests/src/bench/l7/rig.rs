//! The lab behind the L7 rows: one application behind every way, and what is needed to drive and watch each.
//!
//! Invariant: application and clients are alike for every way; only what is between differs. Everything ends with the
//! pods, through their cgroups.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    SOON, Way,
    rules::{NGINX, Rules, SAID},
};
use crate::{
    bench::{app, peers::Pair},
    lab::{Lab, images::Images, place::LabName, supervisor::Spec},
    peers::envoy::{self, Files},
};

const WORLD: &str = include_str!("world.yaml");
const WRAP: u16 = 15001;
const EDGE: u16 = 15008;

/// The rig.
pub(super) struct Rig {
    lab: Lab,
    files: tempfile::TempDir,
    envoy: Option<Pair>,
    nginx: bool,
    threads: usize,
    /// The proxies that route, of other make, as they run now.
    running: Vec<(Way, Child)>,
}

impl Rig {
    /// Starts the lab; what is left out is noted.
    pub(super) async fn up(name: &LabName, notes: &mut Vec<String>) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(2, Into::into);
        let off = ("WARREN_ACCESS_LOG".to_owned(), "off".to_owned());
        let spec = Spec {
            name: name.clone(),
            nodes: 2,
            mesh: true,
            agent_env: vec![off, ("WARREN_THREADS".into(), threads.to_string())],
            controller_args: Vec::new(),
            images: Images::default(),
        };
        let files = tempfile::tempdir()?;
        let envoy = envoy::binary().map(|binary| Pair {
            binary,
            dir: files.path().to_owned(),
            threads,
            log: false,
        });
        match &envoy {
            Some(pair) => pair.certify()?,
            None => notes.push("no Envoy: run `cargo xtask provision interop`".to_owned()),
        }
        let nginx = Path::new("/usr/sbin/nginx").is_file();
        if !nginx {
            notes.push("no nginx: run `cargo xtask provision programs`".to_owned());
        }
        let rig = Self {
            lab: Lab::up(spec).await?,
            files,
            envoy,
            nginx,
            threads,
            running: Vec::new(),
        };
        rig.lab.apply(WORLD).await?;
        rig.lab.wait_ready(SOON).await?;
        let captured = |s: &crate::lab::control::Status| {
            let late = |p: &&crate::lab::control::PodStatus| {
                p.namespace == "mesh" && p.mesh != "captured" && !p.name.starts_with("waypoint")
            };
            match s.pods.iter().find(late) {
                Some(pod) => bail!("{} is `{}` ({})", pod.name, pod.mesh, pod.note),
                None => Ok(()),
            }
        };
        rig.lab.wait_for(SOON, captured).await?;
        let program = rig.lab.program("warren-bench").display().to_string();
        for server in ["mesh/app", "plain/app"] {
            rig.spawn(server, &[program.clone(), "app".to_owned()], None)
                .await?;
        }
        Ok(rig)
    }

    /// Whether a way can be measured here.
    pub(super) fn has(&self, way: Way) -> bool {
        match way {
            Way::Direct | Way::Ours => true,
            Way::Envoy => self.envoy.is_some(),
            Way::Nginx => self.nginx,
        }
    }

    /// Gives all that route these rules, and waits until each way carries a request.
    pub(super) async fn routes(&mut self, rules: Rules) -> Result<()> {
        self.lab.apply(&rules.virtual_service()).await?;
        for (way, mut child) in self.running.drain(..) {
            child
                .kill()
                .and_then(|()| child.wait())
                .with_context(|| format!("ending {}", way.title()))?;
        }
        if self.envoy.is_some() {
            self.envoys(rules).await?;
        }
        if self.nginx {
            let config = self.files.path().join("nginx.conf");
            let to = SocketAddr::new(self.ip("plain/app").await?, app::PORT);
            fs::write(&config, rules.nginx(to, self.threads, self.files.path()))?;
            let words = ["/usr/sbin/nginx", "-c", &config.display().to_string()].map(str::to_owned);
            let child = self.spawn("plain/nginx", &words, Some("nginx.log")).await?;
            self.running.push((Way::Nginx, child));
        }
        for way in Way::ALL.into_iter().filter(|w| self.has(*w)) {
            self.works(way).await?;
        }
        Ok(())
    }

    async fn envoys(&mut self, rules: Rules) -> Result<()> {
        let any = |port| SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port);
        let own = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        let (edge, server) = (
            self.ip("plain/edge").await?,
            self.ip("plain/envoy-app").await?,
        );
        let (client_files, server_files) = (self.certificate("client"), self.certificate("server"));
        let plain = SocketAddr::new(self.ip("plain/app").await?, app::PORT);
        let all = [
            (
                "plain/envoy-client",
                envoy::wrap(own(WRAP), SocketAddr::new(edge, EDGE), &client_files),
            ),
            (
                "plain/envoy-app",
                envoy::unwrap(any(EDGE), plain, &server_files),
            ),
            (
                "plain/edge",
                envoy::edge(
                    any(EDGE),
                    SocketAddr::new(server, EDGE),
                    rules.envoy(),
                    &server_files,
                ),
            ),
        ];
        for (who, config) in all {
            let name = who.replace('/', "-");
            let path = self.files.path().join(format!("{name}.json"));
            fs::write(&path, config.to_string())?;
            let binary = &self.envoy.as_ref().context("there is an Envoy")?.binary;
            let words = [
                binary.display().to_string(),
                "-c".into(),
                path.display().to_string(),
                "-l".into(),
                "warning".into(),
                "--concurrency".into(),
                self.threads.to_string(),
                "--disable-hot-restart".into(),
            ];
            let child = self
                .spawn(who, &words, Some(&format!("{name}.log")))
                .await?;
            // The last of them is the one that routes.
            self.running.push((Way::Envoy, child));
        }
        Ok(())
    }

    fn certificate(&self, name: &str) -> Files {
        let bundle = self.files.path().join(format!("{name}.pem"));
        Files {
            chain: bundle.clone(),
            key: bundle,
            roots: self.files.path().join("roots.pem"),
        }
    }

    async fn spawn(&self, who: &str, words: &[String], log: Option<&str>) -> Result<Child> {
        let mut command: Command = self.lab.command(who, words).await?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(name) = log {
            let log = fs::File::create(self.files.path().join(name))?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        command
            .spawn()
            .with_context(|| format!("starting {} in {who}", words[0]))
    }

    async fn ip(&self, pod: &str) -> Result<IpAddr> {
        Ok(IpAddr::V4(self.lab.status().await?.pod(pod)?.ip))
    }

    /// The client's pod, and where it finds the application.
    pub(super) async fn target(&self, way: Way, http2: bool) -> Result<(String, String)> {
        Ok(match way {
            Way::Direct => {
                let ip = self.ip("plain/app").await?;
                ("plain/client".into(), format!("{ip}:{}", app::PORT))
            }
            Way::Ours => ("mesh/client".into(), "app.mesh:80".into()),
            Way::Envoy => ("plain/envoy-client".into(), format!("127.0.0.1:{WRAP}")),
            Way::Nginx => {
                let ip = self.ip("plain/nginx").await?;
                let port = NGINX[usize::from(http2)];
                ("plain/client".into(), format!("{ip}:{port}"))
            }
        })
    }

    /// The processes that route requests of a way.
    pub(super) async fn routers(&self, way: Way) -> Result<Vec<u32>> {
        let of = async |pod: &str, name: &str| -> Result<Vec<u32>> {
            let exec = self.lab.status().await?.pod(pod)?.cgroup.clone();
            let cgroup = exec.parent().context("a pod has a cgroup")?;
            let is = |pid: &u32| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == name)
            };
            // Each container of the pod has a cgroup of its own, beside that of programs that were begun later.
            let mut procs = String::new();
            for part in fs::read_dir(cgroup)? {
                let part = part?;
                if part.file_type()?.is_dir() {
                    procs += &fs::read_to_string(part.path().join("cgroup.procs"))?;
                }
            }
            let pids = procs.lines().filter_map(|l| l.trim().parse::<u32>().ok());
            let found: Vec<u32> = pids.filter(is).collect();
            ensure!(!found.is_empty(), "no {name} runs in {pod}");
            Ok(found)
        };
        match way {
            Way::Direct => Ok(Vec::new()),
            Way::Ours => of("mesh/waypoint", "mesh-node").await,
            Way::Envoy if self.envoy.is_some() => {
                let of_envoy = |(way, _): &&(Way, Child)| *way == Way::Envoy;
                let last = self.running.iter().rfind(of_envoy);
                Ok(last.map(|(_, child)| child.id()).into_iter().collect())
            }
            Way::Nginx if self.nginx => of("plain/nginx", "nginx").await,
            Way::Envoy | Way::Nginx => Ok(Vec::new()),
        }
    }

    /// Waits until a way carries a request.
    async fn works(&self, way: Way) -> Result<()> {
        let (client, to) = self.target(way, false).await?;
        let words = [
            "http",
            &to,
            "--checked",
            "--connections",
            "1",
            "--seconds",
            "0.1",
        ];
        let words = words.iter().chain(&SAID);
        let words: Vec<String> = words.map(|w| (*w).to_owned()).collect();
        let deadline = Instant::now() + SOON;
        loop {
            match self.load(&client, &words).await {
                Ok(report) if report["failed"] == 0 => return Ok(()),
                other if Instant::now() > deadline => {
                    bail!("`{}` carries no request: {other:?}", way.title())
                }
                _ => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    }

    /// Runs the load generator in a pod; its report.
    pub(super) async fn load(&self, who: &str, words: &[String]) -> Result<Value> {
        let mut program = vec![self.lab.program("warren-load").display().to_string()];
        program.extend_from_slice(words);
        let ran = self.lab.exec(who, &program).await?;
        serde_json::from_str(&ran.out)
            .with_context(|| format!("the load generator said: {} {}", ran.out, ran.err))
    }

    /// Removes the lab.
    pub(super) async fn down(self) -> Result<()> {
        self.lab.down().await.map(drop)
    }
}
