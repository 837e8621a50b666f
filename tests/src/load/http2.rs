//! HTTP/2 requests with prior knowledge in a closed loop: each stream asks again as soon as it is answered.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use tokio::{net::TcpStream, task::JoinSet};

use super::{Report, check, http::Load};

/// How long a connection may take to end once the load is over.
const END: Duration = Duration::from_secs(5);

/// Runs the load with so many requests at once on each connection.
pub async fn run(load: Load, streams: usize) -> Report {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..load.connections {
        let load = load.clone();
        workers.spawn(async move { connection(&load, streams, begin).await });
    }
    let mut report = Report::default();
    while let Some(worker) = workers.join_next().await {
        report.merge(worker.expect("a worker does not panic"));
    }
    report.elapsed = begin.elapsed().saturating_sub(load.warm_up);
    report
}

async fn connection(load: &Load, streams: usize, begin: Instant) -> Report {
    let mut report = Report::default();
    let (client, driver) = match open(load).await {
        Ok(opened) => opened,
        Err(e) => {
            report.fail(&e);
            return report;
        }
    };
    let mut asking = JoinSet::new();
    for _ in 0..streams {
        let (load, client) = (load.clone(), client.clone());
        asking.spawn(async move {
            let mut report = Report::default();
            if let Err(e) = one(&load, client, begin, &mut report).await {
                report.fail(&e);
            }
            report
        });
    }
    while let Some(stream) = asking.join_next().await {
        report.merge(stream.expect("a worker does not panic"));
    }
    drop(client);
    let _ = tokio::time::timeout(END, driver).await;
    report
}

async fn open(load: &Load) -> io::Result<(SendRequest<Bytes>, tokio::task::JoinHandle<()>)> {
    let stream = TcpStream::connect(load.to).await?;
    stream.set_nodelay(true)?;
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake(stream)
        .await
        .map_err(io::Error::other)?;
    // How it ends shows in what is asked on it.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((client, driver))
}

async fn one(
    load: &Load,
    client: SendRequest<Bytes>,
    begin: Instant,
    report: &mut Report,
) -> io::Result<()> {
    let uri = format!("http://{}{}", load.host, load.path);
    let mut request = Request::get(uri);
    for (name, value) in &load.headers {
        request = request.header(name, value);
    }
    let request = request.body(()).map_err(io::Error::other)?;
    let mut client = client;
    loop {
        let sent = Instant::now();
        if sent.duration_since(begin) >= load.warm_up + load.time {
            return Ok(());
        }
        client = client.ready().await.map_err(io::Error::other)?;
        let (answer, _) = client
            .send_request(request.clone(), true)
            .map_err(io::Error::other)?;
        let answer = answer.await.map_err(io::Error::other)?;
        if answer.status() != 200 {
            return Err(io::Error::other(answer.status().to_string()));
        }
        let mut body = answer.into_body();
        let mut whole = BytesMut::new();
        while let Some(part) = body.data().await {
            let part = part.map_err(io::Error::other)?;
            let _ = body.flow_control().release_capacity(part.len());
            whole.extend_from_slice(&part);
        }
        if load.verify {
            check(&whole, 0)?;
        }
        if sent.duration_since(begin) >= load.warm_up {
            report.succeed(sent.elapsed(), whole.len() as u64);
        } else {
            report.warm += 1;
        }
    }
}
