//! `wolf-rbac`: a Wolf server knows the caller's token, and decides what it may do.

use std::time::Duration;

use async_trait::async_trait;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::asking::{lawful, yes};
use super::entrance::{cookie, directory, found, named};
use crate::pipeline::{
    Build, Exchange, Fault, Flow, Head, Hooks, Invalid, Plugin, Question, Reply, ResponseHead,
    Rewrite, Server, Terms, argument, field_name,
};

/// Callers must present a token of Wolf's; its application is a consumer's. What the server is, the consumer says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {}

/// What a consumer or credential carries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// The application's ID, unique among all consumers.
    #[schemars(length(min = 1))]
    appid: String,
    /// The URL of the Wolf server.
    #[serde(default = "default_server")]
    server: String,
    /// What the headers begin with that say who calls: `<prefix>UserId`, `<prefix>Username`, `<prefix>Nickname`.
    #[serde(default = "default_prefix")]
    header_prefix: String,
    /// The server's certificate must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
}

fn default_server() -> String {
    "http://127.0.0.1:12180".into()
}
fn default_prefix() -> String {
    "X-".into()
}

/// How often a server is asked that answers with a fault of its own.
const ATTEMPTS: usize = 3;

/// A consumer's application.
pub(super) struct Application {
    pub(super) server: Server,
    /// The headers for id, name and nickname.
    headers: [Box<str>; 3],
}

impl crate::pipeline::Credential for Credential {
    type Ready = Application;

    fn ready(self) -> Result<Application, Invalid> {
        named("appid", &self.appid, usize::MAX)?;
        if self.appid.contains('#') {
            return Err(Invalid::new(
                "appid: a name without # is expected: it ends with one in tokens",
            ));
        }
        let header = |name: &str| {
            field_name(&format!("{}{name}", self.header_prefix))
                .map_err(|why| Invalid::new(format!("header_prefix: {why}")))
        };
        let terms = Terms {
            within: Duration::from_secs(10),
            verify: self.ssl_verify,
            keep: Some((Duration::from_secs(60), 5)),
        };
        Ok(Application {
            server: Server::new("server", &self.server, terms)?,
            headers: [header("UserId")?, header("Username")?, header("Nickname")?],
        })
    }
}

pub(super) struct WolfRbac;

/// A note: who the caller is, for the response.
struct User(Vec<(Box<str>, String)>);

impl Plugin for WolfRbac {
    const NAME: &'static str = "wolf-rbac";
    const PRIORITY: i32 = 2555;
    const EXAMPLE: &'static str = "{}";
    type Config = Config;

    fn compile(Config {}: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        Ok(Hooks::of(Self).rewrite().response_head().done())
    }
}

#[async_trait]
impl Rewrite for WolfRbac {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let refuse = |message: &str| Ok(Flow::json(401, &json!({ "message": message })));
        let Some(token) = presented(exchange) else {
            return refuse("Missing rbac token in request");
        };
        let mut parts = token.splitn(3, '#');
        let (Some("V1"), Some(application), Some(wolf)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return refuse("invalid rbac token: parse failed");
        };
        let Some(wolf) = lawful(wolf.as_bytes()) else {
            return refuse("invalid rbac token: parse failed");
        };
        let directory = directory(exchange)?;
        let known = found::<Application>(&*directory, Self::NAME, application);
        let Some((consumer, ready)) = known else {
            return refuse("Invalid appid in rbac token");
        };
        let mut question = Question::get(access_check(exchange, application));
        question.headers.insert("x-rbac-token", wolf);
        let verdict = ready.ask(&question).await;
        for header in &ready.headers {
            exchange.request.remove(header);
        }
        let user = verdict.user(&ready);
        for (header, value) in &user {
            exchange.request.set(header, value.as_bytes());
        }
        if verdict.status != 200 {
            let name = |at: usize| user.get(at).map(|(_, value)| value.clone());
            let body = json!({
                "message": verdict.reason, "username": name(1), "nickname": verdict.nickname(),
            });
            let mut reply = Reply::json(verdict.status, &body);
            for (header, value) in &user {
                reply = reply.with(header, value);
            }
            return Ok(Flow::Reply(Box::new(reply)));
        }
        exchange.notes.leave(User(user));
        exchange.attach(consumer);
        Ok(Flow::Next)
    }
}

