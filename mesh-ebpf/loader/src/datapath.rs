//! One instance of the kernel side: opened or adopted, with the calls that the proxy makes per connection.
//!
//! Invariants: everything that the proxy calls per connection is one or two system calls, or none; two
//! processes may hold one instance during a hand-over; what the kernel cannot say is `None`, never a guess.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};

use aya::maps::{MapData, RingBuf};
use mesh_abi::{
    self as abi, Addr, Asked, Authorised, Endpoint, Iface, ListenerKey, Meta, Owner, Pod, Sock,
    State, Tuple, Use, Verdict, VerdictKey, Vip, counters,
};

use crate::attach::{attach, program};
use crate::elders::Elders;
use crate::events::{Events, socket_addr};
use crate::iface::Tc;
use crate::links::Links;
use crate::maps::{Map, Shared, subtract};
use crate::netlink::News;
use crate::object::{self, Loaded};
use crate::pins::{check_bpffs, instance_folder, layout_folder};
use crate::pods::{Known, PodId};
use crate::verdicts::{Ledger, endpoint};
use crate::{LoadError, netns, sys};

/// Where the BPF file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Offsets of words in `State`.
const HEARTBEAT: usize = 8;
const STALE: usize = 16;
pub(crate) const GENERATION: usize = 24;
/// Offsets of words in `Use`.
const USED_ORIGINALS: usize = 0;
pub(crate) const USED_DIRECT: usize = 8;
const USED_DNS: usize = 16;

/// Where an instance lives and what it attaches to.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the instance; its pins are below `<bpffs>/warren/<instance>/`.
    pub instance: String,
    /// The BPF file system.
    pub bpffs: PathBuf,
    /// The cgroup (version 2) that all pods are below, and the proxy is not.
    pub pods_cgroup: PathBuf,
    /// A cgroup that the proxy is in; on a node the agent's own.
    pub node_cgroup: PathBuf,
    /// How long the proxy may be silent before new connections are refused; zero: for ever.
    pub stale_after: Duration,
    /// The namespace of the pods' interfaces; `None`: that of whoever calls.
    pub node_netns: Option<Arc<OwnedFd>>,
    /// How programs get on interfaces.
    pub tc: Tc,
    /// The compiled programs.
    pub object: Cow<'static, [u8]>,
    /// Where a verifier's log is written.
    pub logs: PathBuf,
    /// Which edition of the layout this is: one has no map and no program in common with another, as with a layout that
    /// differs.
    pub edition: u8,
}

impl Config {
    /// The programs that were compiled in, the usual places, and ten seconds of patience.
    pub fn new(
        instance: impl Into<String>,
        pods_cgroup: impl Into<PathBuf>,
        node_cgroup: impl Into<PathBuf>,
    ) -> Self {
        Self {
            instance: instance.into(),
            bpffs: PathBuf::from(BPFFS),
            pods_cgroup: pods_cgroup.into(),
            node_cgroup: node_cgroup.into(),
            stale_after: Duration::from_secs(10),
            node_netns: None,
            tc: Tc::Auto,
            object: Cow::Borrowed(object::embedded()),
            logs: std::env::temp_dir(),
            edition: 0,
        }
    }

    fn folder(&self) -> Result<PathBuf, LoadError> {
        instance_folder(&self.bpffs, &self.instance)
    }
}

/// Where a captured connection wanted to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// What the application dialed.
    pub destination: SocketAddr,
    /// The pod that it is in.
    pub pod: PodId,
    /// That pod's namespace cookie.
    pub cookie: u64,
}

/// A direct flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// The pod that it reached.
    pub server: SocketAddr,
    /// What it dialed.
    pub dialed: SocketAddr,
    /// The client's pod.
    pub client_pod: PodId,
    /// The server's pod.
    pub server_pod: PodId,
    /// When it began, CLOCK_MONOTONIC.
    pub since: Duration,
}

/// What a pod holds of the maps that it can fill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Captured connections that the proxy has not accepted.
    pub originals: u64,
    /// Direct flows.
    pub direct: u64,
    /// UDP sockets that asked a resolver.
    pub dns: u64,
}

/// The programs that are attached per pod or per interface.
pub(crate) struct Programs {
    pub(crate) lookup: OwnedFd,
    pub(crate) guard: OwnedFd,
    pub(crate) anchor: OwnedFd,
    pub(crate) probe: OwnedFd,
}

