//! APISIX's control API: what this very process has in force, at `127.0.0.1:9090`. It has no authentication, so it stays on
//! loopback unless the settings say otherwise; secrets are not shown.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post, put};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::settings::Error;
use crate::model::{DiscoveryType, Kind};
use crate::pipeline::Entry;
use crate::snapshot::Declared;
use crate::upstream::{HealthReport, NodeReport};

/// APISIX's control API.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ControlApiSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Listens on another address than loopback as well. Whoever reaches it reads the configuration.
    pub allow_remote: bool,
}

impl Default for ControlApiSettings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9090)), allow_remote: false }
    }
}

impl ControlApiSettings {
    /// Does it stay on loopback, or is it said that it need not?
    ///
    /// # Errors
    /// Neither.
    pub fn check(&self) -> Result<(), Error> {
        if self.allow_remote || self.listen.ip().is_loopback() {
            return Ok(());
        }
        let problem = format!(
            "{} is not on loopback, and whoever reaches it reads the configuration; allow_remote: true allows it",
            self.listen
        );
        Err(Error::Setting { field: "control_api.listen", problem })
    }
}

#[derive(Clone)]
struct Api {
    facts: Facts,
    plugins: &'static [Entry],
}

/// The control API of a process.
pub(super) fn router(facts: &Facts, plugins: &'static [Entry]) -> Router {
    let api = Api { facts: facts.clone(), plugins };
    Router::new()
        .route("/v1/schema", get(schema))
        .route("/v1/healthcheck", get(all_health))
        .route("/v1/healthcheck/{kind}/{id}", get(health_of))
        // There is no garbage here that waits for somebody to collect it.
        .route("/v1/gc", post(|| async { StatusCode::OK }))
        .route("/v1/routes", get(|api| list(api, Kind::Routes)))
        .route("/v1/route/{id}", get(|api, id| one(api, id, Kind::Routes)))
        .route("/v1/services", get(|api| list(api, Kind::Services)))
        .route("/v1/service/{id}", get(|api, id| one(api, id, Kind::Services)))
        .route("/v1/upstreams", get(|api| list(api, Kind::Upstreams)))
        .route("/v1/upstream/{id}", get(|api, id| one(api, id, Kind::Upstreams)))
        .route("/v1/plugin_metadatas", get(|api| list(api, Kind::PluginMetadata)))
        .route("/v1/plugin_metadata/{id}", get(|api, id| one(api, id, Kind::PluginMetadata)))
        // The plugins are part of the program.
        .route("/v1/plugins/reload", put(|| async { "done" }))
        .route("/v1/discovery/{kind}/{asked}", get(discovery))
        .fallback(|| async { not_found("404 Not Found") })
        .with_state(api)
}

fn not_found(why: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "error_msg": why }))).into_response()
}

async fn schema(State(api): State<Api>) -> Json<Value> {
    let main: Map<String, Value> = [
        ("consumer", Kind::Consumers),
        ("consumer_group", Kind::ConsumerGroups),
        ("global_rule", Kind::GlobalRules),
        ("identity_mode", Kind::IdentityModes),
        ("identity_policy", Kind::IdentityPolicies),
        ("plugin_config", Kind::PluginConfigs),
        ("route", Kind::Routes),
        ("service", Kind::Services),
        ("ssl", Kind::Ssls),
        ("upstream", Kind::Upstreams),
    ]
    .into_iter()
    .map(|(name, kind)| (name.to_owned(), kind.schema()))
    .collect();
    let plugins: Map<String, Value> = api
        .plugins
        .iter()
        .map(|entry| {
            let mut row = json!({
                "priority": entry.priority,
                "version": 0.1,
                "schema": crate::model::plain((entry.schema)()),
            });
            if let Some(credential) = entry.credential {
                row["type"] = json!("auth");
                row["consumer_schema"] = crate::model::plain(credential());
            }
            if let Some(metadata) = entry.metadata {
                row["metadata_schema"] = crate::model::plain(metadata());
            }
            (entry.name.to_owned(), row)
        })
        .collect();
    Json(json!({ "main": main, "plugins": plugins, "stream_plugins": {} }))
}

async fn all_health(State(api): State<Api>, headers: HeaderMap) -> Response {
    let rows = api.health();
    match wants_page(&headers) {
        true => page(&rows),
        false => Json(rows).into_response(),
    }
}

