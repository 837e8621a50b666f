//! One way to write a path, for policies and routes alike, and the parameters of a query.
//!
//! As Istio's `pathNormalization: BASE`, after RFC 3986 (6.2.2): escaped unreserved characters are decoded, escapes are in
//! upper case, `\` is `/`, dot segments are removed. Slashes are not merged, and an escaped slash stays one.
//! Invariants: normalising twice changes nothing more; a path that a server behind could read as another one is refused.

use std::borrow::Cow;

/// Why a path is refused, with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It does not begin with a slash.
    #[error("the path does not begin with a slash")]
    Relative,
    /// A `%` without two hexadecimal digits.
    #[error("the path has a percent sign without two hexadecimal digits")]
    Escape,
    /// A control character or a space, escaped as NUL or as it is.
    #[error("the path has a NUL, a space or a control character")]
    Control,
    /// A fragment, which is never sent.
    #[error("the path has a fragment")]
    Fragment,
    /// A dot segment beside an escaped slash or backslash, which only some servers see.
    #[error("the path has a dot segment beside an escaped slash")]
    HiddenDots,
}

/// The path in its one form. `raw` is without the query; an empty one is `/`, and `*` (of OPTIONS) stays.
pub fn normalise(raw: &str) -> Result<Cow<'_, str>, Malformed> {
    match raw {
        "" => return Ok(Cow::Borrowed("/")),
        "*" => return Ok(Cow::Borrowed("*")),
        _ => {}
    }
    let bytes = raw.as_bytes();
    if bytes.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return Err(Malformed::Control);
    }
    if bytes.contains(&b'#') {
        return Err(Malformed::Fragment);
    }
    if !matches!(bytes.first(), Some(b'/' | b'\\')) {
        return Err(Malformed::Relative);
    }
    let escaped = bytes.iter().any(|b| matches!(b, b'%' | b'\\'));
    if !escaped && !raw.contains("/.") {
        return Ok(Cow::Borrowed(raw));
    }
    let text = if escaped {
        unescaped(raw)?
    } else {
        raw.to_owned()
    };
    if text.contains('%') && text.split('/').any(hides_dots) {
        return Err(Malformed::HiddenDots);
    }
    let text = without_dots(&text);
    Ok(if text == raw {
        Cow::Borrowed(raw)
    } else {
        Cow::Owned(text)
    })
}

/// Unreserved characters decoded, other escapes in upper case, backslashes turned.
fn unescaped(raw: &str) -> Result<String, Malformed> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find(['%', '\\']) {
        out.push_str(&rest[..at]);
        if rest.as_bytes()[at] == b'\\' {
            out.push('/');
            rest = &rest[at + 1..];
            continue;
        }
        let byte = escape(rest.as_bytes(), at).ok_or(Malformed::Escape)?;
        match byte {
            0 => return Err(Malformed::Control),
            b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b if b.is_ascii_alphanumeric() => out.push(char::from(b)),
            _ => out.push_str(&rest[at..at + 3].to_ascii_uppercase()),
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The byte that the escape at this place stands for.
fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    match bytes.get(at..at + 3)? {
        [b'%', high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    }
}

/// Whether a segment has a dot segment in it once its escaped slashes are taken for slashes.
fn hides_dots(segment: &str) -> bool {
    let escaped = |s: &str| s.contains("%2F") || s.contains("%5C");
    escaped(segment)
        && segment
            .replace("%5C", "%2F")
            .split("%2F")
            .any(|part| matches!(part, "." | ".."))
}

/// RFC 3986, 5.2.4. The path begins with a slash.
fn without_dots(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => out.push('/'),
            "." => {}
            ".." => {
                out.truncate(out.rfind('/').unwrap_or(0));
                if last {
                    out.push('/');
                }
            }
            other => {
                out.push('/');
                out.push_str(other);
            }
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// The first parameter of that name, as it was sent; a name may be escaped.
pub(crate) fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let is = |key: &str| key == name || (key.contains('%') && *decoded(key) == *name.as_bytes());
    pairs.into_iter().find(|(k, _)| is(k)).map(|(_, v)| v)
}

/// Escapes decoded; what is no escape stays.
pub(crate) fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match escape(bytes, at) {
            Some(decoded) => {
                out.push(decoded);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}
