//! What a virtual service's rule changes, answers, and puts in: headers, rewrites, redirects, faults, CORS.
//!
//! Invariants: what cannot be understood and would have kept something from somebody makes the rule refuse.

use std::collections::BTreeMap;

use mesh_k8s::networking::virtual_service::{
    CorsPolicy, FaultAbort, FaultDelay, HeaderOperations, Headers, HttpDirectResponse,
    HttpFaultInjection, HttpRedirect, HttpRetry, HttpRewrite, Percent,
};
use mesh_model::{
    resilience::{Abort, Fault, Retries, RetryOn, Share},
    route::http::{Cors, Filters, HeaderEdits, PathRewrite, Redirect, Respond, Rewrite, Text},
};

use super::http_match;
use crate::traffic::{reader::Reader, values};

/// How Istio's redirects begin that replace what the match's prefix covers, and nothing behind it.
const PREFIX: &str = "%PREFIX()%";

/// Changes of a rule or of one of its destinations.
pub(super) fn filters(reader: &mut Reader, path: &str, headers: Option<&Headers>) -> Filters {
    let Some(headers) = headers else {
        return Filters::default();
    };
    let mut edits = |side: &str, wire: &Option<HeaderOperations>| {
        let path = format!("{path}.headers.{side}");
        wire.as_ref()
            .map(|wire| edits(reader, &path, wire))
            .unwrap_or_default()
    };
    Filters {
        rewrite: None,
        request: edits("request", &headers.request),
        response: edits("response", &headers.response),
    }
}

fn edits(reader: &mut Reader, path: &str, wire: &HeaderOperations) -> HeaderEdits {
    let (mut remove, mut set, mut add) = (Vec::new(), Vec::new(), Vec::new());
    for (i, name) in wire.remove.iter().enumerate() {
        let field = format!("{path}.remove[{i}]");
        remove.extend(reader.need(&field, values::header_name(name)));
    }
    let mut values = |part: &str, list: &BTreeMap<String, String>, to: &mut Vec<_>| {
        for (name, text) in list {
            let field = format!("{path}.{part}[{name}]");
            let Some(name) = reader.need(&field, values::header_name(name)) else {
                continue;
            };
            match literal(text) {
                Some(text) => {
                    let value = reader.need(&field, values::header_value(&text));
                    to.extend(value.map(|value| (name, value)));
                }
                // A client's own value must not stand for the one that was meant.
                None => {
                    reader.warn(
                        field,
                        "what stands between % is not computed by this version; the header is removed instead",
                    );
                    remove.push(name);
                }
            }
        }
    };
    values("set", &wire.set, &mut set);
    values("add", &wire.add, &mut add);
    HeaderEdits {
        remove: remove.into(),
        set: set.into(),
        add: add.into(),
    }
}

/// A value without anything to compute in it: `%%` is a per cent sign.
fn literal(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split("%%").collect();
    let plain = parts.iter().all(|part| !part.contains('%'));
    plain.then(|| parts.join("%"))
}

/// Changes to the target.
pub(super) fn rewrite(reader: &mut Reader, path: &str, wire: &HttpRewrite) -> Rewrite {
    let by_regex = wire.uri_regex_rewrite.as_ref().and_then(|regex| {
        let field = format!("{path}.rewrite.uriRegexRewrite");
        if !wire.uri.is_empty() {
            reader.fail(&field, "stands beside uri".to_owned());
        }
        let pattern = reader.need(&format!("{field}.match"), values::pattern(&regex.matches))?;
        Some(PathRewrite::Regex(pattern, regex.rewrite.as_str().into()))
    });
    let plain = (!wire.uri.is_empty()).then(|| PathRewrite::Prefix(wire.uri.as_str().into()));
    Rewrite {
        authority: some(&wire.authority),
        path: by_regex.or(plain),
    }
}

fn some(text: &str) -> Option<std::sync::Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

