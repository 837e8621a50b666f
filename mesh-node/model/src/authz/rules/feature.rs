//! Features: the one property by which a rule is filed, and by which a connection finds it.
//!
//! Invariant: a rule that matches a connection is filed under at least one feature that the connection
//! shows. The reverse need not hold: what is found is still evaluated whole.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    authz::matches::{Facts, unmapped},
    mesh::{
        Action,
        policy::{Clause, Match, Rule, StringMatch},
    },
};

/// Which property a feature is of; in the order in which ties are broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Principal,
    Account,
    SourceV4,
    SourceV6,
    Port,
    Namespace,
    DestinationV4,
    DestinationV6,
    PrincipalPrefix,
    PrincipalSuffix,
    NamespacePrefix,
    NamespaceSuffix,
    // Who and port together, for rules that share each with many others.
    PrincipalAndPort,
    AccountAndPort,
    NamespaceAndPort,
    /// Any peer that proved who it is.
    Known,
    /// Rules without a positive field.
    Rest,
}

/// A kind with the length that its text or range has; 0 where the whole value counts.
pub(super) type Shape = (Kind, u16);

/// A feature: its shape and the hash of shape and value.
pub(super) type Feature = (Shape, u64);

/// Under which features a rule is to be filed. `crowd` tells how many are filed under one already: the
/// clause whose features are the least crowded is chosen.
pub(super) fn of_rule(rule: &Rule, action: Action, crowd: impl Fn(u64) -> usize) -> Vec<Feature> {
    let cost = |features: &[Feature]| {
        features
            .iter()
            .map(|(_, hash)| crowd(*hash) + 1)
            .sum::<usize>()
    };
    let clauses = rule
        .clauses
        .iter()
        .filter_map(|c| of_clause(c, action, &cost));
    clauses
        .min_by_key(|features| cost(features))
        .unwrap_or_else(|| vec![feature(Kind::Rest, 0, 0)])
}

