//! The Admin API, `/apisix/admin/...`: one table of kinds, one set of handlers for all of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::response::Response;
use http::header::{COOKIE, HOST, HeaderValue, ORIGIN, SERVER};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::answer::Answer;
use super::auth::{Principal, Role};
use super::history::Author;
use super::listing::{self, Query};
use super::{AdminRecord, ControlPlane, PluginPart, patch, records};
use crate::identity::TrustDomain;
use crate::model::{Id, Kind, Revision};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::store::{self, Expect, Stored};

/// What clients of APISIX probe for, and what it really is.
const SERVER_NAME: &str = concat!("APISIX/3.18.0 (Wardgate/", env!("CARGO_PKG_VERSION"), ")");
/// The largest body of a request.
const MAX_BODY_BYTES: usize = 1_572_864;
/// A write that lost against others is judged anew this many times.
const ATTEMPTS: usize = 5;

/// Where a resource's id comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IdRule {
    /// From the path, or from the body's `id`.
    Generic,
    /// The body's `username`.
    Username,
    /// The plugin's name, from the path.
    Plugin,
    /// As `Generic`; it is a trust domain's name.
    TrustDomain,
}

/// What the Admin API offers for a kind.
struct Row {
    kind: Kind,
    /// The kind in sentences and schema paths of APISIX.
    name: &'static str,
    /// Its schema's name.
    schema: &'static str,
    id: IdRule,
    post: bool,
    patch: bool,
}

const fn row(kind: Kind, schema: &'static str, id: IdRule, post: bool, patch: bool) -> Row {
    Row { kind, name: kind.singular(), schema, id, post, patch }
}

const TABLE: [Row; 16] = [
    row(Kind::Routes, "route", IdRule::Generic, true, true),
    row(Kind::Services, "service", IdRule::Generic, true, true),
    row(Kind::Upstreams, "upstream", IdRule::Generic, true, true),
    row(Kind::Consumers, "consumer", IdRule::Username, false, false),
    row(Kind::Credentials, "credential", IdRule::Generic, false, false),
    row(Kind::ConsumerGroups, "consumer_group", IdRule::Generic, false, true),
    row(Kind::PluginConfigs, "plugin_config", IdRule::Generic, false, true),
    row(Kind::GlobalRules, "global_rule", IdRule::Generic, false, true),
    row(Kind::PluginMetadata, "plugin_metadata", IdRule::Plugin, false, false),
    row(Kind::Ssls, "ssl", IdRule::Generic, true, true),
    row(Kind::Secrets, "secret", IdRule::Generic, false, true),
    row(Kind::IdentityPolicies, "identity_policy", IdRule::Generic, true, true),
    row(Kind::IdentityModes, "identity_mode", IdRule::Generic, true, true),
    row(Kind::Workloads, "workload", IdRule::Generic, true, true),
    row(Kind::TrustDomains, "trust_domain", IdRule::TrustDomain, false, true),
    row(Kind::Revocations, "revocation", IdRule::Generic, true, true),
];

fn row_of(kind: Kind) -> &'static Row {
    TABLE.iter().find(|row| row.kind == kind).expect("every kind has a row: a test holds it")
}

/// What is asked about: a kind, maybe one of it, maybe a place inside.
struct Target<'a> {
    row: &'static Row,
    /// For credentials, their consumer.
    consumer: Option<&'a str>,
    id: Option<&'a str>,
    inside: &'a [&'a str],
}

/// A request that was let in.
struct Call<'a> {
    method: &'a Method,
    query: &'a Query,
    body: Option<Value>,
    wait: Option<Duration>,
    /// Who calls.
    author: Author<'a>,
}

impl ControlPlane {
    /// The Admin API as a router. It must be served with connection information
    /// (`into_make_service_with_connect_info::<SocketAddr>`); [`ControlPlane::serve`] does that.
    pub fn router(self: Arc<Self>) -> axum::Router {
        axum::Router::new().fallback(enter).with_state(self)
    }

