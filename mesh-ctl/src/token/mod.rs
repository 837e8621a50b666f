//! Join tokens: how a node or a waypoint proves its name where no Kubernetes vouches for it.
//!
//! `warren1.<payload>.<mac>`, both base64url without padding; the payload is JSON with the node or the
//! waypoint (`namespace/account/pod`), the expiry and the audience; the mac is HMAC-SHA256 (RFC 2104) with the controller's join key.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::ca::{Member, Waypoint, is_node_name, write_private};

const PREFIX: &str = "warren1";
const AUDIENCE: &str = "warren-ca";

/// The key that makes and checks join tokens.
#[derive(Clone)]
pub struct JoinKey([u8; 32]);

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not of the right form.
    #[error(
        "this is not a join token (expected warren1.<payload>.<mac>); make one with `mesh-ctl token create`"
    )]
    Malformed,
    /// Not made with this controller's key, or changed.
    #[error("the join token was not made by this controller, or was changed")]
    Forged,
    /// Too old.
    #[error("the join token has expired; make a new one with `mesh-ctl token create`")]
    Expired,
    /// Made for something else.
    #[error("the join token is for another audience")]
    Audience,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waypoint: Option<String>,
    exp: u64,
    aud: String,
}

impl JoinKey {
    /// Reads the key from `dir`, or makes one (0600).
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("join.key");
        match std::fs::read(&path) {
            Ok(bytes) => bytes.try_into().map(Self).map_err(|_| {
                io::Error::other(format!("{} is not a join key of 32 bytes", path.display()))
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; 32];
                rustls::crypto::aws_lc_rs::default_provider()
                    .secure_random
                    .fill(&mut key)
                    .map_err(|_| io::Error::other("no randomness"))?;
                write_private(&path, &key)?;
                Ok(Self(key))
            }
            Err(e) => Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
        }
    }

    /// A token for `member` that is good until `expires`.
    pub fn issue(&self, member: &Member, expires: SystemTime) -> String {
        let exp = expires
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        let (node, waypoint) = match member {
            Member::Node(node) => (Some(node.to_string()), None),
            Member::Waypoint(w) => (
                None,
                Some(format!("{}/{}/{}", w.namespace, w.account, w.pod)),
            ),
        };
        let payload = Payload {
            node,
            waypoint,
            exp,
            aud: AUDIENCE.into(),
        };
        let payload = URL_SAFE_NO_PAD
            .encode(serde_json::to_vec(&payload).expect("a payload of plain fields serializes"));
        let mac = URL_SAFE_NO_PAD.encode(self.mac(&payload).finalize().into_bytes());
        format!("{PREFIX}.{payload}.{mac}")
    }

    /// The member that a token proves. The mac is compared in constant time, before anything is parsed.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Member, TokenError> {
        let mut parts = token.splitn(3, '.');
        let (Some(PREFIX), Some(payload), Some(mac)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let mac = URL_SAFE_NO_PAD
            .decode(mac)
            .map_err(|_| TokenError::Malformed)?;
        self.mac(payload)
            .verify_slice(&mac)
            .map_err(|_| TokenError::Forged)?;
        let payload = URL_SAFE_NO_PAD
            .decode(payload)
            .map_err(|_| TokenError::Malformed)?;
        let payload: Payload =
            serde_json::from_slice(&payload).map_err(|_| TokenError::Malformed)?;
        if payload.aud != AUDIENCE {
            return Err(TokenError::Audience);
        }
        if now >= UNIX_EPOCH + Duration::from_secs(payload.exp) {
            return Err(TokenError::Expired);
        }
        let member = match (payload.node.as_deref(), payload.waypoint.as_deref()) {
            (Some(node), None) => is_node_name(node).then(|| Member::Node(node.into())),
            (None, Some(waypoint)) => Waypoint::parse(waypoint).map(Member::Waypoint),
            (Some(_), Some(_)) | (None, None) => None,
        };
        member.ok_or(TokenError::Malformed)
    }

    fn mac(&self, payload: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(payload.as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_prove_a_node_until_they_expire() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = JoinKey::open(dir.path()).expect("a key");
        let now = SystemTime::now();
        let node = |name: &str| Member::Node(name.into());
        let token = key.issue(&node("n1"), now + Duration::from_secs(100));
        assert_eq!(key.verify(&token, now), Ok(node("n1")));
        let waypoint = Waypoint::parse("shop/waypoint/w-1").map(Member::Waypoint);
        let waypoint = waypoint.expect("three names");
        let other = key.issue(&waypoint, now + Duration::from_secs(100));
        assert_eq!(key.verify(&other, now), Ok(waypoint));
        assert_eq!(
            JoinKey::open(dir.path()).expect("kept").verify(&token, now),
            Ok(node("n1"))
        );
        assert_eq!(
            key.verify(&token, now + Duration::from_secs(200)),
            Err(TokenError::Expired)
        );
        let other = tempfile::tempdir().expect("a directory");
        assert_eq!(
            JoinKey::open(other.path())
                .expect("a key")
                .verify(&token, now),
            Err(TokenError::Forged)
        );
        let forged = URL_SAFE_NO_PAD.encode(r#"{"node":"n2","exp":99999999999,"aud":"warren-ca"}"#);
        let mac = token.rsplit('.').next().expect("a mac");
        assert_eq!(
            key.verify(&format!("warren1.{forged}.{mac}"), now),
            Err(TokenError::Forged)
        );
        for junk in [
            "",
            "warren1",
            "warren1.a",
            "warren2.a.b",
            "warren1.a.b",
            "warren1.!.!",
        ] {
            assert!(key.verify(junk, now).is_err(), "{junk}");
        }
        assert_eq!(
            key.verify(
                &key.issue(&node("../etc"), now + Duration::from_secs(9)),
                now
            ),
            Err(TokenError::Malformed)
        );
    }
}
