//! `Node`: a YAML or JSON document whose parts know their lines, and reading a type from it.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer,
    MapAccess, SeqAccess, Visitor,
};
use serde_saphyr::Spanned;

/// Where something is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as the caller named it.
    pub file: String,
    /// The line, counted from 1; 0: the file as a whole.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// A mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {sentence}")]
pub struct Flaw {
    /// Where.
    pub place: Place,
    /// The field and what was expected.
    pub sentence: String,
}

impl Flaw {
    pub(crate) fn new(file: &str, line: u32, sentence: impl Into<String>) -> Self {
        Self { place: Place { file: file.to_owned(), line }, sentence: sentence.into() }
    }
}

/// What does not fit the type that is read: the line, the field's path, and the sentence.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Misfit {
    line: u32,
    path: String,
    sentence: String,
}

impl Misfit {
    pub(in crate::policy) fn in_file(self, file: &str) -> Flaw {
        let Self { line, path, sentence } = self;
        let sentence = if path.is_empty() { sentence } else { format!("{path}: {sentence}") };
        Flaw::new(file, line, sentence)
    }

    fn at(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }

    fn within(mut self, step: &str) -> Self {
        match self.path.chars().next() {
            None | Some('[') => self.path.insert_str(0, step),
            Some(_) => self.path = format!("{step}.{}", self.path),
        }
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(sentence: T) -> Self {
        Self { line: 0, path: String::new(), sentence: sentence.to_string() }
    }
}

/// A part of a document.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Node {
    line: u32,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
struct Key {
    line: u32,
    name: String,
}

/// Largest text of one file, in bytes.
const LARGEST: usize = 16 << 20;

/// The documents of a text. JSON is read as the YAML that it is.
///
/// # Errors
/// It is not YAML; a key stands twice; it is larger than 16 MiB.
pub(in crate::policy) fn documents(file: &str, text: &str) -> Result<Vec<Node>, Flaw> {
    if text.len() > LARGEST {
        return Err(Flaw::new(file, 0, "the file is larger than 16 MiB"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 10_000_000,
            max_nodes: 5_000_000,
            max_total_scalar_bytes: LARGEST,
            max_documents: 10_000,
            max_depth: 64,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 20_000 },
        with_snippet: false,
        // `no` is a namespace, and not false.
        strict_booleans: true,
    };
    let read = serde_saphyr::from_str_multiple_with_options::<Node, Vec<Node>>(text, options);
    read.map_err(|error| {
        let line = error.location().map_or(0, |location| small(location.line()));
        let sentence = error.without_snippet().to_string();
        // The place stands before the sentence already.
        let sentence = match sentence.rsplit_once(" at line ") {
            Some((before, after)) if after.starts_with(|c: char| c.is_ascii_digit()) => before,
            _ => sentence.as_str(),
        };
        Flaw::new(file, line, sentence)
    })
}

fn small(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl Node {
    /// Where it begins.
    pub(in crate::policy) const fn line(&self) -> u32 {
        self.line
    }

    pub(in crate::policy) fn is_null(&self) -> bool {
        matches!(self.content, Content::Null)
    }

    /// A member of a map.
    pub(in crate::policy) fn get(&self, name: &str) -> Option<&Self> {
        let Content::Map(members) = &self.content else { return None };
        members.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// The members of a map, with the lines of their names.
    pub(in crate::policy) fn members(&self) -> impl Iterator<Item = (&str, u32, &Self)> {
        let members = match &self.content {
            Content::Map(members) => members.as_slice(),
            _ => &[],
        };
        members.iter().map(|(key, node)| (key.name.as_str(), key.line, node))
    }

    pub(in crate::policy) fn is_map(&self) -> bool {
        matches!(self.content, Content::Map(_))
    }

    pub(in crate::policy) fn items(&self) -> Option<&[Self]> {
        match &self.content {
            Content::List(items) => Some(items),
            _ => None,
        }
    }

    pub(in crate::policy) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same map without some members.
    pub(in crate::policy) fn without(&self, names: &[&str]) -> Self {
        let mut node = self.clone();
        if let Content::Map(members) = &mut node.content {
            members.retain(|(key, _)| !names.contains(&key.name.as_str()));
        }
        node
    }

    /// Reads a type from it. Fields that the type does not know are refused if it refuses them.
    pub(in crate::policy) fn read<T: DeserializeOwned>(&self) -> Result<T, Misfit> {
        T::deserialize(self).map_err(|misfit| misfit.at(self.line))
    }

    /// The line of the part that a sentence as `rules[0].from.principals[1]: …` is about, or of what is nearest above it.
    pub(in crate::policy) fn line_of(&self, sentence: &str) -> u32 {
        let path = sentence.split(": ").next().unwrap_or_default();
        let mut node = self;
        let mut line = self.line;
        for step in path.split(['.', '[']) {
            let found = match step.strip_suffix(']') {
                Some(at) => at.parse().ok().and_then(|at: usize| node.items()?.get(at)),
                None => node.get(step),
            };
            let Some(found) = found else { break };
            (node, line) = (found, found.line);
        }
        line
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let spanned: Spanned<Content> = Spanned::deserialize(from)?;
        Ok(Self { line: small(spanned.referenced.line()), content: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(u64::try_from(value).map_or(Content::Signed(value), Content::Unsigned))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Unsigned(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Content, D::Error> {
        Content::deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut members: Vec<(Key, Node)> = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let key = Key { line: small(key.referenced.line()), name: key.value };
            let node: Node = access.next_value()?;
            members.push((key, node));
        }
        Ok(Content::Map(members))
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let value = match &self.content {
            Content::Null => visitor.visit_unit(),
            Content::Bool(value) => visitor.visit_bool(*value),
            Content::Unsigned(value) => visitor.visit_u64(*value),
            Content::Signed(value) => visitor.visit_i64(*value),
            Content::Float(value) => visitor.visit_f64(*value),
            Content::Text(text) => visitor.visit_borrowed_str(text),
            Content::List(items) => visitor.visit_seq(Items { items, at: 0 }),
            Content::Map(members) => visitor.visit_map(Members { members, value: None }),
        };
        value.map_err(|misfit: Misfit| misfit.at(self.line))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.content {
            Content::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let value = match &self.content {
            Content::Text(text) => {
                let text: de::value::StrDeserializer<'de, Misfit> =
                    text.as_str().into_deserializer();
                visitor.visit_enum(text)
            }
            Content::Map(members) if members.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(Members { members, value: None }))
            }
            _ => Err(de::Error::custom("expected a name, or one name with its value")),
        };
        value.map_err(|misfit| misfit.at(self.line))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier
    }
}

struct Items<'de> {
    items: &'de [Node],
    at: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        let Some(item) = self.items.get(self.at) else { return Ok(None) };
        let step = format!("[{}]", self.at);
        self.at += 1;
        let value = seed.deserialize(item);
        value.map(Some).map_err(|misfit| misfit.at(item.line).within(&step))
    }
}

struct Members<'de> {
    members: &'de [(Key, Node)],
    value: Option<(&'de Key, &'de Node)>,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Misfit> {
        let Some(((key, node), rest)) = self.members.split_first() else { return Ok(None) };
        self.members = rest;
        self.value = Some((key, node));
        seed.deserialize(Name(&key.name)).map(Some).map_err(|misfit| misfit.at(key.line))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let (key, node) = self.value.take().expect("a value is asked for after its name");
        seed.deserialize(node).map_err(|misfit| misfit.at(node.line).within(&key.name))
    }
}

/// A member's name: a text, also where it stands for a number.
struct Name<'de>(&'de str);

impl<'de> Deserializer<'de> for Name<'de> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.parse() {
            Ok(number) => visitor.visit_u16(number),
            Err(_) => visitor.visit_borrowed_str(self.0),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let text: de::value::StrDeserializer<'de, Misfit> = self.0.into_deserializer();
        visitor.visit_enum(text)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}