/// Where a client is sent.
pub(super) fn redirect(reader: &mut Reader, path: &str, wire: &HttpRedirect) -> Redirect {
    let field = |name: &str| format!("{path}.redirect.{name}");
    let status = match wire.redirect_code {
        0 => 301,
        code @ (301 | 302 | 303 | 307 | 308) => u16::try_from(code).unwrap_or(301),
        code => {
            let text = format!("{code} is none of 301, 302, 303, 307 and 308");
            reader.fail(&field("redirectCode"), text);
            301
        }
    };
    let mut port = http_match::port(reader, &field("port"), wire.port);
    let mut host = wire.authority.as_str();
    if let Some((name, number)) = wire.authority.rsplit_once(':')
        && !name.ends_with(':')
        && let Ok(number) = number.parse::<u16>()
    {
        (host, port) = (name, port.or(Some(number)));
    }
    match wire.derive_port.as_str() {
        "" | "FROM_REQUEST_PORT" => {}
        // With a scheme its own port is meant anyway; without one, requests in the mesh are plain HTTP.
        "FROM_PROTOCOL_DEFAULT" if !wire.scheme.is_empty() => {}
        "FROM_PROTOCOL_DEFAULT" => port = Some(80),
        other => reader.fail(
            &field("derivePort"),
            format!("{other:?} is neither FROM_PROTOCOL_DEFAULT nor FROM_REQUEST_PORT"),
        ),
    }
    let new_path = match wire.uri.strip_prefix(PREFIX) {
        _ if wire.uri.is_empty() => None,
        // What follows stands instead of what the match's prefix covered; the rest of the path stays.
        Some(new) => Some(PathRewrite::Prefix(new.into())),
        None => Some(PathRewrite::Full(wire.uri.as_str().into())),
    };
    Redirect {
        status,
        scheme: some(&wire.scheme),
        host: some(host),
        port,
        path: new_path,
    }
}

/// An answer without a backend.
pub(super) fn respond(reader: &mut Reader, path: &str, wire: &HttpDirectResponse) -> Respond {
    let field = format!("{path}.directResponse");
    let status = status(reader, &format!("{field}.status"), i64::from(wire.status));
    let body = match &wire.body {
        None => Vec::new(),
        Some(body) => match (&body.string, &body.bytes) {
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(bytes)) => reader
                .need(&format!("{field}.body.bytes"), values::base64(bytes))
                .unwrap_or_default(),
            (None, None) => Vec::new(),
            (Some(_), Some(_)) => {
                let text = "has both string and bytes".to_owned();
                reader.fail(&format!("{field}.body"), text);
                Vec::new()
            }
        },
    };
    Respond {
        status,
        body: body.into(),
    }
}

fn status(reader: &mut Reader, field: &str, status: i64) -> u16 {
    let known = u16::try_from(status)
        .ok()
        .filter(|s| (200..600).contains(s));
    let found = known.ok_or_else(|| format!("{status} is not a status between 200 and 599"));
    reader.need(field, found).unwrap_or(500)
}

/// A share that is given in two forms.
pub(super) fn share(
    reader: &mut Reader,
    field: &str,
    percentage: Option<Percent>,
    percent: Option<f64>,
) -> Option<Share> {
    if percentage.is_some() && percent.is_some() {
        reader.info(
            field,
            "decides; the whole per cent beside it are not looked at",
        );
    }
    let value = percentage.map(|p| p.value).or(percent)?;
    reader
        .want(field, values::percent(value), "taken for none")
        .or(Some(Share::NONE))
}

/// Failures put in on purpose.
pub(super) fn fault(reader: &mut Reader, path: &str, wire: &HttpFaultInjection) -> Option<Fault> {
    let path = format!("{path}.fault");
    let delay = wire
        .delay
        .as_ref()
        .and_then(|delay| self::delay(reader, &format!("{path}.delay"), delay));
    let abort = wire
        .abort
        .as_ref()
        .and_then(|abort| self::abort(reader, &format!("{path}.abort"), abort));
    (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort })
}

fn delay(
    reader: &mut Reader,
    path: &str,
    wire: &FaultDelay,
) -> Option<(Share, std::time::Duration)> {
    if wire.exponential_delay.is_some() {
        reader.warn(
            format!("{path}.exponentialDelay"),
            "is not honoured by anybody; write fixedDelay",
        );
    }
    let field = format!("{path}.fixedDelay");
    let Some(fixed) = &wire.fixed_delay else {
        reader.warn(field, "is missing; nothing is delayed");
        return None;
    };
    let time = reader.want(&field, values::duration(fixed), "nothing is delayed")?;
    let percent = wire.percent.map(f64::from);
    let share = share(
        reader,
        &format!("{path}.percentage"),
        wire.percentage,
        percent,
    );
    let Some(share) = share else {
        reader.warn(
            format!("{path}.percentage"),
            "is missing; no request is delayed",
        );
        return None;
    };
    Some((share, time))
}

