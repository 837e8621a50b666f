//! The certificate that signs, and the roots that nodes are given: until when they are good.

use std::time::SystemTime;

use anyhow::{Context, anyhow};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use x509_parser::pem::Pem;

use super::{Finding, seconds};
use crate::install::cluster::Cluster;

const DAY: i64 = 24 * 3600;
/// A root or an intermediate that ends sooner should be replaced now.
const SOON: i64 = 30 * DAY;

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    vec![signer(cluster).await, roots(cluster).await]
}

async fn signer(cluster: &Cluster) -> Finding {
    const CHECK: &str = "signing certificate";
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let found = match secrets.get_opt("warren-ca").await {
        Ok(found) => found,
        Err(error) => return Finding::unknown(CHECK, &error.into()),
    };
    let pem = found.and_then(|s| Some(s.data?.get("tls.crt")?.0.clone()));
    judge(CHECK, "Secret warren-ca, key tls.crt", pem.as_deref())
}

async fn roots(cluster: &Cluster) -> Finding {
    const CHECK: &str = "roots";
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let found = match maps.get_opt("warren-root").await {
        Ok(found) => found,
        Err(error) => return Finding::unknown(CHECK, &error.into()),
    };
    let pem = found.and_then(|m| Some(m.data?.get("root.pem")?.clone()));
    let pem = pem.as_ref().map(String::as_bytes);
    judge(CHECK, "ConfigMap warren-root, key root.pem", pem)
}

fn judge(check: &'static str, place: &str, pem: Option<&[u8]>) -> Finding {
    let Some(pem) = pem else {
        return Finding::failed(
            check,
            format!("{place} is absent"),
            "the leading controller writes it: see the controller's log",
        );
    };
    match ends(pem) {
        Ok(ends) => until(check, place, ends - seconds(SystemTime::now())),
        Err(error) => Finding::failed(
            check,
            format!("{place}: {error:#}"),
            "restore it, or delete it and restart the controller, which makes a new one",
        ),
    }
}

fn until(check: &'static str, place: &str, left: i64) -> Finding {
    let hint = "`mesh-ctl ca rotate` in a pod of the controller replaces it step by step";
    match left {
        l if l <= 0 => Finding::failed(check, format!("{place} has ended"), hint),
        l if l < SOON => Finding::warning(
            check,
            format!("{place} is good for {} days only", l / DAY),
            hint,
        ),
        l => Finding::ok(check, format!("{place} is good for {} days", l / DAY)),
    }
}

/// When the first of the certificates ends, in seconds since 1970.
fn ends(pem: &[u8]) -> anyhow::Result<i64> {
    let mut first: Option<i64> = None;
    for one in Pem::iter_from_buffer(pem) {
        let one = one.context("is no PEM")?;
        let certificate = one
            .parse_x509()
            .map_err(|e| anyhow!("holds no certificate: {e}"))?;
        let end = certificate.validity().not_after.timestamp();
        first = Some(first.map_or(end, |f| f.min(end)));
    }
    first.context("holds no certificate")
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn certificate(days: i64) -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).expect("a name");
        let now = SystemTime::now();
        let span = std::time::Duration::from_secs(days.unsigned_abs() * 24 * 3600 + 3600);
        params.not_before = (now - span - span).into();
        params.not_after = if days < 0 { now - span } else { now + span }.into();
        params.self_signed(&key).expect("signed").pem()
    }

    #[test]
    fn the_certificate_that_ends_first_counts() {
        let check = |pem: Option<String>, outcome: Outcome, said: &str| {
            let found = judge("roots", "it", pem.as_ref().map(String::as_bytes));
            assert_eq!(found.outcome, outcome, "{}", found.said);
            assert!(found.said.contains(said), "{}", found.said);
        };
        check(None, Outcome::Failed, "absent");
        check(
            Some("nonsense".into()),
            Outcome::Failed,
            "holds no certificate",
        );
        check(Some(certificate(400)), Outcome::Ok, "for 400 days");
        check(Some(certificate(9)), Outcome::Warning, "for 9 days only");
        check(Some(certificate(-1)), Outcome::Failed, "has ended");
        check(
            Some(certificate(400) + &certificate(9)),
            Outcome::Warning,
            "for 9 days only",
        );
    }
}
