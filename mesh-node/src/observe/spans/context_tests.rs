//! What is a context and what is not, what goes on, and that no header breaks it.

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(*name, HeaderValue::try_from(*value).expect("a value"));
    }
    map
}

/// What is read: trace, span, decision; `None` when there is no context.
fn check(fields: &[(&'static str, &str)], expect: Option<(u128, u64, Option<bool>)>) {
    let read = read(&headers(fields)).map(|c| {
        let (trace, span) = c.ids.unwrap_or_default();
        (trace, span, c.sampled)
    });
    assert_eq!(read, expect, "{fields:?}");
}

const IDS: (u128, u64) = (
    0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
    0x00f0_67aa_0ba9_02b7,
);

#[test]
fn w3c_is_read_to_the_letter() {
    let good = |decided| Some((IDS.0, IDS.1, Some(decided)));
    let of = |text: &str, expect| check(&[("traceparent", text)], expect);
    of(&format!("00-{TRACE}-{SPAN}-01"), good(true));
    of(&format!("00-{TRACE}-{SPAN}-00"), good(false));
    of(&format!("00-{TRACE}-{SPAN}-03"), good(true));
    of(&format!("cc-{TRACE}-{SPAN}-01"), good(true));
    of(
        &format!("cc-{TRACE}-{SPAN}-01-what-comes-later"),
        good(true),
    );
    for bad in [
        String::new(),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("cc-{TRACE}-{SPAN}-01more"),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}"),
        format!("00-{TRACE}-{SPAN}-0"),
        format!("00_{TRACE}-{SPAN}-01"),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{}-{SPAN}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{TRACE}-{SPAN}-zz"),
        format!("0x-{TRACE}-{SPAN}-01"),
    ] {
        of(&bad, None);
    }
    let twice = format!("00-{TRACE}-{SPAN}-01");
    check(&[("traceparent", &twice), ("traceparent", &twice)], None);
}

#[test]
fn b3_is_read_in_both_forms() {
    let ids = |decided| Some((IDS.0, IDS.1, decided));
    let short = Some((IDS.0 & u128::from(u64::MAX), IDS.1, Some(true)));
    let of = |text: &str, expect| check(&[("b3", text)], expect);
    of(&format!("{TRACE}-{SPAN}-1"), ids(Some(true)));
    of(&format!("{TRACE}-{SPAN}-d"), ids(Some(true)));
    of(&format!("{TRACE}-{SPAN}-0-{SPAN}"), ids(Some(false)));
    of(&format!("{TRACE}-{SPAN}"), ids(None));
    of(
        &format!("{}-{SPAN}-1", TRACE.to_uppercase()),
        ids(Some(true)),
    );
    of(&format!("{}-{SPAN}-1", &TRACE[16..]), short);
    of("0", Some((0, 0, Some(false))));
    of("1", Some((0, 0, Some(true))));
    for bad in [
        "",
        "2",
        "d-1",
        TRACE,
        &format!("{TRACE}-{SPAN}-2"),
        &format!("{TRACE}-{SPAN}-1-2"),
    ] {
        of(bad, None);
    }
    of(&format!("{TRACE}-{SPAN}-1-{SPAN}-1"), None);
    let many = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    let with =
        |more: &[(&'static str, &'static str)], expect| check(&[&many[..], more].concat(), expect);
    with(&[], ids(None));
    with(&[("x-b3-sampled", "1")], ids(Some(true)));
    with(
        &[("x-b3-sampled", "0"), ("x-b3-parentspanid", SPAN)],
        ids(Some(false)),
    );
    with(
        &[("x-b3-sampled", "0"), ("x-b3-flags", "1")],
        ids(Some(true)),
    );
    with(&[("x-b3-sampled", "true")], ids(Some(true)));
    check(&[("x-b3-sampled", "0")], Some((0, 0, Some(false))));
    check(&many[..1], None);
    check(&[("x-b3-traceid", "1"), ("x-b3-spanid", SPAN)], None);
    // The first form that holds decides.
    let w3c = format!("00-{TRACE}-{SPAN}-00");
    check(&[("traceparent", &w3c), ("b3", "1")], ids(Some(false)));
    check(
        &[("traceparent", "odd"), ("b3", "1")],
        Some((0, 0, Some(true))),
    );
    check(
        &[("b3", "odd"), ("x-b3-sampled", "1")],
        Some((0, 0, Some(true))),
    );
}

/// Decides with dice that show 1, 2, ...; sampling says `sampled` where it is asked.
fn decided(fields: &[(&'static str, &str)], sampled: bool) -> (Decision, HeaderMap) {
    let mut headers = headers(fields);
    let mut last = 0;
    let decision = decide(
        &headers,
        || sampled,
        || {
            last += 1;
            last
        },
    );
    if let Decision::Silent(mark) | Decision::Traced(mark) = decision {
        mark.put(&mut headers);
    }
    (decision, headers)
}

#[test]
fn a_decision_is_kept_and_a_draw_made_where_there_is_none() {
    let w3c = |flags: &str| format!("00-{TRACE}-{SPAN}-{flags}");
    let traced = |fields: &[(&'static str, &str)], sampled, expect| {
        let (decision, _) = decided(fields, sampled);
        assert_eq!(
            matches!(decision, Decision::Traced(_)),
            expect,
            "{fields:?} {sampled}"
        );
    };
    traced(&[("traceparent", &w3c("01"))], false, true);
    traced(&[("traceparent", &w3c("00"))], true, false);
    traced(&[("b3", "0")], true, false);
    traced(&[("b3", "d")], false, true);
    traced(&[("b3", &format!("{TRACE}-{SPAN}"))], true, true);
    traced(&[("b3", &format!("{TRACE}-{SPAN}"))], false, false);
    traced(&[], true, true);
    traced(&[], false, false);
    let mut asked = false;
    decide(
        &headers(&[("traceparent", &w3c("01"))]),
        || {
            asked = true;
            true
        },
        || 1,
    );
    assert!(!asked, "a decision that came is not drawn again");
}

#[test]
fn what_goes_on_names_our_span_in_every_form_that_came() {
    // Not traced: a decision that came goes on as it is, one of our own is told.
    let fields = [("b3", "0"), ("tracestate", "a=1")];
    let (decision, after) = decided(&fields, true);
    assert_eq!((decision, after), (Decision::Leave, headers(&fields)));
    let (_, after) = decided(&[], false);
    let ours = format!("00-{:032x}-{:016x}", 1, 2);
    assert_eq!(after["traceparent"], format!("{ours}-00").as_str());
    // A trace that begins here.
    let (decision, after) = decided(&[("traceparent", "odd"), ("tracestate", "a=1")], true);
    assert_eq!(after["traceparent"], format!("{ours}-01").as_str());
    assert!(
        !after.contains_key("tracestate"),
        "it belonged to another trace"
    );
    assert!(matches!(decision, Decision::Traced(Mark { parent: 0, .. })));
    // One that goes on.
    let parent = format!("00-{TRACE}-{SPAN}-03");
    let (decision, after) = decided(&[("traceparent", &parent), ("tracestate", "a=1")], false);
    assert_eq!(
        after["traceparent"],
        format!("00-{TRACE}-{:016x}-03", 1).as_str()
    );
    assert_eq!(after["tracestate"], "a=1");
    assert_eq!(after.len(), 2, "no form is added but W3C's");
    let Decision::Traced(mark) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!((mark.trace, mark.parent, mark.span), (IDS.0, IDS.1, 1));
    // B3's forms.
    let single = format!("{}-{SPAN}-d", &TRACE[16..]);
    let (_, after) = decided(&[("b3", &single)], false);
    assert_eq!(
        after["b3"],
        format!("{}-{:016x}-d-{SPAN}", &TRACE[16..], 1).as_str()
    );
    let padded = format!("00-{}{}-{:016x}-01", "0".repeat(16), &TRACE[16..], 1);
    assert_eq!(after["traceparent"], padded.as_str());
    let many = [
        ("x-b3-traceid", TRACE),
        ("x-b3-spanid", SPAN),
        ("x-b3-sampled", "1"),
        ("x-b3-parentspanid", "0000000000000009"),
    ];
    let (_, after) = decided(&many, false);
    let seen = [
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
    ]
    .map(|n| after[n].to_str().expect("text").to_owned());
    assert_eq!(seen, [TRACE, &format!("{:016x}", 1), SPAN, "1"]);
    // Of two traces one goes on.
    let (_, after) = decided(&[("traceparent", &parent), ("b3", &single)], false);
    assert_eq!(after["b3"], format!("{TRACE}-{:016x}-1-{SPAN}", 1).as_str());
}

/// Whatever comes, what goes on is a context of W3C's form that is read again as what it was made of.
#[test]
fn no_header_breaks_it() {
    let names = [
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
    ];
    let seeds = [
        format!("00-{TRACE}-{SPAN}-01"),
        format!("{TRACE}-{SPAN}-d-{SPAN}"),
        TRACE.to_owned(),
        SPAN.to_owned(),
        "1".to_owned(),
        "a=1,b=2".to_owned(),
    ];
    let mut r = fastrand::Rng::with_seed(7);
    for round in 0..50_000 {
        let mut map = HeaderMap::new();
        for _ in 0..r.usize(0..5) {
            let mut value = seeds[r.usize(0..seeds.len())].clone().into_bytes();
            for _ in 0..r.usize(0..3) {
                match r.u8(0..4) {
                    0 => value.truncate(r.usize(0..=value.len())),
                    1 if !value.is_empty() => {
                        let at = r.usize(0..value.len());
                        value[at] = r.u8(..);
                    }
                    2 => {
                        let at = r.usize(0..=value.len());
                        value.insert(at, b"-0fF "[r.usize(0..5)]);
                    }
                    _ => value.extend_from_slice(seeds[r.usize(0..seeds.len())].as_bytes()),
                }
            }
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                map.append(names[r.usize(0..names.len())], value);
            }
        }
        let decision = decide(&map, || round % 2 == 0, || r.u128(..));
        if let Decision::Silent(mark) | Decision::Traced(mark) = decision {
            let before = map.clone();
            mark.put(&mut map);
            let again = w3c(&map).unwrap_or_else(|| panic!("{before:?} became {map:?}"));
            assert_eq!(again.ids, Some((mark.trace, mark.span)), "{before:?}");
            assert_eq!(again.sampled, Some(mark.sampled), "{before:?}");
            for kept in ["x-b3-spanid"] {
                if map.contains_key(kept) && !map.contains_key("b3") {
                    map.remove("traceparent");
                    assert_eq!(
                        read(&map).and_then(|c| c.sampled),
                        Some(mark.sampled),
                        "{before:?}"
                    );
                }
            }
        }
    }
}
