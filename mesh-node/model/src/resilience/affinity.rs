//! What a consistent hash is made of: the part of a request that says whose it is; and sessions, which name an endpoint.
//!
//! Invariants: a request without that part has no hash, and is balanced at random; a session is a number that means an
//! endpoint only while it is one, so that a client can choose among endpoints that it may use anyway, and no others.

use std::{borrow::Cow, net::IpAddr, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{COOKIE, SET_COOKIE},
};

use super::{Affinity, AffinityKey};
use crate::{
    balance,
    name::WorkloadUid,
    route::http::path::{decoded, parameter},
};

/// Hexadecimal digits of a value that is made here.
const TOKEN: usize = 16;

impl AffinityKey {
    /// What a request has of it.
    fn value<'a>(
        &self,
        headers: &'a HeaderMap,
        query: Option<&'a str>,
        client: IpAddr,
    ) -> Option<Cow<'a, [u8]>> {
        Some(match self {
            Self::Header(name) => headers.get(name)?.as_bytes().into(),
            Self::Cookie { name, .. } => cookie(headers, name)?.into(),
            Self::Source => match client.to_canonical() {
                IpAddr::V4(ip) => ip.octets().to_vec().into(),
                IpAddr::V6(ip) => ip.octets().to_vec().into(),
            },
            Self::Query(name) => decoded(parameter(query?, name)?),
        })
    }

    /// The `set-cookie` that gives a client this value; `None` where it is no cookie.
    fn given(&self, value: &str) -> Option<String> {
        let Self::Cookie {
            name,
            path,
            ttl,
            attributes,
        } = self
        else {
            return None;
        };
        let mut text = format!("{name}={value}");
        if let Some(ttl) = ttl.filter(|ttl| *ttl != Duration::ZERO) {
            text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !path.is_empty() {
            text.push_str(&format!("; Path={path}"));
        }
        for (key, value) in attributes {
            text.push_str(&match value {
                Some(value) => format!("; {key}={value}"),
                None => format!("; {key}"),
            });
        }
        text.push_str("; HttpOnly");
        Some(text)
    }

    /// The session that a request says it belongs to: which endpoint ([`session_of`]) answered the first one.
    pub fn session(&self, headers: &HeaderMap) -> Option<u64> {
        let value = match self {
            Self::Header(_) | Self::Cookie { .. } => {
                self.value(headers, None, IpAddr::from([0; 4]))?
            }
            Self::Source | Self::Query(_) => return None,
        };
        let text = std::str::from_utf8(&value).ok()?;
        (text.len() == TOKEN)
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
    }

    /// The header of an answer that makes the requests that follow belong to an endpoint's session.
    pub fn begin_session(&self, endpoint: &WorkloadUid) -> Option<(HeaderName, HeaderValue)> {
        let value = format!("{:0TOKEN$x}", session_of(endpoint));
        let (name, value) = match self {
            Self::Header(name) => (name.clone(), value),
            Self::Cookie { .. } => (SET_COOKIE, self.given(&value)?),
            Self::Source | Self::Query(_) => return None,
        };
        Some((name, HeaderValue::try_from(value).ok()?))
    }
}

/// What stands for an endpoint in sessions. Every proxy makes the same of it, and it says nothing of where the endpoint is.
pub fn session_of(endpoint: &WorkloadUid) -> u64 {
    balance::hash(endpoint.as_str().as_bytes())
}

impl Affinity {
    /// The hash of a request.
    pub fn hash(&self, headers: &HeaderMap, query: Option<&str>, client: IpAddr) -> Option<u64> {
        let value = self.key.value(headers, query, client)?;
        Some(balance::hash(&value))
    }

    /// For a request that has no cookie where one is to be made: its hash, and the `set-cookie` that the response is to
    /// carry. `draw` is uniform over all of `u64`.
    pub fn new_cookie(&self, draw: u64) -> Option<(u64, String)> {
        let AffinityKey::Cookie { ttl: Some(_), .. } = &self.key else {
            return None;
        };
        let value = format!("{draw:0TOKEN$x}");
        let text = self.key.given(&value)?;
        Some((balance::hash(value.as_bytes()), text))
    }
}

/// A cookie's value, without quotation marks.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lists = headers.get_all(COOKIE).iter().map(|v| v.as_bytes());
    let pairs = lists.flat_map(|list| list.split(|b| *b == b';'));
    pairs.into_iter().find_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        let (key, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        let inner = value
            .strip_prefix(b"\"")
            .and_then(|v| v.strip_suffix(b"\""));
        (key == name.as_bytes()).then_some(inner.unwrap_or(value))
    })
}
