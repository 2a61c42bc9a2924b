//! A cluster, followed: a list, and from there on a watch (Kubernetes' API concepts, "Efficient detection of changes").

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::AUTHORIZATION;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use regex::Regex;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::objects::{Kind, Object, Objects, Ports, ServiceKey};
use super::settings::{ApiScheme, ClusterSettings, NamespaceSelector, Port};
use crate::model::{Node, Redacted};
use crate::upstream::discovery::Error;
use crate::upstream::discovery::board::Board;
use crate::upstream::discovery::client::{
    Authorities, Line, Question, Server, Within, encoded, secret_value,
};
use crate::upstream::discovery::contact::Contact;
use crate::upstream::discovery::service::Service;
use crate::upstream::discovery::settings::{Environment, text};

/// What a pod finds of its service account.
const IN_POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const WITHIN: Within = Within { connect: Duration::from_secs(5), answer: Duration::from_secs(30) };
/// Objects of one page of a list.
const PAGE: u32 = 500;
/// A watch is ended by the API server after so many seconds, and up to half of it more.
const WATCH_SECONDS: u64 = 240;
/// An event at most, in bytes.
const MAX_EVENT: usize = 16 << 20;
/// A cluster that does not answer is left alone this long at most.
const AT_MOST: Duration = Duration::from_secs(40);

/// A cluster.
pub(super) struct Cluster {
    /// What stands before a service's name: nothing, or `id/`.
    pub(super) prefix: String,
    pub(super) shown: Value,
    server: Arc<Server>,
    token: Token,
    kind: Kind,
    namespaces: Namespaces,
    labels: Option<String>,
    weight: u32,
}

enum Token {
    Text(Redacted<String>),
    File(PathBuf),
}

enum Namespaces {
    All,
    One(String),
    AllBut(String),
    Matching(Vec<Regex>),
    NotMatching(Vec<Regex>),
}

