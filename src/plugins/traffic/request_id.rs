//! `request-id`: every request bears an id, from its caller or from here.

use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, RequestId, ResponseHead, Rewrite,
    field_name,
};
use crate::rt;

/// Gives each request an id, unless its caller gave it one. Ids are unlike each other, not secret.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The header that carries the id.
    #[serde(default = "default_header")]
    #[schemars(length(min = 1))]
    header_name: String,
    /// Puts the id into the response as well.
    #[serde(default = "yes")]
    include_in_response: bool,
    /// How ids are made.
    #[serde(default)]
    algorithm: Algorithm,
    /// What ids of `range_id` are made of.
    #[serde(default)]
    range_id: RangeId,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Algorithm {
    #[default]
    Uuid,
    Uuidv7,
    Nanoid,
    Ksuid,
    RangeId,
}

/// Ids as words over an alphabet.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RangeId {
    /// Characters of an id.
    #[serde(default = "default_length")]
    #[schemars(range(min = 6, max = 1024))]
    length: usize,
    /// The characters that it may have.
    #[serde(default = "default_alphabet")]
    #[schemars(length(min = 6))]
    char_set: String,
}

impl Default for RangeId {
    fn default() -> Self {
        Self { length: default_length(), char_set: default_alphabet() }
    }
}

fn default_header() -> String {
    "X-Request-Id".into()
}
const fn yes() -> bool {
    true
}
const fn default_length() -> usize {
    16
}
fn default_alphabet() -> String {
    // As APISIX has it, one letter twice.
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIGKLMNOPQRSTUVWXYZ0123456789".into()
}

/// A note: the ids of this exchange, by the headers that carry them. Later plugins may change the request's fields.
struct Ids(Vec<(Arc<str>, String)>);

pub(super) struct RequestIdPlugin {
    header: Arc<str>,
    in_response: bool,
    algorithm: Algorithm,
    alphabet: Box<[char]>,
    length: usize,
}

impl Plugin for RequestIdPlugin {
    const NAME: &'static str = "request-id";
    const PRIORITY: i32 = 12015;
    const EXAMPLE: &'static str = r#"{"header_name": "X-Request-Id", "algorithm": "uuidv7"}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let header = field_name(&config.header_name)
            .map_err(|error| Invalid::new(format!("header_name: {error}")))?;
        let RangeId { length, char_set } = config.range_id;
        if !(6..=1024).contains(&length) {
            return Err(Invalid::new("range_id.length: a number from 6 to 1024 is expected"));
        }
        if char_set.chars().count() < 6 || !char_set.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Invalid::new(
                "range_id.char_set: at least 6 printable ASCII characters are expected",
            ));
        }
        let plugin = Self {
            header: (*header).into(),
            in_response: config.include_in_response,
            algorithm: config.algorithm,
            alphabet: char_set.chars().collect(),
            length,
        };
        let hooks = Hooks::of(plugin).rewrite();
        Ok(if config.include_in_response { hooks.response_head().done() } else { hooks.done() })
    }
}

#[async_trait]
impl Rewrite for RequestIdPlugin {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let given = exchange.request.text(&self.header).filter(|id| !id.is_empty());
        let id = match given {
            Some(given) => given.to_owned(),
            None => {
                let id = self.make();
                exchange.request.set(&self.header, id.as_bytes());
                id
            }
        };
        exchange.notes.leave(RequestId(id.clone()));
        let entry = (self.header.clone(), id);
        match exchange.notes.find_mut::<Ids>() {
            Some(ids) => ids.0.push(entry),
            None => exchange.notes.leave(Ids(vec![entry])),
        }
        Ok(Flow::Next)
    }
}

impl ResponseHead for RequestIdPlugin {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        let Exchange { notes, response, .. } = exchange;
        // Several of these plugins may use headers of their own. What the upstream says of its own stays, as in APISIX.
        let ids = notes.find::<Ids>().map_or(&[][..], |ids| &ids.0);
        let own = ids.iter().rev().find(|(header, _)| *header == self.header);
        if let Some((_, id)) = own.filter(|_| self.in_response)
            && response.value(&self.header).is_none_or(<[u8]>::is_empty)
        {
            response.set(&self.header, id.as_bytes());
        }
        Ok(())
    }
}

const URL_SAFE: &[u8; 64] = b"useandom-26T198340PX75pxJACKVERYMINDBUSHWOLF_GQZbfghjklqvwyzrict";
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl RequestIdPlugin {
    fn make(&self) -> String {
        match self.algorithm {
            Algorithm::Uuid => {
                let bytes = fastrand::u128(..).to_be_bytes();
                uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
            }
            Algorithm::Uuidv7 => {
                let mut random = [0; 10];
                fastrand::fill(&mut random);
                uuid::Builder::from_unix_timestamp_millis(rt::unix_millis(), &random)
                    .into_uuid()
                    .to_string()
            }
            Algorithm::Nanoid => {
                (0..21).map(|_| char::from(URL_SAFE[fastrand::usize(..64)])).collect()
            }
            Algorithm::Ksuid => ksuid(rt::unix_seconds(), fastrand::u128(..)),
            Algorithm::RangeId => {
                let letter = |_| self.alphabet[fastrand::usize(..self.alphabet.len())];
                (0..self.length).map(letter).collect()
            }
        }
    }
}

