//! A gRPC echo with all four kinds of call (tests/proto/echo.proto).
//!
//! The messages and the dispatch are written by hand: four methods do not need generated code.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use anyhow::Result;
use futures_util::{Stream, StreamExt, future::BoxFuture};
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    server::{
        ClientStreamingService, Grpc, ServerStreamingService, StreamingService, UnaryService,
    },
};
use tonic_prost::ProstCodec;

use super::web;

/// The port of the image it stands in for.
pub const PORT: u16 = 8053;

/// A call to echo.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoRequest {
    /// What comes back.
    #[prost(string, tag = "1")]
    pub text: String,
    /// How many answers ServerStream gives.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    /// A status code to fail with; 0 is success.
    #[prost(uint32, tag = "3")]
    pub code: u32,
}

/// An echo.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoResponse {
    /// What was sent.
    #[prost(string, tag = "1")]
    pub text: String,
    /// Who answered.
    #[prost(string, tag = "2")]
    pub pod: String,
    /// In which version.
    #[prost(string, tag = "3")]
    pub version: String,
    /// The position in a stream.
    #[prost(uint32, tag = "4")]
    pub index: u32,
}

type Codec = ProstCodec<EchoResponse, EchoRequest>;
type Answers = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Echo {
    version: String,
}

impl Echo {
    /// An echo that says it is `version`.
    pub fn new(version: String) -> Self {
        Self { version }
    }

    fn reply(&self, request: &EchoRequest, index: u32) -> Result<EchoResponse, Status> {
        match request.code {
            0 => Ok(EchoResponse {
                text: request.text.clone(),
                pod: web::pod_name(),
                version: self.version.clone(),
                index,
            }),
            code => Err(Status::new(Code::from_i32(code as i32), "asked for")),
        }
    }
}

impl UnaryService<EchoRequest> for Echo {
    type Response = EchoResponse;
    type Future = BoxFuture<'static, Result<Response<EchoResponse>, Status>>;

    fn call(&mut self, request: Request<EchoRequest>) -> Self::Future {
        let answer = self.reply(request.get_ref(), 0).map(Response::new);
        Box::pin(async move { answer })
    }
}

impl ServerStreamingService<EchoRequest> for Echo {
    type Response = EchoResponse;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<EchoRequest>) -> Self::Future {
        let (echo, request) = (self.clone(), request.into_inner());
        let count = request.count.clamp(1, 100_000);
        let answers = futures_util::stream::iter(0..count).map(move |i| echo.reply(&request, i));
        Box::pin(async move { Ok(Response::new(Box::pin(answers) as Answers)) })
    }
}

impl ClientStreamingService<EchoRequest> for Echo {
    type Response = EchoResponse;
    type Future = BoxFuture<'static, Result<Response<EchoResponse>, Status>>;

    fn call(&mut self, request: Request<Streaming<EchoRequest>>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut requests = request.into_inner();
            let mut all = EchoRequest::default();
            while let Some(next) = requests.message().await? {
                all.text.push_str(&next.text);
                all.count += 1;
                all.code = next.code;
            }
            echo.reply(&all, all.count).map(Response::new)
        })
    }
}

impl StreamingService<EchoRequest> for Echo {
    type Response = EchoResponse;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<EchoRequest>>) -> Self::Future {
        let echo = self.clone();
        let answers = request
            .into_inner()
            .enumerate()
            .map(move |(i, next)| echo.reply(&next?, i as u32));
        Box::pin(async move { Ok(Response::new(Box::pin(answers) as Answers)) })
    }
}

/// Dispatches a call by its path.
#[derive(Clone)]
pub struct EchoServer(Echo);

impl tonic::server::NamedService for EchoServer {
    const NAME: &'static str = "warren.sample.v1.Echo";
}

impl tonic::codegen::Service<http::Request<Body>> for EchoServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.0.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Codec::default());
            Ok(match request.uri().path().rsplit('/').next() {
                Some("Unary") => grpc.unary(echo, request).await,
                Some("ServerStream") => grpc.server_streaming(echo, request).await,
                Some("ClientStream") => grpc.client_streaming(echo, request).await,
                Some("Bidi") => grpc.streaming(echo, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// Serves until SIGTERM.
pub async fn grpc_echo(port: u16, version: String) -> Result<()> {
    let listener = web::listen(port)?;
    println!("listening on port {port}");
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tonic::transport::Server::builder()
        .add_service(EchoServer(Echo::new(version)))
        .serve_with_incoming_shutdown(
            tokio_stream::wrappers::TcpListenerStream::new(listener),
            async move {
                stop.recv().await;
            },
        )
        .await?;
    Ok(())
}
