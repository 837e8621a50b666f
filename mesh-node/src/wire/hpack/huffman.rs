//! The Huffman code of HPACK (RFC 7541, appendix B), decoding only: our encoder sends plain literals.
//!
//! Invariant: the code is canonical, so the lengths of its symbols define it; padding longer than seven
//! bits, padding that is not all ones, and the end-of-string symbol are errors.

/// The code lengths of the 256 octets; the end-of-string symbol is the last code of 30 bits.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// The longest code.
const MAX: usize = 30;

/// Decoding by length: the codes of each length are a run of consecutive numbers.
struct Code {
    /// For each length, the first number that is too large for it, left-aligned in 32 bits.
    limit: [u64; MAX + 1],
    /// For each length, what to subtract from a right-aligned code to index `symbols`.
    offset: [i64; MAX + 1],
    /// Octets in the order of their codes.
    symbols: [u8; 256],
}

const CODE: Code = build();

const fn build() -> Code {
    let mut code = Code {
        limit: [0; MAX + 1],
        offset: [0; MAX + 1],
        symbols: [0; 256],
    };
    let (mut next, mut index, mut length) = (0u64, 0usize, 1usize);
    while length <= MAX {
        next <<= 1;
        code.offset[length] = index as i64 - next as i64;
        let mut octet = 0;
        while octet < 256 {
            if LENGTHS[octet] as usize == length {
                code.symbols[index] = octet as u8;
                index += 1;
                next += 1;
            }
            octet += 1;
        }
        code.limit[length] = next << (32 - length);
        length += 1;
    }
    code
}

/// Appends the decoded octets to `out`; `None` if the text is not a valid code.
pub fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut bits, mut have) = (0u64, 0usize);
    let mut input = text.iter();
    loop {
        while have <= 32 {
            let Some(&octet) = input.next() else { break };
            bits = (bits << 8) | u64::from(octet);
            have += 8;
        }
        // Past the end the window is filled with ones: a valid rest is a prefix of the end-of-string code.
        let window = if have >= 32 {
            (bits >> (have - 32)) & 0xffff_ffff
        } else {
            ((bits << (32 - have)) | ((1 << (32 - have)) - 1)) & 0xffff_ffff
        };
        let length = (5..=MAX).find(|&l| window < CODE.limit[l]);
        match length {
            Some(l) if l <= have => {
                let symbol = (window >> (32 - l)) as i64 + CODE.offset[l];
                out.push(CODE.symbols[usize::try_from(symbol).ok()?]);
                have -= l;
            }
            // Only padding is left, or the text is cut inside a code, or holds the end of string.
            _ => return (have < 8 && window == 0xffff_ffff).then_some(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(hex: &str, expect: Option<&str>) {
        let text: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect();
        let mut out = Vec::new();
        let got = decode(&text, &mut out).map(|()| String::from_utf8(out).unwrap());
        assert_eq!(got.as_deref(), expect, "{hex}");
    }

    #[test]
    fn the_examples_of_the_specification_decode() {
        check("f1e3c2e5f23a6ba0ab90f4ff", Some("www.example.com"));
        check("a8eb10649cbf", Some("no-cache"));
        check("25a849e95ba97d7f", Some("custom-key"));
        check("25a849e95bb8e8b4bf", Some("custom-value"));
        check("6402", Some("302"));
        check(
            "d07abe941054d444a8200595040b8166e082a62d1bff",
            Some("Mon, 21 Oct 2013 20:13:21 GMT"),
        );
        check("", Some(""));
    }

    #[test]
    fn bad_padding_and_end_of_string_are_refused() {
        check("f1e3c2e5f23a6ba0ab90f4ffff", None);
        check("a8eb10649cb0", None);
        check("ffffffff", None);
        check("fffffffc", None);
    }

    #[test]
    fn every_octet_has_one_code() {
        let kraft: u64 = LENGTHS.iter().map(|&l| 1u64 << (MAX - l as usize)).sum();
        assert_eq!(
            kraft + 1,
            1 << MAX,
            "all codes and the end of string fill the tree"
        );
    }
}
