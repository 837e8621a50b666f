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

impl Affinity {
    /// The hash of a request.
    pub fn hash(&self, headers: &HeaderMap, query: Option<&str>, client: IpAddr) -> Option<u64> {
        let value: Cow<'_, [u8]> = match &self.key {
            AffinityKey::Header(name) => headers.get(name)?.as_bytes().into(),
            AffinityKey::Cookie { name, .. } => cookie(headers, name)?.into(),
            AffinityKey::Source => match client.to_canonical() {
                IpAddr::V4(ip) => ip.octets().to_vec().into(),
                IpAddr::V6(ip) => ip.octets().to_vec().into(),
            },
            AffinityKey::Query(name) => decoded(parameter(query?, name)?),
        };
        Some(balance::hash(&value))
    }

    /// For a request that has no cookie where one is to be made: its hash, and the `set-cookie` that the response is to
    /// carry. `draw` is uniform over all of `u64`.
    pub fn new_cookie(&self, draw: u64) -> Option<(u64, String)> {
        let AffinityKey::Cookie {
            name,
            path,
            ttl: Some(ttl),
            attributes,
        } = &self.key
        else {
            return None;
        };
        let value = format!("{draw:016x}");
        let mut text = format!("{name}={value}");
        if *ttl != Duration::ZERO {
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
