//! `cors`: which other origins' pages may read answers (the CORS protocol of the Fetch standard).

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Pattern, PatternOptions, Plugin, Reply,
    ResponseHead, Rewrite,
};
use crate::plugins::bounds;

/// Which pages of other origins may read the answers. Every `OPTIONS` request is answered here.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The origins: one, several with commas between them, `*` for any, or `**` for any even with credentials.
    #[serde(default = "any")]
    #[schemars(regex(pattern = r"^(\*|\*\*|null|\w+://[^,]+(,\w+://[^,]+)*)$"))]
    allow_origins: String,
    /// The methods, with commas between them; `*` for any, `**` for any even with credentials.
    #[serde(default = "any")]
    allow_methods: String,
    /// The request headers, with commas between them; `*` for any, `**` for those that the page asks for.
    #[serde(default = "any")]
    allow_headers: String,
    /// The response headers that pages may read beside the usual ones, with commas between them.
    #[serde(default)]
    expose_headers: Option<String>,
    /// Seconds for which browsers remember the answer to a preflight; -1: not at all.
    #[serde(default = "default_age")]
    max_age: i64,
    /// Pages may send cookies and credentials. Then nothing above may be `*`.
    #[serde(default)]
    allow_credential: bool,
    /// Regular expressions on the origin, in place of `allow_origins`.
    #[serde(default)]
    #[schemars(length(min = 1), inner(length(min = 1, max = 4096)), extend("uniqueItems" = true))]
    allow_origins_by_regex: Option<Vec<String>>,
    /// Names of entries of the plugin's metadata, whose origins are allowed, too.
    #[serde(default)]
    #[schemars(length(min = 1), inner(length(min = 1, max = 4096)), extend("uniqueItems" = true))]
    allow_origins_by_metadata: Option<Vec<String>>,
    /// Origins that may see how long things took (`Timing-Allow-Origin`), written as `allow_origins`.
    #[serde(default)]
    #[schemars(regex(pattern = r"^(\*|\*\*|null|\w+://[^,]+(,\w+://[^,]+)*)$"))]
    timing_allow_origins: Option<String>,
    /// Regular expressions on such origins, in place of `timing_allow_origins`.
    #[serde(default)]
    #[schemars(length(min = 1), inner(length(min = 1, max = 4096)), extend("uniqueItems" = true))]
    timing_allow_origins_by_regex: Option<Vec<String>>,
}

/// Origins by names that routes refer to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    /// Origins by name, each written as a route's `allow_origins`.
    #[serde(default)]
    allow_origins: BTreeMap<String, Origin>,
}

/// Origins as a route's `allow_origins` has them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
struct Origin(
    #[schemars(regex(pattern = r"^(\*|\*\*|null|\w+://[^,]+(,\w+://[^,]+)*)$"))]
    String,
);

fn any() -> String {
    "*".into()
}
const fn default_age() -> i64 {
    5
}

/// What `**` stands for among methods.
const ALL_METHODS: &str = "GET,POST,PUT,DELETE,PATCH,HEAD,OPTIONS,CONNECT,TRACE";

pub(super) struct Cors {
    origins: Origins,
    by_name: Vec<Origins>,
    timing: Option<Origins>,
    methods: String,
    /// `None`: those that the page asks for.
    headers: Option<String>,
    exposed: Option<String>,
    max_age: String,
    credentials: bool,
    /// The answer is not the same for all origins.
    varies: bool,
}

enum Origins {
    /// Written as it stands, whoever asks: browsers compare.
    Fixed(String),
    /// The asking one, or any when nobody asks.
    Echo,
    OneOf(HashSet<String>),
    Matching(Vec<Pattern>),
}

/// A note: the origin as the request had it before plugins changed it.
struct Asking(Option<Box<str>>);