    /// The whole key of a resource.
    pub(super) fn key(&self, kind: Kind, id: &Id) -> String {
        format!("{}{}", self.prefix, kind.key(id))
    }
}

/// Every request comes in here: guarded, authenticated, answered, noted.
async fn enter(
    State(plane): State<Arc<ControlPlane>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let method = head.method;
    let path = head.uri.path().to_owned();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    let mut principal = None;
    let answer = match plane.guard(authority, &head.headers) {
        Err(refusal) => refusal,
        Ok(()) if method == Method::HEAD && is_root(&path) => Answer::empty(StatusCode::OK),
        Ok(()) if !is_root(&path) && !path.starts_with("/apisix/admin/") => {
            Answer::error(StatusCode::NOT_FOUND, "404 Route Not Found")
        }
        Ok(()) => match plane.authenticate(reads(&method, &path), &head.headers, &query) {
            Err(refusal) => refusal,
            Ok(known) => {
                principal = Some(known.clone());
                let answer = plane.answer(&method, &path, &query, body, &known.name).await;
                answer.unwrap_or_else(|answer| answer)
            }
        },
    };
    let changes = !matches!(method, Method::GET | Method::HEAD) && !is_question(&path);
    if changes || records::is_question(&path, &query) {
        plane.audit.admin(&AdminRecord {
            principal: principal.as_ref().map(|known| known.name.as_str()),
            client,
            method: method.as_str(),
            path: &path,
            status: answer.status.as_u16(),
            revision: answer.revision,
            digest: answer.digest.clone(),
        });
    }
    let mut response = answer.into_response();
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if principal.is_some() {
        headers.insert("x-api-version", HeaderValue::from_static("v3"));
    }
    response
}

/// Only those who may write may send what is neither a GET nor a question.
fn reads(method: &Method, path: &str) -> bool {
    method == Method::GET || is_question(path)
}

/// A question changes nothing, whatever its method: it has a body.
fn is_question(path: &str) -> bool {
    path.starts_with("/apisix/admin/questions/")
}

fn is_root(path: &str) -> bool {
    matches!(path, "/apisix/admin" | "/apisix/admin/")
}

impl ControlPlane {
    /// Keeps web pages out: those of other origins, and those whose name was rebound to this address.
    fn guard(&self, authority: Option<&str>, headers: &HeaderMap) -> Result<(), Answer> {
        let refuse = |text: &str| Err(Answer::error(StatusCode::FORBIDDEN, text));
        let header = |name| headers.get(name).map(|value: &HeaderValue| value.to_str());
        let host = match (authority, header(HOST)) {
            (Some(authority), _) => authority,
            (None, Some(Ok(host))) => host,
            (None, Some(Err(_))) => return refuse("the Host header cannot be read"),
            (None, None) => return refuse("the Host header is missing"),
        };
        let name = host_name(host);
        let known = name.eq_ignore_ascii_case("localhost")
            // A page's name that was rebound is a name, so plain addresses are safe.
            || name.parse::<std::net::IpAddr>().is_ok()
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
        if !known {
            return refuse("the Admin API is not served under this host; see the setting hosts");
        }
        match header(ORIGIN) {
            None => Ok(()),
            Some(Ok(origin))
                if origin_host(origin).is_some_and(|from| from.eq_ignore_ascii_case(host)) =>
            {
                Ok(())
            }
            Some(_) => refuse("requests from web pages of another origin are refused"),
        }
    }

