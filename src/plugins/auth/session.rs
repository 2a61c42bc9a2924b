//! `Sessions`: what is kept of people who have logged in, sealed, in their browsers or in Redis, and for how long.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::asking::yes;
use super::browser::random;
use super::cookies::{CookieRules, Jar, SameSite, Seal};
use super::provider::Unavailable;
use super::session_store::{Instead, Place, Store};
use crate::pipeline::{Build, Exchange, Head, Invalid, Redacted};

/// What is kept of people who have logged in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Session {
    /// What sessions are sealed with.
    #[schemars(length(min = 16))]
    secret: Redacted<String>,
    /// Where sessions are: in the cookie itself, or in Redis, and the cookie says which it is.
    #[serde(default)]
    storage: Storage,
    /// The cookie's name.
    #[serde(default = "default_name")]
    #[schemars(length(min = 1, max = 64))]
    pub(super) cookie_name: String,
    /// The path that the cookie is sent to.
    #[serde(default = "default_path")]
    cookie_path: String,
    /// The domain that the cookie is sent to; the host alone when not given.
    #[serde(default)]
    cookie_domain: Option<String>,
    /// The cookie is sent over TLS alone; where the caller came over TLS when not given.
    #[serde(default)]
    cookie_secure: Option<bool>,
    /// Scripts cannot read the cookie.
    #[serde(default = "yes")]
    cookie_http_only: bool,
    /// Which other sites' requests the cookie goes with.
    #[serde(default)]
    cookie_same_site: SameSite,
    /// Seconds without a request after which a session is over; 0: no matter.
    #[serde(default = "default_idling")]
    idling_timeout: u32,
    /// Seconds after which a session is over that has not been renewed. A request in the last quarter of them renews it; 0: no matter.
    #[serde(default = "default_rolling")]
    rolling_timeout: u32,
    /// Seconds after which a session is over, whatever happens; 0: no matter. 86400 when not given.
    #[serde(default)]
    absolute_timeout: Option<u32>,
    /// What APISIX had before `absolute_timeout`.
    #[serde(default)]
    cookie: Option<OldCookie>,
    /// With `redis`: where it is.
    #[serde(default)]
    redis: Option<Place>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Storage {
    #[default]
    Cookie,
    Redis,
}

/// What APISIX had before `absolute_timeout`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OldCookie {
    /// Stands for `absolute_timeout`.
    lifetime: u32,
}

fn default_name() -> String {
    "session".into()
}
fn default_path() -> String {
    "/".into()
}
const fn default_idling() -> u32 {
    900
}
const fn default_rolling() -> u32 {
    3600
}
const DEFAULT_ABSOLUTE: u32 = 86_400;
/// Sessions of one kind.
pub(super) struct Sessions {
    jar: Jar,
    seal: Seal,
    times: Times,
    store: Option<Store>,
    /// A redirect from another site brings no cookie along.
    pub(super) is_strict: bool,
}

/// Seconds; 0: no matter.
#[derive(Clone, Copy, Debug)]
struct Times {
    idling: i64,
    rolling: i64,
    absolute: i64,
}

/// What is sealed: when the session began, was renewed and was used, and what is kept in it.
#[derive(Serialize, Deserialize)]
struct Stamped<T> {
    #[serde(rename = "c")]
    created: i64,
    #[serde(rename = "r")]
    renewed: i64,
    #[serde(rename = "u")]
    used: i64,
    #[serde(rename = "v")]
    value: T,
}

/// A session that was found.
pub(super) struct Found<T> {
    pub(super) value: T,
    created: i64,
    renewed: i64,
    used: i64,
    /// In Redis: which it is, and what lies there.
    at: Option<(String, String)>,
}

