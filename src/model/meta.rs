//! What all kinds share: ids, revisions, labels, times.

use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use zeroize::Zeroize;

/// A store's counter: grows with each write, over all kinds.
pub type Revision = u64;

/// Free-form labels of a resource.
pub type Labels = BTreeMap<String, String>;

/// A resource's name within its kind: 1 to 64 of `[a-zA-Z0-9-_.]`, or on the wire an integer from 1.
///
/// A credential's id is `<consumer>/credentials/<id>` and a secret manager's `<type>/<id>`: key paths within their kinds' folders,
/// as in APISIX's etcd layout.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(Arc<str>);

impl Id {
    /// Takes an id that a key of the store or a URL named.
    ///
    /// # Errors
    /// The sentence that the Admin API answers with.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lawful = |part: &str, max: usize| {
            (1..=max).contains(&part.len())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let fits = match text.split_once("/credentials/") {
            Some((consumer, id)) => lawful(consumer, 256) && lawful(id, 64),
            None => match text.split_once('/') {
                Some((manager, id)) => {
                    super::ManagerType::named(manager).is_some() && lawful(id, 64)
                }
                // Consumers' names may be longer than ids; the schema holds the others to 64.
                None => lawful(text, 256),
            },
        };
        if fits {
            Ok(Self(text.into()))
        } else {
            Err("property \"id\" validation failed: object matches none of the required".into())
        }
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id that the server gives: the number with leading zeros to 20 digits, so that ids sort by age.
impl From<u64> for Id {
    fn from(number: u64) -> Self {
        Self(format!("{number:020}").into())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Wire {
            Number(u64),
            Text(String),
        }
        match Wire::deserialize(deserializer)? {
            Wire::Number(0) => Err(de::Error::custom("an integer id starts at 1")),
            Wire::Number(number) => Ok(Self(number.to_string().into())),
            Wire::Text(text) => Self::parse(&text).map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for Id {
    fn schema_name() -> Cow<'static, str> {
        "Id".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[a-zA-Z0-9-_.]+$"},
            {"type": "integer", "minimum": 1}
        ]})
    }
}

/// A value that no log and no debug output shows, wiped when it is dropped.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Redacted<T: Zeroize>(T);

impl<T: Zeroize> Drop for Redacted<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> Redacted<T> {
    /// Hides `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
    /// The value itself, for its one use.
    pub const fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("••••")
    }
}

impl<T: JsonSchema + Zeroize> JsonSchema for Redacted<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// How long the steps of an exchange with an upstream may take, in seconds; fractions are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeout {
    /// To establish the connection, handshake included.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub connect: f64,
    /// Between two writes of the request.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub send: f64,
    /// Between two reads of the response.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub read: f64,
}

impl Default for Timeout {
    fn default() -> Self {
        Self { connect: 60.0, send: 60.0, read: 60.0 }
    }
}
