//! The enrolment of one pod as a transaction: checks -> sockets -> programs and entries.
//!
//! Invariants: blocking, and bounded by system calls; either everything is there afterwards or nothing new
//! is; a pod that cannot be captured faithfully is refused with a reason and its traffic left alone, unless it was
//! captured before: then it stays so.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use mesh_abi::ports;
use prometheus_client::metrics::counter::Counter;

use super::{
    datapath::Datapath,
    diag::{self, Existing},
    forwarding::forwards,
    kernel::{Kernel, ListenerEntry, PodEntry},
    netns::Netns,
    registration::Registration,
    sockets::{DoorError, Doors, Refiller, SocketStock},
    veth,
    wanted::Terms,
};
use crate::accept::Kind;

const PERMIT: &str = "the annotation warren.dev/allow-forwarded: \"true\" permits that";

/// What enrolment needs.
#[derive(Clone, Debug)]
pub struct Enroller {
    /// The kernel, as enrolment sees it.
    pub kernel: Arc<dyn Kernel>,
    /// The kernel, as the data path sees it.
    pub datapath: Arc<dyn Datapath>,
    /// Who fills the stocks of sockets.
    pub refill: Refiller,
    /// Counts sockets that were made while a flow waited.
    pub late: Counter,
}

/// A pod that is captured but not announced yet.
#[derive(Debug)]
pub struct Prepared {
    /// The proxy's doors in it.
    pub doors: Doors,
    /// Sockets to dial from.
    pub stock: Arc<SocketStock>,
    /// Connections that are older than the enrolment and still there.
    pub existing: usize,
    /// What it carries of others, so that its own flows are refused.
    pub barred: Option<String>,
}

/// Why a pod could not be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// It cannot be captured as it is.
    #[error("{0}")]
    Refused(String),
    /// Something failed that may work later.
    #[error("{step}: {source}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// The failure.
        source: io::Error,
    },
}

fn at(step: &'static str) -> impl FnOnce(io::Error) -> EnrolError {
    move |source| EnrolError::Failed { step, source }
}

impl Enroller {
    /// Captures a pod. `doors` are those of an earlier process, when there was one. A pod that carries traffic of
    /// others is refused, unless it `was_captured`: then it stays so, and is barred.
    pub fn enrol(
        &self,
        pod: &Registration,
        netns: &Arc<Netns>,
        terms: &Terms,
        doors: Option<Doors>,
        was_captured: bool,
    ) -> Result<Prepared, EnrolError> {
        check(pod, netns)?;
        let barred = foreign(pod, netns, terms)?;
        if let Some(why) = &barred
            && !was_captured
        {
            return Err(EnrolError::Refused(why.clone()));
        }
        let handed = doors.is_some();
        let doors = match doors {
            Some(doors) => doors,
            None => open(pod, netns)?,
        };
        let before = if handed {
            Vec::new()
        } else {
            self.existing(pod, netns)
        };
        // Whatever was decided about an earlier owner of these addresses is void from here on.
        self.forget(pod)
            .map_err(at("forgetting what was decided about its addresses"))?;
        self.write(pod, netns, terms, &doors, barred.is_none())?;
        let stock = SocketStock::new(
            self.kernel.clone(),
            netns.clone(),
            self.refill.clone(),
            self.late.clone(),
        );
        let existing = match terms.cut_existing {
            false => before.len(),
            true => before.len() - netns.enter(|| Ok(diag::cut(&before))).unwrap_or(0),
        };
        Ok(Prepared {
            doors,
            stock,
            existing,
            barred,
        })
    }

    /// Writes anew what the kernel is to know of a captured pod; says how many direct flows that ended.
    pub fn rewrite(
        &self,
        pod: &Registration,
        netns: &Netns,
        terms: &Terms,
        doors: &Doors,
        direct: bool,
    ) -> Result<usize, EnrolError> {
        self.write(pod, netns, terms, doors, direct)?;
        if direct {
            return Ok(0);
        }
        self.forget(pod)
            .map_err(at("forgetting what was decided about its addresses"))?;
        let flows = self
            .kernel
            .direct_flows()
            .map_err(at("listing its direct flows"))?;
        let own = |at: SocketAddr| pod.addresses.contains(&at.ip());
        let mut ended = 0;
        for flow in flows.iter().filter(|f| own(f.source) || own(f.destination)) {
            let cut = self.kernel.cut(flow.source, flow.destination);
            ended += usize::from(cut.map_err(at("ending its direct flows"))?);
        }
        Ok(ended)
    }

    /// Takes everything away again.
    pub fn withdraw(&self, pod: &Registration) -> io::Result<()> {
        self.kernel.remove(&pod.uid)?;
        self.forget(pod)
    }

    /// Makes void what was decided about its addresses.
    fn forget(&self, pod: &Registration) -> io::Result<()> {
        pod.addresses
            .iter()
            .try_for_each(|ip| self.datapath.bump_epoch(*ip))
    }

