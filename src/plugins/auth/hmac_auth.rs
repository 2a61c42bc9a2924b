//! `hmac-auth`: callers sign their requests with a secret (the scheme `Signature`, as APISIX has it since 3.11).

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::entrance::{Entrance, directory, found, named};
use crate::pipeline::{
    Build, Consumer, Directory, Exchange, Fault, Flow, Head, Hooks, Invalid, Plugin, Redacted,
    Rewrite, Unread,
};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::hmac;
use crate::rt::unix_seconds;

/// Callers must sign their requests with the secret of a consumer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The algorithms that callers may sign with.
    #[serde(default = "Algorithm::all")]
    #[schemars(length(min = 1))]
    allowed_algorithms: Vec<Algorithm>,
    /// Seconds by which the header `Date` may be off.
    #[serde(default = "default_skew")]
    #[schemars(range(min = 1))]
    clock_skew: u32,
    /// The headers that a signature must cover at least; `@request-target` is method and address.
    #[serde(default = "default_headers")]
    #[schemars(inner(length(min = 1, max = 50)))]
    signed_headers: Vec<String>,
    /// Compares the header `Digest` (SHA-256) with the body.
    #[serde(default)]
    validate_request_body: bool,
    /// Bytes of a body that is compared; a longer one is answered with 413.
    #[serde(default = "default_body")]
    #[schemars(range(min = 1))]
    max_req_body_size: u64,
    /// Takes the header `Authorization` off before the request goes upstream.
    #[serde(default)]
    hide_credentials: bool,
    /// The consumer that callers without a valid signature count as; without it they are refused.
    #[serde(default)]
    #[schemars(length(min = 1))]
    anonymous_consumer: Option<String>,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_realm")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    realm: String,
}

fn default_skew() -> u32 {
    300
}
fn default_headers() -> Vec<String> {
    vec!["date".into()]
}
const fn default_body() -> u64 {
    64 << 20
}
fn default_realm() -> String {
    "hmac".into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Algorithm {
    HmacSha1,
    HmacSha256,
    HmacSha512,
}

impl Algorithm {
    fn all() -> Vec<Self> {
        vec![Self::HmacSha1, Self::HmacSha256, Self::HmacSha512]
    }

    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "hmac-sha1" => Self::HmacSha1,
            "hmac-sha256" => Self::HmacSha256,
            "hmac-sha512" => Self::HmacSha512,
            _ => return None,
        })
    }

    fn known(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }
}

/// What a consumer or credential carries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// The key's name, unique among all consumers.
    #[schemars(length(min = 1, max = 256))]
    key_id: String,
    /// The secret that requests are signed with.
    #[schemars(length(min = 1, max = 256))]
    secret_key: Redacted<String>,
}

impl crate::pipeline::Credential for Credential {
    type Ready = Redacted<String>;

    fn ready(self) -> Result<Redacted<String>, Invalid> {
        named("key_id", &self.key_id, 256)?;
        named("secret_key", self.secret_key.reveal(), 256)?;
        Ok(self.secret_key)
    }
}

pub(super) struct HmacAuth {
    entrance: Entrance,
    allowed: Vec<Algorithm>,
    clock_skew: u64,
    signed_headers: Vec<String>,
    /// Bytes of a body that is compared.
    body: Option<u64>,
    hide_credentials: bool,
}