fn abort(reader: &mut Reader, path: &str, wire: &FaultAbort) -> Option<(Share, Abort)> {
    if wire.http2_error.is_some() {
        let text = "is not honoured by anybody; write httpStatus or grpcStatus";
        reader.warn(format!("{path}.http2Error"), text);
    }
    let abort = match (wire.http_status, &wire.grpc_status, &wire.http2_error) {
        (Some(code), None, None) => {
            let field = format!("{path}.httpStatus");
            let known = u16::try_from(code).ok().filter(|s| (200..600).contains(s));
            let known = known.ok_or_else(|| format!("{code} is not a status between 200 and 599"));
            Abort::Http(reader.want(&field, known, "nothing is aborted")?)
        }
        (None, Some(text), None) => {
            let field = format!("{path}.grpcStatus");
            let status = values::grpc_status(text);
            Abort::Grpc(reader.want(&field, status, "nothing is aborted")?)
        }
        _ => {
            let text = "needs exactly one of httpStatus and grpcStatus; nothing is aborted";
            reader.error(path, text);
            return None;
        }
    };
    let share = share(reader, &format!("{path}.percentage"), wire.percentage, None);
    let Some(share) = share else {
        let field = format!("{path}.percentage");
        reader.warn(field, "is missing; no request is aborted");
        return None;
    };
    Some((share, abort))
}

/// When a request is tried again: what Istio does when nothing is written, never when no tries are.
pub(super) fn retries(
    reader: &mut Reader,
    path: &str,
    wire: Option<&HttpRetry>,
) -> Option<Retries> {
    let mut retries = Retries::default_of_istio();
    let Some(wire) = wire else {
        return Some(retries);
    };
    let field = |name: &str| format!("{path}.retries.{name}");
    retries.attempts = match u32::try_from(wire.attempts) {
        Ok(0) => return None,
        Ok(attempts) => attempts,
        Err(_) => {
            let text = format!("{} is less than 0; nothing is tried again", wire.attempts);
            reader.error(field("attempts"), text);
            return None;
        }
    };
    if !wire.retry_on.trim().is_empty() {
        let (on, unknown) = RetryOn::parse(&wire.retry_on);
        for token in unknown {
            let text = format!("{token:?} is not known; nothing is tried again because of it");
            reader.warn(field("retryOn"), text);
        }
        retries.on = on;
    }
    let mut time = |name: &str, text: &Option<String>| {
        let text = text.as_ref()?;
        let time = values::duration(text);
        reader
            .want(&field(name), time, "taken for absent")
            .filter(|time| !time.is_zero())
    };
    retries.per_try_timeout = time("perTryTimeout", &wire.per_try_timeout);
    retries.backoff = time("backoff", &wire.backoff).unwrap_or(retries.backoff);
    retries.remote_localities = wire.retry_remote_localities.unwrap_or(false);
    retries.avoid_previous = wire.retry_ignore_previous_hosts.unwrap_or(true);
    // Beside consistent hashing only who asks for it gets another host.
    retries.avoid_hashed = wire.retry_ignore_previous_hosts == Some(true);
    Some(retries)
}

/// Cross-origin requests.
pub(super) fn cors(reader: &mut Reader, path: &str, wire: &CorsPolicy) -> Cors {
    let field = |name: &str| format!("{path}.corsPolicy.{name}");
    let mut origins: Vec<Text> = Vec::new();
    for (i, origin) in wire.allow_origins.iter().enumerate() {
        let field = format!("{}[{i}]", field("allowOrigins"));
        origins.extend(http_match::string(reader, &field, origin));
    }
    origins.extend(
        wire.allow_origin
            .iter()
            .map(|origin| match origin.as_str() {
                "*" => Text::Present,
                origin => Text::Exact(origin.into()),
            }),
    );
    let list = |list: &[String]| list.iter().map(|item| item.as_str().into()).collect();
    let max_age = wire.max_age.as_ref().and_then(|text| {
        let time = values::duration(text);
        reader.want(&field("maxAge"), time, "taken for absent")
    });
    let forward_unmatched = match wire.unmatched_preflights.as_str() {
        "" | "UNSPECIFIED" | "FORWARD" => true,
        "IGNORE" => false,
        other => {
            let text = format!("{other:?} is neither FORWARD nor IGNORE");
            reader.fail(&field("unmatchedPreflights"), text);
            true
        }
    };
    Cors {
        origins: origins.into(),
        methods: list(&wire.allow_methods),
        headers: list(&wire.allow_headers),
        expose: list(&wire.expose_headers),
        max_age,
        credentials: wire.allow_credentials.unwrap_or(false),
        forward_unmatched,
    }
}
