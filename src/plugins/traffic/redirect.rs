//! `redirect`: sends the caller elsewhere.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Pattern, PatternOptions, Plugin, Replacement,
    Reply, Rewrite, Template, encode_path, encode_unsafe,
};

/// Where callers are sent. Exactly one of `uri`, `regex_uri` and `http_to_https` is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    {"required": ["uri"]}, {"required": ["regex_uri"]}, {"required": ["http_to_https"]}
]))]
pub(super) struct Config {
    /// The new place; variables are filled in.
    #[serde(default)]
    #[schemars(length(min = 2))]
    uri: Option<String>,
    /// A regular expression on the path, and what replaces its match (`$1` for groups). Paths that do not match pass.
    #[serde(default)]
    #[schemars(length(min = 2, max = 2))]
    regex_uri: Option<Vec<String>>,
    /// Sends plain requests to the same place under https: 301 for GET and HEAD, 308 for others.
    #[serde(default)]
    http_to_https: Option<bool>,
    /// The status.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    ret_code: u16,
    /// Appends the request's query to the new place.
    #[serde(default)]
    append_query_string: bool,
    /// Percent-encodes the new place.
    #[serde(default)]
    encode_uri: bool,
}

const fn default_code() -> u16 {
    302
}

pub(super) struct Redirect {
    to: To,
    status: u16,
    append_query: bool,
    encode: bool,
}

enum To {
    Template(Template),
    Pattern(Pattern, Replacement),
    Https,
    Nowhere,
}

impl Plugin for Redirect {
    const NAME: &'static str = "redirect";
    const PRIORITY: i32 = 900;
    const EXAMPLE: &'static str = r#"{"uri": "/new$uri", "ret_code": 301}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if !(200..=599).contains(&config.ret_code) {
            return Err(Invalid::new("ret_code: a status from 200 to 599 is expected"));
        }
        if config.http_to_https == Some(true) && config.append_query_string {
            return Err(Invalid::new(
                "only one of `http_to_https` and `append_query_string` can be configured.",
            ));
        }
        let at = |field: &'static str| move |e: Invalid| Invalid::new(format!("{field}: {e}"));
        let to = match (&config.uri, &config.regex_uri, config.http_to_https) {
            (Some(uri), None, None) => {
                if uri.len() < 2 {
                    return Err(Invalid::new("uri: at least 2 bytes are expected"));
                }
                To::Template(Template::parse(uri).map_err(at("uri"))?)
            }
            (None, Some(pair), None) => {
                let [expression, by] = pair.as_slice() else {
                    return Err(Invalid::new(
                        "regex_uri: an expression and a replacement are expected",
                    ));
                };
                let pattern = Pattern::parse(expression, PatternOptions::default())
                    .map_err(at("regex_uri"))?;
                let by = Replacement::parse(by, &pattern).map_err(at("regex_uri"))?;
                To::Pattern(pattern, by)
            }
            (None, None, Some(true)) => To::Https,
            (None, None, Some(false)) => To::Nowhere,
            _ => {
                return Err(Invalid::new(
                    "exactly one of uri, regex_uri and http_to_https is expected",
                ));
            }
        };
        let plugin = Self {
            to,
            status: config.ret_code,
            append_query: config.append_query_string,
            encode: config.encode_uri,
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for Redirect {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let mut status = self.status;
        let location = match &self.to {
            To::Nowhere => return Ok(Flow::Next),
            To::Https => {
                // By the connection or what a trusted sender says of it: a client could write a header itself.
                if exchange.is_secure() {
                    return Ok(Flow::Next);
                }
                let simple = matches!(exchange.request.method(), "GET" | "HEAD");
                status = if simple { 301 } else { 308 };
                let host = crate::pipeline::host_of(exchange.request.authority());
                format!("https://{host}{}", exchange.request.target())
            }
            To::Template(template) => template.text(exchange),
            To::Pattern(pattern, by) => {
                let path = exchange.uri().unwrap_or_default();
                match pattern.replace_first(&path, by) {
                    Some(location) => String::from_utf8_lossy(&location).into_owned(),
                    None => return Ok(Flow::Next),
                }
            }
        };
        let mut location = self.encoded(&location);
        if self.append_query
            && let Some(query) = exchange.request.query().filter(|query| !query.is_empty())
        {
            location.push(if location.contains('?') { '&' } else { '?' });
            location.push_str(&encode_unsafe(query));
        }
        Ok(Flow::Reply(Box::new(Reply::empty(status).with("Location", &location))))
    }
}

