//! What becomes of an HTTP request to a service: rules, in the order that the controller decided.
//!
//! One model below VirtualService and the Gateway API's routes. Invariants: the first set that speaks of the client
//! and the port decides, and in it the first rule that matches; a set without a matching rule answers 404; what could
//! not be understood is a rule that refuses, at its place in the order, never a rule that is skipped.

mod cors;
mod edit;
mod endpoints;
mod explain;
mod find;
pub mod path;
mod rule;

pub use cors::Crossing;
pub use endpoints::{Endpoint, NoWay, addressed, endpoints, pinned};
pub use explain::{Choice, Explanation, Tried, explain};
pub use find::{Asked, Found, choose};
pub use rule::{
    Action, Backend, Cors, Filters, HeaderEdits, Mirror, PathRewrite, Redirect, Respond, Rewrite,
    Rule,
};

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use regex::Regex;

use super::stream::StreamRule;
use crate::name::{Namespace, ServiceName};

/// All rules for requests to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// The service that clients address.
    pub service: ServiceName,
    /// The sets, in the order of looking.
    pub sets: Box<[RouteSet]>,
    /// Features that the rules need; one that this build does not know refuses every request.
    pub features: Box<[Arc<str>]>,
}

/// The rules for some clients and ports of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSet {
    /// The namespace whose clients it is for; everybody when absent.
    pub clients: Option<Namespace>,
    /// The service's ports that it is for; all when empty.
    pub ports: Box<[u16]>,
    /// The rules for requests, in the order of matching.
    pub rules: Box<[Rule]>,
    /// The rules for connections that carry none, in the order of matching.
    pub streams: Box<[StreamRule]>,
}

/// Labels that workloads are selected by, in the canonical form that [`crate::mesh::WorkloadExtra::groups`] lists:
/// `key=value` pairs ordered by key and joined by commas.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(pub Arc<str>);

/// What a request must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Its normalised path.
    pub path: Option<PathMatch>,
    /// Whether the path's case is ignored (Istio's `ignoreUriCase`; never for a regular expression).
    pub ignore_case: bool,
    /// Its scheme.
    pub scheme: Option<Text>,
    /// Its method.
    pub method: Option<Text>,
    /// Its authority, with the port if it was sent with one.
    pub authority: Option<Text>,
    /// Its headers.
    pub headers: Box<[HeaderMatch]>,
    /// Its query parameters.
    pub query: Box<[QueryMatch]>,
    /// The service's port that was addressed.
    pub port: Option<u16>,
    /// The client's labels.
    pub source: Option<Selector>,
    /// The client's namespace.
    pub source_namespace: Option<Namespace>,
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Byte for byte.
    Exact(Arc<str>),
    /// By its first bytes (Istio).
    Prefix(Arc<str>),
    /// By its first segments (Gateway API's `PathPrefix`): `/a` and `/a/b`, not `/ab`.
    Segments(Arc<str>),
    /// As a whole.
    Regex(Pattern),
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// Byte for byte.
    Exact(Arc<str>),
    /// By its first bytes.
    Prefix(Arc<str>),
    /// As a whole.
    Regex(Pattern),
    /// It only has to be there.
    Present,
}

/// What a header must be like. Values of a repeated header are joined by a comma first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Its name.
    pub name: http::HeaderName,
    /// Its value.
    pub value: Text,
    /// Whether the header must *not* be like that (Istio's `withoutHeaders`; absent satisfies it).
    pub negated: bool,
}

/// What a query parameter must be like: the first of that name, percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// Its name.
    pub name: Arc<str>,
    /// Its value.
    pub value: Text,
}

/// A regular expression of RE2's syntax, which has to match the whole text.
#[derive(Clone)]
pub struct Pattern {
    source: Arc<str>,
    regex: Regex,
    /// The expression without its anchors, which only substitutions need.
    anywhere: OnceLock<Regex>,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.source)
    }
}

/// The most memory that one compiled expression may take, in bytes.
const PATTERN_LIMIT: usize = 1 << 20;

impl Pattern {
    /// Compiles an expression; an error says what is wrong with it in one line.
    pub fn new(source: &str) -> Result<Self, String> {
        // The bare text first: `a)(b` is no expression, but would be one inside the anchors.
        let regex = compile(source).and_then(|_| compile(&format!("^(?:{source})$")));
        match regex {
            Ok(regex) => Ok(Self {
                source: source.into(),
                regex,
                anywhere: OnceLock::new(),
            }),
            Err(error) => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                Err(last.trim_start_matches("error: ").trim().to_owned())
            }
        }
    }

    /// What was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The expression as it was written, which may match a part of a text.
    fn anywhere(&self) -> &Regex {
        self.anywhere
            .get_or_init(|| compile(&self.source).expect("compiled once already"))
    }
}

fn compile(text: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(text)
        .size_limit(PATTERN_LIMIT)
        .build()
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}
