//! `guard` and `anchor` on the interfaces of the node: attached at the head of their chains, looked after,
//! and the direct path only while all of them are in their places.
//!
//! Invariants: every port of a bridge that an enrolled pod hangs on has a program of ours, or the direct path
//! is off, but for the moment between a port's appearance and the news of it; a program that is put in its place again is in the new one before it leaves the old; the direct
//! path is allowed only by a look that found everything in order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;
use mesh_abi::{self as abi, Addr, Iface};

use crate::clsact::{self, Stand};
use crate::datapath::Datapath;
use crate::netlink::{self, Interface};
use crate::pods::Pods;
use crate::{LoadError, netns, object, sys};

const BRIDGES: &str = "no panic while the bridges are held";

/// How programs get on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tc {
    /// TCX where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// Links of TCX.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Which {
    Guard,
    Anchor,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Which::Guard => "guard",
            Which::Anchor => "anchor",
        }
    }
}

/// An interface where something was not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// `guard` or `anchor`.
    pub program: &'static str,
    /// What was found, and why it could not be mended if so.
    pub why: String,
}

/// What a look at the interfaces found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Interfaces that have a program of ours.
    pub watched: usize,
    /// Ports of a pods' bridge that nobody had told of, and that are anchored now.
    pub found: Vec<Finding>,
    /// Programs that had lost their places and are back in them.
    pub mended: Vec<Finding>,
    /// Interfaces that are not guarded.
    pub open: Vec<Finding>,
    /// Whether the direct path is allowed from now on.
    pub direct: bool,
    /// Whether it was before.
    pub was_direct: bool,
}

/// What was heard of the interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Ports of a pods' bridge that nobody had told of, and that are anchored now.
    pub found: Vec<Finding>,
    /// Something was missed or could not be anchored: everything is to be looked at.
    pub look: bool,
    /// There may be more to hear.
    pub more: bool,
}

impl Tc {
    /// What this kernel can do of it.
    pub(crate) fn settle(self) -> io::Result<Tc> {
        match (self, sys::tcx_present()) {
            (Tc::Tcx, false) => Err(io::Error::other(
                "this kernel has no TCX (it came with 6.6); choose clsact or auto",
            )),
            (Tc::Auto, true) | (Tc::Tcx, true) => Ok(Tc::Tcx),
            (Tc::Auto, false) | (Tc::Clsact, _) => Ok(Tc::Clsact),
        }
    }
}

impl Datapath {
    /// How programs are attached to interfaces here: TCX or clsact.
    pub fn tc(&self) -> Tc {
        self.tc
    }

    /// Watches an interface of a pod that is not enrolled: nothing may come from it in an enrolled pod's name.
    pub fn anchor(&self, ifindex: u32) -> Result<(), LoadError> {
        if self.lock().values().any(|k| k.info.veth_ifindex == ifindex) {
            return Ok(());
        }
        self.ifaces
            .set(&ifindex, &Iface::new(0, 0, Addr::NONE, Addr::NONE))?;
        self.attach_iface(Which::Anchor, ifindex, &anchor_link(ifindex))
    }

    /// Stops watching an interface.
    pub fn remove_anchor(&self, ifindex: u32) -> Result<(), LoadError> {
        match self.ifaces.get(&ifindex)? {
            Some(i) if i.flags() & abi::IFACE_ENROLLED == 0 => {
                self.ifaces.delete(&ifindex)?;
            }
            _ => return Ok(()),
        }
        self.detach_iface(ifindex, &anchor_link(ifindex))
            .map_err(LoadError::io(format!(
                "detach anchor from interface {ifindex}"
            )))
    }

    pub(crate) fn attach_iface(
        &self,
        which: Which,
        ifindex: u32,
        link: &str,
    ) -> Result<(), LoadError> {
        self.within(|| self.attach_here(which, ifindex, link))
            .map_err(|error| LoadError::Attach {
                program: which.name(),
                target: format!("interface {ifindex}"),
                error,
            })
    }

    fn attach_here(&self, which: Which, ifindex: u32, link: &str) -> io::Result<()> {
        let prog = self.program(which);
        if self.tc == Tc::Clsact {
            clsact::ensure(ifindex, prog, &self.tag())?;
            return self.links.remove(link);
        }
        let attach = || sys::link_ifindex(prog, ifindex, BPF_TCX_INGRESS);
        self.links.ensure(link, prog, ifindex.into(), attach)?;
        // What an earlier process attached the other way.
        clsact::remove(ifindex, &self.tag())
    }

    pub(crate) fn detach_iface(&self, ifindex: u32, link: &str) -> io::Result<()> {
        self.links.remove(link)?;
        if self.tc == Tc::Tcx {
            return Ok(());
        }
        match self.within(|| clsact::remove(ifindex, &self.tag())) {
            // With the interface its filters have gone.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            done => done,
        }
    }