impl Origins {
    fn parse(field: &str, text: &str) -> Result<Self, Invalid> {
        let is_origin = |one: &str| {
            one == "null"
                || one.split_once("://").is_some_and(|(scheme, rest)| {
                    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                    !scheme.is_empty() && scheme.bytes().all(word) && !rest.is_empty()
                })
        };
        bounds::field_value(field, text)?;
        match text {
            "**" => Ok(Self::Echo),
            "*" => Ok(Self::Fixed(text.to_owned())),
            _ if !text.split(',').all(is_origin) => Err(Invalid::new(format!(
                "{field}: '{text}' is not '*', '**', 'null' or origins like https://shop.example with commas between them"
            ))),
            _ if text.contains(',') => {
                Ok(Self::OneOf(text.split(',').map(str::to_owned).collect()))
            }
            _ => Ok(Self::Fixed(text.to_owned())),
        }
    }

    /// What the answer says to `asking`.
    fn answer<'a>(&'a self, asking: Option<&'a str>) -> Option<&'a str> {
        match self {
            Self::Fixed(text) => Some(text),
            Self::Echo => Some(asking.unwrap_or("*")),
            Self::OneOf(known) => asking.filter(|origin| known.contains(*origin)),
            Self::Matching(patterns) => asking
                .filter(|origin| patterns.iter().any(|known| known.is_match(origin.as_bytes()))),
        }
    }

    /// Does it say yes to `asking` itself?
    fn names<'a>(&'a self, asking: &'a str) -> bool {
        self.answer(Some(asking)).is_some_and(|answer| answer == asking || answer == "*")
    }
}

impl Plugin for Cors {
    const NAME: &'static str = "cors";
    const PRIORITY: i32 = 4000;
    const EXAMPLE: &'static str = r#"{
        "allow_origins": "https://shop.example,https://admin.example", "allow_methods": "GET,POST",
        "allow_headers": "Authorization,Content-Type", "allow_credential": true, "max_age": 600
    }"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        no_star_with_credentials(&config)?;
        for (field, value) in [
            ("allow_methods", Some(&config.allow_methods)),
            ("allow_headers", Some(&config.allow_headers)),
            ("expose_headers", config.expose_headers.as_ref()),
        ] {
            value.map_or(Ok(()), |value| bounds::field_value(field, value))?;
        }
        let regex = |field: &str, texts: &Option<Vec<String>>| {
            let patterns = texts
                .as_ref()
                .map(|texts| bounds::patterns(field, texts, PatternOptions::default()));
            patterns.transpose().map(|patterns| patterns.map(Origins::Matching))
        };
        let fixed = Origins::parse("allow_origins", &config.allow_origins)?;
        let by_regex = regex("allow_origins_by_regex", &config.allow_origins_by_regex)?;
        let by_name = by_name(&config, build)?;
        let timing = config.timing_allow_origins.as_ref();
        let timing = timing.map(|text| Origins::parse("timing_allow_origins", text)).transpose()?;
        let timing_by_regex =
            regex("timing_allow_origins_by_regex", &config.timing_allow_origins_by_regex)?;
        let varies = config.allow_origins != "*" || by_regex.is_some() || !by_name.is_empty();
        let plugin = Self {
            origins: by_regex.unwrap_or(fixed),
            by_name,
            timing: timing_by_regex.or(timing),
            methods: match &*config.allow_methods {
                "**" => ALL_METHODS.to_owned(),
                _ => config.allow_methods,
            },
            headers: (config.allow_headers != "**").then_some(config.allow_headers),
            exposed: config.expose_headers.filter(|exposed| !exposed.is_empty()),
            max_age: config.max_age.to_string(),
            credentials: config.allow_credential,
            varies,
        };
        Ok(Hooks::of(plugin).rewrite().response_head().done())
    }
}