/// The kernel side of one node. Shared by reference; every call may be made from any thread.
pub struct Datapath {
    pub(crate) folder: PathBuf,
    pub(crate) instance: String,
    pub(crate) tc: Tc,
    pub(crate) node: Option<Arc<OwnedFd>>,
    /// What is loaded again when a program has to be put in its place again.
    pub(crate) object: Cow<'static, [u8]>,
    pub(crate) logs: PathBuf,
    pub(crate) links: Links,
    pub(crate) news: News,
    /// The bridges that pods hung on at the last look.
    pub(crate) bridges: Mutex<BTreeSet<u32>>,
    pub(crate) programs: Programs,
    pub(crate) pods: Mutex<BTreeMap<String, Known>>,
    pub(crate) ledger: Ledger,
    pub(crate) elders: Mutex<Elders>,
    pub(crate) state: Shared<State>,
    pub(crate) uses: Shared<Use>,
    pub(crate) epochs: Shared<u64>,
    pub(crate) pod_map: Map<u64, Pod>,
    pub(crate) metas: Map<u32, Meta>,
    pub(crate) addrs: Map<Addr, Owner>,
    pub(crate) ifaces: Map<u32, Iface>,
    pub(crate) probe_ports: Map<ListenerKey, u32>,
    pub(crate) listeners: Map<ListenerKey, u32>,
    pub(crate) originals: Map<Tuple, abi::Original>,
    pub(crate) direct: Map<Tuple, Authorised>,
    pub(crate) asked: Map<Endpoint, Asked>,
    pub(crate) verdicts: Map<VerdictKey, Verdict>,
    pub(crate) vips: Map<Endpoint, Vip>,
    socks: Map<i32, Sock>,
    clients: Map<Tuple, Endpoint>,
    probes: Map<Tuple, u64>,
    counters: Map<u32, u64>,
    cpus: usize,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Datapath").field(&self.folder).finish()
    }
}

