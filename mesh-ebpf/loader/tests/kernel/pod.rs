//! An application in a pod: a process in the pod's namespace and cgroup that does with sockets what it is
//! told on its standard input, one line a command, one line an answer.

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;
use std::{fs, io};

const PATIENCE: Duration = Duration::from_secs(3);

enum Sock {
    Listener(TcpListener),
    Stream(TcpStream),
    Udp(UdpSocket),
    /// Held until they are closed.
    Many(#[allow(dead_code)] Vec<OwnedFd>),
}

/// Enters the namespace of this name and serves commands until its input ends.
pub fn run(netns: &str) {
    let file = fs::File::open(format!("/var/run/netns/{netns}")).expect("the namespace exists");
    nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
    let mut socks: HashMap<u32, Sock> = HashMap::new();
    let mut next = 0;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match command(&words, &mut socks) {
            Ok((Some(sock), text)) => {
                next += 1;
                socks.insert(next, sock);
                format!("ok {next} {text}")
            }
            Ok((None, text)) => format!("ok 0 {text}"),
            Err(e) => format!(
                "err {}",
                e.raw_os_error()
                    .map_or(e.kind().to_string(), |n| n.to_string())
            ),
        };
        println!("{answer}");
        io::stdout().flush().expect("stdout");
    }
}

type Answer = io::Result<(Option<Sock>, String)>;

fn command(words: &[&str], socks: &mut HashMap<u32, Sock>) -> Answer {
    let id = || words[1].parse::<u32>().expect("an id");
    let addr = |i: usize| words[i].parse::<SocketAddr>().expect("an address");
    match words[0] {
        "connect" => stream(TcpStream::connect_timeout(&addr(1), PATIENCE)?),
        "connect-mptcp" => stream(multipath(addr(1))?),
        "connect-mapped" => stream(mapped(addr(1))?),
        "listen" => Ok((
            Some(Sock::Listener(TcpListener::bind(addr(1))?)),
            String::new(),
        )),
        "accept" => {
            let Some(Sock::Listener(l)) = socks.get(&id()) else {
                panic!("not a listener")
            };
            wait_readable(l.as_raw_fd())?;
            let (s, peer) = l.accept()?;
            let again = s.peer_addr()?;
            s.set_read_timeout(Some(PATIENCE))?;
            Ok((Some(Sock::Stream(s)), format!("{peer} {again}")))
        }
        "send" => match socks.get_mut(&id()) {
            Some(Sock::Stream(s)) => s
                .write_all(words[2].as_bytes())
                .map(|()| (None, String::new())),
            Some(Sock::Udp(s)) => s.send(words[2].as_bytes()).map(|n| (None, n.to_string())),
            _ => panic!("cannot send"),
        },
        "recv" => {
            let mut buf = [0u8; 4096];
            let n = match socks.get_mut(&id()) {
                Some(Sock::Stream(s)) => s.read(&mut buf)?,
                Some(Sock::Udp(s)) => s.recv(&mut buf)?,
                _ => panic!("cannot receive"),
            };
            Ok((None, String::from_utf8_lossy(&buf[..n]).into_owned()))
        }
        "names" => match socks.get(&id()) {
            Some(Sock::Stream(s)) => Ok((None, format!("{} {}", s.local_addr()?, s.peer_addr()?))),
            Some(Sock::Udp(s)) => Ok((None, format!("{} {}", s.local_addr()?, s.peer_addr()?))),
            _ => panic!("no names"),
        },
        "udp" => {
            let s = UdpSocket::bind(addr(1))?;
            s.set_read_timeout(Some(PATIENCE))?;
            let text = s.local_addr()?.to_string();
            Ok((Some(Sock::Udp(s)), text))
        }
        "udp-connect" => {
            // Like glibc: connect without bind.
            let s = unbound(addr(1))?;
            s.connect(addr(1))?;
            s.set_read_timeout(Some(PATIENCE))?;
            let text = format!("{} {}", s.local_addr()?, s.peer_addr()?);
            Ok((Some(Sock::Udp(s)), text))
        }
        "sendto" => {
            let Some(Sock::Udp(s)) = socks.get(&id()) else {
                panic!("not UDP")
            };
            s.send_to(words[3].as_bytes(), addr(2))
                .map(|n| (None, n.to_string()))
        }
        "flood" => {
            // Begins connections to one port after the other, until so many were tried; says how many went
            // out and how many were refused.
            let (ip, n) = (
                words[1].parse().expect("an address"),
                words[2].parse().expect("a number"),
            );
            flood(ip, n)
        }
        "flood-dns" => {
            let (to, n) = (addr(1), words[2].parse::<u32>().expect("a number"));
            let many = (0..n).map(|_| {
                let s = unbound(to)?;
                s.connect(to)?;
                Ok(OwnedFd::from(s))
            });
            Ok((
                Some(Sock::Many(many.collect::<io::Result<_>>()?)),
                String::new(),
            ))
        }
        // What is there already.
        "peek" => {
            let Some(Sock::Udp(s)) = socks.get(&id()) else {
                panic!("not UDP")
            };
            s.set_nonblocking(true)?;
            s.recv_from(&mut [0u8; 16]).map(|_| (None, String::new()))
        }
        "recvfrom" => {
            let Some(Sock::Udp(s)) = socks.get(&id()) else {
                panic!("not UDP")
            };
            let mut buf = [0u8; 4096];
            let (n, from) = s.recv_from(&mut buf)?;
            Ok((
                None,
                format!("{from} {}", String::from_utf8_lossy(&buf[..n])),
            ))
        }
        "packet" => packet(words[1], &unhex(words[2])).map(|()| (None, String::new())),
        "churn" => {
            // Connect and close as fast as it goes; says how many nanoseconds each took.
            let (to, n) = (addr(1), words[2].parse::<u32>().expect("a number"));
            let begin = std::time::Instant::now();
            for _ in 0..n {
                reset(&TcpStream::connect(to)?)?;
            }
            Ok((
                None,
                (begin.elapsed().as_nanos() / u128::from(n)).to_string(),
            ))
        }
        "sink" => {
            // Accepts and drops, for ever, on a thread.
            let Some(Sock::Listener(l)) = socks.remove(&id()) else {
                panic!("not a listener")
            };
            std::thread::spawn(move || while l.accept().is_ok() {});
            Ok((None, String::new()))
        }
        "close" => {
            socks.remove(&id());
            Ok((None, String::new()))
        }
        "reset" => {
            let Some(Sock::Stream(s)) = socks.remove(&id()) else {
                panic!("not a stream")
            };
            reset(&s)?;
            Ok((None, String::new()))
        }
        other => panic!("unknown command {other}"),
    }
}

