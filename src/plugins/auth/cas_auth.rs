//! `cas-auth`: people log in at a CAS server (CAS Protocol 2.0: tickets, and single logout).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::asking::{kept_server, yes};
use super::badge::{Badge, failed};
use super::browser::{answer, encode, origin_of, random, redirect, target_of, with_cookies};
use super::cookies::SameSite;
use super::entrance::is_same;
use super::provider::{Endpoint, Unavailable};
use crate::pipeline::{
    Access, Build, Exchange, ExternalUser, Fault, Flow, Hooks, Invalid, Plugin, Question, Redacted,
    Reply, Terms, argument,
};
use crate::plugins::bounds;
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::unix_seconds;

/// Callers must have logged in at a CAS server; whoever has not is sent there.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The CAS server's URL.
    idp_uri: String,
    /// The path that the server sends people back to, and that it tells of logouts.
    #[schemars(regex(pattern = "^/"))]
    cas_callback_uri: String,
    /// The path that ends the session.
    #[schemars(regex(pattern = "^/"))]
    logout_uri: String,
    /// The cookies.
    cookie: Cookie,
    /// Bytes that what the server tells of a logout may have.
    #[serde(default = "default_body")]
    #[schemars(range(min = 1))]
    max_req_body_size: u64,
}

/// The cookies of logins and sessions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Cookie {
    /// What they are sealed with.
    #[schemars(length(min = 32))]
    secret: Redacted<String>,
    /// Which other sites' requests they go with.
    #[serde(default)]
    samesite: Samesite,
    /// They are sent over TLS alone.
    #[serde(default = "yes")]
    secure: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
enum Samesite {
    #[default]
    Lax,
    None,
}

const fn default_body() -> u64 {
    64 << 20
}

/// Seconds that somebody may take to log in.
const LOGIN_SECONDS: i64 = 600;
/// Seconds without a request after which a session is over.
const SESSION_SECONDS: i64 = 3600;
/// Sessions at a time.
const MOST: usize = 100_000;
/// What a server tells of a logout is short, however much is allowed.
const MOST_TOLD: u64 = 64 * 1024;

pub(super) struct CasAuth {
    server: Endpoint,
    idp: String,
    callback: String,
    logout: String,
    most_body: u64,
    badge: Badge,
    pending: Badge,
    sessions: Arc<Sessions>,
}

/// Who has logged in, by the SHA-256 of their tickets: the server ends a session by its ticket.
#[derive(Default)]
struct Sessions(Mutex<HashMap<[u8; 32], (String, i64)>>);

impl Sessions {
    fn key(ticket: &str) -> [u8; 32] {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, ticket.as_bytes()).as_ref());
        sum
    }

    fn begin(&self, ticket: &str, user: String, now: i64) -> bool {
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.retain(|_, (_, until)| *until > now);
        }
        let has_room = all.len() < MOST;
        if has_room {
            all.insert(Self::key(ticket), (user, now + SESSION_SECONDS));
        }
        has_room
    }

    /// Whose it is; a session that is used goes on.
    fn user(&self, ticket: &str, now: i64) -> Option<String> {
        let mut all = self.0.lock();
        let (user, until) = all.get_mut(&Self::key(ticket)).filter(|(_, until)| *until > now)?;
        *until = now + SESSION_SECONDS;
        Some(user.clone())
    }

    fn end(&self, ticket: &str) {
        self.0.lock().remove(&Self::key(ticket));
    }
}

/// A login that was begun.
#[derive(Serialize, Deserialize)]
struct Attempt {
    state: String,
    target: String,
}

