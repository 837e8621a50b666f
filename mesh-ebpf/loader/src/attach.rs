//! Programs on cgroups: the pods', the node's own, and kubelet's.
//!
//! Invariants: what reports is attached before what captures; ours run first in their cgroup, where the kernel knows an
//! order, and it is said when they do not.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya_obj::generated::bpf_attach_type;

use crate::datapath::{Config, Datapath};
use crate::links::Links;
use crate::object::Loaded;
use crate::{LoadError, sys};

/// Programs on the pods' cgroup.
const PODS: &[(&str, bpf_attach_type)] = &[
    ("connect4", bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    ("connect6", bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
    (
        "getpeername4",
        bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
    ),
    (
        "getpeername6",
        bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
    ),
    ("sendmsg4", bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG),
    ("sendmsg6", bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG),
    ("recvmsg4", bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG),
    ("recvmsg6", bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG),
    ("release", bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE),
    ("flows", bpf_attach_type::BPF_CGROUP_SOCK_OPS),
];

/// What reports comes before what captures, so that nothing captured goes unreported; the reverse on paper
/// would reset the first connections.
pub(crate) fn attach(config: &Config, links: &Links, loaded: &Loaded) -> Result<(), LoadError> {
    let mut jobs: Vec<(&'static str, bpf_attach_type, &Path)> = vec![(
        "node",
        bpf_attach_type::BPF_CGROUP_SOCK_OPS,
        &config.node_cgroup,
    )];
    jobs.extend(
        PODS.iter()
            .rev()
            .map(|(name, kind)| (*name, *kind, config.pods_cgroup.as_path())),
    );
    for (name, kind, cgroup) in jobs {
        let prog = program(loaded, name)?;
        to_cgroup(links, name, prog, cgroup, kind)?;
    }
    Ok(())
}

fn to_cgroup(
    links: &Links,
    name: &'static str,
    prog: BorrowedFd<'_>,
    cgroup: &Path,
    kind: bpf_attach_type,
) -> Result<(), LoadError> {
    let fail = |error| LoadError::Attach {
        program: name,
        target: cgroup.display().to_string(),
        error,
    };
    let folder = fs::File::open(cgroup).map_err(fail)?;
    let id = folder.metadata().map_err(fail)?.ino();
    let attach = || sys::link_cgroup(prog, folder.as_fd(), kind);
    links.ensure(name, prog, id, attach).map_err(fail)?;
    let order = sys::cgroup_programs(folder.as_fd(), kind).map_err(fail)?;
    let ours = sys::program_id(prog).map_err(fail)?;
    let before = order.iter().take_while(|id| **id != ours).count();
    if before > 0 {
        tracing::warn!(
            program = name,
            cgroup = %cgroup.display(),
            before,
            "other programs run before ours in this cgroup; a load balancer among them hides which service a pod dialed. Attach it to a cgroup further up, or pass the pods' own one as --pods-cgroup"
        );
    }
    Ok(())
}

impl Datapath {
    /// Recognises kubelet's probes by this cgroup from now on; `None`: recognises none.
    pub fn set_kubelet_cgroup(&self, cgroup: Option<&Path>) -> Result<(), LoadError> {
        let prog = self.programs.probe.as_fd();
        match cgroup {
            Some(cgroup) => to_cgroup(
                &self.links,
                PROBE,
                prog,
                cgroup,
                bpf_attach_type::BPF_CGROUP_SOCK_OPS,
            ),
            None => self
                .links
                .remove(PROBE)
                .map_err(LoadError::io("detach probe")),
        }
    }
}

/// The program on kubelet's cgroup, and its link.
const PROBE: &str = "probe";

pub(crate) fn program<'a>(loaded: &'a Loaded, name: &str) -> Result<BorrowedFd<'a>, LoadError> {
    let fd = loaded.programs.get(name).map(AsFd::as_fd);
    fd.ok_or_else(|| LoadError::Layout(format!("there is no program `{name}`")))
}
