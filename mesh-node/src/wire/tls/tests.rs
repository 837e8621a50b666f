//! Handshakes and records in memory: keys change in both directions, tampering is noticed.

use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{RootCertStore, pki_types::PrivateKeyDer};

use super::*;

fn configs(client_alpn: &[u8]) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let cert = params.self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![client_alpn.to_vec()];
    client.enable_secret_extraction = true;
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key);
    (Arc::new(client), Arc::new(server.unwrap()))
}

/// Both sides after their handshake, and what each has not read yet.
fn established() -> [(Established, Vec<u8>); 2] {
    let (client, server) = configs(b"h2");
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let mut sides = [
        Some(Handshake::client(client, name).unwrap()),
        Some(Handshake::server(server).unwrap()),
    ];
    let mut wires = [Vec::new(), Vec::new()];
    let mut done = [None, None];
    while done.iter().any(Option::is_none) {
        for me in [0, 1] {
            while let Some(side) = &mut sides[me] {
                let mut out = Vec::new();
                let step = side
                    .advance(&mut wires[me], &mut out, &mut Vec::new())
                    .unwrap();
                wires[1 - me].extend(out);
                match step {
                    Step::Write => {}
                    Step::Read => break,
                    Step::Done => {
                        done[me] = sides[me]
                            .take()
                            .map(|side| side.finish(&wires[me]).unwrap())
                    }
                }
            }
        }
    }
    let [client_wire, server_wire] = wires;
    let [client, server] = done.map(|side| side.expect("both are done"));
    [(client, client_wire), (server, server_wire)]
}

fn sealed(sealer: &mut Sealer, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut record = vec![0; 5 + content.len() + 17];
    record[5..5 + content.len()].copy_from_slice(content);
    sealer.seal(kind, &mut record);
    record
}

/// Opens everything in `wire`; gives the content and the other records.
fn opened(session: &mut Session, wire: &mut [u8]) -> Result<(Vec<u8>, Vec<Record>), TlsError> {
    let (mut at, mut content, mut others) = (0, Vec::new(), Vec::new());
    while let Some(record) = session.open(wire, &mut at)? {
        match record {
            Record::Data(range) => content.extend(&wire[range]),
            other => others.push(other),
        }
    }
    Ok((content, others))
}

#[test]
fn records_keys_and_tickets_go_both_ways() {
    let [(mut client, mut client_wire), (mut server, _)] = established();
    // The server's tickets are still on the wire, before its first content.
    client_wire.extend(sealed(&mut server.sealer, 23, b"hello"));
    let (content, others) = opened(&mut client.session, &mut client_wire).unwrap();
    assert_eq!(content, b"hello");
    assert!(
        !others.is_empty() && others.iter().all(|r| *r == Record::Other),
        "tickets: {others:?}"
    );
    for reply in [false, true] {
        for _ in 0..3 {
            let mut wire = sealed(&mut client.sealer, 22, &[24, 0, 0, 1, u8::from(reply)]);
            client.sealer = client.session.next_sealer().unwrap();
            wire.extend(sealed(&mut client.sealer, 23, b"under a new key"));
            let (content, others) = opened(&mut server.session, &mut wire).unwrap();
            assert_eq!(
                (content.as_slice(), others),
                (
                    b"under a new key".as_slice(),
                    vec![Record::KeyUpdate { reply }]
                )
            );
        }
    }
    let mut wire = sealed(&mut client.sealer, 21, &[1, 0]);
    assert_eq!(
        opened(&mut server.session, &mut wire).unwrap().1,
        [Record::Closed]
    );
}

#[test]
fn a_record_cut_anywhere_waits_and_a_changed_one_is_refused() {
    let [(mut client, _), (mut server, _)] = established();
    let record = sealed(&mut client.sealer, 23, b"content");
    for cut in 0..record.len() {
        assert_eq!(
            server
                .session
                .open(&mut record.clone()[..cut], &mut 0)
                .unwrap(),
            None
        );
    }
    for place in 0..record.len() {
        let [(mut client, _), (mut server, _)] = established();
        let mut record = sealed(&mut client.sealer, 23, b"content");
        record[place] ^= 1;
        // A changed version is bound by no rule; a changed length waits for more, or is refused.
        let result = server.session.open(&mut record, &mut 0);
        let harmless = matches!(place, 1 | 2) && matches!(result, Ok(Some(Record::Data(_))));
        assert!(
            harmless || !matches!(result, Ok(Some(_))),
            "octet {place}: {result:?}"
        );
        if place > 8 {
            break;
        }
    }
    assert!(opened(&mut server.session, &mut record.clone()).is_ok());
    assert!(
        opened(&mut server.session, &mut record.clone()).is_err(),
        "a record may not be replayed"
    );
}

#[test]
fn alerts_and_messages_that_may_not_come_end_the_tunnel() {
    let check = |kind: u8, content: &[u8]| {
        let [(mut client, _), (mut server, _)] = established();
        let mut wire = sealed(&mut client.sealer, kind, content);
        assert!(
            opened(&mut server.session, &mut wire).is_err(),
            "{kind} {content:?}"
        );
    };
    check(21, &[2, 40]);
    check(21, &[2]);
    check(22, &[]);
    check(22, &[24, 0, 0, 1, 2]);
    check(22, &[4, 0, 0, 1, 0]);
    check(22, &[1, 0, 0, 0]);
    check(20, &[1]);
    check(0, &[]);
}

#[test]
fn a_peer_that_speaks_another_protocol_is_refused() {
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let (_, server) = configs(b"h2");
    let (other, _) = configs(b"http/1.1");
    let mut client = rustls::client::UnbufferedClientConnection::new(other, name).unwrap();
    let mut hello = vec![0; 4096];
    let status = client.process_tls_records(&mut []);
    let Ok(ConnectionState::EncodeTlsData(mut encode)) = status.state else {
        panic!("no hello")
    };
    let length = encode.encode(&mut hello).unwrap();
    hello.truncate(length);
    let mut out = Vec::new();
    let error = Handshake::server(server)
        .unwrap()
        .advance(&mut hello, &mut out, &mut Vec::new())
        .unwrap_err();
    assert!(
        matches!(
            error,
            TlsError::Rustls(rustls::Error::NoApplicationProtocol)
        ),
        "{error}"
    );
    let (mut rest, mut last) = (out.as_slice(), 0);
    while let Some((&[kind, _, _, a, b], body)) = rest.split_first_chunk::<5>() {
        (last, rest) = (kind, &body[usize::from(u16::from_be_bytes([a, b]))..]);
    }
    assert!(
        matches!(last, 21 | 23),
        "the peer is told by an alert, in clear or sealed; the last record is {last}"
    );
}