/// Browsers refuse such answers, so nobody can mean them.
fn no_star_with_credentials(config: &Config) -> Result<(), Invalid> {
    let fields = [
        ("allow_origins", Some(&config.allow_origins)),
        ("allow_methods", Some(&config.allow_methods)),
        ("allow_headers", Some(&config.allow_headers)),
        ("expose_headers", config.expose_headers.as_ref()),
        ("timing_allow_origins", config.timing_allow_origins.as_ref()),
    ];
    let star = fields.into_iter().find(|(_, value)| value.is_some_and(|value| value == "*"));
    match star.filter(|_| config.allow_credential) {
        Some((field, _)) => Err(Invalid::new(format!(
            "{field}: you can not set '*' for other option when 'allow_credential' is true"
        ))),
        None => Ok(()),
    }
}

fn by_name(config: &Config, build: &Build<'_>) -> Result<Vec<Origins>, Invalid> {
    let Some(names) = &config.allow_origins_by_metadata else { return Ok(Vec::new()) };
    bounds::some("allow_origins_by_metadata", names)?;
    let Some(metadata) = build.metadata else { return Ok(Vec::new()) };
    let metadata: Metadata = serde_json::from_value(metadata.clone())
        .map_err(|why| Invalid::new(format!("plugin metadata: {why}")))?;
    let named = names.iter().filter_map(|name| metadata.allow_origins.get(name));
    named.map(|origin| Origins::parse("plugin metadata: allow_origins", &origin.0)).collect()
}

#[async_trait]
impl Rewrite for Cors {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let asking = exchange.request.text("origin").map(Into::into);
        exchange.notes.leave(Asking(asking));
        Ok(match exchange.request.method() {
            "OPTIONS" => Flow::Reply(Box::new(Reply::empty(200))),
            _ => Flow::Next,
        })
    }
}