/// Features of which one must show for the clause to match; `None` when it can match without any.
fn of_clause(
    clause: &Clause,
    action: Action,
    cost: &impl Fn(&[Feature]) -> usize,
) -> Option<Vec<Feature>> {
    if clause.matches.is_empty() {
        return None;
    }
    let mut all = Vec::new();
    for m in &clause.matches {
        if !(m.beyond_l4 && action != Action::Deny) {
            all.extend(of_match(m).into_iter().min_by_key(|f| cost(f))?);
        }
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// The positive fields of a match, each as its features.
fn of_match(m: &Match) -> Vec<Vec<Feature>> {
    let text = |list: &[StringMatch], [whole, prefix, suffix]: [Kind; 3]| {
        let one = |s: &StringMatch| match s {
            StringMatch::Exact(t) => feature(whole, 0, hash(t.as_bytes())),
            StringMatch::Prefix(t) => sized(prefix, t.len(), || chain(t.bytes())),
            StringMatch::Suffix(t) => sized(suffix, t.len(), || chain(t.bytes().rev())),
            StringMatch::Presence => feature(Kind::Known, 0, 0),
        };
        list.iter().map(one).collect()
    };
    let nets = |list: &[IpNet], v4, v6| list.iter().map(|n| net(unmapped(*n), v4, v6)).collect();
    let accounts = || {
        m.service_accounts
            .iter()
            .map(|a| account(a.namespace.as_str(), a.service_account.as_str()))
    };
    let fields: [Vec<Feature>; 9] = [
        text(
            &m.principals,
            [
                Kind::Principal,
                Kind::PrincipalPrefix,
                Kind::PrincipalSuffix,
            ],
        ),
        accounts().map(|a| feature(Kind::Account, 0, a)).collect(),
        nets(&m.source_ips, Kind::SourceV4, Kind::SourceV6),
        m.destination_ports
            .iter()
            .map(|p| feature(Kind::Port, 0, u64::from(*p)))
            .collect(),
        text(
            &m.namespaces,
            [
                Kind::Namespace,
                Kind::NamespacePrefix,
                Kind::NamespaceSuffix,
            ],
        ),
        nets(&m.destination_ips, Kind::DestinationV4, Kind::DestinationV6),
        exact(&m.principals).map_or_else(Vec::new, |who| {
            pairs(Kind::PrincipalAndPort, &who, &m.destination_ports)
        }),
        pairs(
            Kind::AccountAndPort,
            &accounts().collect::<Vec<_>>(),
            &m.destination_ports,
        ),
        exact(&m.namespaces).map_or_else(Vec::new, |who| {
            pairs(Kind::NamespaceAndPort, &who, &m.destination_ports)
        }),
    ];
    fields.into_iter().filter(|f| !f.is_empty()).collect()
}

/// The hashes of texts when all are exact.
fn exact(list: &[StringMatch]) -> Option<Vec<u64>> {
    let one = |s: &StringMatch| match s {
        StringMatch::Exact(t) => Some(hash(t.as_bytes())),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
    };
    list.iter().map(one).collect()
}

/// Every combination of who and port, unless they are too many to be worth it.
fn pairs(kind: Kind, who: &[u64], ports: &[u16]) -> Vec<Feature> {
    if who.len() * ports.len() > 32 {
        return Vec::new();
    }
    who.iter()
        .flat_map(|w| ports.iter().map(move |p| feature(kind, 0, pair(*w, *p))))
        .collect()
}

fn pair(who: u64, port: u16) -> u64 {
    mix(who ^ mix(u64::from(port) + 1))
}

/// Affixes too long to count cannot match anything that an identity allows; they are filed with their cap.
fn sized(kind: Kind, len: usize, value: impl Fn() -> u64) -> Feature {
    match u16::try_from(len) {
        Ok(len) => feature(kind, len, value()),
        Err(_) => feature(Kind::Known, 0, 0),
    }
}

fn net(net: IpNet, v4: Kind, v6: Kind) -> Feature {
    let kind = if net.addr().is_ipv4() { v4 } else { v6 };
    let len = net.prefix_len();
    feature(kind, u16::from(len), masked(net.addr(), len))
}

/// The bits of an address that a prefix length keeps.
fn masked(ip: IpAddr, len: u8) -> u64 {
    match ip {
        IpAddr::V4(ip) => u64::from(u32::from(ip).checked_shr(32 - u32::from(len)).unwrap_or(0)),
        IpAddr::V6(ip) => {
            let kept = u128::from(ip)
                .checked_shr(128 - u32::from(len))
                .unwrap_or(0);
            mix((kept >> 64) as u64) ^ kept as u64
        }
    }
}

fn account(namespace: &str, account: &str) -> u64 {
    hash(namespace.as_bytes()).rotate_left(1) ^ hash(account.as_bytes())
}

fn feature(kind: Kind, len: u16, value: u64) -> Feature {
    (
        (kind, len),
        mix(value ^ mix(((kind as u64) << 16 | u64::from(len)) + 1)),
    )
}

/// What a connection shows, asked for shape by shape in ascending order.
pub(super) struct Shown<'a, 'b> {
    facts: &'b Facts<'a>,
    forward: Cursor,
    backward: Cursor,
}

/// How far the affix hash of one text has got.
#[derive(Default)]
struct Cursor {
    kind: Option<Kind>,
    at: usize,
    hash: u64,
}

impl Cursor {
    /// The hash of the first `len` bytes; starts over for another text.
    fn reach(
        &mut self,
        kind: Kind,
        len: u16,
        mut bytes: impl ExactSizeIterator<Item = u8>,
    ) -> Option<u64> {
        let len = usize::from(len);
        if len > bytes.len() {
            return None;
        }
        if self.kind != Some(kind) || self.at > len {
            *self = Self {
                kind: Some(kind),
                at: 0,
                hash: chain([].into_iter()),
            };
        }
        if self.at > 0 {
            bytes.nth(self.at - 1);
        }
        self.hash = bytes.take(len - self.at).fold(self.hash, step);
        self.at = len;
        Some(self.hash)
    }
}

impl<'a, 'b> Shown<'a, 'b> {
    pub fn new(facts: &'b Facts<'a>) -> Self {
        Self {
            facts,
            forward: Cursor::default(),
            backward: Cursor::default(),
        }
    }

    /// The hash of the feature that the connection shows in a shape, if it shows one.
    pub fn in_shape(&mut self, (kind, len): Shape) -> Option<u64> {
        let facts = self.facts;
        let principal = || facts.principal.as_deref();
        let ip = |ip: IpAddr, v4: bool| (ip.is_ipv4() == v4).then(|| masked(ip, len as u8));
        let value = match kind {
            Kind::Principal => hash(principal()?.as_bytes()),
            Kind::PrincipalAndPort => pair(hash(principal()?.as_bytes()), facts.port),
            Kind::PrincipalPrefix => self.forward.reach(kind, len, principal()?.bytes())?,
            Kind::PrincipalSuffix => self.backward.reach(kind, len, principal()?.bytes().rev())?,
            Kind::Namespace => hash(facts.namespace()?.as_bytes()),
            Kind::NamespacePrefix => self.forward.reach(kind, len, facts.namespace()?.bytes())?,
            Kind::NamespaceSuffix => {
                self.backward
                    .reach(kind, len, facts.namespace()?.bytes().rev())?
            }
            Kind::Account => self.account()?,
            Kind::AccountAndPort => pair(self.account()?, facts.port),
            Kind::NamespaceAndPort => pair(hash(facts.namespace()?.as_bytes()), facts.port),
            Kind::Port => u64::from(facts.port),
            Kind::SourceV4 => ip(facts.source, true)?,
            Kind::SourceV6 => ip(facts.source, false)?,
            Kind::DestinationV4 => ip(facts.destination, true)?,
            Kind::DestinationV6 => ip(facts.destination, false)?,
            Kind::Known => facts.identity.map(|_| 0)?,
            Kind::Rest => 0,
        };
        Some(feature(kind, len, value).1)
    }

    fn account(&self) -> Option<u64> {
        let id = self.facts.identity?;
        Some(account(id.namespace.as_str(), id.service_account.as_str()))
    }
}

/// A text's hash, eight bytes at a time.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut h = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        h = (h.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    mix(h)
}

/// A hash that can be continued byte by byte.
fn chain(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, step)
}

fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
}

/// Spreads a value over all bits.
pub(super) fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z ^ (z >> 32)
}
