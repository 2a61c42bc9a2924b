//! `proxy-rewrite`: what goes upstream in place of what came: path, host, method, headers.

use std::collections::BTreeMap;

use async_trait::async_trait;
use regex::bytes::Captures;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{
    Build, Exchange, Fault, FieldValue, Flow, Hooks, Invalid, Pattern, PatternOptions, Plugin,
    Rewrite, Template, encode_path, encode_unsafe, field_name,
};

/// What goes upstream in place of what came. At least one part is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub(super) struct Config {
    /// The path, and a query if it has one; variables are filled in. The client's query follows.
    #[serde(default)]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^/.*"))]
    uri: Option<String>,
    /// Pairs of a regular expression on the path and what replaces its match (`$1` for groups); the first that matches is used.
    #[serde(default)]
    #[schemars(length(min = 2))]
    regex_uri: Option<Vec<String>>,
    /// Works on path and query as the client sent them, and sends the result without encoding it again.
    #[serde(default)]
    use_real_request_uri_unsafe: bool,
    /// The host that the upstream reads.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[0-9a-zA-Z-.]+(:\d{1,5})?$"))]
    host: Option<String>,
    /// The method that the upstream reads.
    #[serde(default)]
    method: Option<Method>,
    /// Headers: `add`, `set` and `remove`, in this order; or a map of headers to set.
    #[serde(default)]
    headers: Option<Headers>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Method {
    Propfind,
    Lock,
    Unlock,
    Get,
    Post,
    Put,
    Delete,
    Patch,
    Head,
    Options,
    Trace,
    Mkcol,
    Copy,
    Move,
}

