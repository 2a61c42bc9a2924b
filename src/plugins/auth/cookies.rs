//! `Jar`: a place in the caller's browser. `Seal`: what lies there is nobody's to read, to change or to move.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::Deserialize;

use super::entrance::{cookie, remove_cookie};
use crate::pipeline::{Exchange, Head, Invalid};
use crate::rt::crypto::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use crate::rt::crypto::hmac;
use crate::rt::crypto::rand::{SecureRandom as _, SystemRandom};

/// Bytes of one cookie's value; browsers keep 4096 with its name and attributes.
const PART: usize = 3700;
/// Cookies that one value may take: more would not fit in a request's head together with what else is there.
const MOST: usize = 8;

/// Which other sites' requests a cookie goes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum SameSite {
    Strict,
    #[default]
    Lax,
    None,
    /// As the browser thinks best.
    Default,
}

/// A key that seals texts with AES-256-GCM.
pub(super) struct Seal(LessSafeKey);

impl Seal {
    /// The key that `secret` stands for where `purpose` is meant. Another purpose has another key.
    pub(super) fn new(secret: &str, purpose: &str) -> Result<Self, Invalid> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let key = hmac::sign(&secret, format!("wardgate seal 1 {purpose}").as_bytes());
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref());
        Ok(Self(LessSafeKey::new(key.map_err(|_| Invalid::new("secret: it cannot be a key"))?)))
    }

    /// Seals `text`, which is about `about` and can be opened as nothing else. `None`: the system has no random numbers.
    pub(super) fn close(&self, about: &str, text: &[u8]) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut bytes = text.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        let about = Aad::from(about.as_bytes());
        self.0.seal_in_place_append_tag(unique, about, &mut bytes).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&nonce[..], &bytes].concat()))
    }

    /// What was sealed, unless a bit of it is other, or it is about something else.
    pub(super) fn open(&self, about: &str, text: &str) -> Option<Vec<u8>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = self.0.open_in_place(nonce, Aad::from(about.as_bytes()), sealed).ok()?;
        Some(opened.to_vec())
    }
}

/// How a cookie is kept by the browser.
pub(super) struct CookieRules<'c> {
    /// The field that the settings of these stand under, with its dot, for what is refused.
    pub(super) under: &'static str,
    pub(super) name: &'c str,
    pub(super) path: &'c str,
    pub(super) domain: Option<&'c str>,
    pub(super) http_only: bool,
    pub(super) same_site: SameSite,
    /// Over TLS alone; where the caller came over TLS when not given.
    pub(super) secure: Option<bool>,
}

/// A place for one text in the caller's browser. A long text takes several cookies.
pub(super) struct Jar {
    pub(super) name: String,
    attributes: String,
    secure: Option<bool>,
}

