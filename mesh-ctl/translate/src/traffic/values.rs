//! Texts and numbers that objects write, as values: durations, shares, header names, bodies.
//!
//! Invariant: what is not understood is an error that says why, never another value.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_model::{resilience::Share, route::http::Pattern};

/// The longest duration that is taken, in seconds: a year. What is longer is a mistake.
const LONGEST: u64 = 366 * 24 * 3600;

/// A duration as Kubernetes and Istio write it: numbers with a unit each, such as `1m30s`, `0.5s` or `250ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write 5s, 250ms, 1m30s");
    let (mut left, mut total) = (text, Duration::ZERO);
    if text == "0" {
        return Ok(total);
    }
    if text.is_empty() {
        return Err(wrong());
    }
    while !left.is_empty() {
        let digits = left
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, rest) = left.split_at(digits);
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        left = rest;
    }
    if total.as_secs() > LONGEST {
        return Err(format!("{text:?} is longer than a year"));
    }
    Ok(total)
}

/// A share in per cent.
pub(crate) fn percent(value: f64) -> Result<Share, String> {
    Share::percent(value).ok_or_else(|| format!("{value} is not between 0 and 100 per cent"))
}

/// A header's name. What HTTP/2 calls `:authority` is its `host`.
pub(crate) fn header_name(text: &str) -> Result<HeaderName, String> {
    if text.eq_ignore_ascii_case(":authority") {
        return Ok(http::header::HOST);
    }
    text.parse().map_err(|_| {
        let shown = text.escape_debug().to_string();
        format!("{shown:?} is not a header's name")
    })
}

/// A header's value.
pub(crate) fn header_value(text: &str) -> Result<HeaderValue, String> {
    text.parse()
        .map_err(|_| "is not a header's value".to_owned())
}

/// An expression of RE2.
pub(crate) fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|error| format!("{text:?} is not an expression: {error}"))
}

/// Bytes from base64, with or without padding.
pub(crate) fn base64(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || "is not base64".to_owned();
    let text = text.trim_end_matches('=');
    let (mut bits, mut held, mut bytes) = (0_u32, 0_u32, Vec::with_capacity(text.len() * 3 / 4));
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return Err(wrong()),
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            // The eight bits above those that wait for the next digit.
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // Six bits left are a digit that says nothing; others left must be zero.
    if held == 6 || bits != 0 {
        return Err(wrong());
    }
    Ok(bytes)
}

/// A gRPC status by name or number.
pub(crate) fn grpc_status(text: &str) -> Result<u8, String> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let wanted = text.to_ascii_uppercase();
    let by_name = NAMES.iter().position(|name| *name == wanted);
    let number = by_name.or_else(|| text.parse().ok().filter(|n| *n < NAMES.len()));
    number
        .and_then(|n| u8::try_from(n).ok())
        .ok_or_else(|| format!("{text:?} is not a gRPC status"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_each() {
        let check = |text: &str, expect: Option<u64>| {
            let found = duration(text).ok();
            assert_eq!(found, expect.map(Duration::from_millis), "{text}");
        };
        check("10s", Some(10_000));
        check("0.5s", Some(500));
        check("250ms", Some(250));
        check("1m30s", Some(90_000));
        check("1h", Some(3_600_000));
        check("3m", Some(180_000));
        check("0", Some(0));
        check("0s", Some(0));
        for wrong in [
            "", "10", "s", "10x", "-1s", "1.2.3s", "99999h", "1s ", "1e3s",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        let check = |text: &str, expect: Option<&[u8]>| {
            assert_eq!(base64(text).ok().as_deref(), expect, "{text}");
        };
        check("", Some(b""));
        check("aGVsbG8=", Some(b"hello"));
        check("aGVsbG8", Some(b"hello"));
        check("AP/+", Some(&[0, 255, 254]));
        check("AP_-", Some(&[0, 255, 254]));
        check("a", None);
        check("a!", None);
        check("aGVsbG9", None);
    }

    #[test]
    fn grpc_statuses_have_names_and_numbers() {
        assert_eq!(grpc_status("UNAVAILABLE"), Ok(14));
        assert_eq!(grpc_status("unavailable"), Ok(14));
        assert_eq!(grpc_status("16"), Ok(16));
        assert!(grpc_status("17").is_err());
        assert!(grpc_status("NOPE").is_err());
    }
}