async fn health_of(
    State(api): State<Api>,
    Path((kind, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let of = match &*kind {
        "routes" => Kind::Routes,
        "services" => Kind::Services,
        "upstreams" => Kind::Upstreams,
        other => {
            let why = json!({ "error_msg": format!("invalid src type {other}") });
            return (StatusCode::BAD_REQUEST, Json(why)).into_response();
        }
    };
    let found = api.health().into_iter().find(|row| row.is_of(&kind, &id));
    match found {
        Some(row) if wants_page(&headers) => page(&[row]),
        Some(row) => Json(row).into_response(),
        None if api.find(of, &id).is_some() => not_found(&format!("no checker for {kind}[{id}]")),
        None => not_found(&format!("{kind}[{id}] not found")),
    }
}

fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accepted.is_some_and(|accept| accept.contains("text/html"))
}

fn page(rows: &[HealthReport]) -> Response {
    let mut text = String::from(
        "<!doctype html>\n<html><head><meta charset=\"utf-8\"><title>Upstream check status</title></head><body>\n\
         <h1>Upstream check status</h1>\n<table cellspacing=\"0\" cellpadding=\"3\" border=\"1\">\n\
         <tr><th>Index</th><th>Upstream</th><th>Check type</th><th>Host</th><th>Status</th><th>Success counts</th>\
         <th>TCP Failures</th><th>HTTP Failures</th><th>TIMEOUT Failures</th></tr>\n",
    );
    let nodes = rows.iter().flat_map(|row| row.nodes.iter().map(move |node| (row, node)));
    for (at, (row, node)) in nodes.enumerate() {
        let NodeReport { ip, port, status, counter, .. } = node;
        let status = status.to_string();
        let colour = if status.ends_with("unhealthy") { " bgcolor=\"#FF0000\"" } else { "" };
        text.push_str(&format!("<tr{colour}>"));
        for cell in [
            (at + 1).to_string(),
            row.name.clone(),
            row.kind.to_owned(),
            format!("{ip}:{port}"),
            status,
            counter.success.to_string(),
            counter.tcp_failure.to_string(),
            counter.http_failure.to_string(),
            counter.timeout_failure.to_string(),
        ] {
            text.push_str("<td>");
            for char in cell.chars() {
                match char {
                    '<' => text.push_str("&lt;"),
                    '&' => text.push_str("&amp;"),
                    other => text.push(other),
                }
            }
            text.push_str("</td>");
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</table></body></html>\n");
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

async fn list(State(api): State<Api>, kind: Kind) -> Json<Value> {
    Json(api.declared(kind).iter().map(|declared| shown(kind, declared)).collect())
}

async fn one(State(api): State<Api>, Path(id): Path<String>, kind: Kind) -> Response {
    match api.find(kind, &id) {
        Some(declared) => Json(shown(kind, &declared)).into_response(),
        None => {
            let name = match kind {
                Kind::PluginMetadata => "plugin metadata",
                other => other.singular(),
            };
            not_found(&format!("{name}[{id}] not found"))
        }
    }
}

async fn discovery(
    State(api): State<Api>,
    Path((kind, asked)): Path<(String, String)>,
) -> Response {
    let of = serde_json::from_value::<DiscoveryType>(json!(kind)).ok();
    for plane in api.facts.planes() {
        let found = match (of, &*asked) {
            (Some(of), "dump") => plane.discovery.dump(of).map(Ok),
            (Some(of), "show_dump_file") => plane.discovery.dump_file(of),
            _ => None,
        };
        match found {
            Some(Ok(value)) => return Json(value).into_response(),
            Some(Err(why)) => {
                let why = json!({ "error_msg": why });
                return (StatusCode::SERVICE_UNAVAILABLE, Json(why)).into_response();
            }
            None => {}
        }
    }
    not_found(&format!("discovery {kind} is not in use"))
}

impl Api {
    /// What the data planes of the process have; of a resource that two of them have, the first one's.
    fn declared(&self, kind: Kind) -> Vec<Declared> {
        let mut all: Vec<Declared> = Vec::new();
        for plane in self.facts.planes() {
            let mine = plane.keeper.lock().in_force(kind);
            let known: std::collections::HashSet<_> =
                all.iter().map(|one| one.id.clone()).collect();
            all.extend(mine.into_iter().filter(|one| !known.contains(&one.id)));
        }
        all
    }

    /// How the checked upstreams of the process' data planes are.
    fn health(&self) -> Vec<HealthReport> {
        self.facts.planes().iter().flat_map(|plane| plane.roster.health()).collect()
    }

    fn find(&self, kind: Kind, id: &str) -> Option<Declared> {
        self.declared(kind).into_iter().find(|one| one.id.as_str() == id)
    }
}

/// A resource as the control API shows it.
fn shown(kind: Kind, declared: &Declared) -> Value {
    let mut value = declared.value.clone();
    match kind {
        Kind::PluginMetadata => {
            hide(&mut value);
            value
        }
        _ => {
            hide_in_resource(&mut value);
            json!({
                "key": format!("/{}/{}", kind.name(), declared.id),
                "value": value,
                "modifiedIndex": declared.revision,
                "createdIndex": declared.revision,
                "has_domain": has_domain(&declared.value),
                "clean_handlers": {},
            })
        }
    }
}

fn has_domain(value: &Value) -> bool {
    let nodes = [&value["nodes"], &value["upstream"]["nodes"]];
    let is_name = |host: &str| {
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err()
    };
    nodes.into_iter().any(|nodes| match nodes {
        Value::Object(map) => map.keys().any(|place| is_name(place)),
        Value::Array(list) => list.iter().any(|node| {
            node["host"].as_str().is_some_and(|host| {
                host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err()
            })
        }),
        _ => false,
    })
}

const HIDDEN: &str = "••••";

/// Private keys of upstreams, and whatever may be one in settings of plugins.
fn hide_in_resource(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (name, field) in fields {
        match (&**name, field) {
            ("plugins", field) => hide(field),
            ("client_key" | "client_cert_key", field @ Value::String(_)) => *field = json!(HIDDEN),
            (_, field) => hide_in_resource(field),
        }
    }
}

/// Hides texts and numbers by the name that they have: rather one too many.
fn hide(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::Object(_) | Value::Array(_) if !is_secret(name) => hide(field),
                    Value::Bool(_) | Value::Null => {}
                    field if is_secret(name) => *field = json!(HIDDEN),
                    _ => {}
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(hide),
        _ => {}
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = [
        "secret",
        "password",
        "passwd",
        "token",
        "credential",
        "private",
        "authorization",
        "apikey",
    ];
    let ends = ["key", "_keys", "auth", "cookie", "pem"];
    // What a limit counts by, and the names of headers and arguments that carry something.
    let harmless = ["key_type", "remote_key", "hash_key"];
    !harmless.contains(&&*name)
        && (parts.iter().any(|part| name.contains(part))
            || ends.iter().any(|end| name.ends_with(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_hidden_wherever_it_stands() {
        let mut value = json!({
            "uri": "/x", "key": "remote_addr",
            "upstream": { "tls": { "client_cert": "c", "client_key": "k" }, "key": "uri" },
            "plugins": {
                "a-plugin": { "redis_password": "p", "key": "x", "list": [{ "api_key": "y", "count": 2 }] },
                "another": { "headers": { "Authorization": "Bearer z" }, "access_key": { "id": "q" } },
            },
        });
        hide_in_resource(&mut value);
        assert_eq!(
            value,
            json!({
                "uri": "/x", "key": "remote_addr",
                "upstream": { "tls": { "client_cert": "c", "client_key": HIDDEN }, "key": "uri" },
                "plugins": {
                    "a-plugin": { "redis_password": HIDDEN, "key": HIDDEN, "list": [{ "api_key": HIDDEN, "count": 2 }] },
                    "another": { "headers": { "Authorization": HIDDEN }, "access_key": HIDDEN },
                },
            })
        );
    }

    #[test]
    fn it_stays_on_loopback_unless_it_is_said() {
        let at = |listen: &str, allow_remote| {
            ControlApiSettings { listen: listen.parse().unwrap(), allow_remote }.check().is_ok()
        };
        assert!(at("127.0.0.1:9090", false) && at("[::1]:0", false) && at("0.0.0.0:9090", true));
        assert!(!at("0.0.0.0:9090", false) && !at("10.0.0.1:9090", false));
    }
}