impl Plugin for HmacAuth {
    const NAME: &'static str = "hmac-auth";
    const PRIORITY: i32 = 2530;
    const EXAMPLE: &'static str = r#"{"allowed_algorithms": ["hmac-sha256"], "signed_headers": ["@request-target", "date", "digest"], "validate_request_body": true}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.allowed_algorithms.is_empty() {
            return Err(Invalid::new("allowed_algorithms: at least one is expected"));
        }
        if config.clock_skew == 0 {
            return Err(Invalid::new("clock_skew: at least 1 s is expected"));
        }
        if config.max_req_body_size == 0 {
            return Err(Invalid::new("max_req_body_size: at least 1 byte is expected"));
        }
        for header in &config.signed_headers {
            named("signed_headers", header, 50)?;
        }
        let plugin = Self {
            entrance: Entrance::new("hmac", &config.realm, config.anonymous_consumer)?,
            allowed: config.allowed_algorithms,
            clock_skew: u64::from(config.clock_skew),
            signed_headers: config.signed_headers,
            body: config.validate_request_body.then_some(config.max_req_body_size),
            hide_credentials: config.hide_credentials,
        };
        let reads_body = plugin.body.is_some();
        let hooks = Hooks::of(plugin).rewrite();
        Ok(if reads_body { hooks.reading_body().done() } else { hooks.done() })
    }
}

#[async_trait]
impl Rewrite for HmacAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        const REFUSED: &str = "client request can't be validated";
        let directory = directory(exchange)?;
        let consumer = match Signature::read(&exchange.request) {
            // What is said here tells of the request's form alone.
            Err(why) => Err(format!("{REFUSED}: {why}").into()),
            Ok(signature) => match self.verify(&exchange.request, &signature, &*directory) {
                None => Err(REFUSED.into()),
                Some(consumer) => match self.body {
                    None => Ok(consumer),
                    Some(most) => match exchange.read_body(most).await {
                        Ok(body) if is_digest(&exchange.request, &body) => Ok(consumer),
                        Ok(_) => Err(REFUSED.into()),
                        Err(Unread::TooLarge) => return Err(Unread::TooLarge.into()),
                        Err(other) => return Err(other.into()),
                    },
                },
            },
        };
        let flow = self.entrance.end(exchange, consumer)?;
        if self.hide_credentials && matches!(flow, Flow::Next) {
            exchange.request.remove("authorization");
        }
        Ok(flow)
    }
}

impl HmacAuth {
    fn verify(
        &self,
        head: &Head,
        signature: &Signature<'_>,
        directory: &dyn Directory,
    ) -> Option<Arc<Consumer>> {
        let known = found::<Redacted<String>>(directory, Self::NAME, signature.key_id);
        let algorithm =
            Algorithm::of(signature.algorithm).filter(|known| self.allowed.contains(known))?;
        if !self.is_timely(head) {
            return None;
        }
        let covers = |wanted: &String| signature.headers.contains(&wanted.as_str());
        if !self.signed_headers.iter().all(covers) {
            return None;
        }
        let presented = STANDARD.decode(signature.signature).ok()?;
        // Who names a key that nobody has waits as long as who names one that somebody has.
        let secret = known.as_ref().map_or("", |(_, secret)| secret.reveal().as_str());
        let key = hmac::Key::new(algorithm.known(), secret.as_bytes());
        let is_good = hmac::verify(&key, signature.text(head).as_bytes(), &presented).is_ok();
        known.filter(|_| is_good).map(|(consumer, _)| consumer)
    }

    fn is_timely(&self, head: &Head) -> bool {
        let date = head.text("date").map(|text| text.replace("GMT", "+0000"));
        let date = date.and_then(|text| OffsetDateTime::parse(&text, &Rfc2822).ok());
        date.is_some_and(|date| date.unix_timestamp().abs_diff(unix_seconds()) <= self.clock_skew)
    }
}

/// `Digest: SHA-256=..` of this body?
fn is_digest(head: &Head, body: &[u8]) -> bool {
    let expected = format!("SHA-256={}", STANDARD.encode(digest(&SHA256, body)));
    head.value("digest").is_some_and(|found| found.ct_eq(expected.as_bytes()).into())
}

/// The parts of `Authorization: Signature keyId="..",algorithm="..",headers="..",signature=".."`.
#[derive(Debug, PartialEq, Eq)]
struct Signature<'h> {
    key_id: &'h str,
    algorithm: &'h str,
    headers: Vec<&'h str>,
    signature: &'h str,
}

