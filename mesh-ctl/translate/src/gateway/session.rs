//! How requests of a session stay together, as a rule of a route says.
//!
//! Invariant: what is not honoured of it is said by field.

use std::time::Duration;

use mesh_k8s::gateway::SessionPersistence;
use mesh_model::{
    balance,
    resilience::{AffinityKey, Session},
    route::http::{Match, PathMatch},
};

use crate::traffic::{reader::Reader, values};

/// What keeps a session together; its cookie is for the whole host.
pub(super) fn read(
    reader: &mut Reader,
    path: &str,
    rule: &str,
    wire: &SessionPersistence,
) -> Option<Session> {
    let field = |name: &str| format!("{path}.sessionPersistence.{name}");
    let mut bound = |name: &str, text: &Option<String>| {
        let time = values::duration(text.as_ref()?);
        let time = reader.want(&field(name), time, "taken for absent")?;
        if time.is_zero() {
            let text = "a session lasts for some time, or without this field; taken for absent";
            reader.warn(field(name), text);
        }
        Some(time).filter(|time| !time.is_zero())
    };
    let absolute = bound("absoluteTimeout", &wire.absolute_timeout);
    let idle = bound("idleTimeout", &wire.idle_timeout);
    let key = key(reader, &field, rule, wire, absolute)?;
    Some(Session {
        key,
        absolute,
        idle,
    })
}

/// What requests of a session bring.
fn key(
    reader: &mut Reader,
    field: &impl Fn(&str) -> String,
    rule: &str,
    wire: &SessionPersistence,
    absolute: Option<Duration>,
) -> Option<AffinityKey> {
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
            return Some(AffinityKey::Header(token));
        }
        Some(other) => {
            let text = format!("{other:?} is neither Cookie nor Header; there are no sessions");
            reader.error(field("type"), text);
            return None;
        }
    }
    let ttl = match (lifetime, absolute) {
        (None | Some("Session"), _) => None,
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

/// The session for one match of the rule: a cookie is for what its path covers, as far as that is fixed.
pub(super) fn for_match(session: &Session, one: &Match) -> Session {
    let mut session = session.clone();
    if let AffinityKey::Cookie { path, .. } = &mut session.key
        && let Some(PathMatch::Exact(fixed) | PathMatch::Segments(fixed)) = &one.path
    {
        *path = fixed.clone();
    }
    session
}