    fn authenticate(
        &self,
        reads: bool,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<&Principal, Answer> {
        let refuse = |why: &str| {
            let body = json!({"error_msg": "failed to check token", "description": why});
            Answer::json(StatusCode::UNAUTHORIZED, body)
        };
        let header = headers.get("x-api-key").and_then(|value| value.to_str().ok());
        let key = query.find("api_key").or(header).or_else(|| cookie(headers, "x_api_key"));
        let key = key.ok_or_else(|| refuse("missing apikey"))?;
        let principal = self.keys.find(key).ok_or_else(|| refuse("wrong apikey"))?;
        if principal.role == Role::Viewer && !reads {
            return Err(refuse("invalid method for role viewer"));
        }
        Ok(principal)
    }

    async fn answer(
        &self,
        method: &Method,
        path: &str,
        query: &Query,
        body: Body,
        author: &str,
    ) -> Result<Answer, Answer> {
        let path = path.strip_prefix("/apisix/admin").unwrap_or_default();
        let segments: Vec<String> = path
            .trim_matches('/')
            .split('/')
            .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        if let Some(answer) = self.answer_beside(method, &segments, query).await {
            return answer;
        }
        if let ["schema", "validate", name] = segments[..] {
            let value = read_body(body).await?;
            return self.validate_only(method, name, value);
        }
        if let ["questions", ref rest @ ..] = segments[..] {
            let body = read_body(body).await?;
            return self.answer_question(method, rest, query, body).await;
        }
        if let ["history", ref rest @ ..] = segments[..] {
            let body = read_body(body).await?;
            return self.answer_history(method, rest, query, body, author).await;
        }
        let target = target(&segments).ok_or_else(|| {
            let name = segments.first().copied().unwrap_or_default();
            Answer::error(StatusCode::NOT_FOUND, format!("Unsupported resource type: {name}"))
        })?;
        let body = match *method {
            Method::POST | Method::PUT | Method::PATCH => read_body(body).await?,
            _ => None,
        };
        let author = Author { name: author, rollback_to: None };
        let call = Call { method, query, body, wait: wait(query)?, author };
        self.serve_resource(target, call).await
    }

    /// What is no resource: plugins, schemas, revisions. `None` when it is none of them.
    async fn answer_beside(
        &self,
        method: &Method,
        segments: &[&str],
        query: &Query,
    ) -> Option<Result<Answer, Answer>> {
        let not_found = || Answer::error(StatusCode::NOT_FOUND, "not found");
        if let (["store", what], &Method::POST) = (segments, method) {
            return Some(self.at_rest(what).await);
        }
        if let (["audit", what @ ..], &Method::GET) = (segments, method) {
            return Some(self.answer_records(what, query).await);
        }
        let answer = match (segments, method) {
            (["plugins", "reload"], &Method::PUT) => Answer::json(StatusCode::OK, "done".into()),
            (["plugins", "reload"], _) => {
                let text = format!(
                    "please use PUT method to reload the plugins, {method} method is not allowed."
                );
                Answer::error(StatusCode::METHOD_NOT_ALLOWED, text)
            }
            (["plugins", "list"], &Method::GET) => {
                match query.find("subsystem").unwrap_or("http") {
                    "http" => Answer::ok(self.plugins.names()),
                    "stream" => Answer::ok(json!([])),
                    _ => Answer::json(StatusCode::BAD_REQUEST, "invalid subsystem passed".into()),
                }
            }
            (["plugins"], &Method::GET) if query.find("all") == Some("true") => {
                match query.find("subsystem") {
                    Some("stream") => Answer::ok(json!({})),
                    _ => Answer::ok(self.plugins.all()),
                }
            }
            (["plugins", name] | ["schema", "plugins", name], &Method::GET) => {
                self.plugin_schema(name, query)
            }
            (["schema", name], &Method::GET) if *name != "validate" => {
                let row = TABLE.iter().find(|row| row.schema == *name);
                match row.and_then(|row| self.shapes.schema(row.kind)) {
                    Some(schema) => Answer::ok(schema.clone()),
                    None => self.plugin_schema(name, query),
                }
            }
            (["schema", "validate", _], &Method::POST) => return None,
            (["revisions", revision], &Method::GET) => match revision.parse() {
                Ok(revision) => self.convergence(revision),
                Err(_) => Answer::bad("a revision is a number"),
            },
            (["plugins" | "schema" | "revisions", ..], _) => not_found(),
            _ => return None,
        };
        Some(Ok(answer))
    }

    fn plugin_schema(&self, name: &str, query: &Query) -> Answer {
        let subsystem = query.find("subsystem").unwrap_or("http");
        if !matches!(subsystem, "http" | "stream") {
            return Answer::bad(format!("unsupported subsystem: {subsystem}"));
        }
        let plugin = self.plugins.find(name).filter(|_| subsystem == "http");
        let Some(plugin) = plugin else {
            let text = format!("plugin not found in subsystem {subsystem}");
            return Answer::error(StatusCode::NOT_FOUND, text);
        };
        let part = match query.find("schema_type") {
            Some("consumer") => PluginPart::Credential,
            Some("metadata") => PluginPart::Metadata,
            _ => PluginPart::Config,
        };
        match plugin.schema(part) {
            Some(schema) => Answer::ok(schema.clone()),
            None => Answer::bad("not found schema"),
        }
    }

    /// `POST /apisix/admin/schema/validate/<kind>`: shape and plugins only.
    fn validate_only(
        &self,
        method: &Method,
        name: &str,
        value: Option<Value>,
    ) -> Result<Answer, Answer> {
        let Some(kind) = Kind::named(name) else {
            let text = format!("Unsupported resource type: {name}");
            return Err(Answer::error(StatusCode::NOT_FOUND, text));
        };
        if method != Method::POST {
            return Err(Answer::error(StatusCode::NOT_FOUND, "not found"));
        }
        let value = value.ok_or_else(|| Answer::bad("missing configurations"))?;
        let id = value.get("id").and_then(Value::as_str).unwrap_or_default();
        match self.judge_shape(kind, id, &value) {
            Ok(_) => Ok(Answer::empty(StatusCode::OK)),
            Err(invalid) => {
                let text = invalid.0;
                let bare = text.strip_prefix("invalid configuration: ").unwrap_or(&text);
                Err(Answer::bad(bare))
            }
        }
    }

    /// `GET /apisix/admin/revisions/<revision>`: which data planes run it, which refused something, and why.
    fn convergence(&self, revision: Revision) -> Answer {
        let Some(convergence) = &self.convergence else {
            return Answer::error(StatusCode::NOT_FOUND, "this control plane feeds no data planes");
        };
        let planes = convergence.data_planes();
        let applied = planes.iter().filter(|plane| plane.applied >= revision).count();
        let list: Vec<Value> = planes
            .iter()
            .map(|plane| {
                let rejected: Vec<Value> = plane
                    .rejected
                    .iter()
                    .map(|one| {
                        json!({
                            "kind": one.kind.name(), "id": one.id.as_str(),
                            "revision": one.revision, "reason": one.reason,
                        })
                    })
                    .collect();
                json!({
                    "id": plane.id, "connected": plane.connected, "revision": plane.applied,
                    "applied": plane.applied >= revision, "rejected": rejected,
                })
            })
            .collect();
        Answer::ok(json!({
            "revision": revision, "total": planes.len(), "applied": applied, "data_planes": list,
        }))
    }

    async fn serve_resource(&self, target: Target<'_>, call: Call<'_>) -> Result<Answer, Answer> {
        let name = target.row.name;
        let not_supported = || Answer::not_supported(call.method.as_str(), name);
        match *call.method {
            Method::GET => self.read(&target, call.query).await,
            Method::DELETE => {
                let answer = self.remove(&target, &call).await?;
                Ok(self.await_applied(answer, call.wait).await)
            }
            Method::POST if !target.row.post => Err(not_supported()),
            Method::PATCH if !target.row.patch => Err(not_supported()),
            Method::POST | Method::PUT | Method::PATCH => {
                let ttl = ttl(call.query)?;
                let answer = if call.method == Method::POST {
                    self.create(&target, &call, ttl).await?
                } else if call.method == Method::PUT {
                    self.replace(&target, &call, ttl).await?
                } else {
                    self.change(&target, &call, ttl).await?
                };
                Ok(self.await_applied(answer, call.wait).await)
            }
            _ => Err(Answer::error(StatusCode::NOT_FOUND, "not found")),
        }
    }

    async fn read(&self, target: &Target<'_>, query: &Query) -> Result<Answer, Answer> {
        let kind = target.row.kind;
        if let Some(id) = target.id {
            // An id that cannot be is not there either.
            let Some(id) = target.full_id(id) else { return Err(Answer::key_not_found()) };
            let stored = self.store.get(&self.key(kind, &id)).await?;
            let stored = stored.ok_or_else(Answer::key_not_found)?;
            return Ok(Answer::ok(listing::node(kind, stored)));
        }
        let prefix = match target.consumer {
            Some(consumer) => format!("{}/consumers/{consumer}/credentials/", self.prefix),
            None => format!("{}/{}/", self.prefix, kind.name()),
        };
        let mut entries = self.store.list(&prefix).await?.entries;
        entries.retain(|stored| {
            let key = stored.key.strip_prefix(self.prefix.as_str());
            key.and_then(Kind::split_key).is_some_and(|(found, _)| found == kind)
        });
        if target.consumer.is_some() && entries.is_empty() {
            return Err(Answer::key_not_found());
        }
        Ok(listing::list(kind, entries, query))
    }

    async fn create(
        &self,
        target: &Target<'_>,
        call: &Call<'_>,
        ttl: Option<u64>,
    ) -> Result<Answer, Answer> {
        let name = target.row.name;
        let mut fields = configuration(call.body.clone())?;
        if target.id.is_some() || fields.contains_key("id") {
            return Err(Answer::bad(format!("wrong {name} id, do not need it")));
        }
        refuse_times(&fields)?;
        let _alone = self.writes.lock().await;
        // Judged under a name that no resource bears yet: the real one exists only after a write.
        self.judge(target.row.kind, &Id::from(0), &Value::Object(fields.clone())).await?;
        let counter = format!("{}/gen_id", self.prefix);
        let number = self.store.put(&counter, &json!(1), Expect::Anything, None).await?.modified;
        let id = Id::from(number);
        fields.insert("id".into(), json!(id.as_str()));
        stamp(&mut fields, None, self.clock.now());
        let value = Value::Object(fields);
        let place = (target.row.kind, &id);
        let stored = self.store_put(place, &value, Expect::Absent, ttl, call.author).await?;
        Ok(self.written(target.row.kind, StatusCode::CREATED, stored))
    }

    async fn replace(
        &self,
        target: &Target<'_>,
        call: &Call<'_>,
        ttl: Option<u64>,
    ) -> Result<Answer, Answer> {
        let kind = target.row.kind;
        let mut fields = configuration(call.body.clone())?;
        let id = target.id_of(&mut fields)?;
        refuse_times(&fields)?;
        let _alone = self.writes.lock().await;
        let judged = Value::Object(fields.clone());
        if kind == Kind::Consumers {
            self.judge_username(target, &judged)?;
        }
        self.judge(kind, &id, &judged).await?;
        if let Some(consumer) = target.consumer {
            let parent = format!("{}/consumers/{consumer}", self.prefix);
            if self.store.get(&parent).await?.is_none() {
                return Err(Answer::error(StatusCode::NOT_FOUND, "consumer not found"));
            }
        }
        let key = self.key(kind, &id);
        // The last PUT wins, as in APISIX; but each replaces what it has seen.
        for _ in 0..ATTEMPTS {
            let (before, expect) = match self.store.get(&key).await {
                Ok(None) => (None, Expect::Absent),
                Ok(Some(before)) => {
                    let expect = Expect::Revision(before.modified);
                    (Some(before), expect)
                }
                // Whatever it is, the operator wants this in its place.
                Err(store::Error::NotJson { .. }) => (None, Expect::Anything),
                Err(error) => return Err(error.into()),
            };
            let mut fields = fields.clone();
            if kind != Kind::PluginMetadata {
                stamp(&mut fields, before.as_ref(), self.clock.now());
            }
            let value = Value::Object(fields);
            match self.store_put((kind, &id), &value, expect, ttl, call.author).await {
                Err(store::Error::Conflict) => {}
                stored => {
                    let status =
                        if before.is_some() { StatusCode::OK } else { StatusCode::CREATED };
                    return Ok(self.written(kind, status, stored?));
                }
            }
        }
        Err(store::Error::Conflict.into())
    }

    fn judge_username(&self, target: &Target<'_>, value: &Value) -> Result<(), Answer> {
        self.shapes.check(Kind::Consumers, value)?;
        let username = value.get("username").and_then(Value::as_str);
        match target.id {
            Some(id) if username != Some(id) => Err(Answer::bad("wrong username")),
            _ => Ok(()),
        }
    }

    async fn change(
        &self,
        target: &Target<'_>,
        call: &Call<'_>,
        ttl: Option<u64>,
    ) -> Result<Answer, Answer> {
        let (kind, name) = (target.row.kind, target.row.name);
        let Some(id) = target.id else {
            return Err(Answer::bad(format!("missing {name} id")));
        };
        let Some(change) = call.body.clone() else {
            return Err(Answer::bad("missing new configuration"));
        };
        if target.inside.is_empty() && !change.is_object() {
            return Err(Answer::bad("invalid configuration"));
        }
        let Some(id) = target.full_id(id) else { return Err(Answer::key_not_found()) };
        let _alone = self.writes.lock().await;
        let key = self.key(kind, &id);
        let before = self.store.get(&key).await?.ok_or_else(Answer::key_not_found)?;
        let mut value = before.value.clone();
        let gives_time = target.inside.is_empty() && change.get("update_time").is_some();
        if target.inside.is_empty() {
            patch::merge(&mut value, change);
        } else {
            patch::replace(&mut value, target.inside, change).map_err(Answer::bad)?;
        }
        let mut fields = configuration(Some(value))?;
        target.id_of(&mut fields)?;
        let now = json!(self.clock.now());
        fields.entry("create_time").or_insert_with(|| now.clone());
        if !gives_time {
            fields.insert("update_time".into(), now);
        }
        let value = Value::Object(fields);
        self.judge(kind, &id, &value).await?;
        let expect = Expect::Revision(before.modified);
        let stored = self.store_put((kind, &id), &value, expect, ttl, call.author).await?;
        Ok(self.written(kind, StatusCode::OK, stored))
    }

    async fn remove(&self, target: &Target<'_>, call: &Call<'_>) -> Result<Answer, Answer> {
        let (kind, name) = (target.row.kind, target.row.name);
        let Some(id) = target.id else {
            return Err(Answer::bad(format!("missing {name} id")));
        };
        let Some(id) = target.full_id(id) else { return Err(Answer::key_not_found()) };
        let _alone = self.writes.lock().await;
        if call.query.find("force") != Some("true") {
            self.judge_removal(kind, &id).await?;
        }
        let key = self.key(kind, &id);
        if kind == Kind::Consumers {
            // First the credentials: a half-done removal must not leave any to a later consumer of that name.
            let below = self.store.list(&format!("{key}/credentials/")).await?;
            for credential in below.entries {
                self.store.delete(&credential.key, Expect::Anything).await?;
            }
        }
        let removed = self.store_delete((kind, &id), call.author).await?;
        let revision = removed.ok_or_else(Answer::key_not_found)?;
        self.has_written(revision);
        let mut answer = Answer::ok(json!({"deleted": "1", "key": key}));
        answer.revision = Some(revision);
        Ok(answer)
    }

    /// The index must see this revision before it is asked again.
    pub(super) fn has_written(&self, revision: Revision) {
        self.written.fetch_max(revision, Ordering::AcqRel);
    }

    fn written(&self, kind: Kind, status: StatusCode, stored: Stored) -> Answer {
        self.has_written(stored.modified);
        let json = stored.value.to_string();
        let body = json!({"key": stored.key, "value": listing::shown(kind, stored.value)});
        let mut answer = Answer::json(status, body);
        answer.revision = Some(stored.modified);
        answer.digest = Some(hex::encode(digest(&SHA256, json.as_bytes())));
        answer
    }

    /// Waits until every connected data plane has acknowledged the write, if the client asked for that.
    async fn await_applied(&self, mut answer: Answer, wait: Option<Duration>) -> Answer {
        let (Some(within), Some(revision), Some(convergence)) =
            (wait, answer.revision, &self.convergence)
        else {
            return answer;
        };
        let deadline = Instant::now() + within;
        let applied = || {
            let planes = convergence.data_planes();
            planes.iter().all(|plane| !plane.connected || plane.applied >= revision)
        };
        while !applied() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        answer.applied = Some(applied());
        answer
    }
}

impl Target<'_> {
    fn full_id(&self, id: &str) -> Option<Id> {
        match self.consumer {
            Some(consumer) => Id::parse(&format!("{consumer}/credentials/{id}")),
            None => Id::parse(id),
        }
        .ok()
    }

