//! Pods: enrolled one by one, each as a transaction whose steps are idempotent.
//!
//! Invariants: an address belongs to one pod; an index is reused only when every entry that names it is gone;
//! a step that fails leaves the pod either as it was or refused, never half captured and open.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::MutexGuard;
use std::{collections::BTreeMap, sync::atomic::Ordering};

use aya_obj::generated::bpf_attach_type::BPF_SK_LOOKUP;
use mesh_abi::{self as abi, Addr, Iface, ListenerKey, Meta, Owner, Pod, ports};

use crate::datapath::{Datapath, USED_DIRECT};
use crate::events::socket_addr;
use crate::iface::{Which, anchor_link, guard_link};
use crate::maps::subtract;
use crate::{LoadError, diag, netns, sys};

/// A pod's place in the per-pod arrays. Valid while the pod is enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u32);

/// Which connections a listener takes. A dual-stack listener is given for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What is needed to enrol a pod.
#[derive(Clone, Debug)]
pub struct PodSpec<'a> {
    /// The pod's uid, at most 64 bytes.
    pub uid: String,
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// Its addresses; the first of each family is the one that the proxy's listeners have.
    pub addresses: Vec<IpAddr>,
    /// The host side of its veth; 0: none, then there is neither guard nor anchor.
    pub veth_ifindex: u32,
    /// Ports that kubelet may probe past the proxy, at most 16.
    pub probe_ports: Vec<u16>,
    /// How many outbound listeners there are, from port 15001 upwards.
    pub outbound_listeners: u16,
    /// The listeners on 15006, by the family that they take.
    pub inbound: Vec<(Family, BorrowedFd<'a>)>,
    /// Whether DNS goes to the proxy.
    pub dns: bool,
    /// Whether connections of this pod, and to it, may go direct.
    pub direct: bool,
}

/// An enrolled pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Its place.
    pub id: PodId,
    /// Its uid.
    pub uid: String,
    /// Its namespace's cookie.
    pub cookie: u64,
    /// Its namespace's inode.
    pub netns_inode: u64,
    /// The host side of its veth, or 0.
    pub veth_ifindex: u32,
    /// Its addresses as far as they are known: the first of each family.
    pub addresses: Vec<IpAddr>,
}

/// What this process knows of a pod.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) info: PodInfo,
    /// Absent for a pod adopted from an earlier process, until it is enrolled again.
    pub(crate) netns: Option<OwnedFd>,
    /// Whether its connections may go direct; not before this process has enrolled it.
    direct: bool,
}

pub(crate) type Pods<'a> = MutexGuard<'a, BTreeMap<String, Known>>;

impl Datapath {
    /// Enrols a pod, or brings an enrolled one up to date.
    pub fn enrol(&self, spec: &PodSpec<'_>) -> Result<PodInfo, LoadError> {
        let mut pods = self.lock();
        let info = self.place(&mut pods, spec)?;
        let fresh = !pods.contains_key(&spec.uid);
        match self.install(spec, &info) {
            Ok(()) => {
                let netns = spec
                    .netns
                    .try_clone_to_owned()
                    .map_err(LoadError::io("keep the namespace"))?;
                pods.insert(
                    spec.uid.clone(),
                    Known {
                        info: info.clone(),
                        netns: Some(netns),
                        direct: spec.direct,
                    },
                );
                Ok(info)
            }
            Err(e) => {
                if fresh && let Err(also) = self.uninstall(&info) {
                    tracing::warn!(pod = spec.uid, error = %also, "a pod that could not be enrolled left traces in the kernel");
                }
                Err(e)
            }
        }
    }

    /// Removes a pod; false when it was not enrolled. No entry that names it is left.
    pub fn withdraw(&self, uid: &str) -> Result<bool, LoadError> {
        let mut pods = self.lock();
        let Some(known) = pods.get(uid) else {
            return Ok(false);
        };
        self.uninstall(&known.info)?;
        pods.remove(uid);
        Ok(true)
    }

