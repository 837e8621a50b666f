//! Filters of routes: what they change in requests and responses.
//!
//! Invariant: a filter that is not known or not understood makes its rule refuse.

use std::sync::Arc;

use mesh_k8s::gateway::{
    RouteFilter,
    filter::{
        Cors as WireCors, HeaderModifier, NameValue, PathModifier, RequestMirror, RequestRedirect,
    },
};
use mesh_model::{
    resilience::Share,
    route::http::{Cors, Filters, HeaderEdits, PathRewrite, Redirect, Rewrite, Text},
};

use crate::traffic::{reader::Reader, values};

/// What the filters of a rule come to.
#[derive(Default)]
pub(super) struct Filtering<'w> {
    pub(super) filters: Filters,
    pub(super) redirect: Option<Redirect>,
    pub(super) cors: Option<Cors>,
    /// Who gets copies, with the field and the share.
    pub(super) mirrors: Vec<(String, &'w RequestMirror, Share)>,
}

/// Reads filters at a path.
pub(super) fn read<'w>(reader: &mut Reader, path: &str, wire: &'w [RouteFilter]) -> Filtering<'w> {
    let mut found = Filtering::default();
    for (i, filter) in wire.iter().enumerate() {
        let path = format!("{path}.filters[{i}]");
        let known = one(reader, &path, filter, &mut found);
        if known.is_none() {
            let text = match filter.kind.as_str() {
                "ExtensionRef" | "ExternalAuth" => {
                    format!("{} is not honoured by this version", filter.kind)
                }
                kind => format!("{kind:?} is no filter that is known, or says nothing"),
            };
            reader.fail(&path, text);
        }
    }
    found
}

fn one<'w>(
    reader: &mut Reader,
    path: &str,
    filter: &'w RouteFilter,
    found: &mut Filtering<'w>,
) -> Option<()> {
    match filter.kind.as_str() {
        "RequestHeaderModifier" => {
            let wire = filter.request_header_modifier.as_ref()?;
            found.filters.request = edits(reader, &format!("{path}.requestHeaderModifier"), wire);
        }
        "ResponseHeaderModifier" => {
            let wire = filter.response_header_modifier.as_ref()?;
            found.filters.response = edits(reader, &format!("{path}.responseHeaderModifier"), wire);
        }
        "RequestMirror" => {
            let wire = filter.request_mirror.as_deref()?;
            let path = format!("{path}.requestMirror");
            let share = mirrored(reader, &path, wire);
            found
                .mirrors
                .push((format!("{path}.backendRef"), wire, share));
        }
        "RequestRedirect" => {
            let wire = filter.request_redirect.as_ref()?;
            found.redirect = Some(redirect(reader, &format!("{path}.requestRedirect"), wire));
        }
        "URLRewrite" => {
            let wire = filter.url_rewrite.as_ref()?;
            let path = format!("{path}.urlRewrite.path");
            found.filters.rewrite = Some(Rewrite {
                authority: wire.hostname.as_deref().map(Arc::from),
                path: wire
                    .path
                    .as_ref()
                    .and_then(|wire| modified(reader, &path, wire)),
            });
        }
        "CORS" => found.cors = Some(cors(reader, &format!("{path}.cors"), filter.cors.as_ref()?)),
        _ => return None,
    }
    Some(())
}

fn edits(reader: &mut Reader, path: &str, wire: &HeaderModifier) -> HeaderEdits {
    let mut pairs = |part: &str, list: &[NameValue]| {
        let mut pairs = Vec::new();
        for (i, pair) in list.iter().enumerate() {
            let field = format!("{path}.{part}[{i}]");
            let name = reader.need(&field, values::header_name(&pair.name));
            let value = reader.need(&field, values::header_value(&pair.value));
            pairs.extend(name.zip(value));
        }
        pairs
    };
    let (set, add) = (pairs("set", &wire.set), pairs("add", &wire.add));
    let mut remove = Vec::new();
    for (i, name) in wire.remove.iter().enumerate() {
        let field = format!("{path}.remove[{i}]");
        remove.extend(reader.need(&field, values::header_name(name)));
    }
    HeaderEdits {
        remove: remove.into(),
        set: set.into(),
        add: add.into(),
    }
}

fn mirrored(reader: &mut Reader, path: &str, wire: &RequestMirror) -> Share {
    let percent = match (wire.percent, wire.fraction) {
        (None, None) => return Share::ALL,
        (Some(percent), None) => f64::from(percent),
        (None, Some(fraction)) => {
            let whole = f64::from(fraction.denominator.unwrap_or(100));
            f64::from(fraction.numerator) * 100.0 / whole
        }
        (Some(_), Some(_)) => {
            reader.error(path, "has both percent and fraction; nothing is copied");
            return Share::NONE;
        }
    };
    reader
        .want(path, values::percent(percent), "nothing is copied")
        .unwrap_or(Share::NONE)
}

fn redirect(reader: &mut Reader, path: &str, wire: &RequestRedirect) -> Redirect {
    let status = wire.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        let text = format!("{status} is none of 301, 302, 303, 307 and 308");
        reader.fail(&format!("{path}.statusCode"), text);
    }
    let field = format!("{path}.path");
    Redirect {
        status,
        scheme: wire.scheme.as_deref().map(Arc::from),
        host: wire.hostname.as_deref().map(Arc::from),
        port: wire.port.filter(|port| *port != 0),
        path: wire
            .path
            .as_ref()
            .and_then(|wire| modified(reader, &field, wire)),
    }
}

fn modified(reader: &mut Reader, path: &str, wire: &PathModifier) -> Option<PathRewrite> {
    let (full, prefix) = (&wire.replace_full_path, &wire.replace_prefix_match);
    match (wire.kind.as_str(), full, prefix) {
        ("ReplaceFullPath", Some(text), _) => Some(PathRewrite::Full(text.as_str().into())),
        ("ReplacePrefixMatch", _, Some(text)) => Some(PathRewrite::Prefix(text.as_str().into())),
        (kind, _, _) => {
            let text = format!("{kind:?} is no way to change a path, or says nothing");
            reader.fail(path, text);
            None
        }
    }
}

fn cors(reader: &mut Reader, path: &str, wire: &WireCors) -> Cors {
    let mut origins = Vec::new();
    for (i, origin) in wire.allow_origins.iter().enumerate() {
        origins.extend(match origin.as_str() {
            "*" => Some(Text::Present),
            text if text.contains('*') => {
                let plain = text.split('*').map(escaped).collect::<Vec<_>>();
                let field = format!("{path}.allowOrigins[{i}]");
                let pattern = values::pattern(&plain.join("[^/]*"));
                reader.need(&field, pattern).map(Text::Regex)
            }
            text => Some(Text::Exact(text.into())),
        });
    }
    let list = |list: &[String]| list.iter().map(|item| item.as_str().into()).collect();
    Cors {
        origins: origins.into(),
        methods: list(&wire.allow_methods),
        headers: list(&wire.allow_headers),
        expose: list(&wire.expose_headers),
        max_age: Some(std::time::Duration::from_secs(
            wire.max_age.unwrap_or(5).into(),
        )),
        credentials: wire.allow_credentials.unwrap_or(false),
        forward_unmatched: false,
    }
}

/// A text as an expression that means it.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