impl Plugin for CasAuth {
    const NAME: &'static str = "cas-auth";
    const PRIORITY: i32 = 2597;
    const EXAMPLE: &'static str = r#"{"idp_uri": "https://cas.example/cas", "cas_callback_uri": "/cas_callback", "logout_uri": "/logout", "cookie": {"secret": "a-secret-of-32-characters-or-more"}}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        for (field, path) in
            [("cas_callback_uri", &config.cas_callback_uri), ("logout_uri", &config.logout_uri)]
        {
            let is_plain = path.starts_with('/') && !path.starts_with("//");
            if !is_plain || path.parse::<http::Uri>().is_err() || path.contains(['?', '%']) {
                return Err(Invalid::new(format!("{field}: a plain path is expected")));
            }
        }
        if config.cas_callback_uri == config.logout_uri {
            return Err(Invalid::new("logout_uri: another path than cas_callback_uri is expected"));
        }
        bounds::text("cookie.secret", config.cookie.secret.reveal(), 32..=usize::MAX)?;
        bounds::number("max_req_body_size", config.max_req_body_size, 1..=u64::MAX)?;
        if config.idp_uri.contains(['?', '#']) {
            return Err(Invalid::new("idp_uri: a URL without a query is expected"));
        }
        let same_site = match config.cookie.samesite {
            Samesite::Lax => SameSite::Lax,
            Samesite::None if config.cookie.secure => SameSite::None,
            Samesite::None => {
                return Err(Invalid::new("cookie.samesite: None is for secure cookies alone"));
            }
        };
        let idp = config.idp_uri.trim_end_matches('/').to_owned();
        let terms = Terms { within: Duration::from_secs(10), verify: true, keep: None };
        let server = kept_server(build, "idp_uri", &idp, terms)?;
        let purpose = format!("cas-auth {idp} {}", config.cas_callback_uri);
        let sum = hex::encode(&digest(&SHA256, purpose.as_bytes()).as_ref()[..8]);
        let badge = |name: &str| {
            let secret = config.cookie.secret.reveal();
            // Names tell which server's it is: one browser may be logged in at several.
            Badge::new(
                &format!("{name}_{sum}"),
                same_site,
                Some(config.cookie.secure),
                &[secret],
                &format!("{name} {purpose}"),
            )
        };
        let plugin = Self {
            server: Endpoint::new(&idp, server),
            badge: badge("CAS_SESSION")?,
            pending: badge("CAS_REQUEST")?,
            callback: config.cas_callback_uri,
            logout: config.logout_uri,
            most_body: config.max_req_body_size.min(MOST_TOLD),
            sessions: build.keep_group(&purpose, Sessions::default),
            idp,
        };
        Ok(Hooks::of(plugin).access().reading_body().done())
    }
}

#[async_trait]
impl Access for CasAuth {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let now = unix_seconds();
        let path = exchange.uri().unwrap_or_default();
        let (is_callback, is_logout) =
            (*path == *self.callback.as_bytes(), *path == *self.logout.as_bytes());
        drop(path);
        let is_post = exchange.request.method() == "POST";
        if is_callback && is_post {
            return self.told_of_logout(exchange).await;
        }
        let ticket = self.badge.read::<String>(&exchange.request, now);
        let reply = if is_logout {
            if let Some(ticket) = ticket {
                self.sessions.end(&ticket);
            }
            Ok(redirect(&format!("{}/logout", self.idp), self.badge.clear(exchange)))
        } else if is_callback {
            self.come_back(exchange, now).await
        } else if let Some(user) = ticket.and_then(|ticket| self.sessions.user(&ticket, now)) {
            self.badge.hide(&mut exchange.request);
            self.pending.hide(&mut exchange.request);
            exchange.notes.leave(ExternalUser(json!({ "user": user })));
            return Ok(Flow::Next);
        } else {
            self.begin(exchange, now)
        };
        match reply {
            Ok(reply) => Ok(answer(reply)),
            Err(cause) => failed(Self::NAME, &cause),
        }
    }
}

impl CasAuth {
    /// Who the ticket is for: our callback, with the state of the login.
    fn service(&self, exchange: &Exchange, state: &str) -> String {
        format!("{}{}?state={state}", origin_of(exchange), self.callback)
    }

