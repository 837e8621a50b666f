//! DNS messages: reading a query, writing an answer.
//!
//! Invariants: the question goes back byte for byte; an answer is never longer than the client takes, and
//! says when it was cut; bytes that are no query give an error reply or silence, never a guess.

use std::{net::IpAddr, str::FromStr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};

use super::answer::Asked;

/// How long answers may be kept, in seconds.
const TTL: u32 = 30;
/// What fits into UDP without EDNS.
const PLAIN: usize = 512;
/// What an answer over UDP may have with EDNS, whatever the client takes.
const LARGE: usize = 4096;

/// A packet, as far as this server understands it.
#[derive(Debug)]
pub enum Incoming {
    /// A question about the addresses of a name.
    Question(Box<Question>),
    /// A query that only the resolver can answer.
    Other,
    /// Bytes that are no query: what to reply.
    Malformed(Option<Vec<u8>>),
}

/// A question about a name.
#[derive(Debug)]
pub struct Question {
    message: Message,
    /// The name in lower case without a trailing dot.
    pub name: String,
    /// What is asked for.
    pub asked: Asked,
    /// The query's id.
    pub id: u16,
    room: usize,
}

/// Reads a packet. `stream`: it came over TCP, where answers may be long.
pub fn read(packet: &[u8], stream: bool) -> Incoming {
    let Ok(message) = Message::from_vec(packet) else {
        return Incoming::Malformed(header_only(packet, ResponseCode::FormErr));
    };
    let id = message.metadata.id;
    if message.metadata.message_type != MessageType::Query {
        return Incoming::Malformed(None);
    }
    if message.metadata.op_code != OpCode::Query {
        return Incoming::Other;
    }
    let [query] = message.queries.as_slice() else {
        return Incoming::Malformed(header_only(packet, ResponseCode::FormErr));
    };
    let asked = match (query.query_class(), query.query_type()) {
        (DNSClass::IN, RecordType::A) => Asked::A,
        (DNSClass::IN, RecordType::AAAA) => Asked::Aaaa,
        (DNSClass::IN, RecordType::HTTPS | RecordType::SVCB) => Asked::Nothing,
        _ => return Incoming::Other,
    };
    let name = query.name().to_lowercase().to_ascii();
    let room = match (stream, &message.edns) {
        (true, _) => usize::from(u16::MAX),
        (false, Some(edns)) => usize::from(edns.max_payload()).clamp(PLAIN, LARGE),
        (false, None) => PLAIN,
    };
    Incoming::Question(Box::new(Question {
        name: name.trim_end_matches('.').to_owned(),
        asked,
        id,
        room,
        message,
    }))
}

impl Question {
    /// The answer with these addresses; none means that the name has none of that kind.
    pub fn reply(&self, addresses: &[IpAddr]) -> Option<Vec<u8>> {
        let name = self.query().name().clone();
        self.finish(
            addresses
                .iter()
                .map(|ip| record(name.clone(), *ip))
                .collect(),
            true,
        )
    }

    /// The answer for an alias: where it points, and the addresses there as far as they are known.
    pub fn reply_alias(&self, target: &str, addresses: &[IpAddr]) -> Option<Vec<u8>> {
        let target = Name::from_str(&format!("{target}.")).ok()?;
        let mut records = vec![Record::from_rdata(
            self.query().name().clone(),
            TTL,
            RData::CNAME(rdata::CNAME(target.clone())),
        )];
        records.extend(addresses.iter().map(|ip| record(target.clone(), *ip)));
        self.finish(records, true)
    }

    /// A failure.
    pub fn fail(&self, code: ResponseCode) -> Option<Vec<u8>> {
        let mut message = self.begin();
        message.metadata.response_code = code;
        message.to_vec().ok()
    }

    /// A query for the same kind of address of another name.
    pub fn about(&self, target: &str, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(
            Name::from_str(&format!("{target}.")).ok()?,
            self.query().query_type(),
        ));
        message.to_vec().ok()
    }

    fn query(&self) -> &Query {
        self.message
            .queries
            .first()
            .expect("a question was read with its query")
    }

    fn begin(&self) -> Message {
        let mut reply = Message::new(self.id, MessageType::Response, OpCode::Query);
        reply.metadata.recursion_desired = self.message.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.checking_disabled = self.message.metadata.checking_disabled;
        reply.add_query(self.query().clone());
        if self.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(u16::try_from(LARGE).unwrap_or(u16::MAX));
            reply.set_edns(edns);
        }
        reply
    }

    fn finish(&self, records: Vec<Record>, authoritative: bool) -> Option<Vec<u8>> {
        let mut reply = self.begin();
        reply.metadata.authoritative = authoritative;
        reply.insert_answers(records);
        loop {
            let bytes = reply.to_vec().ok()?;
            if bytes.len() <= self.room || reply.answers.is_empty() {
                return Some(bytes);
            }
            reply.metadata.truncation = true;
            let fewer = reply.answers.len() / 2;
            reply.answers.truncate(fewer);
        }
    }
}

fn record(name: Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(rdata::A(ip)),
        IpAddr::V6(ip) => RData::AAAA(rdata::AAAA(ip)),
    };
    Record::from_rdata(name, TTL, data)
}

/// The addresses in a resolver's answer to `about`; empty when there are none or it is no answer.
pub fn addresses_in(packet: &[u8], asked: Asked) -> Vec<IpAddr> {
    let Ok(message) = Message::from_vec(packet) else {
        return Vec::new();
    };
    let address = |r: &Record| match (&r.data, asked) {
        (RData::A(a), Asked::A) => Some(IpAddr::from(a.0)),
        (RData::AAAA(a), Asked::Aaaa) => Some(IpAddr::from(a.0)),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

/// The id of a packet, and whether it is a response.
pub fn id_of(packet: &[u8]) -> Option<(u16, bool)> {
    match packet {
        [a, b, flags, ..] if packet.len() >= 12 => {
            Some((u16::from_be_bytes([*a, *b]), flags & 0x80 != 0))
        }
        _ => None,
    }
}

/// A reply of nothing but a header, to a query that could not be read further or passed on.
pub fn header_only(packet: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let (id, response) = id_of(packet)?;
    if response {
        return None;
    }
    let mut reply = vec![0; 12];
    reply[0..2].copy_from_slice(&id.to_be_bytes());
    // QR, the query's opcode and RD; RA and the code.
    reply[2] = 0x80 | (packet[2] & 0x79);
    reply[3] = 0x80 | code.low();
    Some(reply)
}

#[cfg(test)]
#[path = "message_tests.rs"]
pub(super) mod tests;
