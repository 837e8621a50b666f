//! The signing keys and what they sign; root rotation in three steps.
//!
//! Invariants: no certificate outlives its signer; each step of a rotation leaves every certificate in use trusted,
//! or is refused; who watches the roots sees a step only once it is on the disk.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_model::name::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};

use tokio::sync::watch;

use super::{
    chain::{checked, expiry},
    grant::{Grant, Member},
    keep::{self, Kept, Signer},
    replaced::{self, Followed, follow},
    secret::SecretStore,
};

/// How long a generated root lives.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far back a certificate begins, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(60);
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
    /// Certificates of the old root are still in use.
    #[error("root rotation: {0}; wait, or use --force and cut off whoever still uses the old root")]
    InUse(String),
    /// The signer has expired.
    #[error("the CA's own certificate has expired; take `mesh-ctl ca rotate` steps to replace it")]
    Expired,
    /// The Secret in which a cluster keeps the authority.
    #[error("certificate authority: Secret {0}")]
    Secret(String),
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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Make (or take) a new root; both are trusted, the old one signs.
    Prepare,
    /// The new root signs; both are trusted.
    Switch,
    /// Only the new root is trusted.
    Finish,
    /// Takes `prepare` back.
    Abort,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One root is trusted, and signs.
    Steady,
    /// The next root is trusted too.
    Prepared,
    /// The new root signs; the old one is still trusted.
    Switched,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Steady => "steady: one root is trusted and signs; to replace it take step `prepare`",
            Phase::Prepared => "prepared: the next root is trusted too, the old one signs; next comes step `switch` (or `abort`)",
            Phase::Switched => "switched: the new root signs, the old one is still trusted; next comes step `finish`",
        })
    }
}

/// Where the keys are kept, and where the roots are put for nodes and people.
#[derive(Debug)]
enum Store {
    /// `ca.json` and `ca.pem` of a directory.
    Folder(PathBuf),
    /// A Secret, and `ca.pem` of a directory.
    Secret(Box<SecretStore>, PathBuf),
}

impl Store {
    fn write(&self, kept: &Kept) -> Result<(), CaError> {
        match self {
            Self::Folder(path) => write(path, kept),
            Self::Secret(secret, path) => {
                secret.write(kept)?;
                write_roots(path, kept)
            }
        }
    }
}

/// The certificate authority. Cheap to share; signing never blocks on rotation.
#[derive(Debug)]
pub struct Authority {
    store: Store,
    domain: TrustDomain,
    kept: watch::Sender<Arc<Kept>>,
    /// A root that came unannounced and may not sign yet.
    held: Mutex<Option<replaced::Held>>,
    /// The newest certificate of each holder that was signed here, and when it expires.
    newest: Mutex<HashMap<Held, (Signed, SystemTime)>>,
}

/// A name that a certificate says, and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    /// The URI.
    pub name: String,
    /// The node or waypoint that asked for it.
    pub holder: String,
}

impl Held {
    /// What `holder` has for `grant`.
    pub fn new(grant: &Grant, holder: &Member) -> Self {
        Self {
            name: grant.uri(),
            holder: holder.to_string(),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} held by {}", self.name, self.holder)
    }
}

/// A certificate that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The root it chains to, PEM.
    pub root: Arc<str>,
    /// When.
    pub at: SystemTime,
}

/// What decides whether an old root is still in use.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Everything that is to be certified now.
    pub there: BTreeSet<Held>,
    /// What other replicas have signed.
    pub signed: Vec<(Held, Signed)>,
}

impl Authority {
    /// Opens the authority kept in `dir`, makes a root when there is none, or takes `given` as the first signer.
    pub fn open(dir: &Path, given: Option<Given>, domain: TrustDomain) -> Result<Self, CaError> {
        let path = dir.join("ca.json");
        let found = keep::read(&path).map_err(|source| CaError::State {
            path: path.clone(),
            source,
        })?;
        let kept = match (found, given) {
            (Some(kept), None) => kept,
            (found, Some(given)) => adopt(found, given)?,
            (None, None) => steady(generate(&domain)?),
        };
        write(&path, &kept)?;
        Ok(Self::with(Store::Folder(path), kept, domain))
    }

    /// Opens the authority kept in a Secret; only its roots go to `dir`. `given` is taken when there is no Secret yet.
    pub async fn open_in(
        secret: SecretStore,
        dir: &Path,
        given: Option<Given>,
        domain: TrustDomain,
    ) -> Result<Self, CaError> {
        let (path, kept) = (dir.join("ca.json"), secret.open(given, &domain).await?);
        write_roots(&path, &kept)?;
        Ok(Self::with(
            Store::Secret(Box::new(secret), path),
            kept,
            domain,
        ))
    }

    fn with(store: Store, kept: Kept, domain: TrustDomain) -> Self {
        Self {
            store,
            domain,
            kept: watch::Sender::new(Arc::new(kept)),
            held: Mutex::default(),
            newest: Mutex::default(),
        }
    }

