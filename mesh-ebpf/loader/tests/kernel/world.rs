//! The test world: a node and three pods as network namespaces on a bridge, cgroups as on a node, and the
//! proxy's listeners inside the two enrolled pods. Everything is removed when it is dropped.

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use mesh_loader::{Config, Datapath, Family, PodInfo, PodSpec, Tc, in_netns, ports};

pub type Result<T> = std::result::Result<T, anyhow::Error>;

/// By this variable `cargo xtask test unit` says why tests that need root are not to run.
const SKIP: &str = "WARREN_SKIP_ROOT_TESTS";

/// Why the tests cannot or shall not run here, if so.
pub fn cannot() -> Option<String> {
    if let Ok(why) = std::env::var(SKIP) {
        return Some(why);
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("they need root".into());
    }
    if object().is_empty() {
        return Some("built without kernel programs; run `cargo xtask ebpf`".into());
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("there is no `ip` program (iproute2)".into());
    }
    cgroup_root()
        .is_none()
        .then(|| "cgroup version 2 is not mounted".into())
}

/// The programs under test: those in the file that `WARREN_EBPF_OBJECT` names, or those compiled in.
fn object() -> Cow<'static, [u8]> {
    match std::env::var_os("WARREN_EBPF_OBJECT") {
        Some(path) => Cow::Owned(fs::read(path).expect("WARREN_EBPF_OBJECT names a file")),
        None => Cow::Borrowed(mesh_loader::embedded()),
    }
}

fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts
        .lines()
        .filter_map(|l| l.split(' ').nth(1).filter(|_| l.contains(" cgroup2 ")))
        .map(PathBuf::from)
        .next()
}

/// One application process.
pub struct App {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What an application answered.
#[derive(Debug)]
pub struct Said {
    pub id: u32,
    pub words: Vec<String>,
}

impl App {
    fn start(netns: &str, cgroup: &Path) -> Result<App> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["pod", netns])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string())?;
        let input = child.stdin.take().expect("piped");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line)?;
        anyhow::ensure!(
            line.trim() == "ready",
            "the application did not start: {line}"
        );
        Ok(App {
            child,
            input,
            output,
        })
    }

    /// Gives a command without waiting.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("the application lives");
    }

    /// Waits for the answer to the oldest command: what it says, or its errno.
    pub fn answer(&mut self) -> std::result::Result<Said, String> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .expect("the application lives");
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("ok") => Ok(Said {
                id: words.next().expect("an id").parse().expect("a number"),
                words: words.collect(),
            }),
            Some("err") => Err(words.collect::<Vec<_>>().join(" ")),
            _ => panic!("the application said {line:?}"),
        }
    }

    pub fn ask(&mut self, command: &str) -> std::result::Result<Said, String> {
        self.tell(command);
        self.answer()
    }

    pub fn must(&mut self, command: &str) -> Said {
        self.ask(command)
            .unwrap_or_else(|e| panic!("{command}: {e}"))
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pod: its namespace, its addresses, its application, and the proxy's sockets in it.
pub struct Pod {
    pub netns: fs::File,
    pub v4: IpAddr,
    pub v6: IpAddr,
    pub mac: [u8; 6],
    pub veth: u32,
    pub app: App,
    pub info: Option<PodInfo>,
    pub outbound: Vec<TcpListener>,
    pub outbound6: Vec<TcpListener>,
    pub inbound: Option<(TcpListener, TcpListener)>,
    pub dns: Option<(UdpSocket, UdpSocket)>,
}

pub struct World {
    pub dp: Option<Datapath>,
    pub config: Config,
    pub a: Pod,
    pub b: Pod,
    pub stranger: Pod,
    pub node: fs::File,
    pub kubelet: App,
    home: Home,
}

/// What has to be removed.
struct Home {
    prefix: String,
    cgroup: PathBuf,
    pods: Vec<String>,
    bpffs: PathBuf,
    root: PathBuf,
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = Datapath::purge(&self.bpffs, &self.prefix);
        for netns in &self.pods {
            let _ = Command::new("ip").args(["netns", "del", netns]).output();
        }
        let _ = fs::write(
            self.root.join("cgroup.procs"),
            std::process::id().to_string(),
        );
        for name in ["pods", "node", "kubelet", ""] {
            let path = self.cgroup.join(name);
            // A killed process leaves its cgroup a moment after it was waited for.
            let until = Instant::now() + Duration::from_secs(2);
            while fs::remove_dir(&path).is_err() && path.exists() && Instant::now() < until {
                std::thread::yield_now();
            }
        }
    }
}