    /// The id by the kind's rule, from the path or the body; the body then bears it.
    fn id_of(&self, fields: &mut Map<String, Value>) -> Result<Id, Answer> {
        let name = self.row.name;
        let wrong = || Answer::bad(format!("wrong {name} id"));
        let unlawful = || {
            let text = "invalid configuration: property \"id\" validation failed: object matches none of the required";
            Answer::bad(text)
        };
        match self.row.id {
            IdRule::Username => {
                // The schema judges it before it is used.
                let username = fields.get("username").and_then(Value::as_str).unwrap_or_default();
                Ok(Id::parse(username).unwrap_or_else(|_| Id::from(0)))
            }
            IdRule::Plugin => {
                let id = self.id.ok_or_else(|| Answer::bad("missing plugin name"))?;
                fields.insert("id".into(), json!(id));
                Id::parse(id).map_err(|_| Answer::bad("invalid plugin name"))
            }
            IdRule::Generic | IdRule::TrustDomain => {
                let inside =
                    fields.get("id").map(|id| super::index::id_text(id).ok_or_else(unlawful));
                let inside = inside.transpose()?;
                let id = match (self.id, &inside) {
                    (Some(id), None) => id.to_owned(),
                    (Some(id), Some(inside)) if id == inside => id.to_owned(),
                    (Some(_), Some(_)) => return Err(wrong()),
                    (None, Some(inside)) => inside.clone(),
                    (None, None) => return Err(Answer::bad(format!("missing {name} id"))),
                };
                if let Some(id) = self.id {
                    fields.insert("id".into(), json!(id));
                }
                if self.row.id == IdRule::TrustDomain {
                    id.parse::<TrustDomain>().map_err(|why| {
                        let text = "invalid configuration: property \"id\" validation failed: ";
                        Answer::bad(format!("{text}{id:?} is not a trust domain's name: {why}"))
                    })?;
                } else if id.len() > 64 {
                    return Err(unlawful());
                }
                self.full_id(&id).ok_or_else(unlawful)
            }
        }
    }
}

