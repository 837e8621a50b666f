//! What a proxy reads of gRPC: how many messages pass, and how long a client waits.
//!
//! By gRPC's `PROTOCOL-HTTP2.md`. Invariant: nothing is changed and nothing kept of a message.

use std::time::Duration;

use http::HeaderMap;

/// Counts the messages of a body: a byte, four of a length, and as many of the message.
#[derive(Debug, Default)]
pub struct Messages {
    whole: u64,
    /// Bytes of the prefix that came.
    prefix: usize,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
}

/// Bytes in front of each message.
const PREFIX: usize = 5;

impl Messages {
    /// Reads on.
    pub fn read(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.prefix < PREFIX {
                if self.prefix > 0 {
                    self.length = self.length << 8 | u32::from(data[0]);
                }
                self.prefix += 1;
                data = &data[1..];
                self.left = self.length;
            } else {
                let taken = data.len().min(self.left as usize);
                // At most what is left, which is such a number.
                self.left -= taken as u32;
                data = &data[taken..];
            }
            if self.prefix == PREFIX && self.left == 0 {
                self.whole += 1;
                (self.prefix, self.length) = (0, 0);
            }
        }
    }

    /// How many came whole.
    pub fn whole(&self) -> u64 {
        self.whole
    }
}

/// How long the client of a request waits (`grpc-timeout`); `None` where it does not say so, or not in a way that can be
/// understood.
pub fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let digits = (1..=8).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| digits)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut body = Vec::new();
        for length in [0u32, 3, 0, 300, 1] {
            body.push(0);
            body.extend(length.to_be_bytes());
            body.extend(std::iter::repeat_n(7, length as usize));
        }
        for size in [1, 2, 3, 7, 64, body.len()] {
            let mut messages = Messages::default();
            body.chunks(size).for_each(|piece| messages.read(piece));
            assert_eq!(messages.whole(), 5, "in pieces of {size}");
        }
        let mut messages = Messages::default();
        messages.read(&body[..body.len() - 1]);
        assert_eq!(messages.whole(), 4, "the last one has not come whole");
        // The longest that can be announced.
        let mut messages = Messages::default();
        messages.read(&[0, 255, 255, 255, 255, 1, 2, 3]);
        assert_eq!(messages.whole(), 0);
    }

    #[test]
    fn a_clients_patience_has_eight_digits_and_a_unit() {
        let check = |text: &str, expect: Option<Duration>| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a value"));
            assert_eq!(patience(&headers), expect, "{text:?}");
        };
        check("1H", Some(Duration::from_secs(3600)));
        check("2M", Some(Duration::from_secs(120)));
        check("3S", Some(Duration::from_secs(3)));
        check("40m", Some(Duration::from_millis(40)));
        check("50u", Some(Duration::from_micros(50)));
        check("60n", Some(Duration::from_nanos(60)));
        check("0S", Some(Duration::ZERO));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "+1S",
            "1.5S",
            "123456789S",
            "1 S",
        ] {
            check(bad, None);
        }
        assert_eq!(patience(&HeaderMap::new()), None);
    }
}