impl Session {
    /// Where the sessions of `purpose` are, and the place for what is needed while somebody logs in. Another purpose cannot read
    /// them, whatever its settings.
    pub(super) fn sessions(
        &self,
        purpose: &str,
        build: &Build<'_>,
    ) -> Result<(Sessions, Jar, Seal), Invalid> {
        let wrong = |field: &str, why: &str| Err(Invalid::new(format!("session.{field}: {why}")));
        if self.secret.reveal().chars().count() < 16 {
            return wrong("secret", "at least 16 characters are expected");
        }
        let absolute = match (self.absolute_timeout, &self.cookie) {
            (Some(_), Some(_)) => {
                return wrong("cookie", "it stands for absolute_timeout, which is given");
            }
            (given, None) => given.unwrap_or(DEFAULT_ABSOLUTE),
            (None, Some(cookie)) => cookie.lifetime,
        };
        let store = match (self.storage, &self.redis) {
            (Storage::Cookie, None) => None,
            (Storage::Cookie, Some(_)) => {
                return wrong("redis", "it has no meaning with this storage");
            }
            (Storage::Redis, None) => return wrong("redis", "is required with this storage"),
            (Storage::Redis, Some(place)) => Some(place.store(build)?),
        };
        let rules = CookieRules {
            under: "session.",
            name: &self.cookie_name,
            path: &self.cookie_path,
            domain: self.cookie_domain.as_deref(),
            http_only: self.cookie_http_only,
            same_site: self.cookie_same_site,
            secure: self.cookie_secure,
        };
        let jar = Jar::new(&rules)?;
        let name = format!("{}_login", self.cookie_name);
        // A provider's redirect is another site's: a strict cookie would not come with it.
        let same_site = match self.cookie_same_site {
            SameSite::Strict => SameSite::Lax,
            other => other,
        };
        let pending = Jar::new(&CookieRules { name: &name, same_site, http_only: true, ..rules })?;
        let times = Times {
            idling: self.idling_timeout.into(),
            rolling: self.rolling_timeout.into(),
            absolute: absolute.into(),
        };
        let seal = |what: &str| Seal::new(self.secret.reveal(), &format!("{what} {purpose}"));
        let is_strict = self.cookie_same_site == SameSite::Strict;
        Ok((
            Sessions { jar, seal: seal("session")?, times, store, is_strict },
            pending,
            seal("login")?,
        ))
    }
}

impl Times {
    fn is_over<T>(self, stamped: &Stamped<T>, now: i64) -> bool {
        let ends = |from: i64, after: i64| after != 0 && now >= from.saturating_add(after);
        ends(stamped.used, self.idling)
            || ends(stamped.renewed, self.rolling)
            || ends(stamped.created, self.absolute)
    }

    /// Has the session to be written again, so that it goes on? With it, whether it is renewed.
    fn is_due<T>(self, found: &Found<T>, now: i64) -> (bool, bool) {
        let renews = self.rolling != 0 && now >= found.renewed + self.rolling - self.rolling / 4;
        // A busy session is not written each time.
        let pause = (self.idling / 4).min(60);
        let is_used = self.idling != 0 && now - found.used >= pause.max(1);
        (renews || is_used, renews)
    }

    /// Seconds that Redis keeps a session which is used now; 0: for ever.
    fn left(self, created: i64, renewed: i64, now: i64) -> i64 {
        let ends = [(now, self.idling), (renewed, self.rolling), (created, self.absolute)];
        let left = ends.iter().filter(|(_, after)| *after != 0).map(|(at, after)| at + after - now);
        left.min().map_or(0, |left| left.max(1))
    }
}