    /// Takes over what another replica, or somebody else, wrote into the Secret. `ttl` is the longest life of what was
    /// signed so far.
    pub async fn reload(&self, now: SystemTime, ttl: Duration) -> Result<(), CaError> {
        let Store::Secret(secret, path) = &self.store else {
            return Ok(());
        };
        let read = secret.read().await?;
        let theirs = read.ok_or_else(|| CaError::Secret("warren-ca is gone; it is not made anew while this controller runs, because its nodes trust the old root. Restore it, or restart the controller for a new root".to_owned()))?;
        let mine = self.kept.borrow().clone();
        if *mine == theirs {
            return Ok(());
        }
        let held = self.held().clone();
        let waited = held.is_some();
        let Followed { in_use, owed, held } = follow(&mine, theirs, held, now, ttl);
        if held.is_some() && !waited {
            tracing::warn!(
                seconds = replaced::HOLD.as_secs(),
                "the Secret warren-ca was given a CA that no step of a rotation had announced; it is trusted from now on, and signs after these seconds. What was trusted before stays so until `mesh-ctl ca rotate --step finish`"
            );
        }
        *self.held() = held;
        if *mine != in_use {
            write_roots(path, &in_use)?;
            tracing::info!(phase = %phase(&in_use), "the Secret holds other keys than before; they are in use now");
            self.kept.send_replace(Arc::new(in_use));
        }
        // Last: roots that could not be noted there are trusted here all the same, and it is tried again.
        match owed {
            Some(owed) => secret.put(&owed).await,
            None => Ok(()),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<replaced::Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The trust domain it vouches for.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// All roots that peers must trust now, PEM, the signing one first.
    pub fn roots(&self) -> String {
        self.kept.borrow().roots().concat()
    }

    /// Wakes at every step of a rotation.
    pub fn watch(&self) -> watch::Receiver<Arc<Kept>> {
        self.kept.subscribe()
    }

    /// How far a rotation is.
    pub fn phase(&self) -> Phase {
        phase(&self.kept.borrow())
    }

    /// Signs the public key of a PEM request for `grant`, valid from a minute ago for `ttl` from `now`, and remembers
    /// that `holder` holds it. Returns the chain, leaf first, then what leads to the root, then all roots to trust, the
    /// signing one last. The request's own names and extensions are ignored.
    pub fn sign(
        &self,
        csr: &str,
        grant: &Grant,
        holder: &Member,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Vec<String>, CaError> {
        if csr.len() > MAX_CSR {
            return Err(CaError::Request(format!(
                "{} bytes; at most {MAX_CSR} are read",
                csr.len()
            )));
        }
        let request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(|e| CaError::Request(e.to_string()))?;
        if request.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Request("the key must be ECDSA P-256".into()));
        }
        let chain = self.sign_key(&request.public_key, grant, now, ttl)?;
        let root = chain
            .last()
            .expect("a chain ends in a root")
            .as_str()
            .into();
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.retain(|_, (_, until)| *until > now);
        let signed = Signed { root, at: now };
        newest.insert(Held::new(grant, holder), (signed, now + ttl));
        Ok(chain)
    }

    /// The newest certificates that were signed here.
    pub fn signed(&self) -> Vec<(Held, Signed)> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let all = newest.iter();
        all.map(|(held, (signed, _))| (held.clone(), signed.clone()))
            .collect()
    }

