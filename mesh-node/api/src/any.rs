//! `google.protobuf.Any` whose bytes are shared: a resource is encoded once, however many subscribers get it.

use bytes::Bytes;

/// A message of a named type.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Any {
    /// Names the type, `type.googleapis.com/<package>.<Message>`.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

impl Any {
    /// Wraps a message.
    pub fn pack(type_url: &str, message: &impl prost::Message) -> Self {
        Self {
            type_url: type_url.to_owned(),
            value: message.encode_to_vec().into(),
        }
    }
}
