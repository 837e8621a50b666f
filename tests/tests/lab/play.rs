//! What a test has its own program do inside a pod: clients and servers whose every move is known.
//!
//! A part is started by running the test program itself with `play PART ARGS...` inside a pod. Invariants: a
//! part ends by itself; what it saw is one line of JSON on its standard output.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Socket, Type};

/// The longest that a part waits for its peer.
const PATIENCE: Duration = Duration::from_secs(20);
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The command line by which a test lets a pod play a part.
pub fn command(part: &str, args: &[&str]) -> Result<Vec<String>> {
    let own = std::env::current_exe()?.display().to_string();
    let words = [own, "play".to_owned(), part.to_owned()];
    Ok(words
        .into_iter()
        .chain(args.iter().map(|a| (*a).to_owned()))
        .collect())
}

/// Plays the part that the command line asks for, if it does.
pub fn asked() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [first, part, rest @ ..] = &args[..] else {
        return None;
    };
    if first != "play" {
        return None;
    }
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    Some(match play(part, &rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    })
}

fn play(part: &str, args: &[&str]) -> Result<()> {
    match (part, args) {
        ("ends-server", [port]) => ends_server(port.parse()?),
        ("ends-client", [to, scene]) => {
            println!(
                "{}",
                serde_json::to_string(&ends_client(to.parse()?, scene)?)?
            );
            Ok(())
        }
        ("where-server", ports) => {
            let ports: Result<Vec<u16>, _> = ports.iter().map(|p| p.parse()).collect();
            where_server(&ports?)
        }
        ("where-client", [count, targets @ ..]) => where_client(count.parse()?, targets),
        ("resolver", [at, ip]) => resolver(at.parse()?, ip.parse()?),
        ("reached", [to, count]) => reached(to.parse()?, count.parse()?),
        ("connect", [to, from]) => {
            println!(
                "{}",
                serde_json::to_string(&connect(to.parse()?, from.parse()?)?)?
            );
            Ok(())
        }
        ("flood-requests", [to, what]) => super::hostile::flood(to.parse()?, what),
        _ => bail!("nobody plays {part:?} with {args:?}"),
    }
}

/// How a connection ends, by who does what.
pub const SCENES: [&str; 10] = [
    "client-half-close",
    "server-half-close",
    "client-reset",
    "server-reset",
    "client-fin-pending",
    "server-fin-pending",
    "client-unread",
    "client-linger-pending",
    "client-reset-at-once",
    "client-killed",
];

/// What one side of a connection saw of the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The scene.
    pub scene: String,
    /// Bytes that arrived.
    pub bytes: usize,
    /// A hash of them.
    pub hash: u64,
    /// `fin`, or the error.
    pub end: String,
}

fn block(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i % 251) as u8).collect()
}

