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
}