    /// Lets go of a pod's network namespace, so that it can end. Its entries stay until `withdraw`.
    pub fn release(&self, uid: &str) {
        if let Some(known) = self.lock().get_mut(uid) {
            known.netns = None;
        }
    }

    /// Every enrolled pod, also those that an earlier process enrolled.
    pub fn pods(&self) -> Vec<PodInfo> {
        self.lock().values().map(|k| k.info.clone()).collect()
    }

    /// Whether connections to this address of an enrolled pod may go direct.
    pub fn takes_direct(&self, address: IpAddr) -> bool {
        let barred = |k: &Known| !k.direct && k.info.addresses.contains(&address);
        !self.lock().values().any(barred)
    }

    /// Gives connections into a pod to this listener on 15006.
    pub fn set_listener(
        &self,
        pod: PodId,
        family: Family,
        socket: BorrowedFd<'_>,
    ) -> Result<(), LoadError> {
        self.listeners.put_socket(&listener(pod, family), socket)
    }

    /// Ends a direct flow: both ends see a reset. False when there is no such connection any more.
    pub fn cut(&self, client: SocketAddr, server: SocketAddr) -> Result<bool, LoadError> {
        let pods = self.lock();
        for (local, remote) in [(client, server), (server, client)] {
            let here = pods
                .values()
                .find(|k| k.info.addresses.contains(&local.ip()));
            if let Some(netns) = here.and_then(|k| k.netns.as_ref()) {
                let done = netns::inside(netns.as_fd(), || diag::destroy(local, remote));
                if done.map_err(LoadError::io(format!("cut {client} -> {server}")))? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Reads what an earlier process left, and puts our programs behind its links.
    pub(crate) fn adopt(&self) -> Result<(), LoadError> {
        let mut pods = self.lock();
        for (index, meta) in self.metas.entries()? {
            let info = info_of(index, &meta);
            pods.insert(
                info.uid.clone(),
                Known {
                    info,
                    netns: None,
                    direct: false,
                },
            );
        }
        for key in self.verdicts.keys()? {
            self.ledger
                .lock()
                .expect("no panic while the ledger is held")
                .entry(key.cookie())
                .or_default()
                .push_back(key);
        }
        self.adopt_links()?;
        self.adopt_ifaces(&pods)
    }

    fn adopt_links(&self) -> Result<(), LoadError> {
        for name in self.links.names().map_err(LoadError::io("list links"))? {
            let prog = match name.rsplit('-').next() {
                Some("lookup") => &self.programs.lookup,
                Some("guard") => &self.programs.guard,
                Some("anchor") => &self.programs.anchor,
                Some("probe") => &self.programs.probe,
                // Pinned by a process that ended before it came to its place.
                Some("next") => {
                    self.links
                        .remove(&name)
                        .map_err(LoadError::io("remove half a link"))?;
                    continue;
                }
                _ => continue,
            };
            let path = self.folder.join("links").join(&name);
            let link = sys::get(&path).map_err(LoadError::io(format!("open link {name}")))?;
            if let Err(error) = sys::link_update(link.as_fd(), prog.as_fd()) {
                tracing::info!(link = name, %error, "a link whose target is gone is removed");
                self.links
                    .remove(&name)
                    .map_err(LoadError::io("remove a dead link"))?;
            }
        }
        Ok(())
    }

    /// Filters of an earlier process get our programs; those of the other kind of attachment give way to ours.
    fn adopt_ifaces(&self, pods: &Pods<'_>) -> Result<(), LoadError> {
        for (ifindex, iface) in self.ifaces.entries()? {
            let enrolled = iface.flags() & abi::IFACE_ENROLLED != 0;
            let pod = pods.values().find(|k| k.info.veth_ifindex == ifindex);
            let (which, link) = match pod {
                Some(k) if enrolled => (Which::Guard, guard_link(k.info.id.0)),
                _ => (Which::Anchor, anchor_link(ifindex)),
            };
            if let Err(error) = self.attach_iface(which, ifindex, &link) {
                tracing::info!(ifindex, %error, "an interface that an earlier process guarded cannot be guarded; its pod is gone, or waits to be enrolled again");
            }
        }
        Ok(())
    }

    pub(crate) fn lock(&self) -> Pods<'_> {
        self.pods.lock().expect("no panic while the pods are held")
    }

    /// Finds the pod's place, after what stands against it was ruled out.
    fn place(&self, pods: &mut Pods<'_>, spec: &PodSpec<'_>) -> Result<PodInfo, LoadError> {
        let no = |why: &str| LoadError::Pod {
            uid: spec.uid.clone(),
            why: why.to_owned(),
        };
        if spec.uid.is_empty() || spec.uid.len() > abi::MAX_UID {
            return Err(no("the uid must have 1 to 64 bytes"));
        }
        if spec.addresses.is_empty() || spec.probe_ports.len() > abi::MAX_PROBES {
            return Err(no("a pod needs an address, and may have 16 probe ports"));
        }
        if spec.outbound_listeners == 0 || spec.outbound_listeners > ports::OUTBOUND_PORTS {
            return Err(no("a pod needs 1 to 5 outbound listeners"));
        }
        let cookie = netns::cookie(spec.netns)
            .map_err(|e| no(&format!("its namespace cannot be entered: {e}")))?;
        let stat = nix::sys::stat::fstat(spec.netns)
            .map_err(|e| no(&format!("its namespace cannot be read: {e}")))?;
        if let Some(old) = pods.get(&spec.uid)
            && old.info.cookie != cookie
        {
            // The pod's sandbox was made anew: nothing of the old namespace may live on.
            self.uninstall(&old.info)?;
            pods.remove(&spec.uid);
        }
        for (uid, other) in pods.iter().filter(|(uid, _)| **uid != spec.uid) {
            if other.info.cookie == cookie {
                return Err(no(&format!(
                    "its namespace already belongs to pod {uid}; withdraw that first"
                )));
            }
            if let Some(&address) = spec
                .addresses
                .iter()
                .find(|&&a| other.info.addresses.contains(&a))
            {
                return Err(LoadError::DuplicateAddress {
                    uid: spec.uid.clone(),
                    address,
                    other: uid.clone(),
                });
            }
        }
        let index = match pods.get(&spec.uid) {
            Some(known) => known.info.id.0,
            None => free_index(pods)?,
        };
        Ok(PodInfo {
            id: PodId(index),
            uid: spec.uid.clone(),
            cookie,
            netns_inode: stat.st_ino,
            veth_ifindex: spec.veth_ifindex,
            addresses: spec.addresses.iter().map(|a| a.to_canonical()).collect(),
        })
    }

    /// Inbound before outbound before guard: at no moment does the guard drop what `connect` did not yet see.
    fn install(&self, spec: &PodSpec<'_>, info: &PodInfo) -> Result<(), LoadError> {
        let index = info.id.0;
        let (addr4, addr6) = primary(&info.addresses);
        for (family, socket) in &spec.inbound {
            self.set_listener(info.id, *family, *socket)?;
        }
        self.probe_ports
            .retain(|k, _| k.index() != index || spec.probe_ports.contains(&k.port()))?;
        for port in &spec.probe_ports {
            self.probe_ports
                .set(&ListenerKey::new(index, *port, 0), &1)?;
        }
        let mut uid = [0u8; abi::MAX_UID];
        uid[..info.uid.len()].copy_from_slice(info.uid.as_bytes());
        let meta = Meta::new(
            info.cookie,
            info.netns_inode,
            info.veth_ifindex,
            info.uid.len() as u32,
            uid,
            addr4,
            addr6,
        );
        self.metas.set(&index, &meta)?;
        self.addrs
            .retain(|a, o| o.index() != index || info.addresses.contains(&IpAddr::from(*a)))?;
        for address in &info.addresses {
            self.addrs.set(
                &(*address).into(),
                &Owner::new(index, info.veth_ifindex, info.cookie),
            )?;
        }
        let attach = || sys::link_fd(self.programs.lookup.as_fd(), spec.netns, BPF_SK_LOOKUP);
        let done = self.links.ensure(
            &format!("pod-{index}-lookup"),
            self.programs.lookup.as_fd(),
            info.netns_inode,
            attach,
        );
        done.map_err(|error| LoadError::Attach {
            program: "lookup",
            target: format!("the namespace of pod {}", info.uid),
            error,
        })?;
        let mut flags = abi::POD_CAPTURE;
        flags |=
            if spec.dns { abi::POD_DNS } else { 0 } | if spec.direct { abi::POD_DIRECT } else { 0 };
        self.pod_map.set(
            &info.cookie,
            &Pod::new(index, flags, addr4, addr6, spec.outbound_listeners.into()),
        )?;
        if info.veth_ifindex != 0 {
            self.ifaces.set(
                &info.veth_ifindex,
                &Iface::new(index, abi::IFACE_ENROLLED, addr4, addr6),
            )?;
            self.attach_iface(Which::Guard, info.veth_ifindex, &guard_link(index))?;
            self.links
                .remove(&anchor_link(info.veth_ifindex))
                .map_err(LoadError::io("detach anchor"))?;
        }
        Ok(())
    }

    pub(crate) fn uninstall(&self, info: &PodInfo) -> Result<(), LoadError> {
        let index = info.id.0;
        self.detach_iface(info.veth_ifindex, &guard_link(index))
            .map_err(LoadError::io("detach guard"))?;
        if info.veth_ifindex != 0 {
            self.ifaces.delete(&info.veth_ifindex)?;
        }
        self.pod_map.delete(&info.cookie)?;
        self.links
            .remove(&format!("pod-{index}-lookup"))
            .map_err(LoadError::io("detach lookup"))?;
        self.addrs.retain(|_, o| o.index() != index)?;
        for address in &info.addresses {
            self.bump_epoch(*address);
        }
        self.forget_source(info.cookie)?;
        for family in [Family::V4, Family::V6] {
            self.listeners.delete(&listener(info.id, family))?;
        }
        self.originals.retain(|_, o| o.index() != index)?;
        for (_, gone) in self
            .direct
            .retain(|_, a| a.client() != index && a.server() != index)?
        {
            subtract(self.uses.word(gone.client(), USED_DIRECT));
            subtract(self.uses.word(abi::EVERYBODY, USED_DIRECT));
        }
        self.asked.retain(|_, a| a.index() != index)?;
        for word in 0..3 {
            self.uses.word(index, word * 8).store(0, Ordering::Relaxed);
        }
        self.probe_ports.retain(|k, _| k.index() != index)?;
        self.metas.delete(&index).map(drop)
    }
}

fn listener(pod: PodId, family: Family) -> ListenerKey {
    ListenerKey::new(
        pod.0,
        ports::INBOUND,
        if family == Family::V4 { 4 } else { 6 },
    )
}

fn primary(addresses: &[IpAddr]) -> (Addr, Addr) {
    let first = |v4: bool| {
        addresses
            .iter()
            .find(|a| a.is_ipv4() == v4)
            .map_or(Addr::NONE, |a| (*a).into())
    };
    (first(true), first(false))
}

fn free_index(pods: &BTreeMap<String, Known>) -> Result<u32, LoadError> {
    let used: std::collections::BTreeSet<u32> = pods.values().map(|k| k.info.id.0).collect();
    let free = (0..abi::MAX_PODS).find(|i| !used.contains(i));
    free.ok_or_else(|| LoadError::Full {
        what: "enrolled pods".to_owned(),
        limit: abi::MAX_PODS,
    })
}

fn info_of(index: u32, meta: &Meta) -> PodInfo {
    let uid = meta.uid();
    let addresses = [meta.addr4(), meta.addr6()]
        .into_iter()
        .filter(|a| !a.is_none());
    PodInfo {
        id: PodId(index),
        uid: String::from_utf8_lossy(&uid[..(meta.uid_len() as usize).min(abi::MAX_UID)])
            .into_owned(),
        cookie: meta.cookie(),
        netns_inode: meta.netns(),
        veth_ifindex: meta.ifindex(),
        addresses: addresses.map(|a| socket_addr(a, 0).ip()).collect(),
    }
}