/// Reads to the end; `slowly`, so that much is pending when the end is sent.
fn drain(tcp: &mut TcpStream, scene: &str, slowly: bool) -> Seen {
    let mut seen = Seen {
        scene: scene.to_owned(),
        bytes: 0,
        hash: 0xcbf2_9ce4_8422_2325,
        end: String::new(),
    };
    let mut buffer = vec![0; 16 * KIB];
    loop {
        if slowly {
            // The pace of the reader is what is tested.
            thread::sleep(Duration::from_millis(3));
        }
        match tcp.read(&mut buffer) {
            Ok(0) => seen.end = "fin".into(),
            Ok(n) => {
                seen.bytes += n;
                seen.hash = buffer[..n].iter().fold(seen.hash, |h, b| {
                    (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
                });
                continue;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => seen.end = format!("{:?}", e.kind()),
        }
        return seen;
    }
}

fn abort(tcp: TcpStream) -> Result<()> {
    SockRef::from(&tcp).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

/// Serves scenes, each on a connection of its own that begins with the scene's number. Ends when killed.
fn ends_server(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("ready");
    for tcp in listener.incoming() {
        let tcp = tcp?;
        thread::spawn(move || match serve_scene(tcp) {
            Ok(seen) => println!("{}", serde_json::to_string(&seen).unwrap_or_default()),
            Err(e) => println!("{{\"error\":\"{e:#}\"}}"),
        });
    }
    Ok(())
}

fn serve_scene(mut tcp: TcpStream) -> Result<Seen> {
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    let mut number = [0];
    tcp.read_exact(&mut number).context("the scene's number")?;
    let scene = *SCENES
        .get(usize::from(number[0]))
        .context("a scene's number")?;
    match scene {
        "client-half-close" => {
            let seen = drain(&mut tcp, scene, false);
            tcp.write_all(&block(200 * KIB))?;
            Ok(seen)
        }
        "server-half-close" => {
            tcp.write_all(&block(64 * KIB))?;
            tcp.shutdown(Shutdown::Write)?;
            Ok(drain(&mut tcp, scene, false))
        }
        "client-reset" => {
            let mut got = vec![0; 32 * KIB];
            tcp.read_exact(&mut got)?;
            tcp.write_all(&got)?;
            Ok(drain(&mut tcp, scene, false))
        }
        "server-reset" => {
            let mut got = vec![0; 1000];
            tcp.read_exact(&mut got)?;
            abort(tcp)?;
            Ok(Seen {
                scene: scene.to_owned(),
                bytes: got.len(),
                hash: 0,
                end: "own reset".into(),
            })
        }
        "client-fin-pending" => Ok(drain(&mut tcp, scene, true)),
        "server-fin-pending" => {
            tcp.write_all(&block(MIB))?;
            tcp.shutdown(Shutdown::Write)?;
            Ok(drain(&mut tcp, scene, false))
        }
        "client-unread" => {
            tcp.write_all(&block(64 * KIB))?;
            Ok(drain(&mut tcp, scene, false))
        }
        // How much arrives before the reset is a race on any network.
        "client-linger-pending" | "client-reset-at-once" => {
            let seen = drain(&mut tcp, scene, false);
            ensure!(seen.bytes <= 256 * KIB, "{} bytes of 256 KiB", seen.bytes);
            Ok(Seen {
                bytes: 0,
                hash: 0,
                ..seen
            })
        }
        "client-killed" => Ok(drain(&mut tcp, scene, false)),
        _ => bail!("{scene} has no server"),
    }
}

fn ends_client(to: SocketAddr, scene: &str) -> Result<Seen> {
    let number = SCENES
        .iter()
        .position(|s| *s == scene)
        .with_context(|| format!("there is no scene {scene:?}"))?;
    let mut tcp = TcpStream::connect_timeout(&to, PATIENCE)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    tcp.write_all(&[u8::try_from(number)?])?;
    let gone = |how: &str| Seen {
        scene: scene.to_owned(),
        bytes: 0,
        hash: 0,
        end: how.to_owned(),
    };
    match scene {
        "client-half-close" => {
            tcp.write_all(&block(100 * KIB))?;
            tcp.shutdown(Shutdown::Write)?;
            Ok(drain(&mut tcp, scene, false))
        }
        "server-half-close" => {
            let seen = drain(&mut tcp, scene, false);
            tcp.write_all(&block(64 * KIB))?;
            Ok(seen)
        }
        "client-reset" => {
            let sent = block(32 * KIB);
            tcp.write_all(&sent)?;
            let mut back = vec![0; sent.len()];
            tcp.read_exact(&mut back)?;
            ensure!(back == sent, "another answer");
            abort(tcp)?;
            Ok(gone("own reset"))
        }
        "server-reset" => {
            tcp.write_all(&block(1000))?;
            Ok(drain(&mut tcp, scene, false))
        }
        "client-fin-pending" => {
            tcp.write_all(&block(MIB))?;
            drop(tcp);
            Ok(gone("own end"))
        }
        "server-fin-pending" => Ok(drain(&mut tcp, scene, true)),
        "client-unread" => {
            let mut unread = vec![0; 64 * KIB];
            let begun = Instant::now();
            while tcp.peek(&mut unread)? < unread.len() {
                ensure!(begun.elapsed() < PATIENCE, "the server's bytes never came");
                thread::yield_now();
            }
            drop(tcp);
            Ok(gone("own end"))
        }
        "client-linger-pending" => {
            tcp.write_all(&block(256 * KIB))?;
            abort(tcp)?;
            Ok(gone("own reset"))
        }
        "client-reset-at-once" => {
            tcp.write_all(&block(10 * KIB))?;
            abort(tcp)?;
            Ok(gone("own reset"))
        }
        "client-killed" => {
            tcp.write_all(&block(10 * KIB))?;
            nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL)?;
            bail!("still alive")
        }
        _ => bail!("{scene} has no client"),
    }
}

/// Says to everybody at which address and port it was reached. Ends when killed.
fn where_server(ports: &[u16]) -> Result<()> {
    let mut threads = Vec::new();
    for &port in ports {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.bind(&SocketAddr::new("::".parse()?, port).into())?;
        socket.listen(1024)?;
        let listener = TcpListener::from(socket);
        threads.push(thread::spawn(move || {
            for tcp in listener.incoming() {
                // A client that has gone is its own measurement.
                let Ok(mut tcp) = tcp else { continue };
                if let Ok(own) = tcp.local_addr() {
                    let own = SocketAddr::new(own.ip().to_canonical(), own.port());
                    let _ = tcp.write_all(own.to_string().as_bytes());
                }
            }
        }));
    }
    println!("ready");
    for thread in threads {
        drop(thread.join());
    }
    Ok(())
}

/// What many short connections saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Wheres {
    /// Connections that reached what they asked for.
    pub right: usize,
    /// Those that reached something else: `asked, reached`.
    pub wrong: Vec<String>,
    /// Those that reached nothing, by how often.
    pub failed: std::collections::BTreeMap<String, usize>,
}

/// Makes `count` short connections to targets in turn, many at once; each target is `DIALED=REACHED`.
fn where_client(count: usize, targets: &[&str]) -> Result<()> {
    const WORKERS: usize = 16;
    let targets: Vec<(SocketAddr, String)> = targets
        .iter()
        .map(|t| {
            let (dialed, reached) = t.split_once('=').context("DIALED=REACHED")?;
            Ok((dialed.parse()?, reached.to_owned()))
        })
        .collect::<Result<_>>()?;
    let targets = Arc::new(targets);
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let targets = targets.clone();
            thread::spawn(move || {
                let mut seen = Wheres::default();
                for n in (worker..count).step_by(WORKERS) {
                    let (dialed, reached) = &targets[n % targets.len()];
                    match ask_where(*dialed) {
                        Ok(answer) if answer == *reached => seen.right += 1,
                        Ok(answer) => seen.wrong.push(format!("{dialed}, {answer}")),
                        Err(e) => *seen.failed.entry(format!("{e:#}")).or_default() += 1,
                    }
                }
                seen
            })
        })
        .collect();
    let mut all = Wheres::default();
    for worker in workers {
        let seen = worker
            .join()
            .map_err(|_| anyhow::anyhow!("a worker panicked"))?;
        all.right += seen.right;
        all.wrong.extend(seen.wrong);
        for (what, count) in seen.failed {
            *all.failed.entry(what).or_default() += count;
        }
    }
    println!("{}", serde_json::to_string(&all)?);
    Ok(())
}

