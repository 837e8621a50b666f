//! What a client speaks, by its first bytes.
//!
//! Invariants: as little as possible is waited for; what is neither HTTP/1 nor HTTP/2 is bytes.

/// The connection preface of HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method that is known: `BASELINE-CONTROL`.
const METHOD: usize = 16;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 without TLS, known before.
    Http2,
    /// Anything else.
    Bytes,
}

/// What these first bytes are; `None` while more of them are needed.
pub fn spoken(first: &[u8]) -> Option<Spoken> {
    let common = first.len().min(PREFACE.len());
    if first[..common] == PREFACE[..common] {
        return (common == PREFACE.len()).then_some(Spoken::Http2);
    }
    // Leading empty lines are allowed before a request (RFC 9112, 2.2).
    let skipped = first.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    let line = &first[skipped.count().min(4)..];
    let method = line.iter().take_while(|b| is_of_method(**b)).count();
    if method > METHOD {
        return Some(Spoken::Bytes);
    }
    match line.get(method..) {
        None | Some([]) => None,
        Some([b' ', target, ..]) if method > 0 => Some(match target {
            b'/' | b'*' | b'h' | b'H' => Spoken::Http1,
            _ if &line[..method] == b"CONNECT" => Spoken::Http1,
            _ => Spoken::Bytes,
        }),
        Some([b' ']) if method > 0 => None,
        Some(_) => Some(Spoken::Bytes),
    }
}

/// The first byte of a TLS handshake's record (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
/// The most of a ClientHello that is looked at, in bytes.
const HELLO: usize = 16 << 10;

/// The name that TLS asks for in these first bytes, if it is TLS and asks for one; `None` while more of them are needed.
pub fn server_name(first: &[u8]) -> Option<Option<String>> {
    match first.first() {
        None => return None,
        Some(&HANDSHAKE) => {}
        Some(_) => return Some(None),
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = first;
    while !rest.is_empty() {
        if !matches!(acceptor.read_tls(&mut rest), Ok(n) if n > 0) {
            break;
        }
    }
    match acceptor.accept() {
        Ok(Some(accepted)) => Some(accepted.client_hello().server_name().map(str::to_owned)),
        Ok(None) if first.len() < HELLO => None,
        Ok(None) | Err(_) => Some(None),
    }
}

fn is_of_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        let check = |text: &[u8], expect: Option<Spoken>| {
            assert_eq!(
                spoken(text),
                expect,
                "{:?}",
                text.escape_ascii().to_string()
            );
        };
        check(b"", None);
        check(b"GET", None);
        check(b"GET ", None);
        check(b"GET /", Some(Spoken::Http1));
        check(b"\r\nGET / HTTP/1.1", Some(Spoken::Http1));
        check(b"OPTIONS *", Some(Spoken::Http1));
        check(b"GET http://a/", Some(Spoken::Http1));
        check(b"CONNECT a:1", Some(Spoken::Http1));
        check(b"M-SEARCH * HTTP/1.1", Some(Spoken::Http1));
        check(PREFACE, Some(Spoken::Http2));
        check(&PREFACE[..20], None);
        check(b"PRI", None);
        check(b"PRINT /", Some(Spoken::Http1));
        check(b"PRI * HTTP/2.0\r\n\r\nXX", Some(Spoken::Http1));
        check(b"SSH-2.0-x", Some(Spoken::Bytes));
        check(b"\x16\x03\x01", Some(Spoken::Bytes));
        check(b"PING\r\n", Some(Spoken::Bytes));
        check(b"*1\r\n$4\r\nPING\r\n", Some(Spoken::Bytes));
        check(b"get key\r\n", Some(Spoken::Bytes));
        check(b"GET key\r\n", Some(Spoken::Bytes));
        check(b"AAAAAAAAAAAAAAAAAAAAA", Some(Spoken::Bytes));
    }

    fn hello(name: &str) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("good")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let client = rustls::ClientConnection::new(std::sync::Arc::new(config), name);
        let mut first = Vec::new();
        client
            .expect("good")
            .write_tls(&mut first)
            .expect("written");
        first
    }

    #[test]
    fn names_are_read_of_what_is_tls() {
        let whole = hello("a.example");
        let named = Some(Some("a.example".to_owned()));
        assert_eq!(server_name(&whole), named);
        // What follows does not matter.
        assert_eq!(server_name(&[whole.as_slice(), b"more"].concat()), named);
        for end in 1..whole.len() {
            assert_eq!(server_name(&whole[..end]), None, "{end} bytes");
        }
        // An address is no name.
        assert_eq!(server_name(&hello("10.0.0.1")), Some(None));
        for other in [
            &b"GET / HTTP/1.1"[..],
            b"\x17\x03\x03\0\x01x",
            b"\x16\xff\xff\xff\xff",
        ] {
            assert_eq!(server_name(other), Some(None), "{}", other.escape_ascii());
        }
        assert_eq!(server_name(b""), None);
        // A record that never ends is waited for up to the bound.
        let mut endless = b"\x16\x03\x01\x40\x00\x01\x00\xff\xff".to_vec();
        assert_eq!(server_name(&endless), None);
        endless.resize(HELLO, 0);
        assert_eq!(server_name(&endless), Some(None));
    }

    /// Whatever comes, nothing panics, and what was once known stays so when more comes.
    #[test]
    fn hostile_bytes_are_known_once_and_for_all() {
        let mut random = fastrand::Rng::with_seed(7);
        let whole = hello("a.example");
        let seeds = [
            &whole[..],
            PREFACE,
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            b"M-SEARCH *",
        ];
        for _ in 0..4000 {
            let mut bytes = seeds[random.usize(..seeds.len())].to_vec();
            for _ in 0..random.usize(0..6) {
                let at = random.usize(..bytes.len());
                match random.u8(0..3) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.u8(..)),
                }
            }
            let (mut kind, mut name) = (None, None);
            for end in 0..=bytes.len() {
                let (now, called) = (spoken(&bytes[..end]), server_name(&bytes[..end]));
                assert!(kind.is_none() || kind == now, "{}", bytes.escape_ascii());
                assert!(name.is_none() || name == called, "{}", bytes.escape_ascii());
                (kind, name) = (now, called);
            }
        }
    }
}