impl Datapath {
    /// Loads the programs and attaches them, or puts them behind the links that an earlier process pinned.
    /// Whatever that process had decided is void; the pods that it had enrolled stay enrolled (`pods`), unless the
    /// layout had retired. Nothing goes direct before the first `look`.
    pub fn open(config: &Config) -> Result<Datapath, LoadError> {
        if config.object.is_empty() {
            return Err(LoadError::NoObject);
        }
        check_bpffs(&config.bpffs)?;
        let folder = layout_folder(&config.folder()?, config.edition);
        let (maps, links) = (folder.join("maps"), folder.join("links"));
        for path in [&maps, &links] {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path);
            made.map_err(LoadError::io(format!("create {}", path.display())))?;
        }
        let loaded = object::load(&config.object, &maps, &config.logs)?;
        let links = Links::new(links);
        attach(config, &links, &loaded)?;
        let this = Self::with_maps(config, folder, links, &loaded)?;
        this.adopt()?;
        this.begin_anew()?;
        this.allow_direct(false);
        this.bump_all();
        this.set_stale_after(config.stale_after);
        Ok(this)
    }

    fn with_maps(
        config: &Config,
        folder: PathBuf,
        links: Links,
        loaded: &Loaded,
    ) -> Result<Datapath, LoadError> {
        let maps = &folder.join("maps");
        let program = |name: &str| {
            program(loaded, name)?
                .try_clone_to_owned()
                .map_err(LoadError::io("duplicate a descriptor"))
        };
        let settled = config.tc.settle();
        let news = match &config.node_netns {
            Some(netns) => netns::inside(netns.as_fd(), News::open),
            None => News::open(),
        };
        Ok(Datapath {
            instance: config.instance.clone(),
            tc: settled.map_err(LoadError::io("choose how programs get on interfaces"))?,
            node: config.node_netns.clone(),
            object: config.object.clone(),
            logs: config.logs.clone(),
            links,
            news: news.map_err(LoadError::io("listen for news of interfaces"))?,
            bridges: Mutex::default(),
            programs: Programs {
                lookup: program("lookup")?,
                guard: program("guard")?,
                anchor: program("anchor")?,
                probe: program("probe")?,
            },
            pods: Mutex::default(),
            ledger: Ledger::default(),
            elders: Mutex::default(),
            state: Shared::open(maps, "STATE")?,
            uses: Shared::open(maps, "USES")?,
            epochs: Shared::open(maps, "EPOCHS")?,
            pod_map: Map::open(maps, "PODS")?,
            metas: Map::open(maps, "METAS")?,
            addrs: Map::open(maps, "ADDRS")?,
            ifaces: Map::open(maps, "IFACES")?,
            probe_ports: Map::open(maps, "PROBE_PORTS")?,
            listeners: Map::open(maps, "LISTENERS")?,
            originals: Map::open(maps, "ORIGINALS")?,
            direct: Map::open(maps, "DIRECT")?,
            asked: Map::open(maps, "ASKED")?,
            verdicts: Map::open(maps, "VERDICTS")?,
            vips: Map::open(maps, "VIPS")?,
            socks: Map::open(maps, "SOCKS")?,
            clients: Map::open(maps, "CLIENTS")?,
            probes: Map::open(maps, "PROBES")?,
            counters: Map::open(maps, "COUNTERS")?,
            cpus: aya::util::nr_cpus().map_err(|(path, error)| LoadError::Io {
                what: format!("read {path}"),
                error,
            })?,
            folder,
        })
    }

    /// The proxy's sign of life. Without it, new connections are refused.
    pub fn heartbeat(&self) {
        self.state
            .word(0, HEARTBEAT)
            .store(sys::now_ns(), Ordering::Relaxed);
    }

    /// How long the proxy may be silent; zero: for ever.
    pub fn set_stale_after(&self, patience: Duration) {
        self.state
            .word(0, STALE)
            .store(patience.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Exempts a socket of the proxy's from capture and guard. To be called before `connect`. `client`: whom
    /// an application that accepts this connection is to see as its peer.
    pub fn mark_own(
        &self,
        socket: BorrowedFd<'_>,
        client: Option<SocketAddr>,
    ) -> Result<(), LoadError> {
        let (addr, port) = client.map_or((Addr::NONE, 0), |c| (c.ip().into(), c.port()));
        self.socks.set_socket(
            socket,
            &Sock::new(abi::SOCK_OWN, port, 0, addr, Addr::NONE, 0),
        )
    }

    /// Where a captured connection wanted to go, by the accepted socket's peer and local address. The entry
    /// is taken away. `None`: it was not captured, and is to be reset.
    pub fn take_original(
        &self,
        client: SocketAddr,
        local: SocketAddr,
    ) -> Result<Option<Original>, LoadError> {
        let Some(o) = self.originals.take(&tuple(client, local))? else {
            return Ok(None);
        };
        subtract(self.uses.word(o.index(), USED_ORIGINALS));
        Ok(Some(Original {
            destination: socket_addr(o.addr(), o.port()),
            pod: PodId(o.index()),
            cookie: o.cookie(),
        }))
    }

    /// Removes captured connections that nobody asked about for so long: those that were waiting when a proxy
    /// died. To be called now and then; says how many there were.
    pub fn sweep(&self, age: Duration) -> Result<usize, LoadError> {
        let oldest = sys::now_ns().saturating_sub(age.as_nanos() as u64);
        let gone = self.originals.retain(|_, o| o.at_ns() > oldest)?;
        for (_, o) in &gone {
            subtract(self.uses.word(o.index(), USED_ORIGINALS));
        }
        Ok(gone.len())
    }

    /// The resolver that a UDP socket of a pod asked last, by the datagram's source.
    pub fn dns_resolver(&self, source: SocketAddr) -> Result<Option<SocketAddr>, LoadError> {
        let asked = self.asked.get(&endpoint(source))?;
        Ok(asked.map(|a| socket_addr(a.resolver().addr(), a.resolver().port())))
    }

    /// Whether a connection into a pod comes from kubelet.
    pub fn is_probe(&self, client: SocketAddr, server: SocketAddr) -> Result<bool, LoadError> {
        Ok(self.probes.get(&tuple(client, server))?.is_some())
    }

    /// All direct flows, those of one pod (on either end) if given.
    pub fn flows(&self, pod: Option<PodId>) -> Result<Vec<Flow>, LoadError> {
        let all = self
            .direct
            .entries()?
            .into_iter()
            .map(|(t, a)| flow(&t, &a));
        Ok(all
            .filter(|f| pod.is_none_or(|p| f.client_pod == p || f.server_pod == p))
            .collect())
    }

    /// What was counted: (`decision`, name), (`refused`, reason), (`dropped`, reason), and (`full`, map) for what
    /// this process could not write.
    pub fn counters(&self) -> Result<Vec<(&'static str, &'static str, u64)>, LoadError> {
        let mut all = Vec::new();
        for (slot, name) in counters::NAMES {
            all.push(("decision", *name, self.counters.sum(*slot, self.cpus)?));
        }
        for (number, key) in abi::reason::ALL {
            all.push((
                "refused",
                *key,
                self.counters.sum(counters::refused(*number), self.cpus)?,
            ));
            all.push((
                "dropped",
                *key,
                self.counters.sum(counters::dropped(*number), self.cpus)?,
            ));
        }
        let full = [
            self.pod_map.fullness(),
            self.metas.fullness(),
            self.addrs.fullness(),
            self.ifaces.fullness(),
            self.probe_ports.fullness(),
            self.verdicts.fullness(),
            self.vips.fullness(),
        ];
        all.extend(full.map(|(map, times)| ("full", map, times)));
        Ok(all)
    }

    /// One counter, for tests and status.
    pub fn counter(&self, kind: &str, name: &str) -> Result<u64, LoadError> {
        Ok(self
            .counters()?
            .iter()
            .find(|c| c.0 == kind && c.1 == name)
            .map_or(0, |c| c.2))
    }

    /// Entries in maps that are filled per connection: (map, entries). For leak checks and status.
    pub fn occupancy(&self) -> Result<Vec<(&'static str, usize)>, LoadError> {
        Ok(vec![
            ("originals", self.originals.keys()?.len()),
            ("direct", self.direct.keys()?.len()),
            ("clients", self.clients.keys()?.len()),
            ("probes", self.probes.keys()?.len()),
            ("asked", self.asked.keys()?.len()),
            ("verdicts", self.verdicts.keys()?.len()),
        ])
    }

    /// Entries of direct flows that all pods hold together.
    pub fn direct_entries(&self) -> u64 {
        let word = self.uses.word(abi::EVERYBODY, USED_DIRECT);
        word.load(Ordering::Relaxed)
    }

    /// What one pod holds.
    pub fn usage(&self, pod: PodId) -> Usage {
        let read = |offset| self.uses.word(pod.0, offset).load(Ordering::Relaxed);
        Usage {
            originals: read(USED_ORIGINALS),
            direct: read(USED_DIRECT),
            dns: read(USED_DNS),
        }
    }

    /// The ring of events. It has one reader: during a hand-over the old process stops reading first.
    pub fn events(&self) -> Result<Events, LoadError> {
        let fail = |what| LoadError::io(format!("events: {what}"));
        let data = MapData::from_pin(self.folder.join("maps/EVENTS"));
        let data = data.map_err(|e| fail("open")(io::Error::other(e)))?;
        let map =
            aya::maps::Map::from_map_data(data).map_err(|e| fail("ask")(io::Error::other(e)))?;
        let ring = RingBuf::try_from(map).map_err(|e| fail("share")(io::Error::other(e)))?;
        Ok(Events { ring })
    }

    /// Whether the guard only counts (`true`) or drops.
    pub fn set_audit(&self, audit: bool) {
        let bit = u64::from(abi::STATE_AUDIT) << 32;
        let word = self.state.word(0, 0);
        if audit {
            word.fetch_or(bit, Ordering::Relaxed)
        } else {
            word.fetch_and(!bit, Ordering::Relaxed)
        };
    }

    /// Where this layout is pinned.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

pub(crate) fn tuple(client: SocketAddr, server: SocketAddr) -> Tuple {
    Tuple::new(
        client.ip().into(),
        server.ip().into(),
        client.port(),
        server.port(),
    )
}

fn flow(t: &Tuple, a: &Authorised) -> Flow {
    Flow {
        client: socket_addr(t.client(), t.client_port()),
        server: socket_addr(t.server(), t.server_port()),
        dialed: socket_addr(a.dialed(), a.dialed_port()),
        client_pod: PodId(a.client()),
        server_pod: PodId(a.server()),
        since: Duration::from_nanos(a.opened_ns()),
    }
}