/// 4 bytes of seconds since 2014-05-13T16:53:20Z and 16 random ones, as 27 digits to the base 62.
fn ksuid(unix_seconds: i64, random: u128) -> String {
    let seconds = u32::try_from(unix_seconds - 1_400_000_000).unwrap_or_default();
    let mut number = [0_u8; 20];
    number[..4].copy_from_slice(&seconds.to_be_bytes());
    number[4..].copy_from_slice(&random.to_be_bytes());
    let mut digits = [b'0'; 27];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            // The quotient of a number below 62 * 256 by 62 is below 256.
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            rest = value % 62;
        }
        *digit = BASE62[rest as usize];
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Variable;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    #[tokio::test]
    async fn ids_have_the_shape_of_their_algorithm() {
        for (config, shape) in [
            (json!({}), "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"),
            (
                json!({"algorithm": "uuidv7"}),
                "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
            ),
            (json!({"algorithm": "nanoid"}), "^[A-Za-z0-9_-]{21}$"),
            (json!({"algorithm": "ksuid"}), "^[0-9A-Za-z]{27}$"),
            (json!({"algorithm": "range_id"}), "^[0-9A-Za-z]{16}$"),
            (
                json!({"algorithm": "range_id", "range_id": {"length": 7, "char_set": "abcdef"}}),
                "^[a-f]{7}$",
            ),
        ] {
            let chain = compile::<RequestIdPlugin>(config.clone());
            let mut seen = std::collections::HashSet::new();
            for _ in 0..50 {
                let mut exchange = exchange("GET", "/", "h");
                chain.rewrite(&mut exchange).await.unwrap();
                chain.response_head(&mut exchange).unwrap();
                let id = exchange.request.text("x-request-id").unwrap().to_owned();
                assert!(regex::Regex::new(shape).unwrap().is_match(&id), "{config}: {id}");
                assert_eq!(exchange.response.text("X-Request-Id"), Some(&*id));
                let variable = Variable::parse("apisix_request_id").unwrap();
                assert_eq!(variable.read(&exchange).unwrap().text(), id);
                seen.insert(id);
            }
            assert!(seen.len() > 40, "{config}");
        }
    }

    #[tokio::test]
    async fn a_callers_id_is_kept_and_the_response_may_go_without() {
        let chain = compile::<RequestIdPlugin>(
            json!({"header_name": "X-My", "include_in_response": false}),
        );
        let mut exchange = exchange("GET", "/", "h");
        exchange.request.append("x-my", b"theirs");
        chain.rewrite(&mut exchange).await.unwrap();
        assert_eq!(exchange.request.all("x-my").collect::<Vec<_>>(), [b"theirs"]);
        assert!(!chain.has_response_head());
    }

    #[tokio::test]
    async fn the_response_gets_the_id_whatever_became_of_the_requests_field() {
        let chain = compile::<RequestIdPlugin>(json!({}));
        for (upstreams, answered) in
            [(None, "mine"), (Some("theirs"), "theirs"), (Some(""), "mine")]
        {
            let mut exchange = exchange("GET", "/", "h");
            exchange.request.append("X-Request-Id", b"mine");
            chain.rewrite(&mut exchange).await.unwrap();
            exchange.request.remove("X-Request-Id");
            if let Some(upstreams) = upstreams {
                exchange.response.append("x-request-id", upstreams.as_bytes());
            }
            chain.response_head(&mut exchange).unwrap();
            assert_eq!(exchange.response.text("X-Request-Id"), Some(answered));
        }
    }

    #[test]
    fn a_ksuid_is_what_others_make_of_the_same_bytes() {
        // The reference implementation's example: 0ujtsYcgvSTl8PAuAdqWYSMnLOv.
        let random = 0xB5A1_CD34_B5F9_9D11_54FB_6853_345C_9735;
        assert_eq!(ksuid(1_400_000_000 + 107_608_047, random), "0ujtsYcgvSTl8PAuAdqWYSMnLOv");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"header_name": "a b"}), "header_name"),
            (json!({"header_name": "content-length"}), "header_name"),
            (json!({"algorithm": "snowflake"}), "snowflake"),
            (json!({"range_id": {"length": 5}}), "range_id.length"),
            (json!({"range_id": {"char_set": "abc"}}), "range_id.char_set"),
        ] {
            let error = refused::<RequestIdPlugin>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