/// Why a watch cannot go on.
enum Ended {
    /// The API server no longer knows the version from which it should go on.
    Gone,
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Cluster {
    /// `field` is where the settings have it.
    pub(super) fn new(
        settings: &ClusterSettings,
        field: &str,
        is_in_pod: bool,
        environment: Environment<'_>,
    ) -> Result<Self, Error> {
        let at = |name: &str| format!("{field}.{name}");
        let value = |name: &str, written: &str| variable(&at(name), written, environment);
        let missing = |name: &str| Error::setting(at(name), "missing");
        let service = &settings.service;
        let host = match (&service.host, is_in_pod) {
            (Some(host), _) => value("service.host", host)?,
            (None, true) => value("service.host", "${KUBERNETES_SERVICE_HOST}")?,
            (None, false) => return Err(missing("service.host")),
        };
        let port = match (&service.port, is_in_pod) {
            (Some(Port::Number(port)), _) => port.to_string(),
            (Some(Port::Text(port)), _) => value("service.port", port)?,
            (None, true) => value("service.port", "${KUBERNETES_SERVICE_PORT}")?,
            (None, false) => return Err(missing("service.port")),
        };
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(Error::setting(at("service.port"), format!("{port:?} is no port")));
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback =
            bare.parse().map_or(bare == "localhost", |ip: std::net::IpAddr| ip.is_loopback());
        let scheme = match service.schema {
            // The token would be everybody's who reads along.
            Some(ApiScheme::Http) if !is_loopback => {
                let problem = "http is for loopback addresses only";
                return Err(Error::setting(at("service.schema"), problem));
            }
            Some(ApiScheme::Http) => "http",
            Some(ApiScheme::Https) | None => "https",
        };
        let authorities = match (service.ssl_verify, &settings.client.ca_file) {
            (Some(false), _) => {
                tracing::warn!(
                    "discovery.{field}.service.ssl_verify is false: whoever answers as {host} gets our token and names our nodes"
                );
                Authorities::None
            }
            (_, Some(path)) => Authorities::File(path.clone()),
            (_, None) => {
                let own = Path::new(IN_POD).join("ca.crt");
                if own.exists() { Authorities::File(own) } else { Authorities::System }
            }
        };
        let place = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
        let url = format!("{scheme}://{place}:{port}");
        let token = match (&settings.client.token, &settings.client.token_file) {
            (Some(_), Some(_)) => {
                let problem = "give either token or token_file";
                return Err(Error::setting(at("client.token"), problem));
            }
            (Some(token), None) => {
                let token = value("client.token", token.reveal())?.trim().to_owned();
                if token.is_empty() {
                    return Err(Error::setting(at("client.token"), "it is empty"));
                }
                Token::Text(Redacted::new(token))
            }
            (None, Some(path)) => Token::File(value("client.token_file", path)?.into()),
            (None, None) if is_in_pod => Token::File(Path::new(IN_POD).join("token")),
            (None, None) => return Err(missing("client.token_file")),
        };
        let kind = match settings.watch_endpoint_slices {
            true => Kind::EndpointSlices,
            false => Kind::Endpoints,
        };
        let weight = settings.default_weight.unwrap_or(50);
        let mut shown = json!({
            "service": { "schema": scheme, "host": host, "port": port },
            "default_weight": weight,
            "watch_endpoint_slices": settings.watch_endpoint_slices,
        });
        if let Some(id) = &settings.id {
            shown["id"] = json!(id);
        }
        if let Some(labels) = &settings.label_selector {
            shown["label_selector"] = json!(labels);
        }
        Ok(Self {
            prefix: settings.id.as_ref().map(|id| format!("{id}/")).unwrap_or_default(),
            shown,
            server: Arc::new(Server::parse(&at("service.host"), &url, authorities, WITHIN)?),
            token,
            kind,
            namespaces: namespaces(&at("namespace_selector"), &settings.namespace_selector)?,
            labels: settings.label_selector.clone().filter(|labels| !labels.is_empty()),
            weight,
        })
    }

    /// Follows it, for ever. On the board it is the server with this number.
    pub(super) async fn follow(&self, number: usize, board: &Board) {
        let mut line = Line::to(self.server.clone());
        let mut contact = Contact::with("kubernetes", &self.server.name, AT_MOST);
        loop {
            let listed = self.list(&mut line).await;
            let (mut objects, mut version) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    board.lost(number);
                    tokio::time::sleep(contact.lost(&error)).await;
                    continue;
                }
            };
            contact.holds();
            let services = objects.keys().flat_map(|key| self.services(key, objects.ports(key)));
            board.tell_all(number, services.collect::<BTreeMap<Service, Vec<Node>>>());
            loop {
                let mut events = Events { cluster: self, board, number, objects: &mut objects };
                match events.watch(&mut line, &mut version, &mut contact).await {
                    Ok(()) => {}
                    Err(Ended::Gone) => break,
                    Err(Ended::Failed(error)) => {
                        board.lost(number);
                        let is_confused = matches!(error, Error::Shape { .. });
                        tokio::time::sleep(contact.lost(&error)).await;
                        // To go on from there would bring the same event again.
                        if is_confused {
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn list(&self, line: &mut Line) -> Result<(Objects, String), Error> {
        let mut objects = Objects::default();
        let mut rest: Option<String> = None;
        // The first page's: whatever happens while the others are read is told by the watch.
        let mut version: Option<String> = None;
        loop {
            let page = match &rest {
                None => format!("limit={PAGE}"),
                Some(rest) => format!("limit={PAGE}&continue={}", encoded(rest)),
            };
            let question = self.question(&page).await?;
            let answer = line.ask(&question).await?;
            // The list has grown too old between two pages.
            if answer.status == StatusCode::GONE && rest.take().is_some() {
                (objects, version) = (Objects::default(), None);
                continue;
            }
            let list: List = line.parse(&question, &answer)?;
            for item in list.items.unwrap_or_default() {
                if let Some(object) = self.read(&item) {
                    objects.put(object, false);
                }
            }
            let version = version.get_or_insert(list.metadata.version);
            match list.metadata.rest.filter(|rest| !rest.is_empty()) {
                None => return Ok((objects, std::mem::take(version))),
                more => rest = more,
            }
        }
    }

    /// A question for all objects that are followed.
    async fn question(&self, query: &str) -> Result<Question, Error> {
        let group = self.kind.group();
        let plural = self.kind.plural();
        let mut path = match &self.namespaces {
            Namespaces::One(one) => format!("{group}/namespaces/{}/{plural}?{query}", encoded(one)),
            _ => format!("{group}/{plural}?{query}"),
        };
        if let Namespaces::AllBut(one) = &self.namespaces {
            let selector = encoded(&format!("metadata.namespace!={one}"));
            path.push_str(&format!("&fieldSelector={selector}"));
        }
        if let Some(labels) = &self.labels {
            path.push_str(&format!("&labelSelector={}", encoded(labels)));
        }
        let token = match &self.token {
            Token::Text(token) => token.clone(),
            // The kubelet replaces it from time to time.
            Token::File(path) => {
                let read = |source| Error::Read { path: path.clone(), source };
                Redacted::new(tokio::fs::read_to_string(path).await.map_err(read)?)
            }
        };
        let bearer = secret_value(&format!("Bearer {}", token.reveal().trim()));
        if let (None, Token::File(path)) = (&bearer, &self.token) {
            return Err(Error::Token { path: path.clone() });
        }
        Ok(Question::get(&self.server, path).with(AUTHORIZATION, bearer))
    }

    /// An object, when it belongs to a service that is followed. One that cannot be read changes nothing: the others count.
    fn read(&self, object: &RawValue) -> Option<Object> {
        match self.kind.read(object, self.weight) {
            Ok(object) => object.filter(|object| self.namespaces.has(&object.service.0)),
            Err(error) => {
                let server = &self.server.name;
                tracing::warn!(registry = "kubernetes", server, %error, "an object cannot be read");
                None
            }
        }
    }

    /// A service as upstreams name it: once for each port.
    fn services<'a>(
        &'a self,
        (namespace, name): &'a ServiceKey,
        ports: Ports,
    ) -> impl Iterator<Item = (Service, Vec<Node>)> + 'a {
        ports.into_iter().map(move |(port, nodes)| {
            let prefix = &self.prefix;
            (Service::named(format!("{prefix}{namespace}/{name}:{port}")), nodes)
        })
    }
}

/// A watch and what it changes.
struct Events<'a> {
    cluster: &'a Cluster,
    board: &'a Board,
    number: usize,
    objects: &'a mut Objects,
}

impl Events<'_> {
    /// Watches from `version` on until the API server ends it.
    async fn watch(
        &mut self,
        line: &mut Line,
        version: &mut String,
        contact: &mut Contact,
    ) -> Result<(), Ended> {
        let seconds = WATCH_SECONDS + fastrand::u64(..WATCH_SECONDS / 2);
        let query = format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            encoded(version)
        );
        let question = self.cluster.question(&query).await?;
        let within = Duration::from_secs(seconds) + WITHIN.answer;
        let late = Error::Late { server: self.cluster.server.name.clone(), within };
        let reading = async {
            let (conversation, answer) = line.open(&question).await?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::GONE => return Err(Ended::Gone),
                status => {
                    let server = self.cluster.server.name.clone();
                    let path = question.path.split('?').next().unwrap_or_default().to_owned();
                    return Err(Error::Status { server, path, status: status.as_u16() }.into());
                }
            }
            contact.holds();
            // What it told before is what it tells now.
            self.board.found(self.number);
            self.read(&question, answer.into_body(), version).await?;
            line.keep(conversation);
            Ok(())
        };
        tokio::time::timeout(within, reading).await.unwrap_or(Err(late.into()))
    }

    /// One event a line.
    async fn read(
        &mut self,
        question: &Question,
        mut body: Incoming,
        version: &mut String,
    ) -> Result<(), Ended> {
        let server = &self.cluster.server;
        let mut buffer = Vec::new();
        while let Some(frame) = body.frame().await {
            let broken = |source| Error::Exchange { server: server.name.clone(), source };
            let frame = frame.map_err(broken)?;
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            let Some(end) = memchr::memrchr(b'\n', &buffer) else {
                if buffer.len() > MAX_EVENT {
                    let why = format!("an event is longer than {MAX_EVENT} bytes");
                    return Err(server.shape(&question.path, why).into());
                }
                continue;
            };
            let rest = buffer.split_off(end + 1);
            let lines = std::mem::replace(&mut buffer, rest);
            for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                self.event(question, line, version)?;
            }
        }
        Ok(())
    }

    fn event(
        &mut self,
        question: &Question,
        line: &[u8],
        version: &mut String,
    ) -> Result<(), Ended> {
        let shape =
            |error: serde_json::Error| self.cluster.server.shape(&question.path, error.to_string());
        let event: Event<'_> = serde_json::from_slice(line).map_err(shape)?;
        let is_gone = match &*event.kind {
            "ADDED" | "MODIFIED" => false,
            "DELETED" => true,
            "BOOKMARK" => {
                let head: Head = serde_json::from_str(event.object.get()).map_err(shape)?;
                *version = head.metadata.version;
                return Ok(());
            }
            "ERROR" => {
                let status: ApiStatus = serde_json::from_str(event.object.get()).map_err(shape)?;
                if status.code == StatusCode::GONE.as_u16() {
                    return Err(Ended::Gone);
                }
                let server = self.cluster.server.name.clone();
                let path = format!("{} (watched)", self.cluster.kind.plural());
                return Err(Error::Status { server, path, status: status.code }.into());
            }
            // A kind of event that came after this was written.
            _ => return Ok(()),
        };
        let head: Head = serde_json::from_str(event.object.get()).map_err(shape)?;
        if let Some(object) = self.cluster.read(event.object) {
            self.put(object, is_gone);
        }
        *version = head.metadata.version;
        Ok(())
    }

    fn put(&mut self, object: Object, is_gone: bool) {
        let key = object.service.clone();
        let before: BTreeSet<String> = self.objects.ports(&key).into_keys().collect();
        self.objects.put(object, is_gone);
        let mut now = self.objects.ports(&key);
        for port in before {
            now.entry(port).or_default();
        }
        for (service, nodes) in self.cluster.services(&key, now) {
            self.board.tell(self.number, &service, nodes);
        }
    }
}

