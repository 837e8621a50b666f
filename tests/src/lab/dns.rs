//! The cluster's resolver as the lab plays it: it knows services, and nothing else.
//!
//! Invariants: it forwards nothing; a name it does not know is NXDOMAIN at once; a hostile packet is dropped.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Mutex,
    time::timeout,
};

use super::{
    net::{DNS_VIP, DNS_VIP6},
    service::{Addresses, Names},
};

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const NXDOMAIN: u8 = 3;
const TTL: u32 = 5;

/// Names in a file that is replaced whenever services change.
struct Table {
    path: PathBuf,
    read_at: Option<SystemTime>,
    names: Names,
}

impl Table {
    fn current(&mut self) -> Result<&Names> {
        let changed = std::fs::metadata(&self.path)?.modified()?;
        if self.read_at != Some(changed) {
            self.names = serde_json::from_str(&std::fs::read_to_string(&self.path)?)?;
            self.read_at = Some(changed);
        }
        Ok(&self.names)
    }
}

/// Serves both families, UDP and TCP, until it is ended.
pub async fn run(names: &Path) -> Result<()> {
    let table = Arc::new(Mutex::new(Table {
        path: names.to_owned(),
        read_at: None,
        names: Names::new(),
    }));
    let mut tasks = tokio::task::JoinSet::new();
    for ip in [IpAddr::V4(DNS_VIP), IpAddr::V6(DNS_VIP6)] {
        let at = SocketAddr::new(ip, 53);
        let udp = UdpSocket::bind(at)
            .await
            .with_context(|| format!("listening on {at}/udp"))?;
        let tcp = TcpListener::bind(at)
            .await
            .with_context(|| format!("listening on {at}/tcp"))?;
        tasks.spawn(serve_udp(udp, table.clone()));
        tasks.spawn(serve_tcp(tcp, table.clone()));
    }
    tasks
        .join_next()
        .await
        .context("four listeners were started")??
}

async fn serve_udp(socket: UdpSocket, table: Arc<Mutex<Table>>) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(reply) = answer(&buffer[..n], &mut *table.lock().await) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, table: Arc<Mutex<Table>>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("accepting a query")?;
        let table = table.clone();
        tokio::spawn(timeout(
            Duration::from_secs(10),
            serve_stream(stream, table),
        ));
    }
}

async fn serve_stream(mut stream: TcpStream, table: Arc<Mutex<Table>>) -> Option<()> {
    loop {
        let length = stream.read_u16().await.ok()?;
        let mut query = vec![0; length.into()];
        stream.read_exact(&mut query).await.ok()?;
        let reply = answer(&query, &mut *table.lock().await)?;
        stream
            .write_u16(u16::try_from(reply.len()).ok()?)
            .await
            .ok()?;
        stream.write_all(&reply).await.ok()?;
    }
}

fn answer(query: &[u8], table: &mut Table) -> Option<Vec<u8>> {
    let names = table
        .current()
        .inspect_err(|e| eprintln!("dns: {e:#}"))
        .ok()?;
    reply(query, |name| names.get(name).cloned())
}

fn reply(query: &[u8], find: impl Fn(&str) -> Option<Addresses>) -> Option<Vec<u8>> {
    let header = query.get(..12)?;
    let is_query = header[2] & 0xf8 == 0 && header[4..6] == [0, 1];
    if !is_query {
        return None;
    }
    let (name, end) = read_name(query, 12)?;
    let question = query.get(12..end + 4)?;
    let kind = u16::from_be_bytes([query[end], query[end + 1]]);
    let found = find(&name.to_ascii_lowercase());
    let code = if found.is_some() { 0 } else { NXDOMAIN };
    let found = found.unwrap_or_default();
    let records: Vec<Vec<u8>> = match kind {
        TYPE_A => found.v4.iter().map(|ip| ip.octets().to_vec()).collect(),
        TYPE_AAAA => found.v6.iter().map(|ip| ip.octets().to_vec()).collect(),
        _ => Vec::new(),
    };
    let count = u16::try_from(records.len()).ok()?.to_be_bytes();
    // Response, authoritative, recursion as asked and available.
    let mut out = vec![
        header[0],
        header[1],
        0x84 | (header[2] & 1),
        0x80 | code,
        0,
        1,
        count[0],
        count[1],
        0,
        0,
        0,
        0,
    ];
    out.extend_from_slice(question);
    for data in records {
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out.extend_from_slice(&TTL.to_be_bytes());
        out.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&data);
    }
    Some(out)
}

/// The name at `at` without its last dot, and the place behind it.
fn read_name(packet: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        match length {
            0 => return Some((labels.join("."), at)),
            1..=63 => labels.push(
                std::str::from_utf8(packet.get(at..at + length)?)
                    .ok()?
                    .to_owned(),
            ),
            // A question has no reason to point elsewhere.
            _ => return None,
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(kind: u8) -> Vec<u8> {
        let mut q = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3];
        q.extend_from_slice(b"Web\x01a\x00\x00");
        q.extend_from_slice(&[kind, 0, 1]);
        q
    }

    fn find(name: &str) -> Option<Addresses> {
        (name == "web.a").then(|| Addresses {
            v4: vec![[10, 96, 1, 1].into()],
            v6: vec![],
        })
    }

    #[test]
    fn answers_what_it_knows() {
        let got = reply(&query(1), find).expect("a reply");
        assert_eq!(&got[..8], &[7, 9, 0x85, 0x80, 0, 1, 0, 1]);
        assert_eq!(&got[got.len() - 4..], &[10, 96, 1, 1]);
        let none = reply(&query(28), find).expect("a reply");
        assert_eq!(
            &none[3..8],
            &[0x80, 0, 1, 0, 0],
            "the name exists, that kind of record does not"
        );
        assert_eq!(
            reply(&query(1), |_| None).expect("a reply")[3] & 15,
            NXDOMAIN
        );
    }

    #[test]
    fn drops_what_it_cannot_read() {
        for end in 0..query(1).len() {
            assert_eq!(reply(&query(1)[..end], find), None, "cut after {end} bytes");
        }
        let mut pointer = query(1);
        pointer[12] = 0xc0;
        assert_eq!(reply(&pointer, find), None);
    }
}
