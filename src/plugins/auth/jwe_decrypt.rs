//! `jwe-decrypt`: a token that is encrypted to a consumer's key goes upstream in clear (RFC 7516, `dir` with A256GCM).

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::entrance::{directory, found, named, token_in};
use super::jose::MAX_TOKEN;
use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Redacted, Rewrite, field_name,
    strict_json,
};
use crate::rt::crypto::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Decrypts the caller's token, with the key of the consumer that it names, for the upstream.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The header that carries the encrypted token, with or without the word `Bearer`.
    #[serde(default = "default_header")]
    #[schemars(length(min = 1))]
    header: String,
    /// The header that carries the decrypted token upstream.
    #[serde(default = "default_header")]
    #[schemars(length(min = 1))]
    forward_header: String,
    /// Refuses requests without a token; otherwise they pass as they are.
    #[serde(default = "yes")]
    strict: bool,
}

fn default_header() -> String {
    "Authorization".into()
}
const fn yes() -> bool {
    true
}

/// What a consumer or credential carries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// What the token's header names as `kid`, unique among all consumers.
    #[schemars(length(min = 1))]
    key: String,
    /// The key: 32 bytes.
    #[schemars(length(min = 1))]
    secret: Redacted<String>,
    /// The key is base64.
    #[serde(default)]
    is_base64_encoded: bool,
}

impl crate::pipeline::Credential for Credential {
    type Ready = LessSafeKey;

    fn ready(self) -> Result<LessSafeKey, Invalid> {
        named("key", &self.key, usize::MAX)?;
        let secret = self.secret.reveal();
        let bytes = match self.is_base64_encoded {
            false => secret.clone().into_bytes(),
            true => {
                let decoded = STANDARD.decode(secret).or_else(|_| URL_SAFE_NO_PAD.decode(secret));
                decoded.map_err(|_| Invalid::new("secret: base64 is expected"))?
            }
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes);
        let key = key.map_err(|_| Invalid::new("secret: a key of 32 bytes is expected"))?;
        Ok(LessSafeKey::new(key))
    }
}

pub(super) struct JweDecrypt {
    header: String,
    forward_header: Box<str>,
    strict: bool,
}

impl Plugin for JweDecrypt {
    const NAME: &'static str = "jwe-decrypt";
    const PRIORITY: i32 = 2509;
    const EXAMPLE: &'static str = r#"{"header": "X-Token", "forward_header": "Authorization"}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let name = |field: &str, text: &str| {
            field_name(text).map_err(|why| Invalid::new(format!("{field}: {why}")))
        };
        name("header", &config.header)?;
        let plugin = Self {
            forward_header: name("forward_header", &config.forward_header)?,
            header: config.header,
            strict: config.strict,
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for JweDecrypt {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let refuse = |status, message| Ok(Flow::json(status, &json!({ "message": message })));
        if exchange.request.value(&self.header).is_none() {
            return match self.strict {
                true => refuse(403, "missing JWE token in request"),
                false => Ok(Flow::Next),
            };
        }
        let Some(sealed) = token_in(&exchange.request, &self.header).and_then(Sealed::read) else {
            return refuse(400, "JWE token invalid");
        };
        let Some(key_id) = &sealed.key_id else { return refuse(400, "missing kid in JWE token") };
        let directory = directory(exchange)?;
        let Some((_, key)) = found::<LessSafeKey>(&*directory, Self::NAME, key_id) else {
            return refuse(400, "invalid kid in JWE token");
        };
        // What would end the field is no token; it must not go on in part either.
        let is_lawful = |text: &Vec<u8>| !text.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
        let Some(text) = sealed.open(&key).filter(is_lawful) else {
            return refuse(400, "failed to decrypt JWE token");
        };
        exchange.request.set(&self.forward_header, &text);
        Ok(Flow::Next)
    }
}

/// A token in the compact form of JWE.
struct Sealed<'t> {
    header: &'t str,
    key_id: Option<String>,
    nonce: [u8; NONCE_LEN],
    /// The text and its tag.
    sealed: Vec<u8>,
}

