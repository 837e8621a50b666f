//! What a virtual service's rule asks of a request.
//!
//! Invariant: a condition that cannot be understood makes its rule refuse, for at least what it was meant for.

use std::collections::BTreeMap;

use mesh_k8s::networking::virtual_service::{HttpMatchRequest, StringMatch};
use mesh_model::route::http::{HeaderMatch, Match, PathMatch, QueryMatch, Selector, Text};

use super::virtual_service::mean_mesh;
use crate::traffic::{reader::Reader, values};

/// Names in `headers` that Istio ignores: there are fields for them.
const IGNORED: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// What is said of a gateway other than the mesh's clients.
pub(super) const LEFT: &str =
    "is left to others: this mesh has no gateways, and what it does holds for clients in it only";

/// Whether a condition holds for clients in the mesh; said where it does not.
pub(super) fn is_for_mesh(reader: &mut Reader, path: &str, gateways: &[String]) -> bool {
    let mesh = mean_mesh(gateways);
    if !mesh {
        reader.info(format!("{path}.gateways"), LEFT);
    }
    mesh
}

/// Reads the conditions of a rule; `None` when they are all for gateways.
pub(super) fn read(
    reader: &mut Reader,
    path: &str,
    wire: &[HttpMatchRequest],
) -> Option<Vec<Match>> {
    let mut matches = Vec::new();
    for (i, one) in wire.iter().enumerate() {
        let path = format!("{path}.match[{i}]");
        if is_for_mesh(reader, &path, &one.gateways) {
            matches.push(matched(reader, &path, one));
        }
    }
    (wire.is_empty() || !matches.is_empty()).then_some(matches)
}

fn matched(reader: &mut Reader, path: &str, wire: &HttpMatchRequest) -> Match {
    let field = |name: &str| format!("{path}.{name}");
    let mut found = Match::default();
    if let Some(uri) = &wire.uri {
        found.path = path_match(reader, &field("uri"), uri);
        let regex = matches!(found.path, Some(PathMatch::Regex(_)));
        found.ignore_case = wire.ignore_uri_case && !regex;
        if wire.ignore_uri_case && regex {
            reader.info(field("ignoreUriCase"), "says nothing of an expression");
        }
    }
    if wire.ignore_uri_case && wire.uri.is_none() {
        reader.info(field("ignoreUriCase"), "says nothing without uri");
    }
    // What only Envoy's own names are made of.
    if !wire.stat_prefix.is_empty() {
        let text = "names nothing here: it is the beginning of names that Envoy gives to its statistics of a rule; requests are counted by service, and their log lines name the rule";
        reader.info(field("statPrefix"), text);
    }
    if !wire.name.is_empty() {
        let text = "names nothing here: log lines name the rule, not which of its conditions held";
        reader.info(field("name"), text);
    }
    let mut text = |name: &str, wire: &Option<StringMatch>| {
        let wire = wire.as_ref()?;
        string(reader, &field(name), wire)
    };
    found.scheme = text("scheme", &wire.scheme);
    found.method = text("method", &wire.method);
    found.authority = text("authority", &wire.authority);
    let mut headers = Vec::new();
    for (negated, part, list) in [
        (false, "headers", &wire.headers),
        (true, "withoutHeaders", &wire.without_headers),
    ] {
        headers.extend(header_matches(reader, &field(part), list, negated));
    }
    found.headers = headers.into();
    let query = wire.query_params.iter().filter_map(|(name, value)| {
        let value = string(reader, &format!("{path}.queryParams[{name}]"), value)?;
        let name = name.as_str().into();
        Some(QueryMatch { name, value })
    });
    found.query = query.collect();
    found.port = port(reader, &field("port"), wire.port);
    if !are_labels(&wire.source_labels) {
        reader.fail(&field("sourceLabels"), "are not labels".to_owned());
    }
    found.source = selector(&wire.source_labels).filter(|_| are_labels(&wire.source_labels));
    let namespace = wire.source_namespace.as_str();
    found.source_namespace = (!namespace.is_empty()).then(|| namespace.into());
    found
}

/// A port of a service; 0 is none.
pub(super) fn port(reader: &mut Reader, field: &str, number: u32) -> Option<u16> {
    if number == 0 {
        return None;
    }
    reader.need(
        field,
        u16::try_from(number).map_err(|_| format!("{number} is not a port")),
    )
}

/// The canonical form of labels; `None` when there are none.
pub(crate) fn selector(labels: &BTreeMap<String, String>) -> Option<Selector> {
    (!labels.is_empty()).then(|| Selector(group(labels)))
}

/// Labels in the form of [`Selector`].
pub(crate) fn group(labels: &BTreeMap<String, String>) -> std::sync::Arc<str> {
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",").into()
}

/// Whether names and values are made of what labels are made of; so the form of [`Selector`] is one of them alone.
pub(super) fn are_labels(labels: &BTreeMap<String, String>) -> bool {
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
    };
    labels.iter().all(|(key, value)| plain(key) && plain(value))
}

fn path_match(reader: &mut Reader, field: &str, wire: &StringMatch) -> Option<PathMatch> {
    match (&wire.exact, &wire.prefix, &wire.regex) {
        (Some(text), None, None) => Some(PathMatch::Exact(text.as_str().into())),
        (None, Some(text), None) => Some(PathMatch::Prefix(text.as_str().into())),
        (None, None, Some(text)) => reader
            .need(field, values::pattern(text))
            .map(PathMatch::Regex),
        (None, None, None) => None,
        _ => {
            reader.fail(field, SEVERAL.to_owned());
            None
        }
    }
}

const SEVERAL: &str = "has more than one of exact, prefix and regex";

/// How a text is compared; that it is there when nothing is said.
pub(super) fn string(reader: &mut Reader, field: &str, wire: &StringMatch) -> Option<Text> {
    match (&wire.exact, &wire.prefix, &wire.regex) {
        (Some(text), None, None) => Some(Text::Exact(text.as_str().into())),
        (None, Some(text), None) => Some(Text::Prefix(text.as_str().into())),
        (None, None, Some(text)) => reader.need(field, values::pattern(text)).map(Text::Regex),
        (None, None, None) => Some(Text::Present),
        _ => {
            reader.fail(field, SEVERAL.to_owned());
            None
        }
    }
}

fn header_matches(
    reader: &mut Reader,
    field: &str,
    list: &BTreeMap<String, StringMatch>,
    negated: bool,
) -> Vec<HeaderMatch> {
    let mut found = Vec::new();
    for (name, value) in list {
        let field = format!("{field}[{name}]");
        if !negated && IGNORED.contains(&name.as_str()) {
            let text = "ignored, as Istio documents; there is a field of that name beside headers";
            reader.warn(field, text);
            continue;
        }
        let name = reader.need(&field, values::header_name(name));
        let value = string(reader, &field, value);
        if let (Some(name), Some(value)) = (name, value) {
            found.push(HeaderMatch {
                name,
                value,
                negated,
            });
        }
    }
    found
}