    /// Sends the caller to the server.
    fn begin(&self, exchange: &Exchange, now: i64) -> Result<Reply, Unavailable> {
        let attempt = Attempt { state: random()?, target: target_of(exchange) };
        let service = self.service(exchange, &attempt.state);
        let cookies = self.pending.give(exchange, &attempt, now, LOGIN_SECONDS)?;
        Ok(redirect(&format!("{}/login?service={}", self.idp, encode(&service)), cookies))
    }

    /// The server has sent the caller back.
    async fn come_back(&self, exchange: &Exchange, now: i64) -> Result<Reply, Unavailable> {
        let refuse = |message: &str, cookies| {
            Ok(with_cookies(Reply::json(401, &json!({ "message": message })), cookies))
        };
        let query = exchange.request.query().unwrap_or_default();
        let asked = |name: &str| {
            let mut all = argument(query, name);
            all.next().filter(|value| !value.is_empty() && all.next().is_none())
        };
        let attempt = self.pending.read::<Attempt>(&exchange.request, now);
        let attempt = attempt
            .filter(|attempt| asked("state").is_some_and(|state| is_same(&attempt.state, &state)));
        // Whoever was not sent from here is led into somebody else's session.
        let Some(attempt) = attempt else {
            return refuse("invalid callback state", Vec::new());
        };
        let mut cookies = self.pending.clear(exchange);
        let Some(ticket) = asked("ticket") else { return refuse("invalid ticket", cookies) };
        let service = encode(&self.service(exchange, &attempt.state));
        let path = format!("/serviceValidate?ticket={}&service={service}", encode(&ticket));
        let mut question = Question::get(path);
        question.is_once = true;
        let answer = self.server.ask(&question).await?;
        if answer.status != 200 {
            let why = format!("{} answered {}", self.server.url, answer.status);
            return Err(Unavailable::because(&why));
        }
        let user = std::str::from_utf8(&answer.body).ok().and_then(validated);
        let Some(user) = user else { return refuse("invalid ticket", cookies) };
        if !self.sessions.begin(&ticket, user, now) {
            return Err(Unavailable::of_session("there are too many sessions"));
        }
        // The session is over before this: it is used up to an hour each time.
        cookies.extend(self.badge.give(exchange, &&*ticket, now, 24 * SESSION_SECONDS)?);
        Ok(redirect(&attempt.target, cookies))
    }

    /// The server tells that somebody has logged out. Whoever knows a ticket may end what it began.
    async fn told_of_logout(&self, exchange: &Exchange) -> Result<Flow, Fault> {
        let body = exchange.read_body(self.most_body).await?;
        let text = String::from_utf8_lossy(&body);
        let request = argument(&text, "logoutRequest").next();
        let Some(ticket) = element(request.as_deref().unwrap_or(&text), "SessionIndex") else {
            let message = "invalid logout request from IdP, no ticket";
            return Ok(Flow::json(400, &json!({ "message": message })));
        };
        self.sessions.end(&ticket);
        Ok(answer(Reply::empty(200)))
    }
}

/// Whom a ticket stands for, if the server says that it is good.
fn validated(text: &str) -> Option<String> {
    if element_at(text, "authenticationFailure").is_some() {
        return None;
    }
    let success = element_at(text, "authenticationSuccess")?;
    element(success, "user").filter(|user| !user.is_empty())
}

/// What stands in the one element of this name, in whatever namespace. With comments, sections of raw text or a type declaration
/// nobody knows what is meant.
fn element_at<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    if text.contains("<!") {
        return None;
    }
    let mut found = None;
    for (at, _) in text.match_indices('<') {
        let rest = &text[at + 1..];
        let tag = &rest[..rest.find('>')?];
        if tag.contains('<') {
            return None;
        }
        let full = tag.split([' ', '\t', '\r', '\n', '/']).next()?;
        if full.rsplit(':').next()? != name || tag.starts_with('/') {
            continue;
        }
        let inside = &rest[tag.len() + 1..];
        let end = inside.find(&format!("</{full}>"))?;
        // A second one says something else.
        if tag.ends_with('/') || found.replace(&inside[..end]).is_some() {
            return None;
        }
    }
    found
}