impl World {
    pub fn build(tc: Tc) -> Result<World> {
        let root = cgroup_root().expect("checked");
        let prefix = format!("w-ebpf-{}", std::process::id());
        let cgroup = root.join(&prefix);
        let bpffs = PathBuf::from("/sys/fs/bpf");
        let mut home = Home {
            prefix: prefix.clone(),
            cgroup: cgroup.clone(),
            pods: vec![],
            bpffs: bpffs.clone(),
            root,
        };
        for name in ["pods", "node", "kubelet"] {
            fs::create_dir_all(cgroup.join(name))?;
        }
        fs::write(
            cgroup.join("node/cgroup.procs"),
            std::process::id().to_string(),
        )?;
        let node = format!("{prefix}-n");
        ip(&format!("netns add {node}"))?;
        home.pods.push(node.clone());
        for command in [
            "link set lo up",
            "link add br0 type bridge",
            "addr add 10.99.0.1/24 dev br0",
            "addr add fd99::1/64 dev br0 nodad",
            "link set br0 up",
        ] {
            ip(&format!("-n {node} {command}"))?;
        }
        let node_file = fs::File::open(format!("/var/run/netns/{node}"))?;
        let config = Config {
            object: object(),
            bpffs,
            node_netns: Some(Arc::new(node_file.try_clone()?.into())),
            tc,
            ..Config::new(prefix, cgroup.join("pods"), cgroup.join("node"))
        };
        let pods = cgroup.join("pods");
        let a = pod(&mut home, &node, &node_file, &pods, "a", 2)?;
        let b = pod(&mut home, &node, &node_file, &pods, "b", 3)?;
        let stranger = pod(&mut home, &node, &node_file, &pods, "c", 4)?;
        let kubelet = App::start(&node, &cgroup.join("kubelet"))?;
        let dp = Datapath::open(&config)?;
        dp.set_kubelet_cgroup(Some(&cgroup.join("kubelet")))?;
        dp.heartbeat();
        let mut world = World {
            dp: Some(dp),
            config,
            a,
            b,
            stranger,
            node: node_file,
            kubelet,
            home,
        };
        let dp = world.dp.take().expect("just opened");
        for (uid, pod) in [("uid-a", &mut world.a), ("uid-b", &mut world.b)] {
            listen(&dp, pod)?;
            pod.info = Some(dp.enrol(&spec(uid, pod))?);
        }
        dp.anchor(world.stranger.veth)?;
        let looked = dp.look()?;
        anyhow::ensure!(looked.direct, "a fresh world is not in order: {looked:?}");
        world.dp = Some(dp);
        Ok(world)
    }

    pub fn dp(&self) -> &Datapath {
        self.dp.as_ref().expect("open")
    }

    /// All counters that are not zero, for people.
    pub fn nonzero(&self) -> String {
        let Some(dp) = &self.dp else {
            return "closed".into();
        };
        let all = dp.counters().unwrap_or_default();
        let some = all
            .iter()
            .filter(|c| c.2 > 0)
            .map(|c| format!("{} {} {}", c.0, c.1, c.2));
        some.collect::<Vec<_>>().join(", ")
    }

    /// The name of the world, as in its namespaces.
    pub fn name(&self) -> &str {
        &self.home.prefix
    }

    /// The cgroup above all others of the world.
    pub fn cgroup(&self) -> &Path {
        &self.home.cgroup
    }

    /// Does something in the node's namespace.
    pub fn on_node<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        in_netns(self.node.as_fd(), work).expect("it works on the node")
    }
}

/// What the agent would say about a pod.
pub fn spec<'a>(uid: &str, pod: &'a Pod) -> PodSpec<'a> {
    let (four, six) = pod.inbound.as_ref().expect("listening");
    PodSpec {
        uid: uid.into(),
        netns: pod.netns.as_fd(),
        addresses: vec![pod.v4, pod.v6],
        veth_ifindex: pod.veth,
        probe_ports: vec![8081],
        outbound_listeners: 5,
        inbound: vec![(Family::V4, four.as_fd()), (Family::V6, six.as_fd())],
        dns: true,
        direct: true,
    }
}

