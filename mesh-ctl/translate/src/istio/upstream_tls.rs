//! What a destination rule says of TLS to its servers, as the model has it.
//!
//! Invariants: what is asked for and cannot be had refuses, for less would let in whom it should not; what the mode does
//! not look at is said by field.

use mesh_k8s::networking::destination_rule::ClientTlsSettings;
use mesh_model::{
    name::Identity,
    resilience::{TlsFiles, UpstreamTls},
};

use crate::traffic::reader::Reader;

/// What stands for the system's roots among files of roots.
const SYSTEM_ROOTS: &str = "system";

/// Reads it; `None`, and the destination refuses, where the mode is none.
pub(super) fn tls(
    reader: &mut Reader,
    path: &str,
    wire: &ClientTlsSettings,
) -> Option<UpstreamTls> {
    warn_of_idle(reader, path, wire);
    // Less than what was asked for would let in whom it should not.
    let mut refuse =
        |name: &str, text: &str| reader.fail(&format!("{path}.{name}"), text.to_owned());
    let mutual = match wire.mode.as_str() {
        "" | "DISABLE" => return Some(UpstreamTls::Disable),
        "ISTIO_MUTUAL" => return Some(UpstreamTls::Mesh(identities(reader, path, wire))),
        "SIMPLE" => false,
        "MUTUAL" => true,
        other => {
            let text = format!("{other:?} is none of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL");
            refuse("mode", &text);
            return None;
        }
    };
    if !wire.ca_crl.is_empty() && is_unchecked(wire) {
        let text = "with insecureSkipVerify no certificate is looked at, and a revoked one would be taken; leave out one of the two";
        refuse("caCrl", text);
    }
    if !wire.credential_name.is_empty() {
        let text = "Istio reads secrets at gateways, and elsewhere only with workloadSelector; here no waypoint is given any: name files in the waypoint by caCertificates, clientCertificate and privateKey, from a volume that parametersRef of its Gateway adds";
        refuse("credentialName", text);
    } else if mutual && (wire.client_certificate.is_empty() || wire.private_key.is_empty()) {
        let text = "MUTUAL needs a certificate and its key";
        refuse("clientCertificate", text);
    }
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    let roots = wire.ca_certificates.as_str();
    let files = TlsFiles {
        roots: text(roots).filter(|_| roots != SYSTEM_ROOTS),
        chain: text(&wire.client_certificate).filter(|_| mutual),
        key: text(&wire.private_key).filter(|_| mutual),
        revoked: text(&wire.ca_crl),
    };
    Some(UpstreamTls::Origin {
        sni: text(&wire.sni),
        names: wire
            .subject_alt_names
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
        roots: None,
        credential: text(&wire.credential_name),
        files,
        insecure: is_unchecked(wire),
    })
}

/// Whom the servers may be; anybody when it is empty.
fn identities(reader: &mut Reader, path: &str, wire: &ClientTlsSettings) -> Box<[Identity]> {
    let path = format!("{path}.subjectAltNames");
    let mut all = Vec::new();
    for (i, name) in wire.subject_alt_names.iter().enumerate() {
        match name.parse() {
            Ok(identity) => all.push(identity),
            Err(error) => reader.warn(
                format!("{path}[{i}]"),
                format!("no server of the mesh proves this name: {error}"),
            ),
        }
    }
    if all.is_empty() && !wire.subject_alt_names.is_empty() {
        let text = "with ISTIO_MUTUAL a server proves an identity of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, and none of these is one";
        reader.fail(&path, text.to_owned());
    }
    all.into()
}

fn is_unchecked(wire: &ClientTlsSettings) -> bool {
    wire.insecure_skip_verify == Some(true)
}

/// Says of which fields nothing comes.
fn warn_of_idle(reader: &mut Reader, path: &str, wire: &ClientTlsSettings) {
    let fields = [
        ("clientCertificate", !wire.client_certificate.is_empty()),
        ("privateKey", !wire.private_key.is_empty()),
        ("caCertificates", !wire.ca_certificates.is_empty()),
        ("credentialName", !wire.credential_name.is_empty()),
        ("subjectAltNames", !wire.subject_alt_names.is_empty()),
        ("sni", !wire.sni.is_empty()),
        ("insecureSkipVerify", is_unchecked(wire)),
        ("caCrl", !wire.ca_crl.is_empty()),
    ];
    for (name, _) in fields.into_iter().filter(|(_, is_set)| *is_set) {
        let why = match (wire.mode.as_str(), name) {
            ("" | "DISABLE", _) => "mode is DISABLE",
            ("ISTIO_MUTUAL", "subjectAltNames") => continue,
            ("ISTIO_MUTUAL", _) => "with ISTIO_MUTUAL the mesh's own certificates are used",
            ("SIMPLE", "clientCertificate" | "privateKey") => "only MUTUAL shows a certificate",
            ("SIMPLE" | "MUTUAL", "caCertificates" | "subjectAltNames") if is_unchecked(wire) => {
                "with insecureSkipVerify no certificate is looked at"
            }
            _ => continue,
        };
        reader.warn(format!("{path}.{name}"), format!("is not looked at: {why}"));
    }
}
