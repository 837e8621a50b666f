//! The bpf system call, as far as aya does not offer it: map elements by bytes, links by pin, replacement of
//! a link's program, and shared pages of a map. And the allocator's one call that gives freed memory back.
//!
//! Invariant: every attribute struct here is a prefix of the kernel's union, zero beyond what it names.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_cmd};

/// Gives memory that is allocated no longer back to the kernel, where the allocator can be told to.
pub fn give_memory_back() {
    // SAFETY: takes no pointer, and may be called at any time from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[repr(C)]
#[derive(Default)]
struct Elem {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Obj {
    path: u64,
    fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    prog_fd: u32,
    flags: u32,
    old_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    progs: u64,
    count: u32,
    pad: u32,
    prog_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

/// What the kernel says about a link; the meaning of `target` follows from its type.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkInfo {
    /// Type of the link.
    pub kind: u32,
    /// Its id.
    pub id: u32,
    /// The program's id.
    pub prog: u32,
    pad: u32,
    /// Cgroup id; or namespace inode or interface, in the low half.
    pub target: u64,
    rest: [u64; 16],
}

/// What the kernel says about a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MapInfo {
    /// Type of the map.
    pub kind: u32,
    /// Its id.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// Flags.
    pub flags: u32,
    rest: [u64; 16],
}

fn bpf<T>(cmd: bpf_cmd, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live, initialised prefix of `union bpf_attr` of the size given, and every
    // pointer in it was taken from a reference that outlives the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            cmd as i32,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret as i32)
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Writes an element.
pub fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags,
        ..Elem::default()
    };
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Reads an element; `None` when it is not there.
///
/// # Safety
/// `V` must be the map's value type (or, for a per-CPU map, an array of it), valid for every bit pattern.
pub unsafe fn lookup<K, V>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &mut V,
    take: bool,
) -> io::Result<bool> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(value) as u64,
        ..Elem::default()
    };
    let cmd = if take {
        bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM
    } else {
        bpf_cmd::BPF_MAP_LOOKUP_ELEM
    };
    found(bpf(cmd, &mut attr))
}

/// Like `lookup`, into a slice: for per-CPU maps.
pub fn lookup_slice<K>(map: BorrowedFd<'_>, key: &K, value: &mut [u64]) -> io::Result<bool> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        ..Elem::default()
    };
    found(bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr))
}

/// Deletes an element; false when it was not there.
pub fn delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: std::ptr::from_ref(key) as u64,
        ..Elem::default()
    };
    found(bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr))
}

/// The key after `key`, or the first.
///
/// # Safety
/// `K` must be the map's key type, valid for every bit pattern.
pub unsafe fn next_key<K>(map: BorrowedFd<'_>, key: Option<&K>, next: &mut K) -> io::Result<bool> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: key.map_or(0, |k| std::ptr::from_ref(k) as u64),
        value: std::ptr::from_mut(next) as u64,
        ..Elem::default()
    };
    found(bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr))
}

fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Pins a map, program or link.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attr = Obj {
        path: path.as_ptr() as u64,
        fd: raw(fd),
        file_flags: 0,
    };
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let mut attr = Obj {
        path: path.as_ptr() as u64,
        ..Obj::default()
    };
    bpf(bpf_cmd::BPF_OBJ_GET, &mut attr).map(owned)
}

/// Attaches a program to a cgroup, before those that are there already. Kernels before 6.17 do not know an order
/// within a cgroup: there it comes last.
pub fn link_cgroup(
    prog: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    kind: bpf_attach_type,
) -> io::Result<OwnedFd> {
    match link(prog, raw(cgroup), kind, aya_obj::generated::BPF_F_BEFORE) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => link_fd(prog, cgroup, kind),
        attached => attached,
    }
}

/// The programs of a cgroup's own chain, by their numbers, in the order in which they run.
pub fn cgroup_programs(cgroup: BorrowedFd<'_>, kind: bpf_attach_type) -> io::Result<Vec<u32>> {
    let mut progs = [0u32; CHAIN];
    let mut attr = Query {
        target: raw(cgroup),
        attach_type: kind as u32,
        progs: progs.as_mut_ptr() as u64,
        count: CHAIN as u32,
        ..Query::default()
    };
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    Ok(progs[..(attr.count as usize).min(CHAIN)].to_vec())
}

/// Attaches a program to a cgroup or namespace by descriptor.
pub fn link_fd(
    prog: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    kind: bpf_attach_type,
) -> io::Result<OwnedFd> {
    link(prog, raw(target), kind, 0)
}

/// Attaches a program to an interface of the calling thread's namespace, at the head of the chain.
pub fn link_ifindex(
    prog: BorrowedFd<'_>,
    ifindex: u32,
    kind: bpf_attach_type,
) -> io::Result<OwnedFd> {
    link(prog, ifindex, kind, aya_obj::generated::BPF_F_BEFORE)
}

fn link(
    prog: BorrowedFd<'_>,
    target: u32,
    kind: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(prog),
        target,
        attach_type: kind as u32,
        flags,
        ..LinkCreate::default()
    };
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Puts another program behind a link, atomically.
pub fn link_update(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: raw(link),
        prog_fd: raw(prog),
        ..LinkUpdate::default()
    };
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Programs in one chain, as the kernel limits them.
const CHAIN: usize = 64;

/// The links of an interface's TCX ingress in the order in which they run; 0 for a program without a link.
pub fn tcx_links(ifindex: u32) -> io::Result<Vec<u32>> {
    let (mut progs, mut links) = ([0u32; CHAIN], [0u32; CHAIN]);
    let mut attr = Query {
        target: ifindex,
        attach_type: bpf_attach_type::BPF_TCX_INGRESS as u32,
        progs: progs.as_mut_ptr() as u64,
        links: links.as_mut_ptr() as u64,
        count: CHAIN as u32,
        ..Query::default()
    };
    match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) {
        Ok(_) => Ok(links[..(attr.count as usize).min(CHAIN)].to_vec()),
        // A chain that never was.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Whether the kernel has TCX.
pub fn tcx_present() -> bool {
    static PRESENT: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // Every namespace has a first interface; a kernel that does not know the hook says EINVAL.
    *PRESENT.get_or_init(|| !tcx_links(1).is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL)))
}

/// Asks about a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attr = Info {
        fd: raw(link),
        len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(|_| info)
}

/// The kernel's number of a program.
pub fn program_id(prog: BorrowedFd<'_>) -> io::Result<u32> {
    // Type and number are the first two words of `struct bpf_prog_info`.
    let mut info = [0u32; 2];
    let mut attr = Info {
        fd: raw(prog),
        len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(|_| info[1])
}

/// Asks about a map.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut attr = Info {
        fd: raw(map),
        len: size_of::<MapInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(|_| info)
}

/// Runs a program once on a packet that never was; gives what it returned.
pub fn test_run(prog: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut attr = TestRun {
        prog_fd: raw(prog),
        data_size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        ..TestRun::default()
    };
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(|_| attr.retval)
}

/// CLOCK_MONOTONIC, the programs' clock.
pub fn now_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is live and writable; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
