//! One program for all sample applications: `warren-sample <app>`.

use anyhow::Result;
use clap::{Parser, Subcommand};
use mesh_tests::apps::{ask, book, bookinfo, collector, grpc_echo, httpbin, tcp_echo, ws_cases};

/// Sample applications for the lab and the tests. They know nothing of the mesh.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    app: App,
}

#[derive(Subcommand)]
enum App {
    /// The page of the bookstore; asks details and reviews.
    Productpage(Port),
    /// Facts about a book.
    Details(Port),
    /// Reviews of a book; v2 and v3 ask ratings.
    Reviews(Versioned),
    /// Stars by reviewer.
    Ratings(Versioned),
    /// A book with its rating; asks rating.
    Book(Port),
    /// A rating that can be told to misbehave.
    Rating(Versioned),
    /// HTTP echo: /headers /status/N /delay/S /bytes/N /stream/N /ws /anything.
    Httpbin(Versioned),
    /// gRPC echo, all four kinds of call.
    GrpcEcho(Versioned),
    /// OTLP over gRPC: writes each span that it gets as a line of JSON.
    Collector(Port),
    /// TCP echo, banner, sink or source.
    TcpEcho(Tcp),
    /// Call a sample and check every answer; prints one JSON object.
    Ask(Ask),
}

#[derive(clap::Args)]
struct Ask {
    /// In which protocol.
    #[arg(value_enum)]
    protocol: Protocol,
    /// host:port
    to: String,
    /// Messages of a stream.
    #[arg(long, default_value_t = 100)]
    count: u32,
    /// Bytes of a message at most.
    #[arg(long, default_value_t = 1000)]
    size: usize,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Protocol {
    /// All four kinds of call to the gRPC echo.
    Grpc,
    /// Messages over one connection to the HTTP echo.
    Websocket,
    /// Frames as clients may and may not send them, each case over a connection to the HTTP echo.
    WebsocketCases,
}

async fn ask_for(a: Ask) -> Result<()> {
    let seen = match a.protocol {
        Protocol::Grpc => ask::grpc(&a.to, a.count, a.size).await?,
        Protocol::Websocket => ask::websocket(&a.to, a.count as usize, a.size).await?,
        Protocol::WebsocketCases => ws_cases::run(&a.to).await?,
    };
    println!("{seen}");
    Ok(())
}

#[derive(clap::Args)]
struct Port {
    /// Port to listen on; the app's usual one unless given.
    #[arg(long, env = "PORT")]
    port: Option<u16>,
}

#[derive(clap::Args)]
struct Versioned {
    /// Port to listen on; the app's usual one unless given.
    #[arg(long, env = "PORT")]
    port: Option<u16>,
    /// Version to show and to behave like.
    #[arg(long, env = "SERVICE_VERSION", default_value = "v1")]
    version: String,
}

#[derive(clap::Args)]
struct Tcp {
    /// Ports to listen on.
    #[arg(long, env = "PORT", value_delimiter = ',', default_values_t = [tcp_echo::PORT])]
    port: Vec<u16>,
    /// Text to send before anything is read.
    #[arg(long, conflicts_with_all = ["sink", "source"])]
    banner: Option<String>,
    /// Read and discard; answer the count at the end.
    #[arg(long, conflicts_with = "source")]
    sink: bool,
    /// Send as much as the client takes.
    #[arg(long)]
    source: bool,
    /// Ignored extra arguments, so that an image's own arguments do no harm.
    #[arg(hide = true, trailing_var_arg = true)]
    _rest: Vec<String>,
}

impl Tcp {
    fn manner(&self) -> tcp_echo::Manner {
        match (&self.banner, self.sink, self.source) {
            (Some(text), _, _) => tcp_echo::Manner::Banner(format!("{text}\r\n")),
            (None, true, _) => tcp_echo::Manner::Sink,
            (None, false, true) => tcp_echo::Manner::Source,
            (None, false, false) => tcp_echo::Manner::Echo,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Cli::parse().app {
        App::Productpage(a) => bookinfo::productpage(a.port.unwrap_or(bookinfo::PORT)).await,
        App::Details(a) => bookinfo::details(a.port.unwrap_or(bookinfo::PORT)).await,
        App::Reviews(a) => bookinfo::reviews(a.port.unwrap_or(bookinfo::PORT), a.version).await,
        App::Ratings(a) => bookinfo::ratings(a.port.unwrap_or(bookinfo::PORT), a.version).await,
        App::Book(a) => book::book(a.port.unwrap_or(book::PORT)).await,
        App::Rating(a) => book::rating(a.port.unwrap_or(book::PORT), a.version).await,
        App::Httpbin(a) => httpbin::httpbin(a.port.unwrap_or(httpbin::PORT), a.version).await,
        App::GrpcEcho(a) => {
            grpc_echo::grpc_echo(a.port.unwrap_or(grpc_echo::PORT), a.version).await
        }
        App::Collector(a) => collector::collector(a.port.unwrap_or(collector::PORT)).await,
        App::Ask(a) => ask_for(a).await,
        App::TcpEcho(a) => tcp_echo::tcp_echo(&a.port, a.manner()).await,
    }
}
