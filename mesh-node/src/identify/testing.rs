//! A certificate authority for tests, which signs whatever it is asked to.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_model::name::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;

use super::{Issued, NodeCertificate, Trust, issued::Bundle};

/// A root and what it signs.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a test certificate says.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub sans: Vec<SanType>,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub from: SystemTime,
    pub until: SystemTime,
    pub raw_san: Option<Vec<u8>>,
    pub serial: Option<u64>,
}

impl Leaf {
    /// An ordinary one for these URIs, an hour old and good for an hour.
    pub fn of(uris: &[&str]) -> Self {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        Self {
            sans: uris
                .iter()
                .map(|u| SanType::URI((*u).try_into().expect("ASCII")))
                .collect(),
            usages: vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
            from: now - hour,
            until: now + hour,
            raw_san: None,
            serial: None,
        }
    }

    pub fn params(&self) -> CertificateParams {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = self.sans.clone();
        params.extended_key_usages = self.usages.clone();
        params.serial_number = self.serial.map(SerialNumber::from);
        (params.not_before, params.not_after) = (
            epoch + since_1970(self.from),
            epoch + since_1970(self.until),
        );
        if let Some(raw) = &self.raw_san {
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(
                    &[2, 5, 29, 17],
                    raw.clone(),
                ));
        }
        params
    }
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).expect("after 1970")
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("keys can be made")
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    pub fn new(name: &str) -> Self {
        Self {
            issuer: CertifiedIssuer::self_signed(ca_params(name), key())
                .expect("a root can be made"),
        }
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn trust(&self) -> Trust {
        Trust::new(vec![self.root()]).expect("a root is an anchor")
    }

    /// A leaf with its key as PEM.
    pub fn sign(&self, leaf: &Leaf) -> (CertificateDer<'static>, String) {
        let key = key();
        let certificate = leaf
            .params()
            .signed_by(&key, &self.issuer)
            .expect("it can be signed");
        (
            certificate.der().clone(),
            format!("{}{}", key.serialize_pem(), certificate.pem()),
        )
    }

    /// A leaf below so many intermediates, leaf first, without the root.
    pub fn sign_deep(&self, leaf: &Leaf, depth: usize) -> Vec<CertificateDer<'static>> {
        let mut chain = Vec::new();
        let mut issuer: Option<CertifiedIssuer<'static, KeyPair>> = None;
        for n in 0..depth {
            let parent = issuer.as_ref().unwrap_or(&self.issuer);
            let next =
                CertifiedIssuer::signed_by(ca_params(&format!("intermediate {n}")), key(), parent)
                    .expect("it can be signed");
            chain.insert(0, next.der().clone());
            issuer = Some(next);
        }
        let parent = issuer.as_ref().unwrap_or(&self.issuer);
        chain.insert(
            0,
            leaf.params()
                .signed_by(&key(), parent)
                .expect("it can be signed")
                .der()
                .clone(),
        );
        chain
    }

    /// A list that revokes the certificate with this number and says until when it is good, PEM.
    pub fn revokes(&self, serial: u64, until: SystemTime) -> String {
        let until = rcgen::date_time_ymd(1970, 1, 1) + since_1970(until);
        let from = until - Duration::from_secs(3600);
        let revoked = RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: from,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: from,
            next_update: until,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("it can be signed");
        list.pem().expect("it can be written")
    }

    /// What the CA's service would answer to a request: the leaf for these URIs, and the root.
    pub fn answer(&self, csr_pem: &str, leaf: &Leaf) -> Vec<String> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).expect("a request");
        csr.params = leaf.params();
        let certificate = csr.signed_by(&self.issuer).expect("it can be signed");
        vec![certificate.pem(), self.issuer.pem()]
    }

    /// A usable certificate for an identity.
    pub fn issue(&self, identity: &Identity) -> Issued {
        let (_, pem) = self.sign(&Leaf::of(&[&identity.to_string()]));
        let bundle = Bundle::from_pem(format!("{pem}{}", self.issuer.pem()), SystemTime::now());
        Issued::from_bundle(&bundle, identity, SystemTime::now()).expect("it proves what it says")
    }

    /// A node's own certificate.
    pub fn issue_node(&self, node: &str) -> NodeCertificate {
        let uri = format!("spiffe://cluster.local/warren/node/{node}");
        let (_, pem) = self.sign(&Leaf::of(&[&uri]));
        let now = SystemTime::now();
        let bundle = Bundle::from_pem(format!("{pem}{}", self.issuer.pem()), now);
        NodeCertificate::from_bundle(bundle, now).expect("it can be read")
    }
}

/// `spiffe://cluster.local/ns/<ns>/sa/<sa>`.
pub(crate) fn identity(namespace: &str, account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
        .parse()
        .expect("an identity")
}
