//! Clients of the samples that speak what `curl` does not: gRPC and WebSocket.
//!
//! Invariants: every answer is compared with what was asked; a wrong, missing or surplus one is an error.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{client_async, tungstenite::Message};
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::grpc_echo::{EchoRequest, EchoResponse};

type Codec = ProstCodec<EchoRequest, EchoResponse>;
type Client = Grpc<tonic::transport::Channel>;

/// Makes all four kinds of call to a gRPC echo, the streaming ones with `count` messages of `size` bytes, and
/// one that is to fail; returns what was seen.
pub async fn grpc(to: &str, count: u32, size: usize) -> Result<Value> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{to}"))?
        .connect()
        .await
        .with_context(|| format!("connecting to {to}"))?;
    let mut client = Grpc::new(channel);
    let ask = |code| EchoRequest {
        text: "x".repeat(size),
        count,
        code,
    };
    let first = unary(&mut client, ask(0)).await?;
    ensure!(first.text == ask(0).text, "Unary brought other text back");
    let refused = unary(&mut client, ask(Code::NotFound as u32)).await;
    let status = refused.err().context("a call that was to fail succeeded")?;
    ensure!(
        status.code() == Code::NotFound,
        "NOT_FOUND was asked for, got {status}"
    );
    let served = server_stream(&mut client, ask(0)).await?;
    let told = client_stream(&mut client, &ask(0)).await?;
    let both = both_ways(&mut client, &ask(0)).await?;
    Ok(json!({
        "pod": first.pod, "version": first.version, "unary": 1, "refused": "NOT_FOUND",
        "serverStream": served, "clientStream": told, "bidi": both,
    }))
}

async fn ready(client: &mut Client) -> Result<(), Status> {
    let ready = client.ready().await;
    ready.map_err(|e| Status::unavailable(e.to_string()))
}

fn method(name: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(name)
}

async fn unary(client: &mut Client, ask: EchoRequest) -> Result<EchoResponse, Status> {
    ready(client).await?;
    let path = method("/warren.sample.v1.Echo/Unary");
    let answer = client.unary(Request::new(ask), path, Codec::default());
    Ok(answer.await?.into_inner())
}

async fn server_stream(client: &mut Client, ask: EchoRequest) -> Result<u32> {
    ready(client).await?;
    let (text, count) = (ask.text.clone(), ask.count);
    let path = method("/warren.sample.v1.Echo/ServerStream");
    let call = client.server_streaming(Request::new(ask), path, Codec::default());
    let answers = call.await?.into_inner();
    in_order(answers, &text, count)
        .await
        .context("ServerStream")
}

async fn client_stream(client: &mut Client, ask: &EchoRequest) -> Result<u32> {
    ready(client).await?;
    let asks: Vec<EchoRequest> = (0..ask.count).map(|_| ask.clone()).collect();
    let path = method("/warren.sample.v1.Echo/ClientStream");
    let call = client.client_streaming(
        Request::new(futures_util::stream::iter(asks)),
        path,
        Codec::default(),
    );
    let answer: EchoResponse = call.await?.into_inner();
    let all = ask.text.len() * ask.count as usize;
    ensure!(
        answer.text.len() == all && answer.index == ask.count,
        "ClientStream: {} of {all} bytes, {} of {} messages",
        answer.text.len(),
        answer.index,
        ask.count
    );
    Ok(answer.index)
}

/// Each message is sent only when the answer to the one before has come.
async fn both_ways(client: &mut Client, ask: &EchoRequest) -> Result<u32> {
    ready(client).await?;
    let (send, asks) = tokio::sync::mpsc::channel(1);
    let path = method("/warren.sample.v1.Echo/Bidi");
    send.send(ask.clone()).await?;
    let call = client.streaming(
        Request::new(tokio_stream::wrappers::ReceiverStream::new(asks)),
        path,
        Codec::default(),
    );
    let mut answers = call.await?.into_inner();
    for i in 0..ask.count {
        let answer: EchoResponse = answers.message().await?.context("Bidi ended early")?;
        ensure!(
            answer.index == i && answer.text == ask.text,
            "Bidi: answer {i} is number {}",
            answer.index
        );
        if i + 1 < ask.count {
            send.send(ask.clone()).await?;
        }
    }
    drop(send);
    ensure!(
        answers.message().await?.is_none(),
        "Bidi gave more answers than were asked for"
    );
    Ok(ask.count)
}

async fn in_order(
    mut answers: tonic::Streaming<EchoResponse>,
    text: &str,
    count: u32,
) -> Result<u32> {
    let mut got = 0;
    while let Some(answer) = answers.message().await? {
        ensure!(
            answer.index == got && answer.text == text,
            "answer {got} is number {}",
            answer.index
        );
        got += 1;
    }
    ensure!(got == count, "{got} of {count} answers");
    Ok(got)
}

/// Sends `count` messages of up to `size` bytes over one WebSocket, text and binary by turns, each when the one before
/// has come back, then closes; returns what was seen.
pub async fn websocket(to: &str, count: usize, size: usize) -> Result<Value> {
    let stream = TcpStream::connect(to)
        .await
        .with_context(|| format!("connecting to {to}"))?;
    let (local, peer): (SocketAddr, SocketAddr) = (stream.local_addr()?, stream.peer_addr()?);
    let (mut socket, answer) = client_async(format!("ws://{to}/ws"), stream).await?;
    ensure!(answer.status() == 101, "the server answered {answer:?}");
    let mut bytes = 0;
    for i in 0..count {
        let text = "w".repeat(1 + i * 977 % size.max(1));
        let message = if i % 2 == 0 {
            Message::text(text)
        } else {
            Message::binary(text.into_bytes())
        };
        bytes += message.len();
        socket.send(message.clone()).await?;
        let back = socket.next().await.context("the server went away")??;
        ensure!(back == message, "message {i} came back changed");
    }
    socket.close(None).await?;
    loop {
        match socket.next().await {
            None => break,
            Some(Ok(Message::Close(_))) => {}
            Some(other) => bail!("after the close came {other:?}"),
        }
    }
    Ok(json!({"messages": count, "bytes": bytes, "from": local, "to": peer, "closed": true}))
}
