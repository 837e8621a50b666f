//! WebSocket frames as clients may and may not send them (RFC 6455), in the manner of Autobahn's test suite: what is
//! between client and server must carry each as it is, in whatever pieces it comes.
//!
//! Invariants: each case has a connection of its own; an answer that is wrong, missing or surplus is an error.

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message,
        protocol::{
            CloseFrame, Role,
            frame::{
                Frame,
                coding::{CloseCode, Control, Data, OpCode},
            },
        },
    },
};

type Socket = WebSocketStream<TcpStream>;

/// Lengths around those at which a frame's header grows, and one of many segments.
const SIZES: [usize; 9] = [0, 1, 125, 126, 127, 128, 65_535, 65_536, 1 << 20];

/// Runs all cases against the HTTP echo at `to` (host:port); returns how many there were.
pub async fn run(to: &str) -> Result<Value> {
    let mut cases = 0;
    for size in SIZES {
        for message in [
            Message::text("t".repeat(size)),
            Message::binary(vec![0xfe; size]),
        ] {
            let name = format!("{size} bytes");
            let mut socket = connect(to).await?;
            socket.send(message.clone()).await?;
            expect(&mut socket, &message).await.context(name)?;
            end(socket, CloseCode::Normal).await?;
            cases += 1;
        }
    }
    for size in [0, 5, 125] {
        let mut socket = connect(to).await?;
        let payload = vec![b'p'; size];
        socket.send(Message::Ping(payload.clone().into())).await?;
        let pong = Message::Pong(payload.into());
        expect(&mut socket, &pong).await.context("a ping")?;
        // One that was not asked for is passed over.
        socket.send(Message::Pong("unasked".into())).await?;
        echo(&mut socket, "after a pong").await?;
        end(socket, CloseCode::Away).await?;
        cases += 1;
    }
    fragments(to).await.context("fragments")?;
    for code in [
        CloseCode::Normal,
        CloseCode::Unsupported,
        CloseCode::from(3000),
        CloseCode::from(4999),
    ] {
        let mut socket = connect(to).await?;
        echo(&mut socket, "before the end").await?;
        end(socket, code)
            .await
            .with_context(|| format!("closing by {code}"))?;
        cases += 1;
    }
    for (name, frame) in faulty() {
        refused(to, &frame).await.context(name)?;
        cases += 1;
    }
    in_pieces(to).await.context("a byte at a time")?;
    Ok(json!({"cases": cases + 2}))
}

async fn connect(to: &str) -> Result<Socket> {
    let stream = TcpStream::connect(to)
        .await
        .with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    let (socket, _) = client_async(format!("ws://{to}/ws"), stream).await?;
    Ok(socket)
}

async fn expect(socket: &mut Socket, wanted: &Message) -> Result<()> {
    let got = socket.next().await.context("the server went away")??;
    ensure!(
        got == *wanted,
        "{} bytes came back as {} others",
        wanted.len(),
        got.len()
    );
    Ok(())
}

async fn echo(socket: &mut Socket, text: &str) -> Result<()> {
    socket.send(Message::text(text)).await?;
    expect(socket, &Message::text(text)).await
}

/// Closes; the server must answer with the same code, and nothing may follow.
async fn end(mut socket: Socket, code: CloseCode) -> Result<()> {
    let reason = "enough".into();
    socket.close(Some(CloseFrame { code, reason })).await?;
    match socket.next().await {
        Some(Ok(Message::Close(Some(frame)))) if frame.code == code => {}
        other => bail!("{code} was said, and answered by {other:?}"),
    }
    match socket.next().await {
        None => Ok(()),
        Some(other) => bail!("after the close came {other:?}"),
    }
}

/// A message in three parts, with a ping between them.
async fn fragments(to: &str) -> Result<()> {
    let mut socket = connect(to).await?;
    for (text, part, last) in [
        ("one ", Data::Text, false),
        ("two ", Data::Continue, false),
        ("three", Data::Continue, true),
    ] {
        let frame = Frame::message(text, OpCode::Data(part), last);
        socket.send(Message::Frame(frame)).await?;
        if part == Data::Text {
            socket.send(Message::Ping("between".into())).await?;
            expect(&mut socket, &Message::Pong("between".into())).await?;
        }
    }
    expect(&mut socket, &Message::text("one two three")).await?;
    end(socket, CloseCode::Normal).await
}

/// Frames that no client may send, as bytes under a mask of zeros.
fn faulty() -> [(&'static str, Vec<u8>); 6] {
    let masked = |first: u8, payload: &[u8]| {
        let length = 0x80 | u8::try_from(payload.len()).unwrap_or(u8::MAX);
        [&[first, length, 0, 0, 0, 0], payload].concat()
    };
    [
        ("a reserved bit", masked(0xc1, b"x")),
        ("an unknown kind of data", masked(0x83, b"x")),
        ("an unknown kind of control", masked(0x8b, b"x")),
        ("a control frame in parts", masked(0x09, b"x")),
        ("a continuation of nothing", masked(0x80, b"x")),
        ("text that is not UTF-8", masked(0x81, &[0xc0, 0xaf])),
    ]
}

/// The server ends the connection and echoes nothing.
async fn refused(to: &str, frame: &[u8]) -> Result<()> {
    let socket = connect(to).await?;
    let mut stream = socket.into_inner();
    stream.write_all(frame).await?;
    let mut rest = Vec::new();
    // By an end or by a reset, as the server likes.
    let _ = stream.read_to_end(&mut rest).await;
    let kind = rest.first().map(|b| b & 0x0f);
    let close = u8::from(OpCode::Control(Control::Close));
    ensure!(
        kind.is_none_or(|k| k == close),
        "the server answered {rest:?}"
    );
    Ok(())
}

/// A frame of which every byte comes alone.
async fn in_pieces(to: &str) -> Result<()> {
    let mut stream = connect(to).await?.into_inner();
    let text = b"letter by letter";
    let length = 0x80 | u8::try_from(text.len())?;
    for byte in [&[0x81, length, 0, 0, 0, 0], &text[..]].concat() {
        stream.write_all(&[byte]).await?;
        tokio::task::yield_now().await;
    }
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    expect(&mut socket, &Message::text("letter by letter")).await?;
    end(socket, CloseCode::Normal).await
}
