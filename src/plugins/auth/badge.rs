//! `Badge`: what somebody is known by after a login, sealed in a cookie until it ends.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::browser::{answer, redirect};
use super::cookies::{CookieRules, Jar, SameSite, Seal, send_along};
use super::entrance::{named, remove_argument};
use super::provider::Unavailable;
use crate::pipeline::{
    Exchange, ExternalUser, Fault, Flow, Head, Invalid, Redacted, Reply, argument, field_name,
};
use crate::plugins::bounds;

/// A sealed cookie.
pub(super) struct Badge {
    jar: Jar,
    /// What it is sealed with; and what it may have been sealed with before.
    seals: Vec<Seal>,
}

#[derive(Serialize, Deserialize)]
struct Until<T> {
    #[serde(rename = "u")]
    until: i64,
    #[serde(rename = "v")]
    value: T,
}

impl Badge {
    /// The cookie `name` of `purpose`: another purpose cannot read it, whatever its name and secret.
    pub(super) fn new(
        name: &str,
        same_site: SameSite,
        secure: Option<bool>,
        secrets: &[&str],
        purpose: &str,
    ) -> Result<Self, Invalid> {
        let jar = Jar::new(&CookieRules {
            under: "",
            name,
            path: "/",
            domain: None,
            http_only: true,
            same_site,
            secure,
        })?;
        let seals = secrets.iter().map(|secret| Seal::new(secret, purpose));
        Ok(Self { jar, seals: seals.collect::<Result<_, _>>()? })
    }

    /// What the caller is known by, unless it is over or not ours.
    pub(super) fn read<T: DeserializeOwned>(&self, head: &Head, now: i64) -> Option<T> {
        let text = self.jar.text(head)?;
        let opened = self.seals.iter().find_map(|seal| seal.open(&self.jar.name, &text))?;
        let Until { until, value } = serde_json::from_slice::<Until<T>>(&opened).ok()?;
        (until > now).then_some(value)
    }

    /// The lines of `Set-Cookie` that give it, for so many seconds.
    pub(super) fn give<T: Serialize>(
        &self,
        exchange: &Exchange,
        value: &T,
        now: i64,
        seconds: i64,
    ) -> Result<Vec<String>, Unavailable> {
        let sealed = Until { until: now.saturating_add(seconds), value };
        let sealed = serde_json::to_vec(&sealed).ok();
        let seal = self.seals.first();
        let sealed = sealed.and_then(|text| seal?.close(&self.jar.name, &text));
        let lines = sealed.and_then(|text| self.jar.put(exchange, &text, Some(seconds)));
        lines.ok_or_else(|| Unavailable::of_session("a login is too large for cookies"))
    }

    /// The lines that take it away.
    pub(super) fn clear(&self, exchange: &Exchange) -> Vec<String> {
        self.jar.clear(exchange)
    }

    /// Takes it out of the request: the upstream does not get it.
    pub(super) fn hide(&self, head: &mut Head) {
        self.jar.hide(head);
    }
}

/// The secret of cookies of plugins that people bring a code to.
#[derive(Clone, Copy)]
pub(super) struct Secrets<'c> {
    pub(super) secret: &'c Redacted<String>,
    pub(super) fallbacks: &'c [Redacted<String>],
}

/// What the plugins share that people bring a code to, which another application has given them.
pub(super) struct CodeEntrance {
    badge: Badge,
    code_header: Box<str>,
    code_query: String,
    redirect: String,
    seconds: i64,
    set_userinfo: bool,
}

/// The settings of that.
pub(super) struct CodeSettings {
    pub(super) code_header: String,
    pub(super) code_query: String,
    pub(super) redirect_uri: String,
    pub(super) cookie_expires_in: u32,
    pub(super) set_userinfo_header: bool,
}

impl CodeEntrance {
    pub(super) fn new(
        plugin: &str,
        cookie: &str,
        client: &str,
        secrets: Secrets<'_>,
        settings: CodeSettings,
    ) -> Result<Self, Invalid> {
        bounds::text("secret", secrets.secret.reveal(), 8..=32)?;
        let mut all = vec![secrets.secret.reveal().as_str()];
        for (at, secret) in secrets.fallbacks.iter().enumerate() {
            bounds::text(&format!("secret_fallbacks[{at}]"), secret.reveal(), 8..=32)?;
            all.push(secret.reveal());
        }
        named("code_query", &settings.code_query, usize::MAX)?;
        named("redirect_uri", &settings.redirect_uri, usize::MAX)?;
        bounds::number("cookie_expires_in", settings.cookie_expires_in, 1..=u32::MAX)?;
        bounds::field_value("redirect_uri", &settings.redirect_uri)?;
        let header = field_name(&settings.code_header);
        let header = header.map_err(|why| bounds::at("code_header", &why))?;
        let purpose = format!("{plugin} {client}");
        Ok(Self {
            badge: Badge::new(cookie, SameSite::Lax, None, &all, &purpose)?,
            code_header: header,
            code_query: settings.code_query,
            redirect: settings.redirect_uri,
            seconds: settings.cookie_expires_in.into(),
            set_userinfo: settings.set_userinfo_header,
        })
    }

    /// Somebody who is known already, is let in; `Err` is the code that somebody else brings, where they do.
    pub(super) fn enter(&self, exchange: &mut Exchange, now: i64) -> Result<Flow, Option<String>> {
        exchange.request.remove("X-Userinfo");
        if let Some(user) = self.badge.read::<Value>(&exchange.request, now) {
            self.badge.hide(&mut exchange.request);
            self.tell(exchange, user);
            return Ok(Flow::Next);
        }
        let query = exchange.request.query().unwrap_or_default();
        let code = exchange.request.text(&self.code_header).map(str::to_owned);
        let code = code.or_else(|| argument(query, &self.code_query).next().map(Into::into));
        Err(code.filter(|code| !code.is_empty()))
    }

    /// Sends somebody without a code to where there are some.
    pub(super) fn send_away(&self, exchange: &Exchange) -> Flow {
        answer(redirect(&self.redirect, self.badge.clear(exchange)))
    }

    /// Lets somebody in whom the code stood for. The code goes no further.
    pub(super) fn let_in(
        &self,
        exchange: &mut Exchange,
        user: Value,
        now: i64,
    ) -> Result<Flow, Unavailable> {
        let lines = self.badge.give(exchange, &user, now, self.seconds)?;
        send_along(exchange, lines);
        self.badge.hide(&mut exchange.request);
        exchange.request.remove(&self.code_header);
        remove_argument(exchange, &self.code_query);
        self.tell(exchange, user);
        Ok(Flow::Next)
    }

    fn tell(&self, exchange: &mut Exchange, user: Value) {
        if self.set_userinfo {
            let told = STANDARD.encode(user.to_string());
            exchange.request.set("X-Userinfo", told.as_bytes());
        }
        exchange.notes.leave(ExternalUser(user));
    }
}

/// 401: the code stands for nobody.
pub(super) fn invalid_code() -> Flow {
    Flow::json(401, &json!({ "message": "Invalid authorization code" }))
}

/// Whoever was to be asked cannot be, or answers what cannot be used.
pub(super) fn failed(plugin: &'static str, cause: &Unavailable) -> Result<Flow, Fault> {
    tracing::warn!(plugin, %cause, "a login cannot be checked");
    Ok(answer(Reply::empty(cause.status)))
}
