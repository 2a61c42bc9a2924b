//! Routes of connections that are no HTTP (`stream_routes`), field by field as in APISIX v3.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::{Map, Value, json};

use super::{Id, Labels, PluginSet, Upstream};

/// Where a connection goes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamRoute {
    /// Its id; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub desc: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// An address or network that callers must come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_addr: Option<String>,
    /// An address or network that the connection must have been made to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_addr: Option<String>,
    /// The port that the connection must have been made to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub server_port: Option<u16>,
    /// The name that the caller asked for in its TLS handshake: exact, or `*.suffix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^\*?[0-9a-zA-Z\-_.\[\]:]+$"))]
    pub sni: Option<String>,
    /// Where matching connections go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<StreamUpstream>,
    /// The same by reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_id: Option<Id>,
    /// The service that gives what the route itself lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_id: Option<Id>,
    /// The stream plugins of this route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugins: Option<PluginSet>,
    /// What is spoken on the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<StreamProtocol>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

/// What is spoken on a connection, where somebody reads it (xRPC).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamProtocol {
    /// The protocol.
    pub name: String,
    /// The stream route of the same protocol that this one is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superior_id: Option<Id>,
    /// The protocol's own settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conf: Option<Map<String, Value>>,
    /// Who is told of each message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logger: Vec<StreamLogger>,
}

/// Who is told of a protocol's messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamLogger {
    /// The plugin.
    pub name: String,
    /// Of which messages, as `vars`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Value>>")]
    pub filter: Option<Value>,
    /// The plugin's settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conf: Option<Map<String, Value>>,
}

/// What an upstream of a stream route speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the schemes' own names")]
pub enum StreamScheme {
    #[default]
    Tcp,
    Tls,
    Udp,
}

/// An upstream as a stream route has it: all fields of an [`Upstream`], and a scheme of connections.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StreamUpstream {
    /// What it speaks.
    pub scheme: StreamScheme,
    /// Everything else.
    pub upstream: Upstream,
}

impl<'de> Deserialize<'de> for StreamUpstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let scheme = match fields.shift_remove("scheme") {
            Some(scheme) => serde_json::from_value(scheme).map_err(de::Error::custom)?,
            None => StreamScheme::default(),
        };
        let upstream = serde_json::from_value(Value::Object(fields)).map_err(de::Error::custom)?;
        Ok(Self { scheme, upstream })
    }
}

impl Serialize for StreamUpstream {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(&self.upstream).map_err(ser::Error::custom)?;
        value["scheme"] = json!(self.scheme);
        value.serialize(serializer)
    }
}

impl JsonSchema for StreamUpstream {
    fn schema_name() -> Cow<'static, str> {
        "StreamUpstream".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let scheme = StreamScheme::json_schema(generator);
        let mut schema = Upstream::json_schema(generator).to_value();
        let mut scheme = scheme.to_value();
        scheme["default"] = json!(StreamScheme::default());
        schema["properties"]["scheme"] = scheme;
        Schema::try_from(schema).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_of_connections_has_all_fields_and_another_scheme() {
        let value = json!({"nodes": {"127.0.0.1:6379": 1}, "type": "roundrobin", "scheme": "tls"});
        let upstream = StreamUpstream::deserialize(&value).unwrap();
        assert_eq!(upstream.scheme, StreamScheme::Tls);
        let written = serde_json::to_value(&upstream).unwrap();
        assert_eq!((&written["scheme"], &written["nodes"]), (&value["scheme"], &value["nodes"]));
        assert_eq!(StreamUpstream::deserialize(&written).unwrap(), upstream);
        let plain = StreamUpstream::deserialize(&json!({"nodes": {}})).unwrap();
        assert_eq!(plain.scheme, StreamScheme::Tcp);
        for wrong in [json!({"scheme": "http"}), json!({"nodez": {}})] {
            assert!(StreamUpstream::deserialize(&wrong).is_err(), "{wrong}");
        }
    }
}
