//! Chains of CA certificates: whether one fits its key and leads to a root, and when it expires.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{KeyPair, PublicKeyData};

use super::{
    authority::{CaError, Given},
    keep::Signer,
};

/// Checks that the key signs under the chain and that the chain ends in a root.
pub(super) fn checked(given: Given) -> Result<Signer, CaError> {
    let bad = |text: String| CaError::Given(text);
    let chain = certificates(&given.chain);
    let key = KeyPair::from_pem(&given.key).map_err(|e| bad(format!("key: {e}")))?;
    let ders = chain
        .iter()
        .map(|c| x509_parser::pem::parse_x509_pem(c.as_bytes()).map(|(_, pem)| pem));
    let ders = ders
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(e.to_string()))?;
    let certs = ders
        .iter()
        .map(|p| p.parse_x509())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(e.to_string()))?;
    let (Some(first), Some(root)) = (certs.first(), certs.last()) else {
        return Err(bad("no PEM certificate found".into()));
    };
    if let Some(cert) = certs.iter().find(|c| !c.is_ca()) {
        return Err(bad(format!(
            "{} is not a CA (basicConstraints)",
            cert.subject()
        )));
    }
    if first.public_key().raw != key.subject_public_key_info() {
        return Err(bad(
            "the key does not belong to the first certificate".into()
        ));
    }
    for pair in certs.windows(2) {
        if pair[0].issuer() != pair[1].subject()
            || pair[0]
                .verify_signature(Some(pair[1].public_key()))
                .is_err()
        {
            return Err(bad(format!(
                "{} was not signed by the certificate after it",
                pair[0].subject()
            )));
        }
    }
    if root.issuer() != root.subject() || root.verify_signature(None).is_err() {
        return Err(bad(
            "the last certificate has to be the root, which signs itself".into(),
        ));
    }
    Ok(Signer {
        chain,
        key: given.key,
    })
}

fn certificates(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let begin = |part: &str| {
        part.find("-----BEGIN CERTIFICATE-----")
            .map(|at| format!("{}{END}\n", &part[at..]))
    };
    pem.split(END).filter_map(begin).collect()
}

/// When the first certificate of a signer's chain expires.
pub(super) fn expiry(signer: &Signer) -> Result<SystemTime, CaError> {
    let mut first = i64::MAX;
    for cert in &signer.chain {
        let (_, pem) = x509_parser::pem::parse_x509_pem(cert.as_bytes())
            .map_err(|e| CaError::Given(e.to_string()))?;
        let cert = pem
            .parse_x509()
            .map_err(|e| CaError::Given(e.to_string()))?;
        first = first.min(cert.validity().not_after.timestamp());
    }
    Ok(UNIX_EPOCH + Duration::from_secs(u64::try_from(first).unwrap_or(0)))
}
