//! Packets on the wire between nodes, into memory or a pcap file.
//!
//! Invariants: it listens before it says so; packets that the kernel could not hand over are an error,
//! because a test that proves absence must have seen everything.

use std::{
    io::{IoSliceMut, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
        recvmsg, setsockopt, socket, sockopt,
    },
};

use super::enter::in_netns;

const SNAP: usize = 262_144;
const BUFFER: usize = 64 << 20;
const LIMIT: usize = 2_000_000;

/// One packet with its time.
#[derive(Clone, Debug)]
pub struct Packet {
    /// When it was read.
    pub at: Duration,
    /// The whole frame, from the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// A capture that runs.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Packet>>>,
}

impl Capture {
    /// Starts to listen on `interface` inside a network namespace; returns when every later packet will be seen.
    /// With `keep` false the packets go only to `file`.
    pub fn start(
        netns: PathBuf,
        interface: String,
        file: Option<PathBuf>,
        keep: bool,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, ready) = mpsc::channel();
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            in_netns(&netns, move || {
                listen(&interface, file.as_deref(), keep, &flag, &told)
            })
        });
        if ready.recv().is_err() {
            thread
                .join()
                .map_err(|_| anyhow!("the capture panicked"))??;
            bail!("the capture ended before it began");
        }
        Ok(Self { stop, thread })
    }

    /// Stops, and returns what was kept.
    pub fn stop(self) -> Result<Vec<Packet>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the capture panicked"))?
    }
}

/// Whether any packet holds `marker`.
pub fn contains(packets: &[Packet], marker: &[u8]) -> bool {
    packets
        .iter()
        .any(|p| p.bytes.windows(marker.len()).any(|w| w == marker))
}

fn listen(
    interface: &str,
    file: Option<&Path>,
    keep: bool,
    stop: &AtomicBool,
    told: &mpsc::Sender<()>,
) -> Result<Vec<Packet>> {
    let index = usize::try_from(
        nix::net::if_::if_nametoindex(interface)
            .with_context(|| format!("no interface {interface}"))?,
    )?;
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("opening a packet socket: root is needed")?;
    setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)
        .or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &BUFFER))
        .context("asking for a large buffer")?;
    setsockopt(&fd, sockopt::RxqOvfl, &1).context("asking for the count of lost packets")?;
    setsockopt(
        &fd,
        sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::new(0, 50_000),
    )
    .context("limiting each wait")?;
    let mut pcap = file.map(Pcap::create).transpose()?;
    // Nobody waits any more when the other end is gone.
    let _ = told.send(());
    let mut kept = Vec::new();
    let (mut buffer, mut control) = (vec![0; SNAP], nix::cmsg_space!(u32));
    loop {
        // What was queued when the stop came is still read, but what traffic goes on is not waited for.
        let ending = stop.load(Ordering::Relaxed);
        let flags = if ending {
            MsgFlags::MSG_DONTWAIT
        } else {
            MsgFlags::empty()
        };
        match receive(fd.as_raw_fd(), &mut buffer, &mut control, flags) {
            // A socket hears all interfaces of its namespace; each packet names its own.
            Ok((n, Some(from), lost)) => {
                if lost > 0 {
                    bail!(
                        "{lost} packets were not captured: the buffer of {BUFFER} bytes was full"
                    );
                }
                if from == index {
                    let packet = Packet {
                        at: SystemTime::now().duration_since(UNIX_EPOCH)?,
                        bytes: buffer[..n].to_vec(),
                    };
                    if let Some(pcap) = &mut pcap {
                        pcap.write(&packet)?;
                    }
                    if keep {
                        kept.push(packet);
                    }
                }
            }
            Ok((_, None, _)) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if ending => break,
            Err(Errno::EAGAIN) => {}
            Err(e) => return Err(e).context("reading packets"),
        }
        if kept.len() > LIMIT {
            bail!("more than {LIMIT} packets: capture for a shorter time, or into a file");
        }
    }
    if let Some(pcap) = &mut pcap {
        pcap.out.flush()?;
    }
    Ok(kept)
}

/// One packet: its length, its interface, and how many were lost before it.
fn receive(
    fd: i32,
    buffer: &mut [u8],
    control: &mut [u8],
    flags: MsgFlags,
) -> nix::Result<(usize, Option<usize>, u32)> {
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<LinkAddr>(fd, &mut slices, Some(control), flags)?;
    let mut lost = 0;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::RxqOvfl(n) = part {
            lost = n;
        }
    }
    Ok((message.bytes, message.address.map(|a| a.ifindex()), lost))
}

struct Pcap {
    out: std::io::BufWriter<std::fs::File>,
}

impl Pcap {
    fn create(path: &Path) -> Result<Self> {
        let file =
            std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let mut out = std::io::BufWriter::new(file);
        let mut header = Vec::new();
        header.extend_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
        header.extend_from_slice(&2u16.to_le_bytes());
        header.extend_from_slice(&4u16.to_le_bytes());
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(&u32::try_from(SNAP)?.to_le_bytes());
        header.extend_from_slice(&1u32.to_le_bytes());
        out.write_all(&header)?;
        Ok(Self { out })
    }

    fn write(&mut self, packet: &Packet) -> Result<()> {
        let length = u32::try_from(packet.bytes.len())?.to_le_bytes();
        self.out
            .write_all(&u32::try_from(packet.at.as_secs())?.to_le_bytes())?;
        self.out
            .write_all(&packet.at.subsec_micros().to_le_bytes())?;
        self.out.write_all(&length)?;
        self.out.write_all(&length)?;
        self.out.write_all(&packet.bytes)?;
        Ok(())
    }
}