impl ResponseHead for Cors {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        let Exchange { notes, request, response, .. } = exchange;
        let asking = match notes.find::<Asking>() {
            Some(Asking(asking)) => asking.as_deref(),
            None => request.text("origin"),
        };
        let named = asking.filter(|origin| self.by_name.iter().any(|known| known.names(origin)));
        if self.varies {
            response.append("Vary", b"Origin");
        }
        if let Some(origin) = named.or_else(|| self.origins.answer(asking)) {
            response.set("Access-Control-Allow-Origin", origin.as_bytes());
            response.set("Access-Control-Allow-Methods", self.methods.as_bytes());
            response.set("Access-Control-Max-Age", self.max_age.as_bytes());
            let headers = match &self.headers {
                Some(headers) => Some(headers.as_bytes()),
                None => request.value("access-control-request-headers"),
            };
            if let Some(headers) = headers.filter(|headers| !headers.is_empty()) {
                response.set("Access-Control-Allow-Headers", headers);
            }
            if let Some(exposed) = &self.exposed {
                response.set("Access-Control-Expose-Headers", exposed.as_bytes());
            }
            if self.credentials {
                response.set("Access-Control-Allow-Credentials", b"true");
            }
        }
        if let Some(origin) = self.timing.as_ref().and_then(|timing| timing.answer(asking)) {
            response.set("Timing-Allow-Origin", origin.as_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::pipeline::{Id, Kept};
    use crate::plugins::tests::{build, chain, compile, refused};
    use serde_json::{Value, json};

    /// What the answer says to a page of `origin`.
    fn told(config: &Value, origin: Option<&str>) -> Exchange {
        let mut exchange = exchange("GET", "/", "h");
        if let Some(origin) = origin {
            exchange.request.append("Origin", origin.as_bytes());
        }
        exchange.response.set_status(200);
        compile::<Cors>(config.clone()).response_head(&mut exchange).unwrap();
        exchange
    }

    #[test]
    fn an_origin_is_answered_as_the_settings_say() {
        const ALLOW: &str = "access-control-allow-origin";
        for (config, origin, allowed, varies) in [
            (json!({}), Some("http://a"), Some("*"), false),
            (json!({"allow_origins": "**"}), Some("http://a"), Some("http://a"), true),
            (json!({"allow_origins": "**"}), None, Some("*"), true),
            (json!({"allow_origins": "http://a"}), Some("http://b"), Some("http://a"), true),
            (
                json!({"allow_origins": "http://a,http://b"}),
                Some("http://b"),
                Some("http://b"),
                true,
            ),
            (json!({"allow_origins": "http://a,http://b"}), Some("http://c"), None, true),
            (json!({"allow_origins": "http://a,http://b"}), None, None, true),
            (
                json!({"allow_origins_by_regex": [r"^https://.*\.a$"]}),
                Some("https://x.a"),
                Some("https://x.a"),
                true,
            ),
            (
                json!({"allow_origins_by_regex": [r"^https://.*\.a$"]}),
                Some("https://x.a.evil"),
                None,
                true,
            ),
        ] {
            let exchange = told(&config, origin);
            assert_eq!(exchange.response.text(ALLOW), allowed, "{config} {origin:?}");
            assert_eq!(exchange.response.text("vary").is_some(), varies, "{config}");
        }
    }

    #[test]
    fn everything_else_is_told_too() {
        let config = json!({
            "allow_origins": "**", "allow_methods": "**", "allow_headers": "**", "allow_credential": true,
            "expose_headers": "X-A", "max_age": 7, "timing_allow_origins": "http://t,http://a"
        });
        let mut exchange = exchange("GET", "/", "h");
        exchange.request.append("Origin", b"http://a");
        exchange.request.append("Access-Control-Request-Headers", b"x-b, x-c");
        compile::<Cors>(config).response_head(&mut exchange).unwrap();
        for (name, value) in [
            ("access-control-allow-methods", ALL_METHODS),
            ("access-control-allow-headers", "x-b, x-c"),
            ("access-control-expose-headers", "X-A"),
            ("access-control-max-age", "7"),
            ("access-control-allow-credentials", "true"),
            ("timing-allow-origin", "http://a"),
        ] {
            assert_eq!(exchange.response.text(name), Some(value), "{name}");
        }
    }

    #[test]
    fn metadata_names_origins() {
        let metadata = json!({"allow_origins": {"shop": "https://shop.example", "all": "*"}});
        let owner = Id::parse("r1").unwrap();
        let kept = Kept::default();
        let config =
            json!({"allow_origins": "https://own.example", "allow_origins_by_metadata": ["shop"]});
        let config: Config = serde_json::from_value(config).unwrap();
        let hooks = Cors::compile(config, &build(&owner, "cors", Some(&metadata), &kept)).unwrap();
        let chain = chain("cors", hooks);
        for (origin, told) in
            [("https://shop.example", "https://shop.example"), ("https://x", "https://own.example")]
        {
            let mut exchange = exchange("GET", "/", "h");
            exchange.request.append("Origin", origin.as_bytes());
            chain.response_head(&mut exchange).unwrap();
            assert_eq!(exchange.response.text("access-control-allow-origin"), Some(told));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"allow_origins": "a.example"}), "allow_origins: 'a.example'"),
            (json!({"allow_origins": "http://a,*"}), "allow_origins"),
            (json!({"allow_origins": "http://a\r\nX: y"}), "control characters"),
            (json!({"allow_methods": "GET\r\nX: y"}), "allow_methods: a header's value"),
            (json!({"allow_headers": "A\nb"}), "allow_headers"),
            (json!({"expose_headers": "\u{0}"}), "expose_headers"),
            (json!({"allow_credential": true}), "allow_origins: you can not set '*'"),
            (
                json!({"allow_credential": true, "allow_origins": "**", "allow_methods": "**", "allow_headers": "**", "expose_headers": "*"}),
                "expose_headers: you can not set '*'",
            ),
            (json!({"allow_origins_by_regex": []}), "allow_origins_by_regex: at least one"),
            (json!({"allow_origins_by_regex": ["("]}), "allow_origins_by_regex[0]: "),
            (json!({"allow_origins_by_regex": ["(?=a)"]}), "look-around"),
            (json!({"timing_allow_origins_by_regex": [""]}), "timing_allow_origins_by_regex[0]"),
            (json!({"allow_origins_by_metadata": []}), "allow_origins_by_metadata"),
        ] {
            let error = refused::<Cors>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
