//! A certificate authority of a test's own: the controller signs with it, and so does the test for its peers.
//!
//! Invariant: what `issue` makes is what the mesh's own authority would make, but for what the caller changes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::envoy::Files;

/// The authority with its files.
pub struct Ca {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    /// A new root, whose certificate and key are written into `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "root of the tests");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let ca = Self {
            dir: dir.to_owned(),
            issuer,
        };
        ca.write("root.pem", &ca.issuer.pem())?;
        ca.write("root.key", &ca.issuer.key().serialize_pem())?;
        Ok(ca)
    }

    /// What makes a controller sign with this root.
    pub fn controller_args(&self) -> Vec<String> {
        [("--ca-cert", "root.pem"), ("--ca-key", "root.key")]
            .iter()
            .flat_map(|(flag, file)| {
                [
                    (*flag).to_owned(),
                    self.dir.join(file).display().to_string(),
                ]
            })
            .collect()
    }

    /// A certificate for a workload: one URI, for both ends of TLS.
    pub fn issue(&self, name: &str, uri: &str) -> Result<Files> {
        self.issue_with(name, &[uri], |_| {})
    }

    /// The same with any number of URIs and with other changes.
    pub fn issue_with(
        &self,
        name: &str,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Files> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.subject_alt_names = uris
            .iter()
            .map(|uri| Ok(SanType::URI((*uri).try_into()?)))
            .collect::<Result<_>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Files {
            chain: self.write(&format!("{name}.pem"), &cert.pem())?,
            key: self.write(&format!("{name}.key"), &key.serialize_pem())?,
            roots: self.dir.join("root.pem"),
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
