//! `Store`: texts in Redis, each under a key that only its owner can name.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::asking::yes;
use super::provider::Unavailable;
use crate::pipeline::{
    Build, Invalid, Redacted, Redis, RedisAccess, RedisError, RedisServer, Script,
};
use crate::plugins::bounds;
use crate::rt::crypto::digest::{SHA256, digest};

/// A Redis server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// The host.
    #[serde(default = "default_host")]
    #[schemars(length(min = 2))]
    host: String,
    /// The port.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1))]
    port: u16,
    /// The user; the default one when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    username: Option<String>,
    /// The password.
    #[serde(default)]
    password: Option<Redacted<String>>,
    /// The number of the database.
    #[serde(default)]
    database: u32,
    /// What the sessions' keys begin with.
    #[serde(default = "default_prefix")]
    prefix: String,
    /// TLS.
    #[serde(default)]
    ssl: bool,
    /// The server's certificate must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
    /// Milliseconds that connecting may take.
    #[serde(default = "default_millis")]
    #[schemars(range(min = 1))]
    connect_timeout: u32,
    /// Milliseconds that a question may take to be sent.
    #[serde(default = "default_millis")]
    #[schemars(range(min = 1))]
    send_timeout: u32,
    /// Milliseconds that an answer may take.
    #[serde(default = "default_millis")]
    #[schemars(range(min = 1))]
    read_timeout: u32,
    /// Milliseconds that a connection waits for its next use.
    #[serde(default = "default_keepalive")]
    #[schemars(range(min = 1000))]
    keepalive_timeout: u32,
}

fn default_host() -> String {
    "127.0.0.1".into()
}
const fn default_port() -> u16 {
    6379
}
fn default_prefix() -> String {
    "sessions".into()
}
const fn default_millis() -> u32 {
    1000
}
const fn default_keepalive() -> u32 {
    10_000
}

/// Where the texts are.
pub(super) struct Store {
    redis: Arc<Redis>,
    prefix: String,
}

impl Place {
    /// The server. All that name the same share its connections.
    pub(super) fn store(&self, build: &Build<'_>) -> Result<Store, Invalid> {
        let lawful = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if self.host.len() < 2 || !self.host.bytes().all(lawful) {
            return Err(Invalid::new("session.redis.host: a host is expected"));
        }
        bounds::number("session.redis.port", self.port, 1..=u16::MAX)?;
        if self.username.as_deref() == Some("") {
            return Err(Invalid::new("session.redis.username: a name is expected"));
        }
        let mut within = 0;
        for (field, millis) in [
            ("connect_timeout", self.connect_timeout),
            ("send_timeout", self.send_timeout),
            ("read_timeout", self.read_timeout),
        ] {
            bounds::number(&format!("session.redis.{field}"), millis, 1..=u32::MAX)?;
            within += u64::from(millis);
        }
        let keep = self.keepalive_timeout;
        bounds::number("session.redis.keepalive_timeout", keep, 1000..=u32::MAX)?;
        let access = RedisAccess {
            user: self.username.clone(),
            password: self.password.as_ref().map(|word| Redacted::new(word.reveal().clone())),
            database: self.database,
            tls: self.ssl.then_some(self.ssl_verify),
            within: Duration::from_millis(within),
            keep: Duration::from_millis(keep.into()),
            most: 100,
        };
        // By digest: it has a password in it.
        let password = self.password.as_ref().map(|word| word.reveal().as_str());
        let name = format!("{}:{} {access:?} {password:?}", self.host, self.port);
        let name = hex::encode(digest(&SHA256, name.as_bytes()));
        let server = || Redis::Server(Arc::new(RedisServer::new(&*self.host, self.port, access)));
        let redis = build.keep_group(&format!("sessions {name}"), server);
        Ok(Store { redis, prefix: self.prefix.clone() })
    }
}

/// Puts a text: a new one, or in place of one that is there (`any`), or of the one that was read.
static PUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local there = redis.call('GET', KEYS[1])
if ARGV[1] == 'new' and there then return 0 end
if ARGV[1] == 'any' and not there then return 0 end
if ARGV[1] == 'same' and there ~= ARGV[4] then return 0 end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
",
    )
});

static REMOVE: LazyLock<Script> =
    LazyLock::new(|| Script::new("return redis.call('DEL', KEYS[1])"));

/// What a text in Redis takes the place of.
pub(super) enum Instead<'t> {
    New,
    Any,
    Same(&'t str),
}

impl Store {
    /// The id itself is in the browser alone: whoever reads Redis has no session by that.
    fn key(&self, id: &str) -> String {
        format!("{}:{}", self.prefix, hex::encode(digest(&SHA256, id.as_bytes())))
    }

    /// Puts a text for so many seconds, 0: for ever. Is it there now?
    pub(super) async fn put(
        &self,
        id: &str,
        text: &str,
        seconds: i64,
        instead: Instead<'_>,
    ) -> Result<bool, RedisError> {
        let (word, same) = match instead {
            Instead::New => ("new", ""),
            Instead::Any => ("any", ""),
            Instead::Same(text) => ("same", text),
        };
        let millis = seconds.saturating_mul(1000).to_string();
        let arguments = [word.as_bytes(), text.as_bytes(), millis.as_bytes(), same.as_bytes()];
        let done = self.redis.run(&PUT, self.key(id).as_bytes(), &arguments).await?;
        Ok(done.first() == Some(&1))
    }

    /// The text of this id.
    pub(super) async fn text(&self, id: &str) -> Result<Option<String>, RedisError> {
        self.redis.text(self.key(id).as_bytes()).await
    }

    /// Takes the text of this id away.
    pub(super) async fn remove(&self, id: &str) -> Result<(), RedisError> {
        self.redis.run(&REMOVE, self.key(id).as_bytes(), &[]).await.map(drop)
    }
}

impl From<RedisError> for Unavailable {
    fn from(why: RedisError) -> Self {
        Self::of_session(&format!("sessions in Redis: {}", why.told()))
    }
}