    /// Does something in the namespace of the interfaces.
    pub(crate) fn within<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        match &self.node {
            Some(netns) => netns::inside(netns.as_fd(), work),
            None => work(),
        }
    }

    fn program(&self, which: Which) -> BorrowedFd<'_> {
        match which {
            Which::Guard => self.programs.guard.as_fd(),
            Which::Anchor => self.programs.anchor.as_fd(),
        }
    }

    /// What our filters are called.
    pub(crate) fn tag(&self) -> String {
        let layout = self.folder.file_name().unwrap_or_default();
        format!("{}{}", tags(&self.instance), layout.to_string_lossy())
    }

    /// Looks whether `guard` and `anchor` are at the heads of their chains on every interface that they belong
    /// on, puts them there, and allows the direct path only if nothing had to be done. To be called every
    /// second or so: a few system calls per interface when all is well.
    pub fn look(&self) -> Result<Looked, LoadError> {
        let pods = self.lock();
        let looked = self.survey(&pods);
        // What could not be looked at may be open.
        let direct = looked
            .as_ref()
            .is_ok_and(|l| l.open.is_empty() && l.mended.is_empty());
        let was_direct = self.allow_direct(direct);
        looked.map(|looked| Looked {
            direct,
            was_direct,
            ..looked
        })
    }

    /// A descriptor that is readable when interfaces of the node have changed: then call `hear`.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Takes in what changed about the node's interfaces, and anchors at once what has become a port of a bridge that
    /// a pod hung on at the last look. Looks stay necessary: a program that is detached is no news.
    pub fn hear(&self) -> Result<Heard, LoadError> {
        let told = self
            .news
            .take()
            .map_err(LoadError::io("hear of interfaces"))?;
        // By index: what comes last is how it is.
        let changed: BTreeMap<u32, Interface> =
            told.changed.into_iter().map(|i| (i.index, i)).collect();
        let _pods = self.lock();
        let bridges = self.bridges.lock().expect(BRIDGES).clone();
        let mut ports = Vec::new();
        for at in changed
            .into_values()
            .filter(|i| bridges.contains(&i.bridge))
        {
            if self.ifaces.get(&at.index)?.is_none() {
                ports.push(at);
            }
        }
        let mut looked = Looked::default();
        if !ports.is_empty() {
            let anchoring = self.within(|| {
                ports
                    .iter()
                    .for_each(|at| self.look_at_stranger(at, &mut looked));
                Ok(())
            });
            anchoring.map_err(LoadError::io("anchor what was heard of"))?;
        }
        Ok(Heard {
            found: looked.found,
            look: told.missed || !looked.open.is_empty(),
            more: told.more,
        })
    }

    /// Every interface that has a program of ours, or should have.
    fn watched(&self, pods: &Pods<'_>) -> Result<BTreeMap<u32, (Which, String)>, LoadError> {
        let mut watched = BTreeMap::new();
        for (ifindex, iface) in self.ifaces.entries()? {
            if iface.flags() & abi::IFACE_ENROLLED == 0 {
                watched.insert(ifindex, (Which::Anchor, anchor_link(ifindex)));
            }
        }
        for info in pods.values().map(|k| &k.info) {
            if info.veth_ifindex != 0 {
                watched.insert(info.veth_ifindex, (Which::Guard, guard_link(info.id.0)));
            }
        }
        Ok(watched)
    }

    fn survey(&self, pods: &Pods<'_>) -> Result<Looked, LoadError> {
        let watched = self.watched(pods)?;
        let all = self
            .within(netlink::interfaces)
            .map_err(LoadError::io("list interfaces"))?;
        let all: BTreeMap<u32, Interface> = all.into_iter().map(|i| (i.index, i)).collect();
        let bridges: BTreeSet<u32> = watched
            .iter()
            .filter(|(_, (which, _))| *which == Which::Guard)
            .filter_map(|(i, _)| all.get(i).map(|i| i.bridge))
            .filter(|b| *b != 0)
            .collect();
        self.bridges.lock().expect(BRIDGES).clone_from(&bridges);
        let mut looked = Looked::default();
        let looking = self.within(|| {
            for (ifindex, (which, link)) in &watched {
                if let Some(at) = all.get(ifindex) {
                    looked.watched += 1;
                    self.look_at(at, *which, link, &mut looked);
                }
            }
            for at in all
                .values()
                .filter(|i| bridges.contains(&i.bridge) && !watched.contains_key(&i.index))
            {
                self.look_at_stranger(at, &mut looked);
            }
            Ok(())
        });
        looking.map_err(LoadError::io("look at the interfaces"))?;
        for (ifindex, (which, _)) in &watched {
            // What a deleted pod leaves; an enrolled one is withdrawn by whoever enrolled it.
            if *which == Which::Anchor && !all.contains_key(ifindex) {
                self.remove_anchor(*ifindex)?;
            }
        }
        Ok(looked)
    }

    /// Whether connections between pods of the node may go direct; says whether they could before. When they
    /// no longer may, everything that was decided is void.
    pub fn allow_direct(&self, allow: bool) -> bool {
        let bit = u64::from(abi::STATE_ANCHORED) << 32;
        let word = self.state.word(0, 0);
        let before = if allow {
            word.fetch_or(bit, Ordering::AcqRel)
        } else {
            word.fetch_and(!bit, Ordering::AcqRel)
        };
        let was = before & bit != 0;
        if was && !allow {
            self.bump_all();
        }
        was
    }

    /// Whether the direct path is allowed now.
    pub fn is_direct_allowed(&self) -> bool {
        self.state.word(0, 0).load(Ordering::Acquire) & u64::from(abi::STATE_ANCHORED) << 32 != 0
    }

    fn look_at(&self, at: &Interface, which: Which, link: &str, looked: &mut Looked) {
        let finding = |why: String| Finding {
            ifindex: at.index,
            name: at.name.clone(),
            program: which.name(),
            why,
        };
        let found = match self.stand(at.index, link) {
            Ok(Stand::First) => return,
            Ok(Stand::Behind) => "another program was attached before it",
            Ok(Stand::Missing) => "it was detached",
            // The interface went while we looked.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return,
            Err(e) => {
                return looked
                    .open
                    .push(finding(format!("its chain cannot be read: {e}")));
            }
        };
        match self
            .mend(at.index, which, link)
            .and_then(|()| self.stand(at.index, link))
        {
            Ok(Stand::First) => looked.mended.push(finding(found.to_owned())),
            Ok(_) => looked.open.push(finding(format!(
                "{found}, and again as soon as it was put back"
            ))),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            Err(e) => looked
                .open
                .push(finding(format!("{found} and cannot be put back: {e}"))),
        }
    }

    /// A port of a pods' bridge that nobody told of: a pod on its way, or something else that could speak in a
    /// pod's name.
    fn look_at_stranger(&self, at: &Interface, looked: &mut Looked) {
        let finding = |why: String| Finding {
            ifindex: at.index,
            name: at.name.clone(),
            program: "anchor",
            why,
        };
        let set = self
            .ifaces
            .set(&at.index, &Iface::new(0, 0, Addr::NONE, Addr::NONE));
        let done = set.map_err(io::Error::other).and_then(|()| {
            self.attach_here(Which::Anchor, at.index, &anchor_link(at.index))?;
            self.stand(at.index, &anchor_link(at.index))
        });
        match done {
            Ok(Stand::First) => {
                looked.watched += 1;
                looked
                    .found
                    .push(finding("a port of the pods' bridge".into()))
            }
            Ok(_) => looked.open.push(finding(
                "a port of the pods' bridge where another program is first".into(),
            )),
            Err(e) => {
                // Not watched yet: the next look tries again.
                let undone = self.ifaces.delete(&at.index);
                if e.raw_os_error() != Some(libc::ENODEV) || undone.is_err() {
                    looked.open.push(finding(format!(
                        "a port of the pods' bridge that cannot be anchored: {e}"
                    )));
                }
            }
        }
    }

    fn stand(&self, ifindex: u32, link: &str) -> io::Result<Stand> {
        let tcx = match sys::tcx_present() {
            true => sys::tcx_links(ifindex)?,
            false => Vec::new(),
        };
        if self.tc == Tc::Clsact {
            return match clsact::stand(ifindex, &self.tag())? {
                // Programs of TCX come before every filter.
                Stand::First if !tcx.is_empty() => Ok(Stand::Behind),
                other => Ok(other),
            };
        }
        let Some(own) = self.links.id(link)? else {
            return Ok(Stand::Missing);
        };
        Ok(match tcx.iter().position(|id| *id == own) {
            Some(0) => Stand::First,
            Some(_) => Stand::Behind,
            None => Stand::Missing,
        })
    }

    /// Puts a program at the head. The same one cannot be twice in a chain, so a second of its kind comes in
    /// before the first leaves.
    fn mend(&self, ifindex: u32, which: Which, link: &str) -> io::Result<()> {
        if self.tc == Tc::Clsact {
            return clsact::ensure(ifindex, self.program(which), &self.tag());
        }
        let twin = object::one(
            &self.object,
            &self.folder.join("maps"),
            &self.logs,
            which.name(),
        )
        .map_err(io::Error::other)?;
        let made = sys::link_ifindex(twin.as_fd(), ifindex, BPF_TCX_INGRESS)?;
        self.links.replace(link, made.as_fd())
    }
}

/// Removes the filters whose tag begins so from every interface of the calling thread's namespace.
pub(crate) fn purge_filters(tag: &str) -> io::Result<()> {
    for at in netlink::interfaces()? {
        match clsact::remove(at.index, tag) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            done => done?,
        }
    }
    Ok(())
}

/// How the tags of an instance's filters begin.
pub(crate) fn tags(instance: &str) -> String {
    format!("warren:{instance}:")
}

pub(crate) fn guard_link(index: u32) -> String {
    format!("pod-{index}-guard")
}

pub(crate) fn anchor_link(ifindex: u32) -> String {
    format!("if-{ifindex}-anchor")
}