/// The text in the one element of this name.
fn element(text: &str, name: &str) -> Option<String> {
    let inside = element_at(text, name)?.trim();
    if inside.contains('<') {
        return None;
    }
    let mut plain = String::new();
    let mut rest = inside;
    while let Some((before, behind)) = rest.split_once('&') {
        let (entity, behind) = behind.split_once(';')?;
        plain.push_str(before);
        plain.push(match entity {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            other => {
                let number = other.strip_prefix('#')?;
                let number = match number.strip_prefix('x') {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => number.parse().ok()?,
                };
                char::from_u32(number)?
            }
        });
        rest = behind;
    }
    plain.push_str(rest);
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    #[test]
    fn a_ticket_is_good_where_the_server_says_so_without_a_doubt() {
        let success = |inside: &str| {
            format!(
                "<cas:serviceResponse xmlns:cas='http://www.yale.edu/tp/cas'>\n<cas:authenticationSuccess>{inside}</cas:authenticationSuccess></cas:serviceResponse>"
            )
        };
        for (text, user) in [
            (success("<cas:user>ann</cas:user>"), Some("ann")),
            (success(" <cas:user> ann </cas:user><cas:attributes/>"), Some("ann")),
            (success("<cas:user>a&amp;b&#x41;&#66;</cas:user>"), Some("a&bAB")),
            (success("<cas:user></cas:user>"), None),
            (success("<cas:user/>"), None),
            (success("<cas:user>ann</cas:user><cas:user>bob</cas:user>"), None),
            (success("<cas:user>a<b/></cas:user>"), None),
            (success("<!-- <cas:user>x</cas:user> --><cas:user>ann</cas:user>"), None),
            (success("<cas:user>&bad;</cas:user>"), None),
            (success("<cas:user>ann"), None),
            ("<cas:user>ann</cas:user>".into(), None),
            (
                "<a><cas:authenticationFailure code='INVALID_TICKET'>no</cas:authenticationFailure></a>"
                    .into(),
                None,
            ),
            (
                success("<cas:user>ann</cas:user>")
                    + "<cas:authenticationFailure>no</cas:authenticationFailure>",
                None,
            ),
            (String::new(), None),
            ("<".repeat(1000), None),
        ] {
            assert_eq!(validated(&text).as_deref(), user, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let secret = "0123456789abcdef0123456789abcdef";
        for (field, value) in [
            ("idp_uri", json!("cas")),
            ("idp_uri", json!("http://u:p@a")),
            ("idp_uri", json!("http://a?b")),
            ("cas_callback_uri", json!("cb")),
            ("cas_callback_uri", json!("//evil")),
            ("cas_callback_uri", json!("/a?b")),
            ("logout_uri", json!("out")),
            ("logout_uri", json!("/cb")),
            ("cookie", json!({"secret": "short"})),
            ("cookie", json!({"secret": secret, "samesite": "None", "secure": false})),
            ("max_req_body_size", json!(0)),
        ] {
            let mut config = json!({"idp_uri": "http://a", "cas_callback_uri": "/cb", "logout_uri": "/out", "cookie": {"secret": secret}});
            config[field] = value;
            let error = refused::<CasAuth>(config.clone());
            assert!(error.contains(field), "{config}: {error}");
        }
        let error = refused::<CasAuth>(
            json!({"idp_uri": "http://a", "cas_callback_uri": "/cb", "logout_uri": "/out", "cookie": {"secret": secret, "samesite": "Strict"}}),
        );
        assert!(error.contains("Strict"), "{error}");
    }
}
