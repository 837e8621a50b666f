//! Where configuration comes from besides the command line; injected, so that tests need no process state.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    path::Path,
};

/// What configuration is read from.
pub trait Source {
    /// An environment variable that is set and not empty.
    fn env(&self, name: &str) -> Option<String>;
    /// A file's text.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The host's name.
    fn host_name(&self) -> Option<String>;
    /// The address of the default route's interface.
    fn default_address(&self) -> Option<IpAddr>;
    /// How many CPUs this process may use.
    fn cpus(&self) -> usize;
}

/// The running process.
#[derive(Clone, Copy, Debug)]
pub struct Process;

impl Source for Process {
    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|v| !v.is_empty())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn host_name(&self) -> Option<String> {
        nix::sys::utsname::uname()
            .ok()?
            .nodename()
            .to_str()
            .map(str::to_owned)
            .filter(|n| !n.is_empty())
    }

    fn default_address(&self) -> Option<IpAddr> {
        // Connecting a datagram socket sends nothing; the kernel only chooses the route and source address.
        let of = |bind: &str, far: &str| {
            let socket = UdpSocket::bind(bind).ok()?;
            socket.connect(far).ok()?;
            socket
                .local_addr()
                .ok()
                .map(|a| a.ip())
                .filter(|ip| !ip.is_unspecified())
        };
        of("0.0.0.0:0", "192.0.2.1:9").or_else(|| of("[::]:0", "[2001:db8::1]:9"))
    }

    fn cpus(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }
}
