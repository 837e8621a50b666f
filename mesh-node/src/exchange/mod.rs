//! HTTP below the steps of the story: what a client speaks, bodies, connections to endpoints, which endpoint is next.
//!
//! As tunnels are for bytes, this folder is for requests; `serve/http.rs` tells their story. Invariants: a connection
//! carries the requests of one client only, because the server's node decides by connection who the client is; what is
//! kept of a body for another try is bounded; every count that bounds something is given back when its guard is dropped.

mod answer;
mod body;
mod cluster;
mod connection;
mod count;
mod fields;
mod grpc;
mod kept;
mod patience;
mod sniff;

pub use answer::{Local, grpc_status, local};
pub use body::{Failure, Reply};
pub use cluster::{Cluster, ClusterKey, Clusters, Joined, Picked, Taken, Wish};
pub use connection::{
    Bounds, Connections, Key, OnThread, Opened, SendError, Sender, Streaming, open,
};
pub use count::{Count, Counted};
pub use fields::{Upgrade, forwarded, is_grpc, strip, upgrade};
pub use grpc::{Messages, patience};
pub use kept::{Kept, Outgoing};
pub use patience::{Over, Patience, Waiting};
pub use sniff::{Spoken, server_name, spoken};
