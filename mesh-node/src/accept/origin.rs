//! Who is behind a CONNECT that a waypoint brings, and where one arrived that a node hands to a waypoint: in-band.
//!
//! Invariants: this only reads; whether the peer may say so is decided by the model, from what the peer proved. What is
//! there and cannot be read is an error, never nothing.

use std::net::SocketAddr;

use mesh_model::name::Identity;

use super::authority;
use crate::wire::Headers;

/// The header in which a waypoint names the original client's identity, a SPIFFE URI.
pub const SOURCE_HEADER: &str = "x-warren-source";
/// What it says there of a client outside the mesh, which proved nothing.
pub const NOBODY: &str = "none";
/// The header in which a node names the pod's address and port where a connection from outside the mesh arrived, which it
/// hands to a waypoint and to which it must be returned.
pub const RETURN_HEADER: &str = "x-warren-return-to";
/// The header with the original client's address (RFC 7239).
pub const FORWARDED: &str = "forwarded";

/// The original client, as a waypoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its identity; none when it is outside the mesh.
    pub identity: Option<Identity>,
    /// Its address.
    pub address: SocketAddr,
}

/// The headers cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// The original client that a request names; none when it names none.
pub fn origin(headers: &Headers) -> Result<Option<Origin>, Unreadable> {
    let mut named = headers.all(SOURCE_HEADER);
    let Some(identity) = named.next() else {
        return Ok(None);
    };
    let identity = match identity {
        NOBODY => None,
        identity => Some(identity.parse().map_err(|_| Unreadable)?),
    };
    match (named.next(), client(headers)) {
        (None, Some(address)) => Ok(Some(Origin { identity, address })),
        (Some(_), _) | (None, None) => Err(Unreadable),
    }
}

/// Where a connection arrived that is handed over; none when it is not said.
pub fn return_to(headers: &Headers) -> Result<Option<SocketAddr>, Unreadable> {
    let mut named = headers.all(RETURN_HEADER);
    let Some(text) = named.next() else {
        return Ok(None);
    };
    match (authority::parse(text), named.next()) {
        (Some(address), None) => Ok(Some(address)),
        (Some(_), Some(_)) | (None, _) => Err(Unreadable),
    }
}

/// The client's address that a request's one `forwarded` header names: `for="10.0.0.1:80"`, `for="[fd00::1]:80"`.
pub fn client(headers: &Headers) -> Option<SocketAddr> {
    let mut all = headers.all(FORWARDED);
    let (only, None) = (all.next()?, all.next()) else {
        return None;
    };
    let mut named = only.split(';').filter_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        key.eq_ignore_ascii_case("for").then_some(value)
    });
    let (value, None) = (named.next()?, named.next()) else {
        return None;
    };
    let address: SocketAddr = value.strip_prefix('"')?.strip_suffix('"')?.parse().ok()?;
    Some(super::canonical(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_whole_or_refused() {
        let check = |fields: &[(&str, &str)], expect: Result<Option<&str>, ()>| {
            let headers = fields
                .iter()
                .fold(Headers::new(), |h, (name, value)| h.with(*name, *value));
            let got = origin(&headers)
                .map(|o| {
                    o.map(|o| {
                        let who = o
                            .identity
                            .map_or_else(|| "nobody".into(), |i| i.to_string());
                        format!("{who} {}", o.address)
                    })
                })
                .map_err(|Unreadable| ());
            assert_eq!(got, expect.map(|o| o.map(str::to_owned)), "{fields:?}");
        };
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        let v4 = ("forwarded", "for=\"10.0.0.1:4711\"");
        check(&[], Ok(None));
        check(&[v4], Ok(None));
        check(
            &[(SOURCE_HEADER, NOBODY), v4],
            Ok(Some("nobody 10.0.0.1:4711")),
        );
        check(&[(SOURCE_HEADER, NOBODY)], Err(()));
        check(&[(SOURCE_HEADER, "None"), v4], Err(()));
        check(&[(SOURCE_HEADER, ""), v4], Err(()));
        check(
            &[(SOURCE_HEADER, NOBODY), (SOURCE_HEADER, web), v4],
            Err(()),
        );
        let both = |forwarded| [(SOURCE_HEADER, web), ("forwarded", forwarded)];
        check(
            &both("for=\"10.0.0.1:4711\""),
            Ok(Some("spiffe://cluster.local/ns/shop/sa/web 10.0.0.1:4711")),
        );
        check(
            &both("for=\"[fd00::1]:80\";host=\"db.shop.svc\""),
            Ok(Some("spiffe://cluster.local/ns/shop/sa/web [fd00::1]:80")),
        );
        for bad in [
            "",
            "for=10.0.0.1:80",
            "for=\"10.0.0.1\"",
            "for=\"unknown\"",
            "for=\"10.0.0.1:80\", for=\"10.0.0.2:80\"",
            "for=\"10.0.0.1:80\";for=\"10.0.0.2:80\"",
            "by=\"10.0.0.1:80\"",
        ] {
            check(&both(bad), Err(()));
        }
        check(&[(SOURCE_HEADER, web)], Err(()));
        check(&[(SOURCE_HEADER, "web"), v4], Err(()));
        check(&[(SOURCE_HEADER, web), (SOURCE_HEADER, web), v4], Err(()));
        check(&[(SOURCE_HEADER, web), v4, v4], Err(()));
    }

    #[test]
    fn where_a_connection_arrived_is_one_address_or_refused() {
        let check = |values: &[&str], expect: Result<Option<&str>, ()>| {
            let all = values.iter();
            let headers = all.fold(Headers::new(), |h, v| h.with(RETURN_HEADER, *v));
            let got = return_to(&headers).map_err(|Unreadable| ());
            let got = got.map(|a| a.map(|a| a.to_string()));
            assert_eq!(got, expect.map(|o| o.map(str::to_owned)), "{values:?}");
        };
        check(&[], Ok(None));
        check(&["10.0.0.1:8080"], Ok(Some("10.0.0.1:8080")));
        check(&["[fd00::1]:8080"], Ok(Some("[fd00::1]:8080")));
        for bad in ["", "10.0.0.1", "web:80", "10.0.0.1:80, 10.0.0.2:80"] {
            check(&[bad], Err(()));
        }
        check(&["10.0.0.1:80", "10.0.0.1:80"], Err(()));
    }
}
