//! What a consistent hash is made of: the part of a request that says whose it is.
//!
//! Invariant: a request without that part has no hash, and is balanced at random.

use std::{borrow::Cow, net::IpAddr, time::Duration};

use http::{HeaderMap, header::COOKIE};

use super::{Affinity, AffinityKey};
use crate::{
    balance,
    route::http::path::{decoded, parameter},
};

/// Hexadecimal digits of a value that is made here.
pub(super) const TOKEN: usize = 16;

/// A value that is made here.
pub(super) fn token(number: u64) -> String {
    format!("{number:0TOKEN$x}")
}

impl AffinityKey {
    /// What a request has of it.
    fn value<'a>(
        &self,
        headers: &'a HeaderMap,
        query: Option<&'a str>,
        client: IpAddr,
    ) -> Option<Cow<'a, [u8]>> {
        Some(match self {
            Self::Header(_) | Self::Cookie { .. } => self.brought(headers)?.into(),
            Self::Source => match client.to_canonical() {
                IpAddr::V4(ip) => ip.octets().to_vec().into(),
                IpAddr::V6(ip) => ip.octets().to_vec().into(),
            },
            Self::Query(name) => decoded(parameter(query?, name)?),
        })
    }

    /// What a request brings in its header or cookie; `None` also where it is neither.
    pub(super) fn brought<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        match self {
            Self::Header(name) => headers.get(name).map(|value| value.as_bytes()),
            Self::Cookie { name, .. } => cookie(headers, name),
            Self::Source | Self::Query(_) => None,
        }
    }

    /// The `set-cookie` that gives a client this value for a time (none, or zero: for the client's session); `None`
    /// where it is no cookie.
    pub(super) fn cookie(&self, value: &str, ttl: Option<Duration>) -> Option<String> {
        let Self::Cookie {
            name,
            path,
            ttl: _,
            attributes,
        } = self
        else {
            return None;
        };
        let mut text = format!("{name}={value}");
        if let Some(ttl) = ttl.filter(|ttl| *ttl != Duration::ZERO) {
            // Less than a second would be none at all.
            text.push_str(&format!("; Max-Age={}", ttl.as_millis().div_ceil(1000)));
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
        let AffinityKey::Cookie { ttl: Some(ttl), .. } = &self.key else {
            return None;
        };
        let value = token(draw);
        let text = self.key.cookie(&value, Some(*ttl))?;
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
