//! The vectors of RFC 7541, appendix C, and blocks that must be refused.

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let hex: String = hex.split_whitespace().collect();
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect()
}

/// A block, its fields, and the size of the table after it.
type Block<'a> = (&'a str, &'a [(&'a str, &'a str)], usize);

/// Decodes blocks in one decoder; each must give these fields and leave a table of this size.
fn check(blocks: &[Block<'_>], max: usize) {
    let mut decoder = Decoder::default();
    decoder.resize(max).unwrap();
    for (hex, expect, size) in blocks {
        let mut got = Vec::new();
        let mut keep = |n: &[u8], v: &[u8]| {
            got.push((
                String::from_utf8(n.to_vec()).unwrap(),
                String::from_utf8(v.to_vec()).unwrap(),
            ))
        };
        decoder.decode(&bytes(hex), 1 << 16, &mut keep).unwrap();
        let got: Vec<_> = got.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(got, *expect, "{hex}");
        assert_eq!(decoder.size, *size, "table after {hex}");
    }
}

#[test]
fn single_fields_c2() {
    let custom = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(&[(custom, &[("custom-key", "custom-header")], 55)], 4096);
    check(
        &[(
            "040c 2f73 616d 706c 652f 7061 7468",
            &[(":path", "/sample/path")],
            0,
        )],
        4096,
    );
    check(
        &[(
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            &[("password", "secret")],
            0,
        )],
        4096,
    );
    check(&[("82", &[(":method", "GET")], 0)], 4096);
}

const GET: (&str, &str) = (":method", "GET");
const HOST: (&str, &str) = (":authority", "www.example.com");

#[test]
fn requests_c3_and_c4() {
    let (http, https) = ((":scheme", "http"), (":scheme", "https"));
    let first: &[_] = &[GET, http, (":path", "/"), HOST];
    let second: &[_] = &[
        GET,
        http,
        (":path", "/"),
        HOST,
        ("cache-control", "no-cache"),
    ];
    let third: &[_] = &[
        GET,
        https,
        (":path", "/index.html"),
        HOST,
        ("custom-key", "custom-value"),
    ];
    check(
        &[
            (
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                first,
                57,
            ),
            ("8286 84be 5808 6e6f 2d63 6163 6865", second, 110),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                third,
                164,
            ),
        ],
        4096,
    );
    check(
        &[
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", first, 57),
            ("8286 84be 5886 a8eb 1064 9cbf", second, 110),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                third,
                164,
            ),
        ],
        4096,
    );
}

#[test]
fn responses_with_eviction_c6() {
    let (private, location) = (
        ("cache-control", "private"),
        ("location", "https://www.example.com"),
    );
    let date = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
    let cookie = (
        "set-cookie",
        "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    );
    check(
        &[
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
                 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                &[(":status", "302"), private, date, location],
                222,
            ),
            (
                "4883 640e ffc1 c0bf",
                &[(":status", "307"), private, date, location],
                222,
            ),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
                 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
                 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                &[
                    (":status", "200"),
                    private,
                    ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
                    location,
                    ("content-encoding", "gzip"),
                    cookie,
                ],
                215,
            ),
        ],
        256,
    );
}

#[test]
fn blocks_that_are_not_hpack_are_refused() {
    let check = |hex: &str, expect: HpackError| {
        assert_eq!(
            Decoder::default().decode(&bytes(hex), 4096, |_, _| ()),
            Err(expect),
            "{hex}"
        );
    };
    let malformed = HpackError::Malformed;
    check("80", malformed("an index outside the tables"));
    check("be", malformed("an index outside the tables"));
    check("ff ffff ffff ff", malformed("an integer that is too large"));
    check("40", malformed("it ends inside a field"));
    check("400a 61", malformed("it ends inside a text"));
    check("8220", malformed("a table size update after a field"));
    check("3fe2 1f", malformed("a table larger than we allow"));
    check("0081 0001 61", malformed("a Huffman text that is not one"));
}

#[test]
fn a_bomb_is_stopped_by_the_decoded_size() {
    let mut block = vec![0x40, 1, b'a', 0x7f, 0x81, 0x1e];
    block.extend(std::iter::repeat_n(b'v', 3968));
    block.extend(std::iter::repeat_n(0xbe, 60_000));
    let (mut decoder, mut fields) = (Decoder::default(), 0);
    assert_eq!(
        decoder.decode(&block, 65536, |_, _| fields += 1),
        Err(HpackError::TooLarge(65536))
    );
    assert!(fields <= 17, "{fields} fields were given out");
}

#[test]
fn what_we_encode_decodes() {
    let long = "v".repeat(300);
    let mut block = Vec::new();
    encode_connect("10.0.0.1:8080", &mut block);
    encode_field("baggage", &long, &mut block);
    encode_status(200, &mut block);
    encode_status(503, &mut block);
    let expect: &[_] = &[
        (":method", "CONNECT"),
        (":authority", "10.0.0.1:8080"),
        ("baggage", &long),
        (":status", "200"),
        (":status", "503"),
    ];
    let hex: String = block.iter().map(|b| format!("{b:02x}")).collect();
    check(&[(&hex, expect, 0)], 4096);
}
