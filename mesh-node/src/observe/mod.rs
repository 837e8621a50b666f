//! Observing: one access-log line and one set of counters per flow, metrics, and the log itself.
//!
//! Invariants: nothing here blocks a data thread: log lines go through a bounded queue and are counted
//! when it is full; counters are resolved once per flow; the number of label sets is bounded.

mod access;
mod clusters;
mod flow;
mod http;
mod log;
mod node;
mod request;
mod requests;
mod spans;
mod traffic;

pub(crate) use http::reply;

pub use access::AccessFormat;
pub use clusters::{ClusterFigures, ClusterSource, EndpointFigures};
pub use flow::{Direction, FlowGuard, FlowRecord, Observer, Party, Path, Verdict, Wire};
pub use http::{MetricsServer, ReadyCheck, Standing};
pub use log::{LogControl, LogError, LogFormat, LogSink, init_logging};
pub use node::{
    DirectionLabel, DnsLabel, IdentityLabel, KernelCounters, Metrics, NodeMetrics, ProgramLabel,
    ReasonLabel, ResultLabel, StateLabel, TypeLabel,
};
pub use request::{RequestGuard, RequestRecord};
pub use requests::Requests;
pub use spans::{Decision, Finished, Mark, Span, Spans, decide};
pub use traffic::{Reporter, Traffic, TrafficCounters};
