//! A YAML value that remembers its lines.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// A value with the line it begins at.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: u32,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The value without its lines.
    pub(super) fn value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => items.iter().map(Self::value).collect(),
            Content::Map(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, node)| (key.clone(), node.value()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    /// A field of a mapping.
    pub(super) fn field(&self, key: &str) -> Option<&Node> {
        let Content::Map(fields) = &self.content else {
            return None;
        };
        fields
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Option<&[Node]> {
        if let Content::List(items) = &self.content {
            Some(items)
        } else {
            None
        }
    }

    /// Whether there is nothing in it.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar(Value::Null))
    }

    /// The line of the deepest part of `path` that exists. Keys may contain dots: the longest that fits is taken.
    pub(super) fn line_of(&self, path: &str) -> u32 {
        let path = path.strip_prefix('.').unwrap_or(path);
        match &self.content {
            Content::Map(fields) => {
                let fits = |key: &str| {
                    let quoted = path
                        .strip_prefix('[')
                        .and_then(|rest| rest.strip_prefix(key));
                    let rest = quoted
                        .and_then(|rest| rest.strip_prefix(']'))
                        .or_else(|| path.strip_prefix(key))?;
                    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
                };
                let best = fields
                    .iter()
                    .filter_map(|(key, node)| Some((key.len(), node, fits(key)?)));
                best.max_by_key(|(len, ..)| *len)
                    .map_or(self.line, |(_, node, rest)| node.line_of(rest))
            }
            Content::List(items) => {
                let index = path.strip_prefix('[').and_then(|rest| rest.split_once(']'));
                let item = index.and_then(|(index, rest)| {
                    Some((items.get(index.parse::<usize>().ok()?)?, rest))
                });
                item.map_or(self.line, |(node, rest)| node.line_of(rest))
            }
            Content::Scalar(_) => self.line,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self {
            line: u32::try_from(spanned.referenced.line()).unwrap_or(u32::MAX),
            content: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E: Error>(self) -> Result<Content, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Content, E> {
        Number::from_f64(value)
            .map(|number| Content::Scalar(Value::Number(number)))
            .ok_or_else(|| E::custom(format!("{value} is not a number that an object can have")))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(Value::String(value.to_owned())))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Content, E> {
        Ok(Content::Scalar(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut fields = Vec::new();
        while let Some(entry) = map.next_entry()? {
            fields.push(entry);
        }
        Ok(Content::Map(fields))
    }
}