/// A resolver that knows one address for every name, and says that it holds for a second. Ends when killed.
fn resolver(at: SocketAddr, ip: std::net::Ipv4Addr) -> Result<()> {
    const A: [u8; 4] = [0, 1, 0, 1];
    let socket = std::net::UdpSocket::bind(at)?;
    println!("ready");
    let mut packet = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut packet)?;
        let query = &packet[..length];
        // The question ends with the root's empty label, type and class.
        let labels = query.get(12..).unwrap_or_default();
        let Some(end) = labels.iter().position(|b| *b == 0).map(|at| 12 + at + 5) else {
            continue;
        };
        let Some(question) = query.get(12..end) else {
            continue;
        };
        let found = question.ends_with(&A);
        let mut reply = query[..2].to_vec();
        reply.extend([0x81, 0x80, 0, 1, 0, u8::from(found), 0, 0, 0, 0]);
        reply.extend(question);
        if found {
            // The name is the question's; one second to live; four bytes.
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            reply.extend(ip.octets());
        }
        socket.send_to(&reply, from)?;
    }
}

/// Connects `count` times and prints how often each answer came; `none` where there was none.
fn reached(to: SocketAddr, count: usize) -> Result<()> {
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..count {
        let answer = ask_where(to).ok().filter(|text| !text.is_empty());
        *seen.entry(answer.unwrap_or("none".into())).or_default() += 1;
    }
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

fn ask_where(to: SocketAddr) -> Result<String> {
    let mut tcp = TcpStream::connect_timeout(&to, PATIENCE)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    tcp.read_to_string(&mut text)?;
    Ok(text)
}

/// How an attempt to connect and to say something went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// What `connect()` returned: 0, or the error's number.
    pub connect: i32,
    /// How long that took, in milliseconds.
    pub connect_ms: u64,
    /// What reading returned when it connected: bytes read (0 at the end), or the error's number below zero.
    pub read: i64,
    /// How long all of it took, in milliseconds.
    pub total_ms: u64,
}

/// Connects, from a certain port unless that is 0, sends a byte, waits for one, and resets.
fn connect(to: SocketAddr, from: u16) -> Result<Attempt> {
    let begun = Instant::now();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if from != 0 {
        let any: SocketAddr = if to.is_ipv4() {
            ([0, 0, 0, 0], from).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, from).into()
        };
        socket.bind(&any.into())?;
    }
    let outcome = socket.connect(&to.into());
    let connect_ms = u64::try_from(begun.elapsed().as_millis())?;
    let number = |e: &std::io::Error| e.raw_os_error().unwrap_or(-1);
    let mut attempt = Attempt {
        connect: outcome.as_ref().err().map_or(0, number),
        connect_ms,
        read: 0,
        total_ms: connect_ms,
    };
    if outcome.is_ok() {
        let mut tcp = TcpStream::from(socket);
        tcp.set_read_timeout(Some(PATIENCE * 2))?;
        let mut byte = [0];
        let read = tcp.write_all(b"x").and_then(|()| tcp.read(&mut byte));
        attempt.read = match read {
            Ok(n) => i64::try_from(n)?,
            Err(e) => -i64::from(number(&e)),
        };
        attempt.total_ms = u64::try_from(begun.elapsed().as_millis())?;
        abort(tcp)?;
    }
    Ok(attempt)
}