impl<'t> Sealed<'t> {
    fn read(text: &'t str) -> Option<Self> {
        if text.len() > MAX_TOKEN {
            return None;
        }
        let mut parts = text.split('.');
        let (header, wrapped, nonce) = (parts.next()?, parts.next()?, parts.next()?);
        let (sealed, tag) = (parts.next()?, parts.next()?);
        // With `dir` no key is in the token.
        if parts.next().is_some() || !wrapped.is_empty() {
            return None;
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let members = strict_json(&decode(header)?).ok()?;
        let is =
            |name: &str, wanted: &str| members.get(name).and_then(Value::as_str) == Some(wanted);
        let is_plain = members.get("zip").is_none() && members.get("crit").is_none();
        if !is("alg", "dir") || !is("enc", "A256GCM") || !is_plain {
            return None;
        }
        let tag = decode(tag).filter(|tag| tag.len() == AES_256_GCM.tag_len())?;
        Some(Self {
            header,
            key_id: members.get("kid").and_then(Value::as_str).map(str::to_owned),
            nonce: decode(nonce)?.try_into().ok()?,
            sealed: [decode(sealed)?, tag].concat(),
        })
    }

    /// The text. The header belongs to what is sealed (RFC 7516, section 5.1); APISIX's own tokens are sealed without it.
    fn open(&self, key: &LessSafeKey) -> Option<Vec<u8>> {
        [self.header.as_bytes(), b""].into_iter().find_map(|along| {
            let mut bytes = self.sealed.clone();
            let nonce = Nonce::assume_unique_for_key(self.nonce);
            let length = key.open_in_place(nonce, Aad::from(along), &mut bytes).ok()?.len();
            bytes.truncate(length);
            Some(bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    const HEADER: &str = r#"{"alg":"dir","enc":"A256GCM","kid":"k"}"#;

    fn key() -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap())
    }

    fn token(header: &str, along: bool) -> String {
        let header = URL_SAFE_NO_PAD.encode(header);
        let mut text = b"in clear".to_vec();
        let nonce = Nonce::assume_unique_for_key([1; 12]);
        let aad = Aad::from(if along { header.as_bytes() } else { b"" });
        key().seal_in_place_append_tag(nonce, aad, &mut text).unwrap();
        let (text, tag) = text.split_at(text.len() - 16);
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        format!("{header}..{}.{}.{}", encode(&[1; 12]), encode(text), encode(tag))
    }

    #[test]
    fn tokens_of_the_standard_and_of_apisix_are_opened_and_others_are_none() {
        for along in [true, false] {
            let token = token(HEADER, along);
            let sealed = Sealed::read(&token).unwrap();
            assert_eq!(sealed.key_id.as_deref(), Some("k"));
            assert_eq!(sealed.open(&key()).unwrap(), b"in clear");
            let other = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[8; 32]).unwrap());
            assert!(sealed.open(&other).is_none());
        }
        let good = token(HEADER, true);
        let parts: Vec<&str> = good.split('.').collect();
        for bad in [
            String::new(),
            "a.b.c".into(),
            format!("{good}.x"),
            format!("{}.a2V5.{}.{}.{}", parts[0], parts[2], parts[3], parts[4]),
            format!("{}..{}.{}.{}", parts[0], "AAAA", parts[3], parts[4]),
            format!("{}..{}.{}.{}", parts[0], parts[2], parts[3], "AAAA"),
            token(r#"{"alg":"none","enc":"A256GCM","kid":"k"}"#, true),
            token(r#"{"alg":"dir","enc":"A128GCM","kid":"k"}"#, true),
            token(r#"{"alg":"dir","enc":"A256GCM","kid":"k","zip":"DEF"}"#, true),
            token(r#"{"alg":"dir","alg":"dir","enc":"A256GCM","kid":"k"}"#, true),
            token(r#"{"alg":"dir","enc":"A256GCM","kid":"k","crit":["b"]}"#, true),
            "x".repeat(MAX_TOKEN + 1),
        ] {
            assert!(Sealed::read(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"header": ""}), "header"),
            (json!({"forward_header": "a b"}), "forward_header"),
            (json!({"forward_header": "Transfer-Encoding"}), "forward_header"),
            (json!({"forward_header": "X-Forwarded-Client-Cert"}), "forward_header"),
        ] {
            let error = refused::<JweDecrypt>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
        let row = crate::plugins::ALL.iter().find(|row| row.name == "jwe-decrypt").unwrap();
        for (secret, encoded, is_good) in [
            ("01234567890123456789012345678901", false, true),
            ("0123456789012345678901234567890", false, false),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", true, true),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", true, true),
            ("AAAA", true, false),
            ("!", true, false),
        ] {
            let credential = json!({"key": "k", "secret": secret, "is_base64_encoded": encoded});
            let judged = (row.check_credential.unwrap())(&credential);
            assert_eq!(judged.is_ok(), is_good, "{secret}");
        }
    }
}