fn target<'a>(segments: &'a [&'a str]) -> Option<Target<'a>> {
    if let ["consumers", consumer, "credentials", rest @ ..] = segments {
        let row = row_of(Kind::Credentials);
        let id = rest.first().copied();
        return Some(Target {
            row,
            consumer: Some(consumer),
            id,
            inside: rest.get(1..).unwrap_or_default(),
        });
    }
    let (name, rest) = segments.split_first()?;
    let kind =
        Kind::named(name).filter(|kind| !matches!(kind, Kind::Credentials | Kind::Secrets))?;
    let id = rest.first().copied();
    let inside = rest.get(1..).unwrap_or_default();
    Some(Target { row: row_of(kind), consumer: None, id, inside })
}

fn configuration(body: Option<Value>) -> Result<Map<String, Value>, Answer> {
    match body {
        None => Err(Answer::bad("missing configurations")),
        Some(Value::Object(fields)) => Ok(fields),
        Some(_) => {
            Err(Answer::bad("invalid configuration: wrong type: expected an object at the top"))
        }
    }
}

/// The server alone writes times, except in a PATCH.
fn refuse_times(fields: &Map<String, Value>) -> Result<(), Answer> {
    for (place, prefix) in [
        (Some(fields), ""),
        (inner(fields, "upstream"), "upstream."),
        (inner(fields, "plugins"), "plugins."),
    ] {
        for name in ["create_time", "update_time"] {
            if place.is_some_and(|fields| fields.contains_key(name)) {
                return Err(Answer::bad(format!("the property is forbidden: {prefix}{name}")));
            }
        }
    }
    Ok(())
}

fn inner<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Map<String, Value>> {
    fields.get(name).and_then(Value::as_object)
}

/// A PUT keeps the time of creation and renews the other.
fn stamp(fields: &mut Map<String, Value>, before: Option<&Stored>, now: i64) {
    let created = before.and_then(|before| before.value.get("create_time")).cloned();
    fields.insert("create_time".into(), created.unwrap_or_else(|| json!(now)));
    fields.insert("update_time".into(), json!(now));
}

fn ttl(query: &Query) -> Result<Option<u64>, Answer> {
    let Some(text) = query.find("ttl") else { return Ok(None) };
    let wrong = || Answer::bad("invalid argument ttl: should be a number");
    let seconds = text.trim().parse::<f64>().map_err(|_| wrong())?;
    if !(1.0..=1e10).contains(&seconds) {
        return Err(Answer::bad("invalid argument ttl: should be a number of seconds from 1"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 10^10")]
    let seconds = seconds.ceil() as u64;
    Ok(Some(seconds))
}

fn wait(query: &Query) -> Result<Option<Duration>, Answer> {
    match query.find("wait") {
        None => Ok(None),
        Some("applied") => {
            let seconds = query.find("timeout").map_or(Ok(10), str::parse::<u64>);
            match seconds {
                Ok(seconds @ 0..=60) => Ok(Some(Duration::from_secs(seconds))),
                _ => Err(Answer::bad("invalid argument timeout: should be 0 to 60 seconds")),
            }
        }
        Some(_) => Err(Answer::bad("invalid argument wait: should be applied")),
    }
}

/// The body as JSON whatever its Content-Type says; `None` when there is none.
async fn read_body(mut body: Body) -> Result<Option<Value>, Answer> {
    let mut bytes = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Answer::bad(format!("invalid request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size > MAX_BODY_BYTES {
            return Err(Answer::bad(format!(
                "invalid request body: request size {size} is greater than the maximum size {MAX_BODY_BYTES} allowed"
            )));
        }
        bytes.extend_from_slice(&data);
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let text = format!("invalid request body: {error}");
        let raw = String::from_utf8_lossy(&bytes);
        Answer::json(StatusCode::BAD_REQUEST, json!({"error_msg": text, "req_body": raw}))
    })
}

fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';'));
    pairs
        .find_map(|pair| pair.trim().split_once('=').filter(|(name, _)| *name == wanted))
        .map(|(_, value)| value)
}

/// The host without its port and brackets.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    host.split(':').next().unwrap_or_default()
}

fn origin_host(origin: &str) -> Option<&str> {
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_row() {
        for kind in Kind::ALL {
            assert_eq!(row_of(kind).kind, kind);
        }
    }

    #[test]
    fn hosts_and_origins_are_read_as_browsers_write_them() {
        for (host, name) in [("a:1", "a"), ("a", "a"), ("[::1]:9180", "::1"), ("[::1]", "::1")] {
            assert_eq!(host_name(host), name);
        }
        assert_eq!(origin_host("https://a:1"), Some("a:1"));
        assert_eq!(origin_host("null"), None);
    }
}
