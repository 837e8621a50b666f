//! Header fields that belong to one connection only, and those that tell an application of its client.
//!
//! Invariants: fields of a connection never go on to the next (RFC 9110, 7.6.1), `te: trailers` excepted, which gRPC
//! asks for; what a client says of a request's way is kept, and ours is appended.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// Fields of one connection, whether or not `connection` names them.
const OF_CONNECTION: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Another protocol that a request of HTTP/1.1 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade(HeaderValue);

/// What a request asks to be upgraded to, when it does.
pub fn upgrade(headers: &HeaderMap) -> Option<Upgrade> {
    let wanted = headers.get(header::UPGRADE)?;
    let named = headers.get_all(header::CONNECTION).iter().any(|value| {
        let tokens = value.to_str().unwrap_or_default().split(',');
        tokens
            .into_iter()
            .any(|t| t.trim().eq_ignore_ascii_case("upgrade"))
    });
    // HTTP/2 by upgrade is an optimisation of HTTP/1.1 that a proxy may leave out.
    (named && !wanted.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| Upgrade(wanted.clone()))
}

impl Upgrade {
    /// To a protocol of this name; `None` when it is no name.
    pub fn to(protocol: &str) -> Option<Self> {
        HeaderValue::try_from(protocol).ok().map(Self)
    }

    /// Whether it is to WebSocket.
    pub fn is_websocket(&self) -> bool {
        self.0.as_bytes().eq_ignore_ascii_case(b"websocket")
    }

    /// Asks, or answers, for it on the next connection.
    pub fn put(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, self.0.clone());
    }
}

/// Takes out the fields of a connection.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        let mut kinds = value.to_str().unwrap_or_default().split(',');
        kinds.any(|k| k.trim().eq_ignore_ascii_case("trailers"))
    });
    for name in named.iter().chain(&OF_CONNECTION) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether a request is one of gRPC.
pub fn is_grpc(method: &Method, headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|k| k.strip_prefix(b"application/grpc"));
    *method == Method::POST && rest.is_some_and(|r| matches!(r.first(), None | Some(b'+' | b';')))
}

/// Tells the application of its client, and gives the request a name where it has none.
pub fn forwarded(headers: &mut HeaderMap, client: IpAddr) {
    let before: Vec<&str> = headers
        .get_all(&X_FORWARDED_FOR)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    let all = match before.is_empty() {
        true => client.to_string(),
        false => format!("{},{client}", before.join(",")),
    };
    if let Ok(value) = HeaderValue::try_from(all) {
        headers.insert(X_FORWARDED_FOR, value);
    }
    headers
        .entry(X_FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
    if !headers.contains_key(&X_REQUEST_ID)
        && let Ok(value) = HeaderValue::try_from(uuid(fastrand::u128(..)))
    {
        headers.insert(X_REQUEST_ID, value);
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn fields_of_a_connection_stay_there() {
        let mut map = headers(&[
            ("connection", "close, x-own"),
            ("x-own", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, trailers"),
            ("upgrade", "websocket"),
            ("x-kept", "1"),
        ]);
        strip(&mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-kept"]);
        assert_eq!(map["te"], "trailers");
    }

    #[test]
    fn upgrades_are_asked_for_by_both_fields() {
        let check = |fields: &[(&'static str, &'static str)], expect: bool| {
            assert_eq!(upgrade(&headers(fields)).is_some(), expect, "{fields:?}");
        };
        check(&[("connection", "Upgrade"), ("upgrade", "websocket")], true);
        check(
            &[
                ("connection", "keep-alive, upgrade"),
                ("upgrade", "websocket"),
            ],
            true,
        );
        check(&[("upgrade", "websocket")], false);
        check(&[("connection", "upgrade")], false);
        check(&[("connection", "upgrade"), ("upgrade", "h2c")], false);
    }

    #[test]
    fn the_client_is_appended_and_the_request_named() {
        let mut map = headers(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
        ]);
        forwarded(&mut map, "10.0.0.1".parse().expect("an address"));
        assert_eq!(map["x-forwarded-for"], "1.1.1.1,2.2.2.2,10.0.0.1");
        assert_eq!(map["x-forwarded-proto"], "http");
        let id = map["x-request-id"].to_str().expect("text").to_owned();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        forwarded(&mut map, "10.0.0.2".parse().expect("an address"));
        assert_eq!(map["x-request-id"], id.as_str());
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        let check = |kind: &'static str, expect: bool| {
            let map = headers(&[("content-type", kind)]);
            assert_eq!(is_grpc(&Method::POST, &map), expect, "{kind}");
            assert!(!is_grpc(&Method::GET, &map));
        };
        check("application/grpc", true);
        check("application/grpc+proto", true);
        check("application/grpc;x=1", true);
        check("application/grpc-web", false);
        check("application/json", false);
    }
}
