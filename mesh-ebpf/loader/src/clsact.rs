//! Programs on an interface's ingress as legacy classifiers: for kernels without TCX.
//!
//! Invariants: a filter of ours has our tag as its name, so that it is found again by whoever comes after us;
//! filters live in the kernel by themselves, so a dead agent stays closed; a new filter is in place before
//! the one that it replaces goes; runs in the namespace of the interface.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::netlink::{
    Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, attrs, dump, talk, text, u32_at,
};

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's return value is the verdict.
const ACT_DIRECT: u32 = 1;
/// The clsact qdisc, and the ingress side of it.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
/// The lowest number is asked first.
const FIRST: u16 = 1;
/// ETH_P_ALL in network order.
const ALL_PROTOCOLS: u32 = 0x0300;
/// Length of `tcmsg`.
const TCMSG: usize = 20;

/// A filter on ingress, in the order in which the kernel asks them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    kind: String,
    name: String,
    priority: u16,
    handle: u32,
    info: u32,
}

/// Where a filter of ours stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Asked first.
    First,
    /// Another one is asked before.
    Behind,
    /// There is none.
    Missing,
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut m = [0u8; TCMSG];
    for (at, word) in [(4, ifindex), (8, handle), (12, parent), (16, info)] {
        m[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    m
}

fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | ALL_PROTOCOLS
}

/// Makes sure that `prog` is behind the filter with this tag, and that it is asked first.
pub fn ensure(ifindex: u32, prog: BorrowedFd<'_>, tag: &str) -> io::Result<()> {
    qdisc(ifindex)?;
    let all = filters(ifindex)?;
    if let Some(first) = all.first().filter(|f| f.name == tag) {
        return put(ifindex, prog, tag, first.info, first.handle, NLM_F_CREATE);
    }
    put(
        ifindex,
        prog,
        tag,
        info(FIRST),
        0,
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .map_err(|e| taken(e, &all))?;
    for old in all.iter().filter(|f| f.name == tag) {
        delete(ifindex, old)?;
    }
    match stand(ifindex, tag)? {
        Stand::First => Ok(()),
        _ => Err(io::Error::other(
            "another classifier is asked first; give it a priority above 1",
        )),
    }
}

/// Removes every filter whose name begins so.
pub fn remove(ifindex: u32, tag: &str) -> io::Result<()> {
    for filter in filters(ifindex)?.iter().filter(|f| f.name.starts_with(tag)) {
        delete(ifindex, filter)?;
    }
    Ok(())
}

/// Where the filter with this tag stands.
pub fn stand(ifindex: u32, tag: &str) -> io::Result<Stand> {
    let all = filters(ifindex)?;
    Ok(match all.iter().position(|f| f.name == tag) {
        Some(0) => Stand::First,
        Some(_) => Stand::Behind,
        None => Stand::Missing,
    })
}

fn qdisc(ifindex: u32) -> io::Result<()> {
    let fixed = tcmsg(ifindex, CLSACT_HANDLE, CLSACT, 0);
    let mut m = Message::new(RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed);
    m.attr(TCA_KIND, b"clsact\0");
    match talk(m) {
        // Somebody else's serves as well, and the older `ingress` too.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done,
    }
}

fn put(
    ifindex: u32,
    prog: BorrowedFd<'_>,
    tag: &str,
    info: u32,
    handle: u32,
    flags: u16,
) -> io::Result<()> {
    let fixed = tcmsg(ifindex, handle, INGRESS, info);
    let mut m = Message::new(RTM_NEWTFILTER, NLM_F_ACK | flags, &fixed);
    m.attr(TCA_KIND, b"bpf\0");
    m.nested(TCA_OPTIONS, |o| {
        o.attr(TCA_BPF_FD, &(prog.as_raw_fd() as u32).to_ne_bytes());
        o.attr(TCA_BPF_NAME, &[tag.as_bytes(), &[0]].concat());
        o.attr(TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes());
    });
    talk(m)
}

/// A priority belongs to one kind of classifier.
fn taken(error: io::Error, all: &[Filter]) -> io::Error {
    match all
        .iter()
        .find(|f| f.priority == FIRST && (f.kind != "bpf" || f.info != info(FIRST)))
    {
        Some(f) => io::Error::other(format!(
            "priority 1 of its ingress belongs to a classifier of kind {}; give that another priority ({error})",
            f.kind
        )),
        None => error,
    }
}

fn delete(ifindex: u32, filter: &Filter) -> io::Result<()> {
    let fixed = tcmsg(ifindex, filter.handle, INGRESS, filter.info);
    let mut m = Message::new(RTM_DELTFILTER, NLM_F_ACK, &fixed);
    m.attr(TCA_KIND, b"bpf\0");
    match talk(m) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

fn filters(ifindex: u32) -> io::Result<Vec<Filter>> {
    let m = Message::new(RTM_GETTFILTER, NLM_F_DUMP, &tcmsg(ifindex, 0, INGRESS, 0));
    let mut all = Vec::new();
    let done = dump(m, |kind, body| {
        // The kernel tells of every priority as such first, with no handle.
        if kind == RTM_NEWTFILTER && body.len() >= TCMSG && u32_at(body, 8) != 0 {
            all.push(filter(body));
        }
    });
    match done {
        // No qdisc, no filters.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(Vec::new()),
        done => done.map(|()| all),
    }
}

fn filter(body: &[u8]) -> Filter {
    let (mut kind, mut name) = (String::new(), String::new());
    for (attr, value) in attrs(&body[TCMSG..]) {
        match attr {
            TCA_KIND => kind = text(value),
            TCA_OPTIONS => {
                name = attrs(value)
                    .find(|(k, _)| *k == TCA_BPF_NAME)
                    .map(|(_, v)| text(v))
                    .unwrap_or_default()
            }
            _ => {}
        }
    }
    let info = u32_at(body, 16);
    Filter {
        // Only this kind's options have a name where we look for it.
        name: if kind == "bpf" { name } else { String::new() },
        kind,
        priority: (info >> 16) as u16,
        handle: u32_at(body, 8),
        info,
    }
}