impl ResponseHead for WolfRbac {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        if let Some(User(fields)) = exchange.notes.find() {
            for (header, value) in fields {
                exchange.response.set(header, value.as_bytes());
            }
        }
        Ok(())
    }
}

/// The token of the request: in the query, a header or a cookie.
pub(super) fn presented(exchange: &Exchange) -> Option<String> {
    let head: &Head = &exchange.request;
    let query = argument(head.query().unwrap_or_default(), "rbac_token").next();
    query
        .map(Into::into)
        .or_else(|| head.text("authorization").map(str::to_owned))
        .or_else(|| head.text("x-rbac-token").map(str::to_owned))
        .or_else(|| cookie(head, "x-rbac-token").map(str::to_owned))
}

fn access_check(exchange: &Exchange, application: &str) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let path = exchange.uri();
    let path = path.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    format!(
        "/wolf/rbac/access_check?appID={}&resName={}&action={}&clientIP={}",
        encode(application),
        encode(&path),
        encode(exchange.request.method()),
        encode(&exchange.remote().ip().to_string()),
    )
}

/// What the server says.
struct Verdict {
    status: u16,
    reason: String,
    user: Option<Value>,
}

impl Verdict {
    fn fault(reason: &str) -> Self {
        Self { status: 500, reason: reason.to_owned(), user: None }
    }

    fn nickname(&self) -> Option<&str> {
        let user = self.user.as_ref()?;
        user["nickname"].as_str().or_else(|| user["username"].as_str())
    }

    /// The headers that say who calls.
    fn user(&self, ready: &Application) -> Vec<(Box<str>, String)> {
        let Some(user) = &self.user else { return Vec::new() };
        let [id, name, nickname] = ready.headers.clone();
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let told = [
            (id, text(&user["id"])),
            (name, text(&user["username"])),
            (nickname, self.nickname().map(encoded)),
        ];
        told.into_iter()
            .filter_map(|(header, value)| Some((header, value?)))
            .filter(|(_, value)| lawful(value.as_bytes()).is_some())
            .collect()
    }
}

impl Application {
    async fn ask(&self, question: &Question) -> Verdict {
        let mut attempt = 1;
        let answer = loop {
            match self.server.ask(question).await {
                Err(why) => {
                    tracing::warn!(server = %self.server.name(), why = %why.told(), "wolf-rbac has no answer");
                    return Verdict::fault("request to wolf-server failed");
                }
                Ok(answer) if answer.status < 500 => break answer,
                Ok(_) if attempt < ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(answer) => {
                    tracing::warn!(server = %self.server.name(), status = answer.status, "wolf-rbac has no answer");
                    return Verdict::fault("request to wolf-server failed");
                }
            }
        };
        let Ok(mut body) = serde_json::from_slice::<Value>(&answer.body) else {
            // With status 200 as well: what cannot be read has allowed nothing.
            return Verdict::fault("check permission failed! parse response json failed!");
        };
        let user = body.pointer_mut("/data/userInfo").map(Value::take).filter(Value::is_object);
        let reason = body["reason"].as_str().unwrap_or_default().to_owned();
        // What is neither yes nor a refusal of the caller is no answer for it.
        let status = match answer.status {
            200 if body["ok"] == Value::Bool(false) => 401,
            status @ (200 | 400..=499) => status,
            _ => 500,
        };
        Verdict { status, reason, user }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_that_cannot_be_used_is_refused() {
        let row = crate::plugins::ALL.iter().find(|row| row.name == "wolf-rbac").unwrap();
        let check = |credential: &Value| (row.check_credential.unwrap())(credential);
        check(&json!({"appid": "a"})).unwrap();
        for (credential, says) in [
            (json!({}), "appid"),
            (json!({"appid": ""}), "appid"),
            (json!({"appid": "a#b"}), "appid"),
            (json!({"appid": "a", "server": "wolf"}), "server"),
            (json!({"appid": "a", "header_prefix": "a b"}), "header_prefix"),
            (json!({"appid": "a", "header_prefix": "X-Spiffe-"}), "header_prefix"),
            (json!({"appid": "a", "ssl_verify": "yes"}), "boolean"),
        ] {
            let error = check(&credential).unwrap_err().to_string();
            assert!(error.contains(says), "{credential}: {error}");
        }
    }
}
