//! Programs of others, made of single instructions, so that no second object has to be compiled.
//!
//! Invariant: what is attached here goes when its value is dropped.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What a classifier's verdict means.
pub const OK: i32 = 0;
pub const SHOT: i32 = 2;
pub const NEXT: i32 = -1;

pub const SCHED_CLS: u32 = 3;
pub const CGROUP_SOCK_ADDR: u32 = 18;
pub const CONNECT4: u32 = 10;
pub const TCX_INGRESS: u32 = 46;
pub const BEFORE: u32 = 1 << 3;
pub const AFTER: u32 = 1 << 4;
const PROG_LOAD: i32 = 5;
const MAP_UPDATE: i32 = 2;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const LINK_CREATE: i32 = 28;
const REDIRECT: i32 = 23;
const REDIRECT_PEER: i32 = 155;

/// One instruction.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Insn {
    code: u8,
    regs: u8,
    off: i16,
    imm: i32,
}

const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn {
        code,
        regs: dst | src << 4,
        off,
        imm,
    }
}

/// `r{dst} = imm`
const fn set(dst: u8, imm: i32) -> Insn {
    insn(0xb7, dst, 0, 0, imm)
}

const fn copy(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}

/// `r0 = the packet's two bytes at`, in host order.
const fn half_at(at: i32) -> Insn {
    insn(0x28, 0, 0, 0, at)
}

/// `r0 = the packet's byte at`.
const fn byte_at(at: i32) -> Insn {
    insn(0x30, 0, 0, 0, at)
}

/// Jumps unless the low half of a register is `imm`.
const fn unless(dst: u8, imm: i32, off: i16) -> Insn {
    insn(0x56, dst, 0, off, imm)
}

const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

/// A classifier that says one thing about every packet.
pub fn always(verdict: i32) -> Vec<Insn> {
    vec![set(0, verdict), EXIT]
}

/// A classifier that does something with UDP over IPv4 to one port, and passes everything else on.
pub fn on_udp(port: u16, action: &[Insn]) -> Vec<Insn> {
    on(17, port, action)
}

/// The same for TCP.
pub fn on_tcp(port: u16, action: &[Insn]) -> Vec<Insn> {
    on(6, port, action)
}

fn on(protocol: i32, port: u16, action: &[Insn]) -> Vec<Insn> {
    let over = action.len() as i16;
    let mut all = vec![
        copy(6, 1),
        half_at(12),
        unless(0, 0x0800, over + 4),
        byte_at(23),
        unless(0, protocol, over + 2),
        half_at(36),
        unless(0, i32::from(port), over),
    ];
    all.extend(action);
    all.extend(always(NEXT));
    all
}

/// An action: this verdict.
pub fn verdict(verdict: i32) -> Vec<Insn> {
    always(verdict)
}

/// An action: out of another interface.
pub fn redirect(ifindex: u32) -> Vec<Insn> {
    vec![
        set(1, ifindex as i32),
        set(2, 0),
        insn(0x85, 0, 0, 0, REDIRECT),
        EXIT,
    ]
}

/// An action: into the namespace behind another interface, past its host side.
pub fn redirect_peer(ifindex: u32) -> Vec<Insn> {
    vec![
        set(1, ifindex as i32),
        set(2, 0),
        insn(0x85, 0, 0, 0, REDIRECT_PEER),
        EXIT,
    ]
}

/// A load balancer in `connect`: who dials `vip` gets `to`.
pub fn balancer(vip: Ipv4Addr, to: Ipv4Addr) -> Vec<Insn> {
    const USER_IP4: i16 = 4;
    let word = |ip: Ipv4Addr| i32::from_ne_bytes(ip.octets());
    vec![
        insn(0x61, 2, 1, USER_IP4, 0),
        unless(2, word(vip), 2),
        set(3, word(to)),
        insn(0x63, 1, 3, USER_IP4, 0),
        set(0, 1),
        EXIT,
    ]
}

/// Takes a program into the kernel.
pub fn load(kind: u32, expected: u32, insns: &[Insn]) -> OwnedFd {
    #[repr(C)]
    struct Attr {
        kind: u32,
        count: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        expected: u32,
    }
    let mut log = vec![0u8; 16 * 1024];
    let mut attr = Attr {
        kind,
        count: insns.len() as u32,
        insns: insns.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        version: 0,
        flags: 0,
        name: *b"foreign\0\0\0\0\0\0\0\0\0",
        ifindex: 0,
        expected,
    };
    bpf(PROG_LOAD, &mut attr).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&log)))
}

/// Attaches a program to a cgroup, or to an interface of the calling thread's namespace.
pub fn attach(prog: &OwnedFd, target: u32, kind: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog: u32,
        target: u32,
        kind: u32,
        flags: u32,
        relative: u64,
        revision: u64,
    }
    bpf(
        LINK_CREATE,
        &mut Attr {
            prog: prog.as_raw_fd() as u32,
            target,
            kind,
            flags,
            relative: 0,
            revision: 0,
        },
    )
}

/// Whether the kernel knows an order among the programs of one cgroup.
pub fn before(prog: &OwnedFd, cgroup: &std::fs::File) -> bool {
    attach(prog, cgroup.as_raw_fd() as u32, CONNECT4, BEFORE).is_ok()
}

/// Pins a program, for programs that take it by path.
pub fn pin(prog: &OwnedFd, path: &std::ffi::CStr) {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let mut attr = Attr {
        path: path.as_ptr() as u64,
        fd: prog.as_raw_fd() as u32,
        flags: 0,
    };
    call(OBJ_PIN, &mut attr).expect("pinned");
}

/// Opens what is pinned.
pub fn open(path: &std::path::Path) -> OwnedFd {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = std::ffi::CString::new(path.to_str().expect("a plain path")).expect("no zero byte");
    let mut attr = Attr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    bpf(OBJ_GET, &mut attr).expect("pinned")
}

/// Writes an element of a map, past the loader.
pub fn put(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut attr = Attr {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    call(MAP_UPDATE, &mut attr).map(drop)
}

fn bpf<T>(command: i32, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    call(command, attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live prefix of `union bpf_attr`, and its pointers are to what outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(done as i32)
    }
}