impl Jar {
    pub(super) fn new(rules: &CookieRules<'_>) -> Result<Self, Invalid> {
        let wrong =
            |field: &str, why: &str| Err(Invalid::new(format!("{}{field}: {why}", rules.under)));
        let is_plain = |text: &str, more: &[u8]| {
            let lawful =
                |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b) || more.contains(&b);
            text.bytes().all(lawful)
        };
        if !(1..=64).contains(&rules.name.len()) || !is_plain(rules.name, b".") {
            return wrong("cookie_name", "1 to 64 letters, digits, dots, - and _ are expected");
        }
        if !rules.path.starts_with('/') || !is_plain(rules.path, b"/.~%") {
            return wrong("cookie_path", "a plain path is expected");
        }
        if rules.domain.is_some_and(|name| name.is_empty() || !is_plain(name, b".")) {
            return wrong("cookie_domain", "a domain is expected");
        }
        if rules.same_site == SameSite::None && rules.secure == Some(false) {
            return wrong("cookie_same_site", "None is for secure cookies alone");
        }
        let mut attributes = format!("; Path={}", rules.path);
        if let Some(domain) = rules.domain {
            attributes.push_str(&format!("; Domain={domain}"));
        }
        if rules.http_only {
            attributes.push_str("; HttpOnly");
        }
        if rules.same_site != SameSite::Default {
            attributes.push_str(&format!("; SameSite={:?}", rules.same_site));
        }
        // Browsers take no cookie that is for all sites and not for TLS alone.
        let secure = rules.secure.or((rules.same_site == SameSite::None).then_some(true));
        Ok(Self { name: rules.name.to_owned(), attributes, secure })
    }

    /// What lies here.
    pub(super) fn text(&self, head: &Head) -> Option<String> {
        let mut text = cookie(head, &self.name)?.to_owned();
        for at in 1..MOST {
            match cookie(head, &self.part(at)) {
                Some(more) => text.push_str(more),
                None => break,
            }
        }
        Some(text)
    }

    /// The lines of `Set-Cookie` that put `text` here, for so many seconds or until the browser ends. `None`: it is too long.
    pub(super) fn put(
        &self,
        exchange: &Exchange,
        text: &str,
        seconds: Option<i64>,
    ) -> Option<Vec<String>> {
        let parts: Vec<&[u8]> = text.as_bytes().chunks(PART).collect();
        if parts.len() > MOST {
            return None;
        }
        let mut lines = Vec::with_capacity(parts.len());
        for at in 0..MOST {
            let name = self.part(at);
            match parts.get(at) {
                Some(part) => {
                    let part = String::from_utf8_lossy(part);
                    lines.push(self.line(exchange, &name, &part, seconds));
                }
                // What a longer text has left behind would be read as part of this one.
                None if cookie(&exchange.request, &name).is_some() => {
                    lines.push(self.line(exchange, &name, "", Some(0)));
                }
                None => {}
            }
        }
        Some(lines)
    }

    /// The lines that empty it.
    pub(super) fn clear(&self, exchange: &Exchange) -> Vec<String> {
        let there = (0..MOST).map(|at| self.part(at));
        let there = there.filter(|name| cookie(&exchange.request, name).is_some());
        there.map(|name| self.line(exchange, &name, "", Some(0))).collect()
    }

    /// Takes it out of the request: the upstream does not get it.
    pub(super) fn hide(&self, head: &mut Head) {
        for at in 0..MOST {
            remove_cookie(head, &self.part(at));
        }
    }

    fn part(&self, at: usize) -> String {
        if at == 0 { self.name.clone() } else { format!("{}_{at}", self.name) }
    }

    fn line(&self, exchange: &Exchange, name: &str, text: &str, seconds: Option<i64>) -> String {
        let secure = self.secure.unwrap_or_else(|| exchange.is_secure());
        let secure = if secure { "; Secure" } else { "" };
        let age = seconds.map(|seconds| format!("; Max-Age={seconds}")).unwrap_or_default();
        format!("{name}={text}{}{secure}{age}", self.attributes)
    }
}

/// A note: lines of `Set-Cookie` that go with whatever is answered.
struct Lines(Vec<String>);

/// Has these lines go with the answer.
pub(super) fn send_along(exchange: &mut Exchange, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    match exchange.notes.find_mut::<Lines>() {
        Some(Lines(all)) => all.extend(lines),
        None => exchange.notes.leave(Lines(lines)),
    }
}

