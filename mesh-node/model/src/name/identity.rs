//! The identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Invariant: parsing is strict and byte-exact; printing a parsed identity gives the same bytes.

use std::{fmt, str::FromStr};

use super::{Namespace, ServiceAccount, TrustDomain};

/// Who a workload is, as proven by its certificate or by the kernel.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain that vouches for it.
    pub trust_domain: TrustDomain,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccount,
}

/// Why a text is not a workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a workload identity: expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
)]
pub struct IdentityError {
    text: String,
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let parse = || {
            let mut parts = text.strip_prefix("spiffe://")?.split('/');
            let td = part(parts.next()?)?;
            (parts.next()? == "ns").then_some(())?;
            let ns = part(parts.next()?)?;
            (parts.next()? == "sa").then_some(())?;
            let sa = part(parts.next()?)?;
            parts.next().is_none().then_some(())?;
            Some(Self {
                trust_domain: td.into(),
                namespace: ns.into(),
                service_account: sa.into(),
            })
        };
        parse().ok_or_else(|| IdentityError {
            text: text.escape_debug().to_string(),
        })
    }
}

/// One path segment as the SPIFFE specification allows it (section 2.2): letters, digits, `.`, `-`, `_`.
pub(super) fn part(text: &str) -> Option<&str> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (!text.is_empty() && text.len() <= 253 && text != "." && text != ".." && text.bytes().all(ok))
        .then_some(text)
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_parse_strictly() {
        let check = |text: &str, ok: bool| match text.parse::<Identity>() {
            Ok(id) => assert!(ok && id.to_string() == text, "{text} parsed as {id}"),
            Err(e) => assert!(!ok, "{e}"),
        };
        check("spiffe://cluster.local/ns/shop/sa/web", true);
        check("spiffe://cluster.local/ns/shop/sa/web/", false);
        check("spiffe://cluster.local/ns/shop/sa/", false);
        check("spiffe://cluster.local/ns/shop/sa/web\0", false);
        check("spiffe://cluster.local/ns/../sa/web", false);
        check("SPIFFE://cluster.local/ns/shop/sa/web", false);
        check("spiffe:///ns/shop/sa/web", false);
        check("spiffe://cluster.local/ns/shop/web", false);
        check("spiffe://cluster.local/ns/sh%6fp/sa/web", false);
    }
}