impl Redirect {
    /// Line ends, spaces and backslashes (which browsers take for slashes) never reach the header as they are.
    fn encoded(&self, location: &str) -> String {
        if !self.encode {
            return encode_unsafe(location);
        }
        match location.split_once('?') {
            Some((path, query)) => {
                format!("{}?{}", encode_path(path.as_bytes()), encode_unsafe(query))
            }
            None => encode_path(location.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{client, exchange, reply};
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;
    use std::sync::Arc;

    #[tokio::test]
    async fn callers_are_sent_where_the_settings_say() {
        for (config, method, target, status, location) in [
            (json!({"uri": "/new"}), "GET", "/a?x=1", 302, "/new"),
            (json!({"uri": "/new$uri", "ret_code": 301}), "GET", "/a", 301, "/new/a"),
            (json!({"uri": "$uri/x"}), "GET", "//evil.example", 302, "/evil.example/x"),
            (json!({"uri": "$uri"}), "GET", "/%5Cevil", 302, "/%5Cevil"),
            (json!({"uri": "$uri"}), "GET", "/a%0d%0aX:1", 302, "/a%0D%0AX:1"),
            (
                json!({"uri": "/n?a=1", "append_query_string": true}),
                "GET",
                "/?b=2",
                302,
                "/n?a=1&b=2",
            ),
            (json!({"uri": "/n", "append_query_string": true}), "GET", "/", 302, "/n"),
            (json!({"uri": "/a b?c", "encode_uri": true}), "GET", "/", 302, "/a%20b?c"),
            (
                json!({"regex_uri": ["^/t/(.*)$", "https://x/$1"]}),
                "GET",
                "/t/a",
                302,
                "https://x/a",
            ),
            (json!({"http_to_https": true}), "GET", "/a?b", 301, "https://shop/a?b"),
            (json!({"http_to_https": true}), "POST", "/a", 308, "https://shop/a"),
        ] {
            let mut exchange = exchange(method, target, "Shop:8080");
            exchange.request.append("X-Forwarded-Proto", b"https");
            let chain = compile::<Redirect>(config.clone());
            let reply = reply(chain.rewrite(&mut exchange).await.unwrap());
            assert_eq!(reply.status, status, "{config}");
            assert_eq!(reply.fields[0], ("Location".to_owned(), location.to_owned()), "{config}");
        }
    }

    #[tokio::test]
    async fn who_is_right_already_passes() {
        let mut secure = exchange("GET", "/", "h");
        secure.client = Arc::new(crate::pipeline::Client { tls: true, ..client() });
        let chain = compile::<Redirect>(json!({"http_to_https": true}));
        assert!(matches!(chain.rewrite(&mut secure).await.unwrap(), Flow::Next));
        // What a trusted sender says of its own caller counts, either way.
        secure.forwarded_tls = Some(false);
        assert!(matches!(chain.rewrite(&mut secure).await.unwrap(), Flow::Reply(_)));
        let mut before = exchange("GET", "/", "h");
        before.forwarded_tls = Some(true);
        assert!(matches!(chain.rewrite(&mut before).await.unwrap(), Flow::Next));
        for config in [json!({"http_to_https": false}), json!({"regex_uri": ["^/no", "/"]})] {
            let mut exchange = exchange("GET", "/", "h");
            let flow = compile::<Redirect>(config).rewrite(&mut exchange).await.unwrap();
            assert!(matches!(flow, Flow::Next));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "exactly one of"),
            (json!({"uri": "/a", "http_to_https": true}), "exactly one of"),
            (json!({"http_to_https": true, "append_query_string": true}), "only one of"),
            (json!({"regex_uri": ["a"]}), "an expression and a replacement"),
            (json!({"regex_uri": ["a", "$1"]}), "names group 1"),
            (json!({"uri": "/$what"}), "unknown variable"),
            (json!({"uri": "/a", "ret_code": 100}), "ret_code"),
        ] {
            let error = refused::<Redirect>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
