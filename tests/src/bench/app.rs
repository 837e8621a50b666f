//! The application that is measured: an echo, a source of bytes and a small HTTP server on one port.
//!
//! The first byte of a connection says what is wanted: `G` begins an HTTP request, `S` asks for a stream of
//! the pattern; anything else is sent back. One port, so that a proxy with one listener serves every row; cheap,
//! so that what is measured is the way to it.

use std::{io, rc::Rc, time::Duration};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

use crate::{
    apps::web,
    load::{fill, flood, idle},
};

/// Its port.
pub const PORT: u16 = 9000;
/// Bytes of an HTTP answer's body.
const BODY: usize = 1024;
/// Bytes read at once: little, because ten thousand idle connections each hold as much.
const READ: usize = 4 * 1024;

/// What all conversations send.
struct Texts {
    answer: Vec<u8>,
    block: Vec<u8>,
}

impl Texts {
    fn new() -> Self {
        let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n").into_bytes();
        let head = answer.len();
        answer.resize(head + BODY, 0);
        fill(&mut answer[head..], 0);
        let mut block = vec![0; flood::BLOCK as usize];
        fill(&mut block, 0);
        Self { answer, block }
    }
}

/// Serves until SIGTERM.
pub async fn serve(port: u16) -> Result<()> {
    idle::raise_limit(0)?;
    let listener = web::listen(port)?;
    let texts = Rc::new(Texts::new());
    println!("listening on port {port}");
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    LocalSet::new()
        .run_until(async {
            tokio::select! { () = accept(&listener, &texts) => {}, _ = stop.recv() => {} }
        })
        .await;
    Ok(())
}

async fn accept(listener: &TcpListener, texts: &Rc<Texts>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(spawn_local(converse(stream, texts.clone()))),
            Err(e) => {
                eprintln!("accept: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One conversation. An error is the client's going away and ends it.
async fn converse(mut stream: TcpStream, texts: Rc<Texts>) {
    let _ = talk(&mut stream, &texts).await;
}

async fn talk(stream: &mut TcpStream, texts: &Texts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; READ];
    let n = stream.read(&mut buffer).await?;
    match buffer[..n].first() {
        None => Ok(()),
        Some(b'G') => http(stream, &mut buffer, n, &texts.answer).await,
        Some(first) if [*first] == *flood::ASK => loop {
            stream.write_all(&texts.block).await?;
        },
        Some(_) => echo(stream, &mut buffer, n).await,
    }
}

async fn echo(stream: &mut TcpStream, buffer: &mut [u8], first: usize) -> io::Result<()> {
    let mut n = first;
    while n > 0 {
        stream.write_all(&buffer[..n]).await?;
        n = stream.read(buffer).await?;
    }
    stream.shutdown().await
}

/// Answers each request alike; a client waits for its answer before it asks again.
async fn http(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    first: usize,
    answer: &[u8],
) -> io::Result<()> {
    let mut held = first;
    loop {
        if buffer[..held].ends_with(b"\r\n\r\n") {
            stream.write_all(answer).await?;
            held = 0;
        }
        match stream.read(&mut buffer[held..]).await? {
            0 => return Ok(()),
            n => held += n,
        }
    }
}
