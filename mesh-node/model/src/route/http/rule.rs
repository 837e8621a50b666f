//! One rule: what it is called, what it asks of a request, and what it does with it.
//!
//! Invariant: shares are exact; nothing here is computed from a request.

use std::{sync::Arc, time::Duration};

use super::{Match, Pattern};
use crate::{
    name::ServiceName,
    resilience::{Fault, Retries, Session, Share},
};

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it is called in logs, metrics and `mesh-ctl why`: `kind/namespace/name` of its object, then `#` and its
    /// name there or its number, e.g. `VirtualService/shop/reviews#canary`.
    pub name: Arc<str>,
    /// Any of these; none means every request.
    pub matches: Box<[Match]>,
    /// What is changed in requests and responses. A backend's own edits come after the rule's.
    pub filters: Filters,
    /// What becomes of the request.
    pub action: Action,
    /// How long the whole request may take, retries included; for ever when absent.
    pub timeout: Option<Duration>,
    /// When a request is tried again; never when absent.
    pub retries: Option<Retries>,
    /// Delays and failures put in on purpose.
    pub fault: Option<Fault>,
    /// Who else gets a copy.
    pub mirrors: Box<[Mirror]>,
    /// Cross-origin requests.
    pub cors: Option<Cors>,
    /// What keeps requests of a session together.
    pub session: Option<Session>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes to one of these, by weight. A sum of zero, or none at all, answers 500.
    Forward(Box<[Backend]>),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered at once.
    Respond(Respond),
    /// It is refused with 500: the rule could not be understood, for this reason.
    Invalid(Arc<str>),
}

/// A place that requests go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The service.
    pub service: ServiceName,
    /// Its port; the one that the client addressed when absent.
    pub port: Option<u16>,
    /// The subset of its endpoints, by the name that the service's [`crate::resilience::Destination`] gives it.
    pub subset: Option<Arc<str>>,
    /// Its share of the requests, relative to the others'.
    pub weight: u32,
    /// What is changed in requests to it and their responses.
    pub filters: Filters,
    /// Why it cannot be used: its share of the requests is answered 500.
    pub invalid: Option<Arc<str>>,
}

/// Changes to a request and its response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Changes to the request's target.
    pub rewrite: Option<Rewrite>,
    /// Changes to the request's headers.
    pub request: HeaderEdits,
    /// Changes to the response's headers.
    pub response: HeaderEdits,
}

/// Changes to headers, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Headers to remove.
    pub remove: Box<[http::HeaderName]>,
    /// Headers to have this value only.
    pub set: Box<[(http::HeaderName, http::HeaderValue)]>,
    /// Values to add.
    pub add: Box<[(http::HeaderName, http::HeaderValue)]>,
}

/// Changes to a request's target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The new authority.
    pub authority: Option<Arc<str>>,
    /// The new path.
    pub path: Option<PathRewrite>,
}

/// A new path. The query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// Instead of the whole path.
    Full(Arc<str>),
    /// Instead of what the match's prefix (of bytes or segments) covered; the whole path where the match was no prefix.
    Prefix(Arc<str>),
    /// Every match of an expression, with `\1` for its groups (RE2 rewrite syntax).
    Regex(Pattern, Arc<str>),
}

/// Where a client is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The scheme; the request's when absent.
    pub scheme: Option<Arc<str>>,
    /// The host; the request's when absent.
    pub host: Option<Arc<str>>,
    /// The port; when absent, the scheme's own if a scheme is given, else the request's.
    pub port: Option<u16>,
    /// The path; the request's when absent.
    pub path: Option<PathRewrite>,
}

/// An answer without a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: bytes::Bytes,
}

/// Who gets a copy of a request. Answers to copies are thrown away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where copies go; its weight says nothing.
    pub backend: Backend,
    /// How many requests are copied.
    pub share: Share,
}

/// Cross-origin requests, by the Fetch standard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Origins that are let in.
    pub origins: Box<[super::Text]>,
    /// Methods that a preflight is told.
    pub methods: Box<[Arc<str>]>,
    /// Request headers that a preflight is told.
    pub headers: Box<[Arc<str>]>,
    /// Response headers that scripts may read.
    pub expose: Box<[Arc<str>]>,
    /// How long a preflight's answer may be kept.
    pub max_age: Option<Duration>,
    /// Whether credentials may be sent.
    pub credentials: bool,
    /// Whether a preflight from an origin that is not let in goes on to the backend (Istio's `FORWARD`, its default).
    pub forward_unmatched: bool,
}
