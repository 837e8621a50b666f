//! The server on `pods.sock`: whoever runs pods registers them here.
//!
//! Invariants: peers are root; connections are bounded in number; a request that is not understood is
//! answered with what is wrong, and the connection goes on.

use std::{io, path::Path, sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{
    Capture,
    packets::{Packet, PacketListener, PacketStream},
    registration::{PACKET, Reply, Request, parse, patience},
};

/// How many connections are served at a time.
const CONNECTIONS: usize = 256;
/// How long an answer may take to be read.
const SEND: Duration = Duration::from_secs(10);

/// The server.
#[derive(Debug)]
pub struct RegistrationServer {
    listener: PacketListener,
    capture: Capture,
}

impl RegistrationServer {
    /// Listens on `<run dir>/pods.sock`.
    pub fn bind(path: &Path, admitted: u32, capture: Capture) -> io::Result<Self> {
        Ok(Self {
            listener: PacketListener::bind(path, admitted)?,
            capture,
        })
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok(stream) => {
                    let capture = self.capture.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve(&stream, &capture).await {
                            tracing::debug!(%error, "a registration connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "pods.sock could not accept; trying again in a second");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn serve(stream: &PacketStream, capture: &Capture) -> io::Result<()> {
    loop {
        let reply = match stream.receive(PACKET).await {
            Ok(None) => return Ok(()),
            Ok(Some(packet)) => answer(packet, capture).await,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Reply::error(error.to_string())
            }
            Err(error) => return Err(error),
        };
        let bytes = fit(&reply)?;
        tokio::time::timeout(SEND, stream.send(&bytes, &[])).await??;
    }
}

/// A reply as a packet; a list ends where the packet does, and says where to go on.
fn fit(reply: &Reply) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(reply)?;
    if bytes.len() <= PACKET {
        return Ok(bytes);
    }
    let mut page = Reply {
        pods: None,
        ..reply.clone()
    };
    // What is not the list, and a uid to go on behind.
    let mut room = PACKET.saturating_sub(serde_json::to_vec(&page)?.len() + mesh_abi::MAX_UID + 64);
    let mut pods = Vec::new();
    for pod in reply.pods.iter().flatten() {
        let length = serde_json::to_vec(pod)?.len() + 1;
        if length > room {
            break;
        }
        room -= length;
        pods.push(pod.clone());
    }
    let Some(last) = pods.last() else {
        let text = "a pod is too long to be listed; the admin socket's /pods shows all";
        return Ok(serde_json::to_vec(&Reply::error(text))?);
    };
    page.next = Some(last.pod.uid.clone());
    page.pods = Some(pods);
    Ok(serde_json::to_vec(&page)?)
}

async fn answer(packet: Packet, capture: &Capture) -> Reply {
    let request = match parse(&packet.bytes) {
        Ok(request) => request,
        Err(why) => return Reply::error(why),
    };
    let answered = match request {
        Request::Add { pod, timeout_ms } => {
            let Ok([netns]) = <[_; 1]>::try_from(packet.descriptors) else {
                return Reply::error(format!(
                    "pod {}: exactly one descriptor, of its network namespace, must come with the request",
                    pod.title()
                ));
            };
            capture.add(pod, netns, patience(timeout_ms)).await
        }
        Request::Del { uid } => capture.del(uid).await,
        Request::List { after } => capture.list().await.map(|mut pods| {
            // In the order of their uids, as the registry holds them.
            pods.retain(|p| after.as_ref().is_none_or(|after| p.pod.uid > *after));
            Reply {
                ok: true,
                pods: Some(pods),
                ..Reply::default()
            }
        }),
    };
    answered.unwrap_or_else(|gone| Reply::error(gone.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{PodReport, PodState, Registration};

    fn report(uid: &str, reason: usize) -> PodReport {
        PodReport {
            pod: Registration {
                uid: uid.into(),
                namespace: "shop".into(),
                name: "web".into(),
                service_account: "web".into(),
                addresses: vec!["10.1.1.5".parse().unwrap()],
                veth_ifindex: 7,
                cgroup: None,
                probe_ports: vec![],
            },
            state: PodState::Refused,
            reason: Some("x".repeat(reason)),
        }
    }

    fn reply(pods: Vec<PodReport>) -> Reply {
        Reply {
            ok: true,
            pods: Some(pods),
            ..Reply::default()
        }
    }

    #[test]
    fn a_long_list_comes_in_pages_and_loses_nobody() {
        let all: Vec<_> = (0..500)
            .map(|n| report(&format!("u-{n:03}"), 300))
            .collect();
        let (mut seen, mut after, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let left = all
                .iter()
                .filter(|p| after.as_ref().is_none_or(|a| p.pod.uid > *a));
            let bytes = fit(&reply(left.cloned().collect())).unwrap();
            assert!(bytes.len() <= PACKET);
            let page: Reply = serde_json::from_slice(&bytes).unwrap();
            seen.extend(page.pods.unwrap());
            pages += 1;
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, all);
        assert!((3..8).contains(&pages), "{pages}");
        let short: Reply = serde_json::from_slice(&fit(&reply(all[..3].into())).unwrap()).unwrap();
        assert_eq!((short.pods.unwrap().len(), short.next), (3, None));
    }

    #[test]
    fn a_pod_that_fits_no_packet_is_an_error_and_not_the_end_of_the_list() {
        let bytes = fit(&reply(vec![report("u", 2 * PACKET)])).unwrap();
        let said: Reply = serde_json::from_slice(&bytes).unwrap();
        assert!(!said.ok && said.error.unwrap().contains("too long"));
    }
}
