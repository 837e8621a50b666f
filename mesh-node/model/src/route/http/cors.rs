//! Cross-origin requests, by the Fetch standard.
//!
//! Invariants: an origin that is not let in gets no header that would let a script read anything; every response but a
//! preflight's says that it depends on the origin, so that no cache gives one origin what another was told.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        ORIGIN, VARY,
    },
};

use super::Cors;

/// What becomes of a request where cross-origin requests are ruled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// It goes on, and these headers are set in its response, which lets nobody read it.
    Plain(HeaderMap),
    /// It goes on, and these headers are set in its response.
    Marked(HeaderMap),
    /// It is a preflight: 200 with these headers and no body.
    Answered(HeaderMap),
}

impl Cors {
    /// What becomes of a request.
    pub fn look(&self, method: &str, headers: &HeaderMap) -> Crossing {
        let Some(origin) = headers.get(ORIGIN) else {
            return Crossing::Plain(varies());
        };
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = asked.filter(|_| method == "OPTIONS");
        let text = origin.to_str().ok();
        let let_in = text.is_some_and(|o| self.origins.iter().any(|t| t.matches(o)));
        match (preflight, let_in) {
            (None, false) => Crossing::Plain(varies()),
            (None, true) => Crossing::Marked(self.marks(origin)),
            (Some(_), false) if self.forward_unmatched => Crossing::Plain(varies()),
            (Some(_), false) => Crossing::Answered(HeaderMap::new()),
            (Some(method), true) => {
                let wanted = headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
                Crossing::Answered(self.permits(origin, method, wanted))
            }
        }
    }

    fn marks(&self, origin: &HeaderValue) -> HeaderMap {
        let mut out = self.allowed(origin);
        out.extend(varies());
        // `*` means itself for a request with credentials, and what a response has is not known yet.
        put(&mut out, ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose);
        out
    }

    fn permits(
        &self,
        origin: &HeaderValue,
        method: &HeaderValue,
        wanted: Option<&HeaderValue>,
    ) -> HeaderMap {
        let mut out = self.allowed(origin);
        // `*` means itself for a request with credentials: what is asked for is named instead.
        let named = |list: &[Arc<str>]| self.credentials && list.iter().any(|t| &**t == "*");
        if named(&self.methods) {
            out.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
        } else {
            put(&mut out, ACCESS_CONTROL_ALLOW_METHODS, &self.methods);
        }
        match wanted.filter(|_| named(&self.headers)) {
            Some(wanted) => {
                out.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
            }
            None => put(&mut out, ACCESS_CONTROL_ALLOW_HEADERS, &self.headers),
        }
        if let Some(age) = self.max_age {
            out.insert(ACCESS_CONTROL_MAX_AGE, age.as_secs().into());
        }
        out
    }

    fn allowed(&self, origin: &HeaderValue) -> HeaderMap {
        let mut out = HeaderMap::new();
        out.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            out.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        out
    }
}

/// That a response depends on who asks.
fn varies() -> HeaderMap {
    HeaderMap::from_iter([(VARY, HeaderValue::from_static("origin"))])
}

/// A list in one header; none for an empty list, or one that no header can carry.
fn put(headers: &mut HeaderMap, name: HeaderName, list: &[Arc<str>]) {
    if list.is_empty() {
        return;
    }
    let text: Vec<&str> = list.iter().map(|t| &**t).collect();
    if let Ok(value) = HeaderValue::from_str(&text.join(",")) {
        headers.insert(name, value);
    }
}