impl Namespaces {
    fn has(&self, namespace: &str) -> bool {
        let any = |list: &[Regex]| list.iter().any(|regex| regex.is_match(namespace));
        match self {
            Self::All => true,
            Self::One(one) => one == namespace,
            Self::AllBut(one) => one != namespace,
            Self::Matching(list) => any(list),
            Self::NotMatching(list) => !any(list),
        }
    }
}

fn namespaces(field: &str, selector: &NamespaceSelector) -> Result<Namespaces, Error> {
    let NamespaceSelector { equal, not_equal, matches, not_match } = selector;
    let expressions = |name: &str, list: &[String]| {
        let compile = |text: &String| {
            Regex::new(&format!("^(?:{text})$"))
                .map_err(|error| Error::setting(format!("{field}.{name}"), error.to_string()))
        };
        list.iter().map(compile).collect::<Result<Vec<_>, _>>()
    };
    match (equal, not_equal, &**matches, &**not_match) {
        (None, None, [], []) => Ok(Namespaces::All),
        (Some(one), None, [], []) => Ok(Namespaces::One(one.clone())),
        (None, Some(one), [], []) => Ok(Namespaces::AllBut(one.clone())),
        (None, None, list, []) => expressions("match", list).map(Namespaces::Matching),
        (None, None, [], list) => expressions("not_match", list).map(Namespaces::NotMatching),
        _ => Err(Error::setting(
            field.to_owned(),
            "expected at most one of equal, not_equal, match and not_match",
        )),
    }
}

/// `${NAME}` as a whole, as APISIX has it here, or `${{NAME}}` anywhere.
fn variable(field: &str, written: &str, environment: Environment<'_>) -> Result<String, Error> {
    let inside = written.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    match inside.filter(|name| !name.starts_with('{')) {
        None => text(field, written, environment),
        Some(name) => environment(name).ok_or_else(|| {
            Error::setting(field, format!("the environment variable {name} is not set"))
        }),
    }
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
struct ListMetadata {
    #[serde(rename = "resourceVersion")]
    version: String,
    #[serde(default, rename = "continue")]
    rest: Option<String>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Head {
    metadata: HeadMetadata,
}

#[derive(Deserialize)]
struct HeadMetadata {
    #[serde(rename = "resourceVersion")]
    version: String,
}

#[derive(Deserialize)]
struct ApiStatus {
    code: u16,
}