pub fn listen(dp: &Datapath, pod: &mut Pod) -> Result<()> {
    let (v4, v6) = (pod.v4, pod.v6);
    let (out, out6, four, six, dns) = in_netns(pod.netns.as_fd(), move || {
        let tcp = |ip: IpAddr, port: u16| -> io::Result<TcpListener> {
            let l = TcpListener::bind((ip, port))?;
            l.set_nonblocking(true)?;
            Ok(l)
        };
        let many = |ip: IpAddr| {
            (0..ports::OUTBOUND_PORTS)
                .map(|i| tcp(ip, ports::OUTBOUND + i))
                .collect::<io::Result<Vec<_>>>()
        };
        let udp = |ip: IpAddr| -> io::Result<UdpSocket> {
            let s = UdpSocket::bind((ip, ports::DNS))?;
            s.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok(s)
        };
        Ok((
            many(v4)?,
            many(v6)?,
            tcp(v4, ports::INBOUND)?,
            tcp(v6, ports::INBOUND)?,
            (udp(v4)?, udp(v6)?),
        ))
    })?;
    for l in out.iter().chain(&out6).chain([&four, &six]) {
        dp.mark_own(l.as_fd(), None)?;
    }
    pod.outbound = out;
    pod.outbound6 = out6;
    pod.inbound = Some((four, six));
    pod.dns = Some(dns);
    Ok(())
}

fn pod(
    home: &mut Home,
    node: &str,
    node_file: &fs::File,
    cgroup: &Path,
    name: &str,
    last: u8,
) -> Result<Pod> {
    let netns = format!("{}-{name}", home.prefix);
    ip(&format!("netns add {netns}"))?;
    home.pods.push(netns.clone());
    ip(&format!(
        "-n {node} link add v{name} type veth peer name eth0 netns {netns}"
    ))?;
    for command in [
        format!("-n {node} link set v{name} master br0 up"),
        format!("-n {netns} link set lo up"),
        format!("-n {netns} addr add 10.99.0.{last}/24 dev eth0"),
        format!("-n {netns} addr add fd99::{last}/64 dev eth0 nodad"),
        format!("-n {netns} link set eth0 up"),
        format!("-n {netns} route add default via 10.99.0.1"),
    ] {
        ip(&command)?;
    }
    let veth = in_netns(node_file.as_fd(), || {
        Ok(nix::net::if_::if_nametoindex(format!("v{name}").as_str())?)
    })?;
    let file = fs::File::open(format!("/var/run/netns/{netns}"))?;
    let out = Command::new("ip")
        .args(["-n", &netns, "-o", "link", "show", "eth0"])
        .output()?;
    let text = String::from_utf8(out.stdout)?;
    let mac = text
        .split("link/ether ")
        .nth(1)
        .and_then(|t| t.split(' ').next())
        .unwrap_or_default();
    let mut bytes = [0u8; 6];
    for (to, part) in bytes.iter_mut().zip(mac.split(':')) {
        *to = u8::from_str_radix(part, 16)?;
    }
    Ok(Pod {
        app: App::start(&netns, cgroup)?,
        netns: file,
        v4: format!("10.99.0.{last}").parse()?,
        v6: format!("fd99::{last}").parse()?,
        mac: bytes,
        veth,
        info: None,
        outbound: vec![],
        outbound6: vec![],
        inbound: None,
        dns: None,
    })
}

pub fn ip(args: &str) -> Result<()> {
    run("ip", args)
}

/// Runs a program of iproute2.
pub fn run(program: &str, args: &str) -> Result<()> {
    run_words(program, &args.split(' ').collect::<Vec<_>>())
}

/// The same, for words with spaces in them.
pub fn run_words(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program).args(args).output()?;
    anyhow::ensure!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

/// Waits until one of the listeners has a connection, and accepts it.
pub fn accept(listeners: &[&TcpListener]) -> Option<(std::net::TcpStream, SocketAddr)> {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut fds: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN))
        .collect();
    poll(&mut fds, 3000u16).expect("poll");
    let ready = fds.iter().position(|f| f.any() == Some(true))?;
    let (s, peer) = listeners[ready].accept().expect("accept");
    s.set_nonblocking(false).expect("blocking");
    s.set_read_timeout(Some(Duration::from_secs(3)))
        .expect("timeout");
    Some((s, peer))
}

/// Asks again until it is so, for things that the kernel finishes a moment later.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !so() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::yield_now();
    }
}
