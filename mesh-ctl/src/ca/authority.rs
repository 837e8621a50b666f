//! The signing keys and what they sign; root rotation in three steps.

use std::{path::{Path, PathBuf}, sync::Arc, time::{Duration, SystemTime}};

use arc_swap::ArcSwap;
use mesh_model::name::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};

use super::{grant::Grant, keep::{self, Kept, Signer}};

/// How long a generated root lives.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far back a certificate begins, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// The largest certificate request that is looked at, in bytes.
const MAX_CSR: usize = 16 * 1024;

/// Why the authority could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The state directory.
    #[error("certificate authority state {path}: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A key or certificate that the user gave.
    #[error("the given CA certificate or key cannot be used: {0}")]
    Given(String),
    /// A certificate request.
    #[error("the certificate request cannot be used: {0}")]
    Request(String),
    /// A rotation step out of order.
    #[error("root rotation: {0}")]
    Order(&'static str),
    /// Signing itself.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A CA that the user brings: certificate chain (issuer first) and the issuer's key, both PEM.
#[derive(Clone, Debug)]
pub struct Given {
    /// Issuer first, root last.
    pub chain: String,
    /// The issuer's key.
    pub key: String,
}

/// A step of root rotation. Each may be taken when every node has followed the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Make (or take) a new root; both are trusted, the old one signs.
    Prepare,
    /// The new root signs; both are trusted.
    Switch,
    /// Only the new root is trusted.
    Finish,
}

/// The certificate authority. Cheap to share; signing never blocks on rotation.
#[derive(Debug)]
pub struct Authority {
    path: PathBuf,
    domain: TrustDomain,
    kept: ArcSwap<Kept>,
}

impl Authority {
    /// Opens the authority kept in `dir`, makes a root when there is none, or takes `given` as the signer.
    pub fn open(dir: &Path, given: Option<Given>, domain: TrustDomain) -> Result<Self, CaError> {
        let path = dir.join("ca.json");
        let state = |source| CaError::State { path: path.clone(), source };
        let found = keep::read(&path).map_err(state)?;
        let kept = match (found, given) {
            (Some(kept), None) => kept,
            (found, Some(given)) => adopt(found, given)?,
            (None, None) => Kept { active: generate(&domain)?, next: None, old_roots: Vec::new() },
        };
        keep::write(&path, &kept).map_err(state)?;
        Ok(Self { path, domain, kept: ArcSwap::from_pointee(kept) })
    }

    /// The trust domain it vouches for.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// All roots that peers must trust now, PEM, the signing one first.
    pub fn roots(&self) -> String {
        roots_of(&self.kept.load())
    }

    /// Signs the public key of a PEM request for `grant`, valid from a minute ago for `ttl` from `now`.
    /// Returns the chain, leaf first and root last. The request's own names and extensions are ignored.
    pub fn sign(&self, csr: &str, grant: &Grant, now: SystemTime, ttl: Duration) -> Result<Vec<String>, CaError> {
        if csr.len() > MAX_CSR {
            return Err(CaError::Request(format!("{} bytes; at most {MAX_CSR} are read", csr.len())));
        }
        let request = CertificateSigningRequestParams::from_pem(csr).map_err(|e| CaError::Request(e.to_string()))?;
        if request.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Request("the key must be ECDSA P-256".into()));
        }
        self.sign_key(&request.public_key, grant, now, ttl)
    }

    /// Signs a key that the controller itself holds.
    pub fn sign_key(&self, key: &impl PublicKeyData, grant: &Grant, now: SystemTime, ttl: Duration) -> Result<Vec<String>, CaError> {
        let kept = self.kept.load();
        let issuer = Issuer::from_ca_cert_pem(&kept.active.chain[0], KeyPair::from_pem(&kept.active.key)?)?;
        let leaf = leaf(grant, now, ttl)?.signed_by(key, &issuer)?;
        Ok(std::iter::once(leaf.pem()).chain(kept.active.chain.iter().cloned()).collect())
    }

    /// Takes one step of root rotation and returns the roots that are trusted from now on.
    pub fn rotate(&self, step: Step) -> Result<String, CaError> {
        let kept = Kept::clone(&self.kept.load());
        let kept = match (step, kept.next, kept.old_roots.is_empty()) {
            (Step::Prepare, None, true) => Kept { active: kept.active, next: Some(generate(&self.domain)?), old_roots: Vec::new() },
            (Step::Prepare, _, _) => return Err(CaError::Order("a rotation is under way: take `switch` or `finish` first")),
            (Step::Switch, Some(next), _) => Kept { old_roots: vec![kept.active.root().to_owned()], active: next, next: None },
            (Step::Switch, None, _) => return Err(CaError::Order("no new root is prepared: take `prepare` first")),
            (Step::Finish, None, false) => Kept { active: kept.active, next: None, old_roots: Vec::new() },
            (Step::Finish, Some(_), _) => return Err(CaError::Order("the new root does not sign yet: take `switch` first")),
            (Step::Finish, None, true) => return Err(CaError::Order("no rotation is under way: take `prepare` first")),
        };
        keep::write(&self.path, &kept).map_err(|source| CaError::State { path: self.path.clone(), source })?;
        let roots = roots_of(&kept);
        self.kept.store(Arc::new(kept));
        Ok(roots)
    }
}

fn roots_of(kept: &Kept) -> String {
    let next = kept.next.as_ref().map(Signer::root);
    std::iter::once(kept.active.root()).chain(next).chain(kept.old_roots.iter().map(String::as_str)).collect()
}

