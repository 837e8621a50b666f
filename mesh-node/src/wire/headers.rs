//! Header fields of a CONNECT request or its response, in the order they were received.
//!
//! Invariants: names are lower case; a value has no NUL, CR or LF; repeated names stay separate.

/// An ordered list of header fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a field. A name or value that may not travel in a header is left out, and `false` is returned.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) -> bool {
        let (name, value) = (name.into().to_ascii_lowercase(), value.into());
        let ok = is_name(name.as_bytes()) && is_value(value.as_bytes());
        if ok {
            self.0.push((name, value));
        }
        ok
    }

    /// The same list with one more field.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.push(name, value);
        self
    }

    /// The first value of `name` (lower case).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Every value of `name` (lower case), in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.iter().filter(move |(n, _)| *n == name).map(|(_, v)| v)
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A field name as HTTP/2 allows it: a token without upper case.
pub(crate) fn is_name(name: &[u8]) -> bool {
    let token =
        |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(b);
    !name.is_empty() && name.iter().all(token)
}

/// A field value as HTTP/2 allows it.
pub(crate) fn is_value(value: &[u8]) -> bool {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    !value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n'))
        && !blank(value.first())
        && !blank(value.last())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_that_may_travel_are_kept() {
        let check = |name: &str, value: &str, ok: bool| {
            assert_eq!(Headers::new().push(name, value), ok, "{name:?}: {value:?}")
        };
        check("baggage", "k=v", true);
        check("Baggage", "k=v", true);
        check("", "v", false);
        check("a b", "v", false);
        check("a:", "v", false);
        check("a", "v\r\nx: y", false);
        check("a", "v\0", false);
        check("a", " v", false);
        check("a", "", true);
    }
}