impl Sessions {
    /// The caller's session, unless there is none, it is over, or it is not ours.
    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        head: &Head,
        now: i64,
    ) -> Result<Option<Found<T>>, Unavailable> {
        let Some(text) = self.jar.text(head) else { return Ok(None) };
        let Some(opened) = self.seal.open(&self.jar.name, &text) else { return Ok(None) };
        let (opened, at) = match &self.store {
            None => (opened, None),
            Some(store) => {
                let Ok(id) = String::from_utf8(opened) else { return Ok(None) };
                let Some(text) = store.text(&id).await? else {
                    return Ok(None);
                };
                let Some(opened) = self.seal.open(&id, &text) else { return Ok(None) };
                (opened, Some((id, text)))
            }
        };
        let Ok(stamped) = serde_json::from_slice::<Stamped<T>>(&opened) else { return Ok(None) };
        if self.times.is_over(&stamped, now) {
            return Ok(None);
        }
        let Stamped { created, renewed, used, value } = stamped;
        Ok(Some(Found { value, created, renewed, used, at }))
    }

    /// Begins a session, and ends the one that the caller came with: nobody goes on in a session that somebody else began.
    pub(super) async fn begin<T: Serialize>(
        &self,
        exchange: &Exchange,
        value: &T,
        now: i64,
    ) -> Result<Vec<String>, Unavailable> {
        let stamped = Stamped { created: now, renewed: now, used: now, value };
        let Some(store) = &self.store else {
            return self.put(exchange, &self.sealed(&self.jar.name, &stamped)?);
        };
        self.end(exchange).await?;
        let id = random()?;
        let text = self.sealed(&id, &stamped)?;
        if !store.put(&id, &text, self.times.left(now, now, now), Instead::New).await? {
            return Err(Unavailable::of_session("two sessions have one id"));
        }
        self.name(exchange, &id)
    }

    /// Writes what has changed in a session. `None`: it was ended meanwhile.
    pub(super) async fn change<T: Serialize>(
        &self,
        exchange: &Exchange,
        found: &Found<T>,
        now: i64,
    ) -> Result<Option<Vec<String>>, Unavailable> {
        self.write(exchange, found, now, false).await
    }

    /// Notes that a session is used, where that has to be noted.
    pub(super) async fn touch<T: Serialize>(
        &self,
        exchange: &Exchange,
        found: &Found<T>,
        now: i64,
    ) -> Result<Vec<String>, Unavailable> {
        match self.times.is_due(found, now) {
            (false, _) => Ok(Vec::new()),
            // Whoever has changed or ended it meanwhile has the last word.
            (true, _) => Ok(self.write(exchange, found, now, true).await?.unwrap_or_default()),
        }
    }

    async fn write<T: Serialize>(
        &self,
        exchange: &Exchange,
        found: &Found<T>,
        now: i64,
        only_if_same: bool,
    ) -> Result<Option<Vec<String>>, Unavailable> {
        let renewed = if self.times.is_due(found, now).1 { now } else { found.renewed };
        let stamped = Stamped { created: found.created, renewed, used: now, value: &found.value };
        let (Some(store), Some((id, text))) = (&self.store, &found.at) else {
            return self.put(exchange, &self.sealed(&self.jar.name, &stamped)?).map(Some);
        };
        let instead = if only_if_same { Instead::Same(text) } else { Instead::Any };
        let left = self.times.left(found.created, renewed, now);
        let is_there = store.put(id, &self.sealed(id, &stamped)?, left, instead).await?;
        Ok(is_there.then(Vec::new))
    }

    /// Ends the caller's session.
    pub(super) async fn end(&self, exchange: &Exchange) -> Result<Vec<String>, Unavailable> {
        if let Some(store) = &self.store
            && let Some(text) = self.jar.text(&exchange.request)
            && let Some(id) = self.seal.open(&self.jar.name, &text)
        {
            store.remove(&String::from_utf8_lossy(&id)).await?;
        }
        Ok(self.jar.clear(exchange))
    }

    /// Takes the session out of the request: the upstream does not get it.
    pub(super) fn hide(&self, head: &mut Head) {
        self.jar.hide(head);
    }

    fn name(&self, exchange: &Exchange, id: &str) -> Result<Vec<String>, Unavailable> {
        let sealed = self.seal.close(&self.jar.name, id.as_bytes());
        let none = || Unavailable::because("the system has no random numbers");
        self.put(exchange, &sealed.ok_or_else(none)?)
    }

    fn put(&self, exchange: &Exchange, text: &str) -> Result<Vec<String>, Unavailable> {
        self.jar.put(exchange, text, None).ok_or_else(|| {
            Unavailable::of_session(
                "a session is too large for cookies: session.storage redis is for such",
            )
        })
    }

    fn sealed<T: Serialize>(&self, about: &str, value: &T) -> Result<String, Unavailable> {
        let text = serde_json::to_vec(value).ok();
        let sealed = text.and_then(|text| self.seal.close(about, &text));
        sealed.ok_or_else(|| Unavailable::of_session("a session cannot be sealed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::pipeline::{Id, Kept};
    use serde_json::{Value, json};

    #[expect(clippy::needless_pass_by_value, reason = "tests write their JSON in place")]
    fn sessions(more: Value) -> Result<Sessions, Invalid> {
        let mut session = json!({"secret": "0123456789abcdef"});
        session.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (owner, kept) = (Id::parse("r1").unwrap(), Kept::default());
        let build = crate::plugins::tests::build(&owner, "openid-connect", None, &kept);
        let session: Session = serde_json::from_value(session).unwrap();
        session.sessions("purpose", &build).map(|(sessions, ..)| sessions)
    }

    /// A caller with the cookies of these lines.
    fn caller(lines: &[String]) -> Exchange {
        let mut caller = exchange("GET", "/", "h");
        let pair = |line: &String| line.split(';').next().unwrap().to_owned();
        let pairs = lines.iter().map(pair).collect::<Vec<_>>().join("; ");
        caller.request.append("Cookie", pairs.as_bytes());
        caller
    }

    #[tokio::test]
    async fn a_session_lives_as_long_as_each_of_its_three_times_allows() {
        let lives = async |more: Value, uses: &[i64]| {
            let sessions = sessions(more).unwrap();
            let mut caller =
                caller(&sessions.begin(&exchange("GET", "/", "h"), &"v", 0).await.unwrap());
            for now in uses {
                let Some(found) = sessions.read::<String>(&caller.request, *now).await.unwrap()
                else {
                    return Some(*now);
                };
                let lines = sessions.touch(&caller, &found, *now).await.unwrap();
                if !lines.is_empty() {
                    caller = self::caller(&lines);
                }
            }
            None
        };
        let idling = json!({"idling_timeout": 100, "rolling_timeout": 0, "absolute_timeout": 0});
        assert_eq!(lives(idling.clone(), &[99, 198, 297]).await, None);
        assert_eq!(lives(idling, &[99, 199]).await, Some(199));
        let rolling = json!({"idling_timeout": 0, "rolling_timeout": 100, "absolute_timeout": 0});
        assert_eq!(lives(rolling.clone(), &[74, 100]).await, Some(100), "not renewed yet");
        assert_eq!(lives(rolling, &[75, 174, 273]).await, None);
        let absolute = json!({"idling_timeout": 0, "rolling_timeout": 0, "absolute_timeout": 100});
        assert_eq!(lives(absolute, &[50, 99, 100]).await, Some(100));
        let old = json!({"idling_timeout": 0, "rolling_timeout": 0, "cookie": {"lifetime": 50}});
        assert_eq!(lives(old, &[49, 50]).await, Some(50));
        assert_eq!(lives(json!({}), &[899, 1798, 2697, 3596, 4495]).await, None);
        assert_eq!(lives(json!({}), &[900]).await, Some(900));
        let none = json!({"idling_timeout": 0, "rolling_timeout": 0, "absolute_timeout": 0});
        assert_eq!(lives(none, &[1_000_000_000]).await, None);
    }

    #[tokio::test]
    async fn a_session_is_the_purposes_that_it_was_made_for_and_no_other_cookies() {
        let sessions = sessions(json!({"cookie_name": "a"})).unwrap();
        let lines = sessions.begin(&exchange("GET", "/", "h"), &"v", 0).await.unwrap();
        let found = sessions.read::<String>(&caller(&lines).request, 1).await.unwrap();
        assert_eq!(found.unwrap().value, "v");
        let other = self::sessions(json!({"cookie_name": "b"})).unwrap();
        let moved = lines[0].replacen("a=", "b=", 1);
        assert!(other.read::<String>(&caller(&[moved]).request, 1).await.unwrap().is_none());
        let owner = Id::parse("r1").unwrap();
        let kept = Kept::default();
        let build = crate::plugins::tests::build(&owner, "openid-connect", None, &kept);
        let session: Session =
            serde_json::from_value(json!({"secret": "0123456789abcdef", "cookie_name": "a"}))
                .unwrap();
        let (elsewhere, ..) = session.sessions("another purpose", &build).unwrap();
        assert!(elsewhere.read::<String>(&caller(&lines).request, 1).await.unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let redis = |more: Value| json!({"storage": "redis", "redis": more});
        for (session, says) in [
            (json!({"secret": "short"}), "session.secret"),
            (json!({"storage": "redis"}), "session.redis: is required"),
            (json!({"redis": {}}), "session.redis: it has no meaning"),
            (json!({"cookie": {"lifetime": 1}, "absolute_timeout": 1}), "session.cookie: "),
            (json!({"cookie_name": "a;b"}), "session.cookie_name"),
            (json!({"cookie_path": "x"}), "session.cookie_path"),
            (json!({"cookie_domain": "a b"}), "session.cookie_domain"),
            (
                json!({"cookie_same_site": "None", "cookie_secure": false}),
                "session.cookie_same_site",
            ),
            (redis(json!({"host": "a b"})), "session.redis.host"),
            (redis(json!({"host": "a"})), "session.redis.host"),
            (redis(json!({"port": 0})), "session.redis.port"),
            (redis(json!({"username": ""})), "session.redis.username"),
            (redis(json!({"connect_timeout": 0})), "session.redis.connect_timeout"),
            (redis(json!({"send_timeout": 0})), "session.redis.send_timeout"),
            (redis(json!({"read_timeout": 0})), "session.redis.read_timeout"),
            (redis(json!({"keepalive_timeout": 999})), "session.redis.keepalive_timeout"),
        ] {
            let why = sessions(session.clone()).err().unwrap().to_string();
            assert!(why.starts_with(says), "{session}: {why}");
        }
    }
}