/// Takes a given signer; a different one that signed before stays trusted, so that replacing it cuts nobody off.
fn adopt(found: Option<Kept>, given: Given) -> Result<Kept, CaError> {
    let chain = certificates(&given.chain);
    let first = chain.first().ok_or_else(|| CaError::Given("no PEM certificate found".into()))?;
    let key = KeyPair::from_pem(&given.key).map_err(|e| CaError::Given(format!("key: {e}")))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(first.as_bytes()).map_err(|e| CaError::Given(e.to_string()))?;
    let cert = pem.parse_x509().map_err(|e| CaError::Given(e.to_string()))?;
    if !cert.is_ca() {
        return Err(CaError::Given("the first certificate is not a CA (basicConstraints)".into()));
    }
    if cert.public_key().raw != key.subject_public_key_info() {
        return Err(CaError::Given("the key does not belong to the first certificate".into()));
    }
    let active = Signer { chain, key: given.key };
    Ok(match found {
        Some(kept) if kept.active == active => kept,
        Some(kept) => {
            let old = kept.active.root().to_owned();
            let old_roots = kept.old_roots.into_iter().chain([old]).filter(|r| r != active.root()).collect();
            Kept { active, next: None, old_roots }
        }
        None => Kept { active, next: None, old_roots: Vec::new() },
    })
}

fn certificates(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let begin = |part: &str| part.find("-----BEGIN CERTIFICATE-----").map(|at| format!("{}{END}\n", &part[at..]));
    pem.split(END).filter_map(begin).collect()
}

fn generate(domain: &TrustDomain) -> Result<Signer, CaError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFE).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Warren");
    // A serial in the name keeps two roots of one mesh apart for verifiers that search by subject.
    params.distinguished_name.push(DnType::CommonName, format!("{domain} root {:016x}", fastrand::u64(..)));
    let root = params.self_signed(&key)?;
    Ok(Signer { chain: vec![root.pem()], key: key.serialize_pem() })
}

fn leaf(grant: &Grant, now: SystemTime, ttl: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ttl).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(grant.uri().try_into()?)];
    if let Grant::Controller(_, names, addresses) = grant {
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn csr(san: &str) -> String {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(san.try_into().expect("a URI"))];
        params.serialize_request(&key).expect("a request").pem().expect("PEM")
    }

    fn open(dir: &Path) -> Authority {
        Authority::open(dir, None, "cluster.local".into()).expect("an authority")
    }

    #[test]
    fn a_certificate_says_what_was_granted_and_not_what_was_asked() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = open(dir.path());
        let id = "spiffe://cluster.local/ns/a/sa/b";
        let grant = Grant::Workload(id.parse().expect("an identity"));
        let chain = ca.sign(&csr("spiffe://cluster.local/ns/kube-system/sa/admin"), &grant, SystemTime::now(), Duration::from_secs(60)).expect("signed");
        assert_eq!(chain.len(), 2);
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).expect("PEM");
        let cert = pem.parse_x509().expect("a certificate");
        let sans = &cert.subject_alternative_name().expect("parses").expect("a SAN").value.general_names;
        assert_eq!(sans.iter().map(ToString::to_string).collect::<Vec<_>>(), [format!("URI({id})")]);
        assert!(!cert.is_ca());
    }

    #[test]
    fn requests_that_cannot_be_used_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = open(dir.path());
        let grant = Grant::Node("cluster.local".into(), "n1".into());
        let check = |csr: &str| matches!(ca.sign(csr, &grant, SystemTime::now(), Duration::from_secs(60)), Err(CaError::Request(_)));
        assert!(check(""));
        assert!(check("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"));
        assert!(check(&"x".repeat(MAX_CSR + 1)));
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
        assert!(check(&CertificateParams::default().serialize_request(&p384).expect("a request").pem().expect("PEM")));
        let mut forged = csr("spiffe://a/ns/b/sa/c");
        let middle = forged.len() - 60;
        let flipped = if &forged[middle..=middle] == "A" { "B" } else { "A" };
        forged.replace_range(middle..=middle, flipped);
        assert!(check(&forged), "a request whose signature does not verify");
    }

    #[test]
    fn the_root_is_kept_private_and_rotates_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = open(dir.path());
        let mode = std::fs::metadata(dir.path().join("ca.json")).expect("kept").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let first = ca.roots();
        assert_eq!(open(dir.path()).roots(), first, "a restart keeps the root");
        assert!(ca.rotate(Step::Switch).is_err() && ca.rotate(Step::Finish).is_err());
        let both = ca.rotate(Step::Prepare).expect("prepared");
        assert!(both.starts_with(&first) && both.len() > first.len());
        assert!(ca.rotate(Step::Prepare).is_err() && ca.rotate(Step::Finish).is_err());
        let switched = ca.rotate(Step::Switch).expect("switched");
        assert!(switched.ends_with(&first) && switched.len() == both.len());
        let last = ca.rotate(Step::Finish).expect("finished");
        assert!(!last.contains(&first) && switched.starts_with(&last));
        assert_eq!(open(dir.path()).roots(), last);
    }

    #[test]
    fn a_given_ca_must_fit_its_key_and_leaves_the_old_root_trusted() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = open(dir.path()).roots();
        let signer = generate(&"cluster.local".into()).expect("a root");
        let other = generate(&"cluster.local".into()).expect("a root");
        let given = |chain: &str, key: &str| Authority::open(dir.path(), Some(Given { chain: chain.into(), key: key.into() }), "cluster.local".into());
        assert!(given(&signer.chain[0], &other.key).is_err());
        assert!(given("", &signer.key).is_err());
        let ca = given(&signer.chain[0], &signer.key).expect("taken");
        assert_eq!(ca.roots(), format!("{}{first}", signer.chain[0]));
    }
}