impl<'h> Signature<'h> {
    fn read(head: &'h Head) -> Result<Self, &'static str> {
        let line = head.value("authorization").ok_or("missing Authorization header")?;
        let line = std::str::from_utf8(line).unwrap_or_default();
        let fields = line
            .strip_prefix("Signature ")
            .ok_or("Authorization header does not start with 'Signature'")?;
        let (mut key_id, mut algorithm, mut headers, mut signature) = (None, None, None, None);
        for field in fields.split(',') {
            let Some((name, value)) = field.trim().split_once('=') else { continue };
            let Some(value) = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'))
            else {
                continue;
            };
            let place = match name {
                "keyId" => &mut key_id,
                "algorithm" => &mut algorithm,
                "headers" => &mut headers,
                "signature" => &mut signature,
                _ => continue,
            };
            // Two readers would not agree which one counts.
            if place.replace(value).is_some() {
                return Err("a field of the signature is there twice");
            }
        }
        Ok(Self {
            key_id: key_id.ok_or("keyId or signature missing")?,
            signature: signature.ok_or("keyId or signature missing")?,
            algorithm: algorithm.ok_or("algorithm missing")?,
            headers: headers.map(|names| names.split(' ').collect()).unwrap_or_default(),
        })
    }

    /// What is signed: the key's name, then a line for each header that is named and there.
    fn text(&self, head: &Head) -> String {
        let mut text = format!("{}\n", self.key_id);
        for name in &self.headers {
            let mut values = head.all(name).peekable();
            if values.peek().is_some() {
                // All lines of that name: none can be slipped in behind the one that is signed.
                let values: Vec<_> = values.map(String::from_utf8_lossy).collect();
                text.push_str(&format!("{name}: {}\n", values.join(", ")));
            } else if *name == "@request-target" {
                text.push_str(&format!("{} {}\n", head.method(), head.target()));
            } else if name.eq_ignore_ascii_case("host") {
                text.push_str(&format!("{name}: {}\n", head.authority()));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;
    use serde_json::json;

    fn head(authorization: &str) -> Head {
        let mut head = Head::request("POST", "/a?b=c", "shop");
        head.append("Authorization", authorization.as_bytes());
        head.append("X-A", b"1");
        head.append("x-a", b"2");
        head
    }

    #[test]
    fn the_scheme_is_read_strictly() {
        let good = r#"Signature keyId="k",algorithm="hmac-sha256" , headers="@request-target x-a date",signature="c2ln""#;
        let head = head(good);
        let read = Signature::read(&head).unwrap();
        assert_eq!((read.key_id, read.algorithm, read.signature), ("k", "hmac-sha256", "c2ln"));
        // A header that is named and not there has no line, as in APISIX.
        assert_eq!(read.text(&head), "k\nPOST /a?b=c\nx-a: 1, 2\n");
        for (bad, why) in [
            ("Basic x", "does not start"),
            ("Signature", "does not start"),
            (r#"Signature keyId="k""#, "missing"),
            (r#"Signature keyId="k",signature="s""#, "algorithm missing"),
            (r#"Signature keyId=k,algorithm="a",signature="s""#, "keyId or signature missing"),
            (r#"Signature keyId="k",keyId="l",algorithm="a",signature="s""#, "twice"),
        ] {
            let error = Signature::read(&self::head(bad)).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"allowed_algorithms": []}), "allowed_algorithms"),
            (json!({"allowed_algorithms": ["md5"]}), "unknown variant `md5`"),
            (json!({"clock_skew": 0}), "clock_skew"),
            (json!({"signed_headers": [""]}), "signed_headers"),
            (json!({"signed_headers": ["x".repeat(51)]}), "signed_headers"),
            (json!({"max_req_body_size": 0}), "max_req_body_size"),
            (json!({"realm": "\\"}), "realm"),
        ] {
            let error = refused::<HmacAuth>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