    /// Signs a key that the controller itself holds.
    pub fn sign_key(
        &self,
        key: &impl PublicKeyData,
        grant: &Grant,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Vec<String>, CaError> {
        let kept = self.kept.borrow().clone();
        let until = (now + ttl).min(expiry(&kept.active)?);
        if until <= now {
            return Err(CaError::Expired);
        }
        let issuer =
            Issuer::from_ca_cert_pem(&kept.active.chain[0], KeyPair::from_pem(&kept.active.key)?)?;
        let leaf = leaf(grant, now, until)?.signed_by(key, &issuer)?;
        let (_, intermediates) = kept
            .active
            .chain
            .split_last()
            .expect("a signer has a certificate");
        let roots = kept.roots().into_iter().rev().map(str::to_owned);
        Ok(std::iter::once(leaf.pem())
            .chain(intermediates.iter().cloned())
            .chain(roots)
            .collect())
    }

    /// Takes one step of root rotation and returns the roots that are trusted from now on. `prepare` takes the given
    /// CA as the next one, or makes one. `ttl` is the longest life of what was signed so far. Unless it is forced,
    /// `finish` is refused until all that `usage` tells of is known to have been certified under the new root.
    pub fn rotate(
        &self,
        step: Step,
        given: Option<Given>,
        force: bool,
        usage: &Usage,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<String, CaError> {
        let kept = Kept::clone(&self.kept.borrow());
        let kept = match (step, phase(&kept), kept.next.clone()) {
            (Step::Prepare, Phase::Steady, _) => {
                let next = given.map_or_else(|| generate(&self.domain), checked)?;
                Kept {
                    next: Some(next),
                    ..kept
                }
            }
            (Step::Prepare, Phase::Prepared | Phase::Switched, _) => {
                return Err(CaError::Order(
                    "a rotation is under way: take `switch` or `finish` first",
                ));
            }
            (Step::Switch, _, Some(next)) => Kept {
                old_roots: vec![kept.active.root().to_owned()],
                active: next,
                next: None,
                old_until: seconds(now + ttl),
            },
            (Step::Switch, _, None) => {
                return Err(CaError::Order(
                    "no new root is prepared: take `prepare` first",
                ));
            }
            (Step::Finish, Phase::Switched, _) => {
                if !force {
                    self.unused(&kept, usage, now)?;
                }
                steady(kept.active)
            }
            (Step::Finish, Phase::Prepared, _) => {
                return Err(CaError::Order(
                    "the new root does not sign yet: take `switch` first",
                ));
            }
            (Step::Finish, Phase::Steady, _) => {
                return Err(CaError::Order(
                    "no rotation is under way: take `prepare` first",
                ));
            }
            (Step::Abort, Phase::Prepared, _) => steady(kept.active),
            (Step::Abort, Phase::Steady | Phase::Switched, _) => {
                return Err(CaError::Order(
                    "only `prepare` can be taken back, before `switch`",
                ));
            }
        };
        self.store.write(&kept)?;
        let roots = kept.roots().concat();
        self.kept.send_replace(Arc::new(kept));
        Ok(roots)
    }

    /// Whether nobody can still need the old root: its certificates have expired, or everyone has a newer one.
    fn unused(&self, kept: &Kept, usage: &Usage, now: SystemTime) -> Result<(), CaError> {
        if seconds(now) >= kept.old_until {
            return Ok(());
        }
        let mut newest = self.signed();
        newest.extend(usage.signed.iter().cloned());
        newest.sort_by_key(|(_, signed)| signed.at);
        let newest: HashMap<Held, Signed> = newest.into_iter().collect();
        let renewed = |held: &Held| {
            newest
                .get(held)
                .is_some_and(|s| *s.root == *kept.active.root())
        };
        let waits: Vec<&Held> = usage.there.iter().filter(|h| !renewed(h)).collect();
        match waits.first() {
            Some(first) => Err(CaError::InUse(format!(
                "{} certificates of the old root may be in use, the first {first}",
                waits.len()
            ))),
            // Nothing is known, such as without a controller that runs.
            None if usage.there.is_empty() => Err(CaError::InUse(format!(
                "certificates of the old root may be in use for {} more seconds",
                kept.old_until - seconds(now)
            ))),
            None => Ok(()),
        }
    }
}

fn phase(kept: &Kept) -> Phase {
    match (&kept.next, kept.old_roots.is_empty()) {
        (Some(_), _) => Phase::Prepared,
        (None, false) => Phase::Switched,
        (None, true) => Phase::Steady,
    }
}

pub(super) fn steady(active: Signer) -> Kept {
    Kept {
        active,
        next: None,
        old_roots: Vec::new(),
        old_until: 0,
    }
}

/// Keeps the keys, and puts the roots where nodes and people read them.
fn write(path: &Path, kept: &Kept) -> Result<(), CaError> {
    let state = |source| CaError::State {
        path: path.to_owned(),
        source,
    };
    keep::write(path, kept).map_err(state)?;
    write_roots(path, kept)
}

fn write_roots(path: &Path, kept: &Kept) -> Result<(), CaError> {
    let path = path.with_file_name("ca.pem");
    keep::write_public(&path, kept.roots().concat().as_bytes())
        .map_err(|source| CaError::State { path, source })
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Takes a given CA where there is none yet. One that is in use is replaced by the steps of a rotation only: nodes
/// that do not trust it yet would be cut off.
fn adopt(found: Option<Kept>, given: Given) -> Result<Kept, CaError> {
    let signer = checked(given)?;
    match found {
        None => Ok(steady(signer)),
        Some(kept) if kept.active == signer || kept.next.as_ref() == Some(&signer) => Ok(kept),
        Some(_) => Err(CaError::Given(
            "another CA signs in this state directory; bring the new one in with `mesh-ctl ca rotate --step prepare --ca-cert FILE --ca-key FILE`".into(),
        )),
    }
}

pub(super) fn generate(domain: &TrustDomain) -> Result<Signer, CaError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFE).into();
    params.serial_number = Some(serial());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Warren");
    // A serial in the name keeps two roots of one mesh apart for verifiers that search by subject.
    params.distinguished_name.push(
        DnType::CommonName,
        format!("{domain} root {:016x}", fastrand::u64(..)),
    );
    let root = params.self_signed(&key)?;
    Ok(Signer {
        chain: vec![root.pem()],
        key: key.serialize_pem(),
    })
}

/// A serial number that nobody can guess.
fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the system's random source answers");
    // Positive, as X.509 wants it, and never zero.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn leaf(grant: &Grant, now: SystemTime, until: SystemTime) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = until.into();
    params.serial_number = Some(serial());
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(grant.uri().try_into()?)];
    if let Grant::Controller(_, names, addresses) = grant {
        for name in names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params
            .subject_alt_names
            .extend(addresses.iter().copied().map(SanType::IpAddress));
    }
    Ok(params)
}

#[cfg(test)]
mod tests;
