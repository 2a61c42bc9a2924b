//! Consul's blocking queries: a request that is answered when something has changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Error;
use super::client::{Answer, Authorities, Line, Question, Server, Within, secret_value};
use super::service::node;
use super::settings::{Environment, secret, some, text, time};
use crate::model::{Node, Redacted};

/// Where a query begins whose past is not known.
const BEGINNING: u64 = 0;
/// Answers that bring nothing new and come faster than this are slowed down to it.
const AT_MOST_EVERY: Duration = Duration::from_millis(500);

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// How long Consul may take.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConsulTimeout {
    /// To connect, in milliseconds.
    pub connect: u64,
    /// To answer, in milliseconds.
    pub read: u64,
    /// How long a blocking query waits for a change, in seconds.
    pub wait: u64,
}

impl Default for ConsulTimeout {
    fn default() -> Self {
        Self { connect: 2000, read: 2000, wait: 60 }
    }
}

/// What stands for a service that is not known.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DefaultService {
    /// An address or a name.
    pub host: String,
    /// The port; the scheme's when not given.
    #[serde(default)]
    pub port: Option<u16>,
}

impl DefaultService {
    pub(super) fn node(&self, weight: u32) -> Node {
        node(self.host.clone(), self.port, weight)
    }
}

/// A file with what is known, for the next start.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DumpSettings {
    /// Where; its folder must be there.
    pub path: PathBuf,
    /// Reads it at the start.
    #[serde(default = "default_load")]
    pub load_on_init: bool,
    /// Seconds after which it is not read any more; 0: never.
    #[serde(default)]
    pub expire: u64,
}

const fn default_load() -> bool {
    true
}

/// What consul and consul_kv have in common.
pub(super) struct Agents {
    pub(super) servers: Vec<Arc<Server>>,
    pub(super) token: Option<HeaderValue>,
    /// How long a blocking query waits; none is made when not given.
    pub(super) wait: Option<Duration>,
    /// Between two queries that do not block.
    pub(super) interval: Duration,
}

/// The settings that they have in common.
pub(super) struct AgentSettings<'a> {
    pub(super) registry: &'static str,
    pub(super) servers: &'a [String],
    pub(super) token: Option<&'a Redacted<String>>,
    pub(super) ca_file: Option<&'a PathBuf>,
    pub(super) timeout: ConsulTimeout,
    pub(super) keepalive: bool,
    pub(super) fetch_interval: u64,
}

impl Agents {
    pub(super) fn new(
        settings: &AgentSettings<'_>,
        environment: Environment<'_>,
    ) -> Result<Self, Error> {
        let field = |name: &str| format!("{}.{name}", settings.registry);
        some(&field("servers"), settings.servers)?;
        let ConsulTimeout { connect, read, wait } = settings.timeout;
        let within = Within {
            connect: time(&field("timeout.connect"), Duration::from_millis(connect))?,
            answer: time(&field("timeout.read"), Duration::from_millis(read))?,
        };
        let wait = time(&field("timeout.wait"), Duration::from_secs(wait))?;
        let authorities =
            settings.ca_file.map_or(Authorities::System, |path| Authorities::File(path.clone()));
        let server = |url: &String| {
            let url = text(&field("servers"), url, environment)?;
            Server::parse(&field("servers"), &url, authorities.clone(), within).map(Arc::new)
        };
        let token = settings.token.map(|token| secret(&field("token"), token, environment));
        let token =
            match token.transpose()? {
                Some(token) if !token.reveal().is_empty() => {
                    let value = secret_value(token.reveal());
                    Some(value.ok_or_else(|| {
                        Error::setting(field("token"), "it cannot stand in a header")
                    })?)
                }
                _ => None,
            };
        Ok(Self {
            servers: settings.servers.iter().map(server).collect::<Result<_, _>>()?,
            token,
            wait: settings.keepalive.then_some(wait),
            interval: time(&field("fetch_interval"), Duration::from_secs(settings.fetch_interval))?,
        })
    }

    /// A question to one of them that is answered at once.
    pub(super) fn question(&self, server: &Server, path: &str) -> Question {
        Question::get(server, path).with(TOKEN, self.token.clone())
    }
}

/// A query that is answered whenever something has changed, or after a time without.
pub(super) struct Watch<'a> {
    agents: &'a Agents,
    line: Line,
    path: String,
    index: u64,
}

impl<'a> Watch<'a> {
    /// `path` may have a query.
    pub(super) fn new(agents: &'a Agents, server: usize, path: &str) -> Self {
        let line = Line::to(agents.servers[server].clone());
        Self { agents, line, path: path.to_owned(), index: BEGINNING }
    }

    /// The next answer that differs from the one before; the first one at once. After an error, and without blocking, it is
    /// asked as for the first time.
    pub(super) async fn next(&mut self) -> Result<(Question, Answer), Error> {
        loop {
            let asked = tokio::time::Instant::now();
            let (question, answer) = match self.ask().await {
                Ok(answered) => answered,
                Err(error) => {
                    self.index = BEGINNING;
                    return Err(error);
                }
            };
            let index = answer.headers.get("x-consul-index");
            let index: Option<u64> = index.and_then(|index| index.to_str().ok()?.parse().ok());
            if index.is_none() && self.agents.wait.is_some() {
                return Err(self.line.server.shape(&self.path, "there is no X-Consul-Index"));
            }
            let before = self.index;
            // It went back: the servers' state is another one, and the past says nothing.
            self.index = index.filter(|index| *index >= before).unwrap_or(BEGINNING);
            if self.agents.wait.is_none() || before == BEGINNING || self.index != before {
                return Ok((question, answer));
            }
            tokio::time::sleep_until(asked + AT_MOST_EVERY).await;
        }
    }

    async fn ask(&mut self) -> Result<(Question, Answer), Error> {
        let server = self.line.server.clone();
        let mut question = self.agents.question(&server, &self.path);
        if let Some(wait) = self.agents.wait {
            let joint = if self.path.contains('?') { '&' } else { '?' };
            question.path =
                format!("{}{joint}index={}&wait={}s", self.path, self.index, wait.as_secs());
            if self.index != BEGINNING {
                // Consul waits up to a sixteenth longer, so that not all come at once.
                question.within += wait + wait / 16;
            }
        }
        let answer = self.line.ask(&question).await?;
        let is_answer = matches!(answer.status, StatusCode::OK | StatusCode::NOT_FOUND);
        if !is_answer {
            return Err(self.line.status(&question, &answer));
        }
        Ok((question, answer))
    }

    /// The line on which it is asked.
    pub(super) fn line(&self) -> &Line {
        &self.line
    }
}
