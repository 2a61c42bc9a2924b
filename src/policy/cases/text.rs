//! `PolicyTest`: cases as they are written.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::Deserialize as DeserializeDerive;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{
    Deserialize, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

use crate::model::{Id, Labels};

/// Cases of policies (`kind: policy_test`, or a file named `*.test.yaml`). What stands beside `cases` holds for each of them
/// that does not say otherwise.
#[derive(Clone, Debug, DeserializeDerive, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyTest {
    /// A name for people.
    #[serde(default)]
    pub(super) name: Option<String>,
    /// Who asks.
    #[serde(default, rename = "as")]
    pub(super) callers: Option<OneOrMany<String>>,
    /// Whom: the SPIFFE ID of the workload that decides.
    #[serde(default)]
    pub(super) to: Option<OneOrMany<String>>,
    /// The port of the listener; 15006 where none is given.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub(super) port: Option<u16>,
    /// The time of the decision, RFC 3339; now where none is given.
    #[serde(default)]
    pub(super) time: Option<String>,
    /// At which door: what no rule allows is refused `inbound`, and open at an `ingress` where no policy selects the route.
    #[serde(default)]
    pub(super) door: Option<Door>,
    /// The cases.
    #[schemars(length(min = 1))]
    pub(super) cases: Vec<CaseText>,
}

/// One case. Where several callers, workloads or requests are given, the same is expected of each.
#[derive(Clone, Debug, DeserializeDerive, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseText {
    /// What it is about.
    pub(super) name: String,
    /// Who asks: a SPIFFE ID, or `none` for a caller without identity.
    #[serde(default, rename = "as")]
    pub(super) callers: Option<OneOrMany<String>>,
    /// Whom: the SPIFFE ID of the workload that decides.
    #[serde(default)]
    pub(super) to: Option<OneOrMany<String>>,
    /// The request: `GET http://billing/invoices/7`, `GET /invoices/7`, or its parts.
    #[serde(default)]
    pub(super) request: Option<OneOrMany<RequestText>>,
    /// The connection, where its content is not read (layer 4).
    #[serde(default)]
    pub(super) connection: Option<OneOrMany<ConnectionText>>,
    /// The port of the listener.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub(super) port: Option<u16>,
    /// The address of the connection's other end.
    #[serde(default)]
    pub(super) source: Option<String>,
    /// The address of the caller that a trusted sender named.
    #[serde(default)]
    pub(super) remote: Option<String>,
    /// The time of the decision, RFC 3339.
    #[serde(default)]
    pub(super) time: Option<String>,
    /// The connection's lot, 0 to 99, for rules in canary mode: a rule of N per cent decides for lots below N.
    #[serde(default)]
    #[schemars(range(max = 99))]
    pub(super) lot: Option<u8>,
    /// At which door.
    #[serde(default)]
    pub(super) door: Option<Door>,
    /// What has to come of it: `allow`, `deny`, or more.
    pub(super) expect: ExpectText,
}

/// Where a request arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, DeserializeDerive, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Door {
    #[default]
    Inbound,
    Ingress,
}

/// A request, as one line or in parts.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum RequestText {
    Line(String),
    Parts(Box<RequestParts>),
}

/// The parts of a request.
#[derive(Clone, Debug, DeserializeDerive, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestParts {
    /// The method; GET where none is given.
    #[serde(default)]
    pub(super) method: Option<String>,
    /// `http://host/path?query`, instead of `host` and `path`.
    #[serde(default)]
    pub(super) url: Option<String>,
    /// The authority.
    #[serde(default)]
    pub(super) host: Option<String>,
    /// The path as sent, with its query.
    #[serde(default)]
    pub(super) path: Option<String>,
    /// Header fields: a value, or several.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, OneOrMany<String>>,
    /// Claims of a token that a plugin has verified.
    #[serde(default)]
    pub(super) claims: Option<Map<String, Value>>,
    /// The protocol that the request wants to switch to: `websocket`, `connect`.
    #[serde(default)]
    pub(super) upgrade: Option<String>,
    /// The route that it matched.
    #[serde(default)]
    pub(super) route: Option<RouteText>,
}

/// A route, as far as selectors look at it.
#[derive(Clone, Debug, DeserializeDerive, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteText {
    /// Its id.
    pub(super) id: Id,
    /// Its labels.
    #[serde(default)]
    pub(super) labels: Labels,
}

/// A connection whose content is not read.
#[derive(Clone, Debug, DeserializeDerive, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectionText {
    /// The port of the listener.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub(super) port: Option<u16>,
    /// The server name that its client asks for in TLS, where TLS is passed through.
    #[serde(default)]
    pub(super) server_name: Option<String>,
}

/// An outcome, or more of what is expected.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum ExpectText {
    Outcome(OutcomeText),
    Parts(ExpectParts),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, DeserializeDerive, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OutcomeText {
    Allow,
    Deny,
}

/// What has to come of a case. What is left out may be anything.
#[derive(Clone, Debug, DeserializeDerive, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectParts {
    /// The outcome.
    pub(super) outcome: OutcomeText,
    /// The reason of a refusal, as `no_rule`.
    #[serde(default)]
    pub(super) reason: Option<String>,
    /// The rule that decided: `policy/rule`.
    #[serde(default)]
    pub(super) rule: Option<String>,
    /// What would have come of it if policies that are only watched decided as well.
    #[serde(default)]
    pub(super) would_be: Option<OutcomeText>,
}

/// One, or a list.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "the shape of the schema; reading it gives a list")]
enum OneOrManyShape<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Clone, Debug)]
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        OneOrManyShape::<T>::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        OneOrManyShape::<T>::json_schema(generator)
    }

    fn inline_schema() -> bool {
        true
    }
}

// By hand, because serde's untagged enums forget where a mistake stands.

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one, or a list")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                let text: StrDeserializer<'_, E> = text.into_deserializer();
                Ok(OneOrMany(vec![T::deserialize(text)?]))
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
                Ok(OneOrMany(vec![T::deserialize(MapAccessDeserializer::new(access))?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = access.next_element()? {
                    all.push(one);
                }
                if all.is_empty() {
                    return Err(A::Error::custom("expected at least one"));
                }
                Ok(OneOrMany(all))
            }
        }
        from.deserialize_any(Either(PhantomData))
    }
}

impl<'de> Deserialize<'de> for RequestText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RequestText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a request, as `GET http://host/path` or in parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RequestText, E> {
                Ok(RequestText::Line(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<RequestText, A::Error> {
                let parts = RequestParts::deserialize(MapAccessDeserializer::new(access))?;
                Ok(RequestText::Parts(Box::new(parts)))
            }
        }
        from.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for ExpectText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ExpectText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("allow, deny, or an outcome with reason, rule and would_be")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ExpectText, E> {
                let text: StrDeserializer<'_, E> = text.into_deserializer();
                Ok(ExpectText::Outcome(OutcomeText::deserialize(text)?))
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<ExpectText, A::Error> {
                let parts = ExpectParts::deserialize(MapAccessDeserializer::new(access))?;
                Ok(ExpectText::Parts(parts))
            }
        }
        from.deserialize_any(Either)
    }
}
