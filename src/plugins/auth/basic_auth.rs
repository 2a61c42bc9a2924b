//! `basic-auth`: callers are known by a user name and a password (RFC 7617).

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::entrance::{Entrance, Verifier, directory, found, name_and_password, named};
use crate::pipeline::{Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Redacted, Rewrite};

/// Callers must present the user name and the password of a consumer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Takes the header `Authorization` off before the request goes upstream.
    #[serde(default)]
    hide_credentials: bool,
    /// The consumer that callers without valid credentials count as; without it they are refused.
    #[serde(default)]
    #[schemars(length(min = 1))]
    anonymous_consumer: Option<String>,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_realm")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    realm: String,
}

fn default_realm() -> String {
    "basic".into()
}

/// What a consumer or credential carries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// The user name, unique among all consumers.
    #[schemars(length(min = 1))]
    username: String,
    /// The password.
    #[schemars(length(min = 1))]
    password: Redacted<String>,
}

impl crate::pipeline::Credential for Credential {
    type Ready = Verifier;

    fn ready(self) -> Result<Verifier, Invalid> {
        named("username", &self.username, usize::MAX)?;
        if self.username.contains(':') {
            // RFC 7617 section 2: it could never be sent.
            return Err(Invalid::new("username: a name without a colon is expected"));
        }
        if self.password.reveal().is_empty() {
            return Err(Invalid::new("password: at least one character is expected"));
        }
        Ok(Verifier::of(self.password.reveal().as_bytes()))
    }
}

pub(super) struct BasicAuth {
    entrance: Entrance,
    hide_credentials: bool,
    /// Compared with where no consumer has the name: who knows no password learns no names by the clock.
    nobody: Verifier,
}

impl Plugin for BasicAuth {
    const NAME: &'static str = "basic-auth";
    const PRIORITY: i32 = 2520;
    const EXAMPLE: &'static str = r#"{"hide_credentials": true, "realm": "shop"}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let plugin = Self {
            entrance: Entrance::new("Basic", &config.realm, config.anonymous_consumer)?,
            hide_credentials: config.hide_credentials,
            nobody: Verifier::of(b""),
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for BasicAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let directory = directory(exchange)?;
        let line = exchange.request.value("authorization");
        let consumer = match name_and_password(line, "basic") {
            Err(why) => Err(why.told().into()),
            Ok((name, password)) => match found::<Verifier>(&*directory, Self::NAME, &name) {
                Some((consumer, verifier)) if verifier.is(&password) => Ok(consumer),
                Some(_) => Err("Invalid user authorization".into()),
                None => {
                    let _ = self.nobody.is(&password);
                    Err("Invalid user authorization".into())
                }
            },
        };
        let flow = self.entrance.end(exchange, consumer)?;
        if self.hide_credentials && matches!(flow, Flow::Next) {
            exchange.request.remove("authorization");
        }
        Ok(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;
    use serde_json::json;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"realm": ""}), "realm"),
            (json!({"realm": "a\"b"}), "realm"),
            (json!({"realm": "a\nb"}), "realm"),
            (json!({"anonymous_consumer": ""}), "anonymous_consumer"),
            (json!({"hide": 1}), "unknown field `hide`"),
        ] {
            let error = refused::<BasicAuth>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
        let row = crate::plugins::ALL.iter().find(|row| row.name == "basic-auth").unwrap();
        for (credential, says) in [
            (json!({"username": "a", "password": ""}), "password"),
            (json!({"username": "", "password": "b"}), "username"),
            (json!({"username": "a:b", "password": "b"}), "username"),
            (json!({"username": "a"}), "password"),
            (json!({"username": "a", "password": 1}), "expected a string"),
        ] {
            let error = (row.check_credential.unwrap())(&credential).unwrap_err().to_string();
            assert!(error.contains(says), "{credential}: {error}");
        }
    }
}
