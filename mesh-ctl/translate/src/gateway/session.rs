//! How requests of a session stay together, as a rule of a route says.
//!
//! Invariant: what is not honoured of it is said by field.

use mesh_k8s::gateway::SessionPersistence;
use mesh_model::{
    balance,
    resilience::AffinityKey,
    route::http::{Match, PathMatch},
};

use crate::traffic::{reader::Reader, values};

/// What keeps a session together; its cookie is for the whole host.
pub(super) fn read(
    reader: &mut Reader,
    path: &str,
    rule: &str,
    wire: &SessionPersistence,
) -> Option<AffinityKey> {
    let field = |name: &str| format!("{path}.sessionPersistence.{name}");
    if wire.idle_timeout.is_some() {
        let text = "is not honoured; a session ends with its endpoint or its cookie";
        reader.warn(field("idleTimeout"), text);
    }
    let absolute = wire.absolute_timeout.as_ref().and_then(|text| {
        let time = values::duration(text);
        reader.want(&field("absoluteTimeout"), time, "taken for absent")
    });
    let own = format!("warren-{:016x}", balance::hash(rule.as_bytes()));
    let name = wire.session_name.as_deref().filter(|name| !name.is_empty());
    let name = name.unwrap_or(&own);
    // A cookie's name is a token, as a header's is.
    let token = values::header_name(name);
    let token = reader.want(&field("sessionName"), token, "there are no sessions")?;
    let lifetime = wire.cookie_config.as_ref();
    let lifetime = lifetime.and_then(|c| c.lifetime_type.as_deref());
    match wire.kind.as_deref() {
        None | Some("Cookie") => {}
        Some("Header") => {
            if lifetime.is_some() {
                let text = "says nothing of a header; it is not honoured";
                reader.warn(field("cookieConfig"), text);
            }
            if absolute.is_some() {
                let text = "is not honoured for headers; a session ends with its endpoint";
                reader.warn(field("absoluteTimeout"), text);
            }
            return Some(AffinityKey::Header(token));
        }
        Some(other) => {
            let text = format!("{other:?} is neither Cookie nor Header; there are no sessions");
            reader.error(field("type"), text);
            return None;
        }
    }
    let ttl = match (lifetime, absolute) {
        (None | Some("Session"), None) => None,
        (None | Some("Session"), Some(_)) => {
            let text = "is honoured for cookies of lifetimeType Permanent only";
            reader.warn(field("absoluteTimeout"), text);
            None
        }
        (Some("Permanent"), Some(time)) => Some(time),
        (Some("Permanent"), None) => {
            let text =
                "is missing, which Permanent needs; the cookie ends with the client's session";
            reader.error(field("absoluteTimeout"), text);
            None
        }
        (Some(other), _) => {
            let text = format!("{other:?} is neither Session nor Permanent; taken for Session");
            reader.error(field("cookieConfig.lifetimeType"), text);
            None
        }
    };
    Some(AffinityKey::Cookie {
        name: name.into(),
        path: "/".into(),
        ttl,
        attributes: Box::default(),
    })
}

/// The key for one match of the rule: a cookie is for what its path covers, as far as that is fixed.
pub(super) fn for_match(key: &AffinityKey, one: &Match) -> AffinityKey {
    let mut key = key.clone();
    if let AffinityKey::Cookie { path, .. } = &mut key
        && let Some(PathMatch::Exact(fixed) | PathMatch::Segments(fixed)) = &one.path
    {
        *path = fixed.clone();
    }
    key
}
