//! How specific a match is.

use super::*;

#[test]
fn of_conditions_by_one_name_the_first_counts() {
    let named = |names: &[&str]| -> Vec<NameValueMatch> {
        let one = |(at, name): (usize, &&str)| NameValueMatch {
            name: (*name).to_owned(),
            value: at.to_string(),
            ..NameValueMatch::default()
        };
        names.iter().enumerate().map(one).collect()
    };
    let check = |headers: &[&str], query: &[&str], expect: [usize; 2]| {
        let wire = HttpRouteMatch {
            headers: named(headers),
            query_params: named(query),
            ..HttpRouteMatch::default()
        };
        let (Reverse(rank), found) = http_match(&mut Reader::default(), "matches[0]", &wire);
        assert_eq!(rank[3..5], expect, "{headers:?} {query:?}");
        assert_eq!([found.headers.len(), found.query.len()], expect);
        for (at, one) in found.query.iter().enumerate() {
            let first = query.iter().position(|name| **name == *one.name);
            assert_eq!(
                one.value,
                Text::Exact(first.expect("one").to_string().into()),
                "{at}"
            );
        }
    };
    check(&["x-a", "X-A", "x-b"], &[], [2, 0]);
    check(&[], &["a", "a", "A", "b", "a"], [0, 3]);
    check(&["x-a"], &["a", "a"], [1, 1]);
}