/// Writes the lines that go with the answer into its head, once, whichever plugin comes first.
pub(super) fn write_lines(exchange: &mut Exchange) {
    let lines = exchange.notes.find_mut::<Lines>().map(|lines| std::mem::take(&mut lines.0));
    for line in lines.into_iter().flatten() {
        exchange.response.append("Set-Cookie", line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;

    fn rules(name: &str) -> CookieRules<'_> {
        CookieRules {
            under: "session.",
            name,
            path: "/",
            domain: None,
            http_only: true,
            same_site: SameSite::Lax,
            secure: None,
        }
    }

    /// What a browser sends back.
    fn sent(lines: &[String]) -> String {
        let pair = |line: &String| line.split(';').next().unwrap().to_owned();
        lines.iter().map(pair).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_text_comes_back_whole_however_long_it_is() {
        let jar = Jar::new(&rules("s")).unwrap();
        for length in [1, 3700, 3701, 20_000, 29_600] {
            let text = "x".repeat(length);
            let lines = jar.put(&exchange("GET", "/", "h"), &text, None).unwrap();
            assert_eq!(lines.len(), length.div_ceil(PART));
            assert!(lines.iter().all(|line| line.len() < 4096), "{length}");
            let mut back = exchange("GET", "/", "h");
            back.request.append("Cookie", sent(&lines).as_bytes());
            assert_eq!(jar.text(&back.request).as_deref(), Some(&*text));
            assert_eq!(jar.clear(&back).len(), lines.len());
            // A shorter one leaves nothing of the longer one behind.
            let shorter = jar.put(&back, "y", None).unwrap();
            assert_eq!(shorter.len(), lines.len());
            assert!(shorter[1..].iter().all(|line| line.ends_with("; Max-Age=0")), "{shorter:?}");
            jar.hide(&mut back.request);
            assert_eq!(back.request.value("cookie"), None);
        }
        assert_eq!(jar.put(&exchange("GET", "/", "h"), &"x".repeat(29_601), None), None);
    }

    #[test]
    fn a_cookie_has_the_attributes_that_the_rules_give_it() {
        let mut over_tls = exchange("GET", "/", "h");
        over_tls.forwarded_tls = Some(true);
        let plain = exchange("GET", "/", "h");
        let line = |rules: &CookieRules<'_>, exchange: &Exchange, seconds| {
            Jar::new(rules).unwrap().put(exchange, "t", seconds).unwrap().remove(0)
        };
        assert_eq!(line(&rules("s"), &plain, None), "s=t; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(
            line(&rules("s"), &over_tls, Some(7)),
            "s=t; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=7"
        );
        let more = CookieRules {
            path: "/app",
            domain: Some("shop.example"),
            http_only: false,
            same_site: SameSite::None,
            ..rules("s")
        };
        assert_eq!(
            line(&more, &plain, None),
            "s=t; Path=/app; Domain=shop.example; SameSite=None; Secure"
        );
        let silent =
            CookieRules { same_site: SameSite::Default, secure: Some(false), ..rules("s") };
        assert_eq!(line(&silent, &over_tls, None), "s=t; Path=/; HttpOnly");
    }

    #[test]
    fn a_rule_that_would_split_a_line_is_refused() {
        let refused = |rules: CookieRules<'_>, field: &str| {
            let why = Jar::new(&rules).err().unwrap().to_string();
            assert!(why.starts_with(&format!("session.{field}: ")), "{why}");
        };
        for name in ["", "a;b", "a b", "a=b", "ä"] {
            refused(rules(name), "cookie_name");
        }
        for path in ["", "x", "/;x", "/\r\n"] {
            refused(CookieRules { path, ..rules("s") }, "cookie_path");
        }
        for domain in ["", "a b", "a;b"] {
            refused(CookieRules { domain: Some(domain), ..rules("s") }, "cookie_domain");
        }
        let open = CookieRules { same_site: SameSite::None, secure: Some(false), ..rules("s") };
        refused(open, "cookie_same_site");
    }

    #[test]
    fn what_is_sealed_opens_as_what_it_was_and_as_nothing_else() {
        let seal = Seal::new("0123456789abcdef", "a").unwrap();
        let closed = seal.close("one", b"text").unwrap();
        assert_eq!(seal.open("one", &closed).as_deref(), Some(&b"text"[..]));
        assert_ne!(seal.close("one", b"text").unwrap(), closed, "no two are alike");
        assert_eq!(seal.open("two", &closed), None, "it is about something else");
        for (secret, purpose) in [("0123456789abcdeF", "a"), ("0123456789abcdef", "b")] {
            assert_eq!(Seal::new(secret, purpose).unwrap().open("one", &closed), None);
        }
        for at in 0..closed.len() - 1 {
            let mut other = closed.clone();
            let with = if &other[at..=at] == "A" { "B" } else { "A" };
            other.replace_range(at..=at, with);
            assert_eq!(seal.open("one", &other), None, "{at}");
        }
        for wrong in ["", "A", "!", &closed[..20], &format!("{closed}A")] {
            assert_eq!(seal.open("one", wrong), None, "{wrong}");
        }
    }
}