/// Makes the close of a connection a reset.
fn reset(s: &TcpStream) -> io::Result<()> {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(nix::sys::socket::setsockopt(
        s,
        nix::sys::socket::sockopt::Linger,
        &at_once,
    )?)
}

fn stream(s: TcpStream) -> Answer {
    s.set_read_timeout(Some(PATIENCE))?;
    let text = format!("{} {}", s.local_addr()?, s.peer_addr()?);
    Ok((Some(Sock::Stream(s)), text))
}

fn flood(ip: IpAddr, n: u32) -> Answer {
    use nix::sys::socket::*;
    let (mut many, mut refused) = (Vec::new(), 0);
    for i in 0..n {
        let s = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        let to = SocketAddr::new(ip, 1000 + i as u16);
        match connect(s.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => many.push(s),
            Err(nix::errno::Errno::ECONNREFUSED) => refused += 1,
            Err(e) => return Err(e.into()),
        }
    }
    let text = format!("{} {refused}", many.len());
    Ok((Some(Sock::Many(many)), text))
}

/// Connects an IPv6 socket to a v4-mapped address.
fn mapped(to: SocketAddr) -> io::Result<TcpStream> {
    use nix::sys::socket::*;
    let IpAddr::V4(v4) = to.ip() else {
        panic!("an IPv4 address")
    };
    let s = socket(
        AddressFamily::Inet6,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let six = std::net::SocketAddrV6::new(v4.to_ipv6_mapped(), to.port(), 0, 0);
    connect(s.as_raw_fd(), &SockaddrIn6::from(six))?;
    Ok(TcpStream::from(s))
}

/// Connects by Multipath TCP.
fn multipath(to: SocketAddr) -> io::Result<TcpStream> {
    let s = socket2(libc::IPPROTO_MPTCP)?;
    nix::sys::socket::connect(s.as_raw_fd(), &nix::sys::socket::SockaddrStorage::from(to))?;
    Ok(TcpStream::from(s))
}

fn socket2(protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is ours.
    unsafe {
        let fd = libc::socket(
            libc::AF_INET,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            protocol,
        );
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

fn unbound(like: SocketAddr) -> io::Result<UdpSocket> {
    use nix::sys::socket::*;
    let family = if like.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    Ok(UdpSocket::from(socket(
        family,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?))
}

/// Sends a frame as it is, past the whole stack.
fn packet(interface: &str, frame: &[u8]) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: plain system calls with live, initialised arguments of the sizes given.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = index as i32;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&frame[..6]);
        let n = libc::sendto(
            fd.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        if n < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}

fn wait_readable(fd: i32) -> io::Result<()> {
    let mut p = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live pollfd.
    match unsafe { libc::poll(&mut p, 1, PATIENCE.as_millis() as i32) } {
        1 => Ok(()),
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