    fn existing(&self, pod: &Registration, netns: &Netns) -> Vec<Existing> {
        netns.enter(diag::established).unwrap_or_else(|error| {
            tracing::warn!(pod = pod.title(), %error, "connections older than the enrolment could not be listed");
            Vec::new()
        })
    }

    /// Writes what the kernel is to know of a pod, anew or for the first time. When that fails, a pod that the
    /// kernel knew before is still captured.
    fn write(
        &self,
        pod: &Registration,
        netns: &Netns,
        terms: &Terms,
        doors: &Doors,
        direct: bool,
    ) -> Result<(), EnrolError> {
        let listeners: Vec<_> = doors
            .tcp
            .iter()
            .map(|d| ListenerEntry {
                port: d.port,
                family: d.family,
                socket: d.socket.as_fd(),
            })
            .collect();
        let mut probe_ports = pod.probe_ports.clone();
        probe_ports.extend(
            terms
                .probe_ports
                .iter()
                .filter(|p| !pod.probe_ports.contains(p)),
        );
        let outbound = doors
            .tcp
            .iter()
            .filter(|d| d.kind == Some(Kind::Outbound) && d.family == doors.tcp[0].family)
            .count();
        let entry = PodEntry {
            uid: &pod.uid,
            netns: netns.as_fd(),
            cookie: netns.cookie(),
            inode: netns.inode(),
            veth: pod.veth_ifindex,
            addresses: &pod.addresses,
            probe_ports: &probe_ports,
            direct,
            outbound: u16::try_from(outbound).unwrap_or(ports::OUTBOUND_PORTS),
            listeners: &listeners,
        };
        self.kernel
            .enrol(&entry)
            .map_err(at("attaching programs and writing entries"))
    }
}

/// Whether the pod can be captured at all.
fn check(pod: &Registration, netns: &Netns) -> Result<(), EnrolError> {
    if pod.veth_ifindex == 0 {
        let why = match veth::find(netns, &pod.addresses).map_err(at("looking for its veth"))? {
            Ok(_) => "it was registered before its veth was there; register it again".into(),
            Err(why) => why,
        };
        return Err(EnrolError::Refused(why));
    }
    let inside = netns.interfaces().map_err(at("listing its addresses"))?;
    if let Some(ip) = pod
        .addresses
        .iter()
        .find(|ip| !inside.iter().any(|(_, found)| found == *ip))
    {
        let found: Vec<IpAddr> = inside.iter().map(|(_, ip)| *ip).collect();
        return Err(EnrolError::Refused(format!(
            "the network namespace that came with it has addresses {found:?} and not {ip}: it is another pod's"
        )));
    }
    Ok(())
}

/// What the pod carries of others, whose connections do not come from sockets of its own; nothing when `terms`
/// permit that.
pub(super) fn foreign(
    pod: &Registration,
    netns: &Netns,
    terms: &Terms,
) -> Result<Option<String>, EnrolError> {
    if terms.allow_forwarded {
        return Ok(None);
    }
    let inside = netns.interfaces().map_err(at("listing its addresses"))?;
    let own: Vec<&str> = inside
        .iter()
        .filter(|(_, ip)| pod.addresses.contains(ip))
        .map(|(name, _)| name.as_str())
        .collect();
    if let Some((name, ip)) = inside
        .iter()
        .find(|(name, _)| !own.contains(&name.as_str()))
    {
        return Ok(Some(format!(
            "it has a further interface {name} with address {ip}, whose traffic would not be captured; {PERMIT}"
        )));
    }
    let up = netns.links().map_err(at("listing its interfaces"))?;
    if let Some(name) = up.iter().find(|name| !own.contains(&name.as_str())) {
        return Ok(Some(format!(
            "it has a further interface {name}, and what comes through it would not be captured; {PERMIT}"
        )));
    }
    forwarding(netns)
}

/// The same as far as two reads tell it.
pub(super) fn forwarding(netns: &Netns) -> Result<Option<String>, EnrolError> {
    let setting = forwards(netns).map_err(at("reading its settings"))?;
    Ok(setting.map(|setting| {
        format!(
            "it forwards packets for others ({setting} is on), whose connections would not be captured; {PERMIT}"
        )
    }))
}

fn open(pod: &Registration, netns: &Netns) -> Result<Doors, EnrolError> {
    netns
        .enter(|| {
            // All captured flows of a pod share few destinations: ports must be used again soon.
            if let Err(error) = fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1") {
                tracing::warn!(pod = pod.title(), %error, "net.ipv4.tcp_tw_reuse could not be set in the pod; it can open fewer connections");
            }
            Ok(Doors::open(&pod.addresses))
        })
        .map_err(at("entering its network namespace"))?
        .map_err(|error| match error {
            DoorError::Taken(_) => EnrolError::Refused(error.to_string()),
            DoorError::Socket { source, .. } => EnrolError::Failed { step: "listening inside it", source },
        })
}
