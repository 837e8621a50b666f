//! From a decoded header block to a request or a response.
//!
//! Invariants: every pseudo field at most once and before all others; a CONNECT has exactly `:method` and
//! `:authority`; what breaks the rules of HTTP/2 is malformed, whatever status it might deserve.

use super::{Request, Response};
use crate::wire::headers::{Headers, is_name, is_value};

/// Collects the fields of one block.
#[derive(Debug, Default)]
pub struct Head {
    method: Option<String>,
    authority: Option<String>,
    status: Option<String>,
    other_pseudo: bool,
    headers: Headers,
    malformed: bool,
}

/// What a server makes of a block.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// A CONNECT.
    Connect(Request),
    /// A well-formed request that is not a plain CONNECT.
    Other,
    /// Not a request.
    Malformed,
}

/// Fields that belong to a connection, which HTTP/2 forbids.
const FORBIDDEN: [&[u8]; 5] = [
    b"connection",
    b"proxy-connection",
    b"keep-alive",
    b"transfer-encoding",
    b"upgrade",
];

impl Head {
    /// Takes one field.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        let Ok(value) = std::str::from_utf8(value) else {
            self.malformed = true;
            return;
        };
        if !is_value(value.as_bytes()) {
            self.malformed = true;
        } else if name.first() == Some(&b':') {
            self.pseudo(name, value);
        } else if !is_name(name) || FORBIDDEN.contains(&name) {
            self.malformed = true;
        } else if let Ok(name) = std::str::from_utf8(name) {
            self.malformed |= !self.headers.push(name, value);
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &str) {
        let slot = match name {
            b":method" => &mut self.method,
            b":authority" => &mut self.authority,
            b":status" => &mut self.status,
            b":path" | b":scheme" | b":protocol" => {
                self.other_pseudo = true;
                self.malformed |= !self.headers.is_empty();
                return;
            }
            _ => {
                self.malformed = true;
                return;
            }
        };
        self.malformed |= slot.is_some() || !self.headers.is_empty();
        *slot = Some(value.to_owned());
    }

    /// As a request.
    pub fn request(self) -> Asked {
        if self.malformed || self.status.is_some() {
            return Asked::Malformed;
        }
        match (self.method.as_deref(), self.authority) {
            (Some("CONNECT"), Some(authority)) if !self.other_pseudo && !authority.is_empty() => {
                Asked::Connect(Request {
                    authority,
                    headers: self.headers,
                })
            }
            (Some(_), _) => Asked::Other,
            (None, _) => Asked::Malformed,
        }
    }

    /// As a response; `None` if it is malformed.
    pub fn response(self) -> Option<Response> {
        if self.malformed || self.method.is_some() || self.authority.is_some() || self.other_pseudo
        {
            return None;
        }
        let status = self
            .status
            .filter(|s| s.len() == 3)?
            .parse()
            .ok()
            .filter(|s| *s >= 100)?;
        Some(Response {
            status,
            headers: self.headers,
        })
    }

    /// As trailers: whether they are well-formed.
    pub fn trailers(self) -> bool {
        let pseudo = self.method.is_some()
            || self.authority.is_some()
            || self.status.is_some()
            || self.other_pseudo;
        !self.malformed && !pseudo
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_connect_is_a_request() {
        let check = |fields: &[(&str, &str)], expect: &str| {
            let mut head = Head::default();
            fields
                .iter()
                .for_each(|(n, v)| head.field(n.as_bytes(), v.as_bytes()));
            let got = match head.request() {
                Asked::Connect(_) => "connect",
                Asked::Other => "other",
                Asked::Malformed => "malformed",
            };
            assert_eq!(got, expect, "{fields:?}");
        };
        let (method, authority) = ((":method", "CONNECT"), (":authority", "10.0.0.1:80"));
        check(&[method, authority], "connect");
        check(&[authority, method, ("baggage", "a=b")], "connect");
        check(&[method, authority, (":path", "/")], "other");
        check(&[method, authority, (":protocol", "websocket")], "other");
        check(&[(":method", "GET"), authority], "other");
        check(&[method], "other");
        check(&[method, (":authority", "")], "other");
        check(&[authority], "malformed");
        check(&[method, authority, authority], "malformed");
        check(&[method, ("baggage", "a"), authority], "malformed");
        check(&[method, authority, ("Baggage", "a")], "malformed");
        check(&[method, authority, ("connection", "close")], "malformed");
        check(&[method, authority, ("x", "a\r\nb")], "malformed");
        check(&[method, authority, (":status", "200")], "malformed");
        check(&[method, authority, (":unknown", "1")], "malformed");
    }

    #[test]
    fn a_status_has_three_digits() {
        let check = |status: &str, expect: Option<u16>| {
            let mut head = Head::default();
            head.field(b":status", status.as_bytes());
            assert_eq!(head.response().map(|r| r.status), expect, "{status:?}");
        };
        check("200", Some(200));
        check("503", Some(503));
        check("20", None);
        check("+20", None);
        check("099", None);
        check("2000", None);
        check("abc", None);
    }
}