impl Method {
    const fn name(self) -> &'static str {
        match self {
            Self::Propfind => "PROPFIND",
            Self::Lock => "LOCK",
            Self::Unlock => "UNLOCK",
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Mkcol => "MKCOL",
            Self::Copy => "COPY",
            Self::Move => "MOVE",
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Headers {
    Edits(Edits),
    Flat(BTreeMap<String, FieldValue>),
}

/// Edits of headers, done in this order.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Edits {
    /// Appended behind what is there.
    #[serde(default)]
    add: BTreeMap<String, OneOrMore>,
    /// In place of what is there.
    #[serde(default)]
    set: BTreeMap<String, OneOrMore>,
    /// Taken off.
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMore {
    One(FieldValue),
    More(#[schemars(length(min = 1))] Vec<FieldValue>),
}

pub(super) struct ProxyRewrite {
    target: Target,
    host: Option<String>,
    method: Option<&'static str>,
    add: Vec<Field>,
    set: Vec<Field>,
    remove: Vec<Box<str>>,
    /// Reads and writes targets as they are on the wire.
    is_raw: bool,
}

/// A header's name, and its values.
type Field = (Box<str>, Vec<Template>);

enum Target {
    AsItCame,
    /// A path, and a query of its own.
    Template(Template, Option<Template>),
    Patterns(Vec<(Pattern, Template)>),
}

impl Plugin for ProxyRewrite {
    const NAME: &'static str = "proxy-rewrite";
    const PRIORITY: i32 = 1008;
    const EXAMPLE: &'static str = r#"{
        "regex_uri": ["^/api/(.*)$", "/v2/$1"],
        "headers": {"set": {"X-Caller": "$wardgate_peer_id"}, "remove": ["X-Debug"]}
    }"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.uri.is_none()
            && config.regex_uri.is_none()
            && config.host.is_none()
            && config.method.is_none()
            && config.headers.is_none()
            && !config.use_real_request_uri_unsafe
        {
            return Err(Invalid::new(
                "at least one of uri, regex_uri, host, method and headers is expected",
            ));
        }
        let target = target(&config)?;
        let groups = match &target {
            Target::Patterns(patterns) => {
                patterns.iter().map(|(pattern, _)| pattern.groups()).max().unwrap_or(0)
            }
            Target::AsItCame | Target::Template(..) => 0,
        };
        if let Some(host) = &config.host {
            check_host(host)?;
        }
        let mut plugin = Self {
            target,
            host: config.host,
            method: config.method.map(Method::name),
            add: Vec::new(),
            set: Vec::new(),
            remove: Vec::new(),
            is_raw: config.use_real_request_uri_unsafe,
        };
        match config.headers {
            None => {}
            Some(Headers::Flat(headers)) => {
                let more = |(name, value)| (name, OneOrMore::One(value));
                plugin.set = fields("headers", headers.into_iter().map(more), groups)?;
            }
            Some(Headers::Edits(edits)) => {
                plugin.add = fields("headers.add", edits.add, groups)?;
                plugin.set = fields("headers.set", edits.set, groups)?;
                let name = |name: &String| {
                    let name = field_name(name)
                        .map_err(|error| Invalid::new(format!("headers.remove: {error}")))?;
                    if name.eq_ignore_ascii_case("host") {
                        return Err(Invalid::new("headers.remove: Host cannot be removed"));
                    }
                    Ok(name)
                };
                plugin.remove = edits.remove.iter().map(name).collect::<Result<_, _>>()?;
            }
        }
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

fn target(config: &Config) -> Result<Target, Invalid> {
    let at = |field: &'static str| move |error: Invalid| Invalid::new(format!("{field}: {error}"));
    if let Some(uri) = &config.uri {
        if !uri.starts_with('/') || uri.len() > 4096 {
            return Err(Invalid::new("uri: a path of at most 4096 bytes is expected"));
        }
        let (path, query) = match question(uri) {
            Some(at) => (&uri[..at], Some(&uri[at + 1..])),
            None => (uri.as_str(), None),
        };
        let path = Template::parse(path).map_err(at("uri"))?;
        let query = query.map(Template::parse).transpose().map_err(at("uri"))?;
        for part in [Some(&path), query.as_ref()].into_iter().flatten() {
            check_groups("uri", part, 0)?;
        }
        // What follows must be valid even where it is not used.
        patterns(config)?;
        return Ok(Target::Template(path, query));
    }
    Ok(patterns(config)?.map_or(Target::AsItCame, Target::Patterns))
}

/// Where the query of a template begins: at a question mark that belongs to no `${name ?? default}`.
fn question(uri: &str) -> Option<usize> {
    let bytes = uri.as_bytes();
    let mut is_in_braces = false;
    (0..bytes.len()).find(|&at| {
        match bytes[at] {
            b'{' if at > 0 && bytes[at - 1] == b'$' => is_in_braces = true,
            b'}' => is_in_braces = false,
            _ => {}
        }
        bytes[at] == b'?' && !is_in_braces
    })
}

fn patterns(config: &Config) -> Result<Option<Vec<(Pattern, Template)>>, Invalid> {
    let Some(texts) = &config.regex_uri else { return Ok(None) };
    let at = |error: Invalid| Invalid::new(format!("regex_uri: {error}"));
    if texts.is_empty() || texts.len() % 2 != 0 {
        return Err(Invalid::new(
            "regex_uri: pairs of an expression and a replacement are expected",
        ));
    }
    let pair = |pair: &[String]| {
        let pattern = Pattern::parse(&pair[0], PatternOptions::default()).map_err(at)?;
        let by = Template::parse(&pair[1]).map_err(at)?;
        check_groups("regex_uri", &by, pattern.groups())?;
        Ok((pattern, by))
    };
    texts.chunks(2).map(pair).collect::<Result<_, _>>().map(Some)
}

fn check_groups(field: &str, template: &Template, groups: usize) -> Result<(), Invalid> {
    match template.highest_group() {
        Some(group) if group >= groups => {
            Err(Invalid::new(format!("{field}: group {group} does not exist in the expression")))
        }
        _ => Ok(()),
    }
}

fn check_host(host: &str) -> Result<(), Invalid> {
    let (name, port) = host.split_once(':').unwrap_or((host, "80"));
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    if name.is_empty() || !name.bytes().all(fits) || port.parse::<u16>().is_err() {
        return Err(Invalid::new("host: a name with an optional port is expected"));
    }
    Ok(())
}

/// Host and port as RFC 3986 section 3.2 lets them be, without user information.
fn is_authority(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&b);
    !text.is_empty() && text.bytes().all(fits)
}

fn fields(
    at: &str,
    fields: impl IntoIterator<Item = (String, OneOrMore)>,
    groups: usize,
) -> Result<Vec<Field>, Invalid> {
    let refuse = |error: Invalid| Invalid::new(format!("{at}: {error}"));
    let compile = |(name, values): (String, OneOrMore)| {
        let values = match values {
            OneOrMore::One(value) => vec![value],
            OneOrMore::More(values) if values.is_empty() => {
                return Err(Invalid::new(format!("{at}: '{name}' has no value")));
            }
            OneOrMore::More(values) => values,
        };
        let values: Vec<Template> =
            values.iter().map(FieldValue::template).collect::<Result<_, _>>().map_err(refuse)?;
        for value in &values {
            check_groups(at, value, groups)?;
        }
        Ok((field_name(&name).map_err(refuse)?, values))
    };
    fields.into_iter().map(compile).collect()
}

#[async_trait]
impl Rewrite for ProxyRewrite {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let path = if self.is_raw {
            exchange.request.target().as_bytes().to_vec()
        } else {
            let path = exchange.uri();
            path.ok_or_else(|| Fault::client(400, "the path is not valid"))?.into_owned()
        };
        let mut groups = None;
        let new_target = match &self.target {
            Target::AsItCame => None,
            Target::Template(path, query) => Some(self.filled_in(exchange, path, query.as_ref())),
            Target::Patterns(patterns) => patterns.iter().find_map(|(pattern, by)| {
                let found = pattern.captures(&path)?;
                let target = self.replaced(exchange, &path, &found, by);
                groups = Some(found);
                Some(target)
            }),
        };
        let headers = self.headers(exchange, groups.as_ref());
        if let Some(target) = new_target {
            exchange.rewritten.target = Some(target);
        }
        if let Some(host) = &self.host {
            exchange.rewritten.host = Some(host.clone());
        }
        if let Some(method) = self.method {
            exchange.rewritten.method = Some(method.to_owned());
        }
        for (edit, name, value) in headers {
            if name.eq_ignore_ascii_case("host") {
                // A variable may carry anything, and this goes into the request's head as it is.
                if !is_authority(&value) {
                    return Err(Fault::client(400, "the request would go to a host that is none"));
                }
                exchange.rewritten.host = Some(value);
            } else if edit == Edit::Set {
                exchange.request.set(name, value.as_bytes());
            } else {
                exchange.request.append(name, value.as_bytes());
            }
        }
        for name in &self.remove {
            exchange.request.remove(name);
        }
        Ok(Flow::Next)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Add,
    Set,
}

impl ProxyRewrite {
    fn headers(
        &self,
        exchange: &Exchange,
        groups: Option<&Captures<'_>>,
    ) -> Vec<(Edit, &str, String)> {
        let mut edits = Vec::with_capacity(self.add.len() + self.set.len());
        let all = [(Edit::Add, &self.add), (Edit::Set, &self.set)];
        for (edit, fields) in all {
            for (name, values) in fields {
                for (at, value) in values.iter().enumerate() {
                    let mut text = String::new();
                    render(value, exchange, groups, &mut text);
                    // Of several values to set, the first replaces and the others follow it.
                    let edit = if at == 0 { edit } else { Edit::Add };
                    edits.push((edit, &**name, text));
                }
            }
        }
        edits
    }

    fn filled_in(&self, exchange: &Exchange, path: &Template, query: Option<&Template>) -> String {
        let path = path.text(exchange);
        // A question mark out of a variable is part of the path, not the beginning of a query.
        let mut target = match self.is_raw {
            true => encode_unsafe(&path),
            false => encode_path(path.as_bytes()),
        };
        if let Some(query) = query {
            target.push('?');
            target.push_str(&encode_unsafe(&query.text(exchange)).replace('#', "%23"));
        }
        match self.is_raw {
            true => with_slash(target),
            false => with_client_query(target, exchange),
        }
    }

    /// The path with the match replaced, as a target: the first question mark of the replacement begins its query.
    fn replaced(
        &self,
        exchange: &Exchange,
        path: &[u8],
        found: &Captures<'_>,
        by: &Template,
    ) -> String {
        let whole = found.get(0).expect("group 0 is the match");
        let mut text = String::new();
        render(by, exchange, Some(found), &mut text);
        let (head, tail) = (&path[..whole.start()], &path[whole.end()..]);
        if self.is_raw {
            let joined = [head, text.as_bytes(), tail].concat();
            return with_slash(encode_unsafe(&String::from_utf8_lossy(&joined)));
        }
        // A question mark that came percent-encoded in the path stays a part of it.
        if path.contains(&b'?') {
            let joined = [head, text.as_bytes(), tail].concat();
            return with_client_query(encode_path(&joined), exchange);
        }
        let target = match text.split_once('?') {
            None => encode_path(&[head, text.as_bytes(), tail].concat()),
            Some((path, query)) => {
                let tail = encode_path(tail);
                let path = encode_path(&[head, path.as_bytes()].concat());
                format!("{path}?{}{tail}", encode_unsafe(query).replace('#', "%23"))
            }
        };
        with_client_query(target, exchange)
    }
}

fn render(
    template: &Template,
    exchange: &Exchange,
    groups: Option<&Captures<'_>>,
    out: &mut String,
) {
    let mut group = |number: usize, out: &mut String| {
        if let Some(found) = groups.and_then(|groups| groups.get(number)) {
            out.push_str(&String::from_utf8_lossy(found.as_bytes()));
        }
    };
    template.render_with(exchange, &mut group, out);
}

fn with_slash(mut target: String) -> String {
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    target
}

fn with_client_query(target: String, exchange: &Exchange) -> String {
    let mut target = with_slash(target);
    // What an earlier plugin did to the query (took a key off, for one) holds.
    let current = exchange.rewritten.target.as_deref().unwrap_or(exchange.request.target());
    if let Some((_, query)) = current.split_once('?').filter(|(_, query)| !query.is_empty()) {
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str(query);
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::{Value, json};

    async fn rewritten(config: Value, target: &str) -> Exchange {
        let mut exchange = exchange("GET", target, "Shop:80");
        exchange.request.append("X-Old", b"1");
        exchange.request.append("X-Old", b"2");
        compile::<ProxyRewrite>(config).rewrite(&mut exchange).await.unwrap();
        exchange
    }

    #[tokio::test]
    async fn the_path_goes_upstream_rewritten_and_encoded() {
        for (config, target, sent) in [
            (json!({"uri": "/b"}), "/a", Some("/b")),
            (json!({"uri": "/b"}), "/a?x=1&y=%2F", Some("/b?x=1&y=%2F")),
            (json!({"uri": "/b?z=9"}), "/a?x=1", Some("/b?z=9&x=1")),
            (json!({"uri": "/pre$uri"}), "/a%20b%3fc", Some("/pre/a%20b%3Fc")),
            (json!({"uri": "/u/${arg_id}"}), "/a?id=7%2F..%2F8", Some("/u/7/../8?id=7%2F..%2F8")),
            (json!({"regex_uri": ["^/a/(.*)/(.*)$", "/$2/$1"]}), "/a/b/c?q", Some("/c/b?q")),
            (json!({"regex_uri": ["^/x", "/y", "^/a", "/z"]}), "/a/b", Some("/z/b")),
            (json!({"regex_uri": ["^/a/(.*)$", "/b?id=$1"]}), "/a/7?q=1", Some("/b?id=7&q=1")),
            (json!({"regex_uri": ["^/a/(.*)$", "/b/$1"]}), "/a/7%3Fx=1", Some("/b/7%3Fx=1")),
            (json!({"regex_uri": ["^/none", "/b"]}), "/a%2Fb", None),
            (json!({"host": "other"}), "/a%2Fb//c", None),
            (json!({"uri": "/b/${arg_v ?? none}?c=${arg_c ?? 3}"}), "/a", Some("/b/none?c=3")),
            (json!({"use_real_request_uri_unsafe": true}), "/a%2F", None),
            (
                json!({"use_real_request_uri_unsafe": true, "uri": "/b%20$arg_v"}),
                "/?v=%0a",
                Some("/b%20%0A"),
            ),
            (
                json!({"use_real_request_uri_unsafe": true, "regex_uri": ["^/a(.*)", "/b$1"]}),
                "/a/%2e%2e//c%2Fd?x=%20",
                Some("/b/%2e%2e//c%2Fd?x=%20"),
            ),
            // Whatever the client sends, the target stays one line and one path.
            (json!({"uri": "/x$arg_v"}), "/?v=%0d%0aA:1", Some("/x%0D%0AA:1?v=%0d%0aA:1")),
            (json!({"uri": "$uri"}), "/a", None),
        ] {
            if config["uri"] == "$uri" {
                assert!(refused::<ProxyRewrite>(config).contains("uri: a path"));
                continue;
            }
            let exchange = rewritten(config.clone(), target).await;
            assert_eq!(exchange.rewritten.target.as_deref(), sent, "{config} {target}");
            assert_eq!(exchange.request.target(), target);
        }
    }

    #[tokio::test]
    async fn host_and_method_go_upstream_in_place_of_what_came() {
        let exchange = rewritten(json!({"host": "in.side:81", "method": "POST"}), "/").await;
        assert_eq!(exchange.rewritten.host.as_deref(), Some("in.side:81"));
        assert_eq!(exchange.rewritten.method.as_deref(), Some("POST"));
        assert_eq!((exchange.request.method(), exchange.request.authority()), ("GET", "Shop:80"));
        let exchange = rewritten(json!({"headers": {"set": {"hOsT": "$host.b"}}}), "/").await;
        assert_eq!(exchange.rewritten.host.as_deref(), Some("shop.b"));
    }

    #[tokio::test]
    async fn headers_are_added_set_and_removed_in_this_order() {
        let config = json!({
            "regex_uri": ["^/a/(\\w+)", "/b"],
            "headers": {
                "add": {"X-Old": "3", "X-Many": ["a", 2]},
                "set": {"X-New": "$host-$1", "X-Two": ["x", "y"]},
                "remove": ["x-gone"]
            }
        });
        let mut exchange = exchange("GET", "/a/seven", "Shop:80");
        exchange.request.append("X-Old", b"1");
        exchange.request.append("X-New", b"client's");
        exchange.request.append("X-Gone", b"1");
        compile::<ProxyRewrite>(config).rewrite(&mut exchange).await.unwrap();
        let all = |name: &str| {
            let values = exchange.request.all(name);
            values.map(|value| String::from_utf8(value.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(all("x-old"), ["1", "3"]);
        assert_eq!(all("x-many"), ["a", "2"]);
        assert_eq!(all("x-new"), ["shop-seven"]);
        assert_eq!(all("x-two"), ["x", "y"]);
        assert!(all("x-gone").is_empty());
    }

    #[tokio::test]
    async fn a_flat_map_sets() {
        let exchange =
            rewritten(json!({"headers": {"X-Old": "$remote_addr", "X-N": 5}}), "/").await;
        assert_eq!(exchange.request.all("x-old").collect::<Vec<_>>(), [b"192.0.2.7"]);
        assert_eq!(exchange.request.text("x-n"), Some("5"));
    }

    #[tokio::test]
    async fn a_host_made_of_what_a_client_sent_cannot_break_out_of_its_line() {
        let chain = compile::<ProxyRewrite>(json!({"headers": {"Host": "$arg_h"}}));
        for sent in ["a%0d%0aX-Evil:%201", "a%20b", "", "a/b"] {
            let mut exchange = exchange("GET", &format!("/?h={sent}"), "shop");
            assert_eq!(chain.rewrite(&mut exchange).await.unwrap_err().status, 400, "{sent}");
            assert_eq!(exchange.rewritten.host, None);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "at least one of"),
            (json!({"uri": "b"}), "uri: a path"),
            (json!({"uri": "/$nothing"}), "unknown variable"),
            (json!({"uri": "/$1"}), "uri: group 1 does not exist"),
            (json!({"regex_uri": ["^/a"]}), "pairs"),
            (json!({"regex_uri": ["(", "/"]}), "regex_uri: the regular expression '('"),
            (json!({"regex_uri": ["^/a", "/$1"]}), "group 1 does not exist"),
            (json!({"host": "a/b"}), "host:"),
            (json!({"method": "FETCH"}), "FETCH"),
            (json!({"headers": {"set": {"a b": "c"}}}), "'a b' is no header name"),
            (json!({"headers": {"set": {"Content-Length": "1"}}}), "framing"),
            (json!({"headers": {"X-Forwarded-Client-Cert": "1"}}), "no plugin may set it"),
            (json!({"headers": {"remove": ["Host"]}}), "Host cannot be removed"),
        ] {
            let error = refused::<ProxyRewrite>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
