//! A span while its request goes on, and what is left of it afterwards.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::HeaderMap;
use mesh_model::mesh::{TagValue, Tracing};
use tokio::sync::mpsc;

use super::context::{self, Decision, Mark, decide};
use crate::observe::{FlowRecord, Metrics, RequestRecord, ResultLabel};

/// Finished spans that wait for whoever sends them.
const QUEUE: usize = 4096;
/// The longest value of a tag, in bytes.
const TAG: usize = 256;

/// Takes finished spans. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Spans {
    queue: Option<mpsc::Sender<Box<Finished>>>,
    metrics: Metrics,
}

/// A span whose request goes on.
pub struct Span {
    mark: Mark,
    state: String,
    rule: Arc<Tracing>,
    asked: String,
    tags: Vec<(Arc<str>, String)>,
    began: SystemTime,
    spans: Spans,
}

/// A span whose request has ended.
#[derive(Debug)]
pub struct Finished {
    /// The names of the span, its trace and its parent.
    pub mark: Mark,
    /// W3C's `tracestate`, as it came.
    pub state: String,
    /// The rule that asks for the span; it names a collector.
    pub rule: Arc<Tracing>,
    /// The host and port that were asked for.
    pub asked: String,
    /// What the rule's tags say.
    pub tags: Vec<(Arc<str>, String)>,
    /// When the request came.
    pub began: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Who talked to whom.
    pub flow: FlowRecord,
    /// What was asked and answered.
    pub request: RequestRecord,
}

impl Spans {
    /// A queue, and its end for whoever sends them.
    pub fn new(metrics: Metrics) -> (Self, mpsc::Receiver<Box<Finished>>) {
        let (queue, end) = mpsc::channel(QUEUE);
        let queue = Some(queue);
        (Self { queue, metrics }, end)
    }

    /// Makes no spans.
    pub fn off(metrics: Metrics) -> Self {
        Self {
            queue: None,
            metrics,
        }
    }

    /// What becomes of a request by a rule: the context that goes on, and its span, which says what was asked for.
    pub fn begin(
        &self,
        rule: &Arc<Tracing>,
        headers: &HeaderMap,
        asked: impl FnOnce() -> String,
    ) -> (Option<Mark>, Option<Box<Span>>) {
        if self.queue.is_none() {
            return (None, None);
        }
        let sampled = || rule.sampling.covers(fastrand::u64(..));
        match decide(headers, sampled, || fastrand::u128(..)) {
            Decision::Leave => (None, None),
            Decision::Silent(mark) => (Some(mark), None),
            Decision::Traced(mark) => {
                let span = Span {
                    mark,
                    state: context::state(headers),
                    rule: rule.clone(),
                    asked: asked(),
                    tags: tags(rule, headers),
                    began: SystemTime::now(),
                    spans: self.clone(),
                };
                (Some(mark), Some(Box::new(span)))
            }
        }
    }

    fn take(&self, finished: Box<Finished>) {
        let sent = self.queue.as_ref().map(|queue| queue.try_send(finished));
        match sent {
            Some(Ok(())) => {}
            Some(Err(mpsc::error::TrySendError::Full(_))) => self.count("queue_full", 1),
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => self.count("ended", 1),
        }
    }

    /// Counts what became of spans.
    pub fn count(&self, result: &'static str, spans: usize) {
        let counter = &self.metrics.node().spans;
        let counter = counter.get_or_create(&ResultLabel { result });
        counter.inc_by(spans as u64);
    }
}

impl Span {
    /// The request has ended.
    pub fn finish(self, flow: &FlowRecord, request: &RequestRecord, took: Duration) {
        let Self {
            mark,
            state,
            rule,
            asked,
            tags,
            began,
            spans,
        } = self;
        spans.take(Box::new(Finished {
            mark,
            state,
            rule,
            asked,
            tags,
            began,
            took,
            flow: flow.clone(),
            request: request.clone(),
        }));
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mark.fmt(f)
    }
}

fn tags(rule: &Tracing, headers: &HeaderMap) -> Vec<(Arc<str>, String)> {
    let value = |from: &TagValue| {
        let text = match from {
            TagValue::Literal(text) => Some(text.to_string()),
            TagValue::Header(name, otherwise) => {
                let found = headers.get(&**name);
                let found = found.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
                found.or_else(|| otherwise.as_deref().map(str::to_owned))
            }
        };
        text.map(|mut text| {
            text.truncate(text.floor_char_boundary(TAG));
            text
        })
    };
    let said = rule.tags.iter();
    said.filter_map(|tag| Some((tag.name.clone(), value(&tag.value)?)))
        .collect()
}
