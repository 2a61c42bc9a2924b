//! Variables of an exchange, by nginx' and APISIX's names, and templates made of them.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;

use super::path::{argument, host_of};
use super::{Exchange, RequestId};
use crate::model::{Id, Invalid};
use crate::rt;

/// Something that an exchange can be asked for by name.
///
/// A name is judged when a configuration is compiled: a misspelled variable is an error then, not an empty text later.
/// ```
/// # use wardgate::pipeline::Variable;
/// assert!(Variable::parse("http_user_agent").is_ok());
/// assert!(Variable::parse("remote_adr").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable(Name);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Argument(Box<str>),
    /// With dashes as underscores, in lower case.
    Header(Box<str>),
    Cookie(Box<str>),
    Parameter(Box<str>),
    SentHeader(Box<str>),
    Fixed(Box<str>),
    Known(Known),
}

macro_rules! known {
    ($($name:literal => $known:ident),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Known { $($known),* }

        /// Names without a free part. Two names may mean one thing.
        const KNOWN: &[(&str, Known)] = &[$(($name, Known::$known)),*];
    };
}

known! {
    "uri" => Uri,
    "request_uri" => RequestUri,
    "real_request_uri" => RealRequestUri,
    "args" => Arguments,
    "is_args" => IsArguments,
    "host" => Host,
    "request_method" => Method,
    "scheme" => Scheme,
    "https" => Https,
    "http2" => Http2,
    "remote_addr" => RemoteAddress,
    "remote_port" => RemotePort,
    "realip_remote_addr" => ConnectedAddress,
    "realip_remote_port" => ConnectedPort,
    "proxy_protocol_addr" => IntroducedAddress,
    "proxy_protocol_port" => IntroducedPort,
    "proxy_protocol_server_addr" => IntroducedServerAddress,
    "proxy_protocol_server_port" => IntroducedServerPort,
    "server_addr" => ServerAddress,
    "server_port" => ServerPort,
    "connection" => Connection,
    "content_type" => ContentType,
    "content_length" => ContentLength,
    "consumer_name" => ConsumerName,
    "consumer_group_id" => ConsumerGroup,
    "credential_id" => Credential,
    "route_id" => RouteId,
    "route_name" => RouteName,
    "service_id" => ServiceId,
    "service_name" => ServiceName,
    "balancer_ip" => BalancerIp,
    "balancer_port" => BalancerPort,
    "upstream_addr" => UpstreamAddress,
    "upstream_status" => UpstreamStatus,
    "status" => Status,
    "request_length" => RequestLength,
    "bytes_sent" => BytesSent,
    "request_time" => RequestTime,
    "msec" => Now,
    "apisix_request_id" => RequestId,
    "ssl_server_name" => SslServerName,
    "ssl_client_verify" => SslClientVerify,
    "ssl_client_serial" => PeerSerial,
    "wardgate_peer_id" => PeerId,
    "wardgate_peer_trust_domain" => PeerTrustDomain,
    "wardgate_peer_serial" => WardgatePeerSerial,
    "wardgate_peer_sha256" => PeerSha256,
    "wardgate_token_subject" => TokenSubject,
    "wardgate_token_trust_domain" => TokenTrustDomain,
    "wardgate_token_audience" => TokenAudience,
    "wardgate_token_id" => TokenId,
    "wardgate_token_hash" => TokenHash,
    "wardgate_identity" => Identity,
}

/// Second names of the same thing.
const ALIASES: &[(&str, Known)] =
    &[("query_string", Known::Arguments), ("document_uri", Known::Uri)];

/// What a variable is worth in one exchange.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// A number.
    Number(u64),
    /// An address.
    Address(IpAddr),
}

impl Reading<'_> {
    /// As text.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Number(number) => Cow::Owned(number.to_string()),
            Self::Address(address) => Cow::Owned(address.to_string()),
        }
    }

    /// As a number, by the rules of Lua's `tonumber`.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Text(text) => number_of(text),
            #[expect(clippy::cast_precision_loss, reason = "compared as Lua's doubles are")]
            Self::Number(number) => Some(*number as f64),
            Self::Address(_) => None,
        }
    }

    /// As an address.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Number(_) => None,
            Self::Address(address) => Some(*address),
        }
    }

    /// Appends the text.
    pub fn write(&self, out: &mut String) {
        match self {
            Self::Text(text) => out.push_str(text),
            Self::Number(number) => out.push_str(itoa::Buffer::new().format(*number)),
            Self::Address(address) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "{address}");
            }
        }
    }
}

impl<'a> From<&'a str> for Reading<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

/// Lua's `tonumber`: decimal or hexadecimal, white space around it allowed; no words like `inf`.
pub(super) fn number_of(text: &str) -> Option<f64> {
    let text = text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    let first = digits.as_bytes().first()?;
    if !first.is_ascii_digit() && *first != b'.' {
        return None;
    }
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        #[expect(clippy::cast_precision_loss, reason = "Lua's numbers are doubles")]
        return u64::from_str_radix(hex, 16).ok().map(|number| sign * number as f64);
    }
    digits.parse::<f64>().ok().map(|number| sign * number)
}

impl Variable {
    /// The variable of that name, without the dollar.
    ///
    /// # Errors
    /// There is none.
    pub fn parse(name: &str) -> Result<Self, Invalid> {
        let free = |prefix: &str| name.strip_prefix(prefix).filter(|rest| !rest.is_empty());
        if let Some((_, known)) = KNOWN.iter().chain(ALIASES).find(|(known, _)| *known == name) {
            return Ok(Self(Name::Known(*known)));
        }
        let folded = |name: &str| name.to_ascii_lowercase().replace('-', "_").into_boxed_str();
        Ok(Self(if let Some(name) = free("arg_") {
            Name::Argument(name.into())
        } else if let Some(name) = free("http_") {
            Name::Header(folded(name))
        } else if let Some(name) = free("cookie_") {
            Name::Cookie(name.into())
        } else if let Some(name) = free("uri_param_") {
            Name::Parameter(name.into())
        } else if let Some(name) = free("sent_http_") {
            Name::SentHeader(folded(name))
        } else if name == "hostname" {
            let names = rustix::system::uname();
            Name::Fixed(names.nodename().to_string_lossy().into())
        } else if name == "server_name" {
            // What APISIX's nginx.conf calls its one server.
            Name::Fixed("_".into())
        } else {
            return Err(Invalid::new(match elsewhere(name) {
                Some(why) => format!("variable '{name}' is not supported: {why}"),
                None => format!("unknown variable '{name}'"),
            }));
        }))
    }

    /// Its value in `exchange`; `None` when it has none (yet).
    pub fn read<'a>(&self, exchange: &'a Exchange) -> Option<Reading<'a>> {
        let request = &exchange.request;
        Some(match &self.0 {
            Name::Argument(name) => Reading::Text(argument(request.query()?, name).next()?),
            Name::Header(name) if **name == *"host" => present(request.authority())?,
            Name::Header(name) => joined(request, name)?,
            Name::SentHeader(name) => joined(&exchange.response, name)?,
            Name::Cookie(name) => Reading::Text(cookies(exchange, name).next()?),
            Name::Parameter(name) => {
                let (_, value) = exchange.params.iter().find(|(known, _)| **known == **name)?;
                value.as_str().into()
            }
            Name::Fixed(text) => Reading::Text(Cow::Owned(text.to_string())),
            Name::Known(known) => return known.read(exchange),
        })
    }

    /// All its values: every line of a header, every occurrence of an argument or cookie.
    pub fn read_all<'a>(&self, exchange: &'a Exchange) -> Vec<Reading<'a>> {
        let head = match &self.0 {
            Name::Argument(name) => {
                let query = exchange.request.query().unwrap_or_default();
                return argument(query, name).map(Reading::Text).collect();
            }
            Name::Cookie(name) => return cookies(exchange, name).map(Reading::Text).collect(),
            Name::Header(name) if **name != *"host" => (&exchange.request, name),
            Name::SentHeader(name) => (&exchange.response, name),
            _ => return self.read(exchange).into_iter().collect(),
        };
        lines(head.0, head.1).map(Reading::Text).collect()
    }
}

impl Known {
    fn read(self, exchange: &Exchange) -> Option<Reading<'_>> {
        let client = &exchange.client;
        let peer = client.peer.as_deref();
        let route = exchange.route.as_deref();
        let optional = |id: Option<&'_ Id>| id.map(|id| id.as_str().to_owned());
        Some(match self {
            Self::Uri => Reading::Text(match exchange.uri()? {
                // What is borrowed begins as the path does.
                Cow::Borrowed(part) => Cow::Borrowed(&exchange.request.path()[..part.len()]),
                Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
            }),
            Self::RequestUri => Reading::Text(request_uri(exchange)?),
            Self::RealRequestUri => exchange.request.target().into(),
            Self::Arguments => exchange.request.query()?.into(),
            Self::IsArguments => {
                if exchange.request.query().is_some_and(|query| !query.is_empty()) {
                    "?".into()
                } else {
                    "".into()
                }
            }
            Self::Host => Reading::Text(host_of(exchange.request.authority())),
            Self::Method => exchange.request.method().into(),
            Self::Scheme => if client.tls { "https" } else { "http" }.into(),
            Self::Https => if client.tls { "on" } else { "" }.into(),
            Self::Http2 => match (exchange.is_http2, client.tls) {
                (false, _) => "",
                (true, true) => "h2",
                (true, false) => "h2c",
            }
            .into(),
            Self::RemoteAddress => Reading::Address(exchange.remote().ip().to_canonical()),
            Self::RemotePort => Reading::Number(exchange.remote().port().into()),
            Self::ConnectedAddress => Reading::Address(client.address.ip().to_canonical()),
            Self::ConnectedPort => Reading::Number(client.address.port().into()),
            Self::IntroducedAddress => {
                client.introduced?;
                Reading::Address(client.address.ip().to_canonical())
            }
            Self::IntroducedPort => {
                client.introduced?;
                Reading::Number(client.address.port().into())
            }
            Self::IntroducedServerAddress => {
                Reading::Address(client.introduced?.destination.ip().to_canonical())
            }
            Self::IntroducedServerPort => {
                Reading::Number(client.introduced?.destination.port().into())
            }
            Self::ServerAddress => Reading::Address(client.local.ip().to_canonical()),
            Self::ServerPort => Reading::Number(client.local.port().into()),
            Self::Connection => Reading::Number(client.connection),
            Self::ContentType => exchange.request.text("content-type")?.into(),
            Self::ContentLength => exchange.request.text("content-length")?.into(),
            Self::ConsumerName => exchange.consumer.as_ref()?.name.as_str().into(),
            Self::ConsumerGroup => exchange.consumer.as_ref()?.group.as_ref()?.as_str().into(),
            Self::Credential => exchange.consumer.as_ref()?.credential.as_deref()?.into(),
            Self::RouteId => route?.id.as_str().into(),
            Self::RouteName => route?.name.as_deref()?.into(),
            Self::ServiceId => Reading::Text(optional(route?.service.as_ref())?.into()),
            Self::ServiceName => route?.service_name.as_deref()?.into(),
            Self::BalancerIp => Reading::Address(exchange.endpoint?.ip().to_canonical()),
            Self::BalancerPort => Reading::Number(exchange.endpoint?.port().into()),
            Self::UpstreamAddress => Reading::Text(exchange.endpoint?.to_string().into()),
            Self::UpstreamStatus => match exchange.upstream_statuses.as_slice() {
                [] => return None,
                [one] => Reading::Number((*one).into()),
                many => {
                    let texts: Vec<String> = many.iter().map(u16::to_string).collect();
                    Reading::Text(texts.join(", ").into())
                }
            },
            Self::Status => match exchange.response.status() {
                0 => return None,
                status => Reading::Number(status.into()),
            },
            Self::RequestLength => Reading::Number(exchange.bytes_in),
            Self::BytesSent => Reading::Number(exchange.bytes_out),
            Self::RequestTime => {
                let seconds = exchange.times.started.elapsed().as_secs_f64();
                Reading::Text(format!("{seconds:.3}").into())
            }
            Self::Now => {
                let millis = rt::unix_millis();
                Reading::Text(format!("{}.{:03}", millis / 1000, millis % 1000).into())
            }
            Self::RequestId => exchange.notes.find::<RequestId>()?.0.as_str().into(),
            Self::SslServerName => client.sni.as_deref()?.into(),
            Self::SslClientVerify => if peer.is_some() { "SUCCESS" } else { "NONE" }.into(),
            Self::PeerSerial | Self::WardgatePeerSerial => peer?.serial.as_str().into(),
            Self::PeerId => peer?.id.as_str().into(),
            Self::PeerTrustDomain => peer?.id.trust_domain_name().into(),
            Self::PeerSha256 => peer?.sha256.as_str().into(),
            Self::TokenSubject => exchange.token.as_ref()?.id.as_str().into(),
            Self::TokenTrustDomain => exchange.token.as_ref()?.id.trust_domain_name().into(),
            Self::TokenAudience => match exchange.token.as_ref()?.audiences.as_slice() {
                [one] => one.as_str().into(),
                many => Reading::Text(many.join(" ").into()),
            },
            Self::TokenId => exchange.token.as_ref()?.token_id.as_deref()?.into(),
            Self::TokenHash => exchange.token.as_ref()?.hash.as_str().into(),
            Self::Identity => client.me.as_ref()?.as_str().into(),
        })
    }
}

/// As in APISIX the normal path with the query: a condition on it is not evaded by another spelling of the path.
fn request_uri(exchange: &Exchange) -> Option<Cow<'_, str>> {
    let request = &exchange.request;
    let uri = exchange.uri()?;
    let query = request.query().filter(|query| !query.is_empty());
    if uri.len() == request.path().len() && matches!(uri, Cow::Borrowed(_)) {
        return Some(Cow::Borrowed(if query.is_some() {
            request.target()
        } else {
            request.path()
        }));
    }
    let mut text = String::from_utf8_lossy(&uri).into_owned();
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
    Some(Cow::Owned(text))
}

/// Why a variable that APISIX has is none here.
fn elsewhere(name: &str) -> Option<&'static str> {
    const BODY: &str = "conditions are judged before the body has come";
    const STREAM: &str = "it belongs to stream routes";
    Some(match name {
        "graphql_name" | "graphql_operation" | "graphql_root_fields" | "request_body" => BODY,
        "resp_body" => "no condition waits for the response's body",
        "mqtt_client_id" | "rpc_time" | "redis_cmd_line" => STREAM,
        "upstream_unresolved_host" => "see balancer_ip and balancer_port",
        _ if name.starts_with("post_arg_") || name.starts_with("post_arg.") => BODY,
        _ => return None,
    })
}

fn present(text: &str) -> Option<Reading<'_>> {
    (!text.is_empty()).then_some(text.into())
}

/// The lines of a header named as a variable names it: a dash in the name is an underscore.
fn lines<'a>(head: &'a super::Head, variable: &str) -> impl Iterator<Item = Cow<'a, str>> {
    let is = move |name: &str| {
        name.len() == variable.len()
            && name.bytes().zip(variable.bytes()).all(|(found, wanted)| {
                found.to_ascii_lowercase() == wanted || (found == b'-' && wanted == b'_')
            })
    };
    head.fields()
        .filter(move |field| is(field.name))
        .map(|field| String::from_utf8_lossy(field.value))
}

/// All lines as one value, as nginx joins them: with commas, cookies with semicolons.
fn joined<'a>(head: &'a super::Head, variable: &str) -> Option<Reading<'a>> {
    let mut lines = lines(head, variable);
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(Reading::Text(first)) };
    let separator = if variable == "cookie" { "; " } else { ", " };
    let mut all = first.into_owned();
    for line in std::iter::once(second).chain(lines) {
        all.push_str(separator);
        all.push_str(&line);
    }
    Some(Reading::Text(all.into()))
}

fn cookies<'a>(exchange: &'a Exchange, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    exchange.request.all("cookie").flat_map(move |line| {
        line.split(|b| *b == b';').filter_map(move |pair| {
            let at = memchr::memchr(b'=', pair)?;
            (pair[..at].trim_ascii() == name.as_bytes())
                .then(|| String::from_utf8_lossy(pair[at + 1..].trim_ascii()))
        })
    })
}

/// Text with variables: `$name`, `${name}`, `${name ?? default}`; `\$` is a dollar. `$1` is a group of an expression.
/// ```
/// # use wardgate::pipeline::Template;
/// assert!(Template::parse("https://$host${request_uri}").is_ok());
/// assert!(Template::parse("$no_such_variable").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(Variable, Option<String>),
    Group(usize),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// It names an unknown variable.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            if rest[..at].ends_with('\\') {
                literal.push_str(&rest[..at - 1]);
                literal.push('$');
                rest = &rest[at + 1..];
                continue;
            }
            literal.push_str(&rest[..at]);
            let Some((name, default, after)) = reference(&rest[at + 1..]) else {
                // A lone dollar is a dollar.
                literal.push('$');
                rest = &rest[at + 1..];
                continue;
            };
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(match name.parse() {
                Ok(group) => Part::Group(group),
                Err(_) => Part::Variable(Variable::parse(name)?, default.map(str::to_owned)),
            });
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self(parts))
    }

    /// What one variable is, named without the dollar. Its name may have characters that end a name within a text.
    ///
    /// # Errors
    /// There is no such variable.
    pub fn of_variable(name: &str) -> Result<Self, Invalid> {
        Ok(Self(vec![Part::Variable(Variable::parse(name)?, None)]))
    }

    /// The text, when there is nothing to fill in.
    pub fn fixed(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the text for `exchange`; gives the number of variables that had a value.
    pub fn render(&self, exchange: &Exchange, out: &mut String) -> usize {
        self.render_with(exchange, &mut |_, _| {}, out)
    }

    /// The same, with `group` to append what `$1` and the like stand for.
    pub fn render_with(
        &self,
        exchange: &Exchange,
        group: &mut dyn FnMut(usize, &mut String),
        out: &mut String,
    ) -> usize {
        let mut found = 0;
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Group(number) => group(*number, out),
                Part::Variable(variable, default) => match (variable.read(exchange), default) {
                    (Some(reading), _) => {
                        reading.write(out);
                        found += 1;
                    }
                    (None, Some(default)) => {
                        out.push_str(default);
                        found += 1;
                    }
                    (None, None) => {}
                },
            }
        }
        found
    }

    /// The highest group that it names.
    pub fn highest_group(&self) -> Option<usize> {
        self.0
            .iter()
            .filter_map(|part| if let Part::Group(group) = part { Some(*group) } else { None })
            .max()
    }
}

/// A variable's name behind its dollar, its default, and what follows.
fn reference(text: &str) -> Option<(&str, Option<&str>, &str)> {
    let word =
        |text: &str| text.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    if let Some(braced) = text.strip_prefix('{') {
        let (inside, after) = braced.split_once('}')?;
        let (name, default) = match inside.split_once("??") {
            Some((name, default)) => (name.trim(), Some(default.trim())),
            None => (inside.trim(), None),
        };
        return (!name.is_empty() && word(name) == name.len()).then_some((name, default, after));
    }
    let length = word(text);
    (length > 0).then(|| (&text[..length], None, &text[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;

    fn read(exchange: &Exchange, name: &str) -> Option<String> {
        Variable::parse(name).unwrap().read(exchange).map(|reading| reading.text().into_owned())
    }

    #[test]
    fn every_variable_reads_what_nginx_reads() {
        let mut exchange = exchange("GET", "/a//b%20c?x=1&y=%41+b&x=2&z", "Shop.Example:8080");
        exchange.request.append("User-Agent", b"curl");
        exchange.request.append("X_Odd-Name", b"one");
        exchange.request.append("x-odd-name", b"two");
        exchange.request.append("Cookie", b"a=1; b=2");
        exchange.request.append("cookie", b"c=3");
        exchange.params.push(("id".into(), "7".into()));
        for (name, value) in [
            ("uri", Some("/a/b c")),
            ("document_uri", Some("/a/b c")),
            ("request_uri", Some("/a/b c?x=1&y=%41+b&x=2&z")),
            ("real_request_uri", Some("/a//b%20c?x=1&y=%41+b&x=2&z")),
            ("args", Some("x=1&y=%41+b&x=2&z")),
            ("query_string", Some("x=1&y=%41+b&x=2&z")),
            ("is_args", Some("?")),
            ("host", Some("shop.example")),
            ("http_host", Some("Shop.Example:8080")),
            ("request_method", Some("GET")),
            ("scheme", Some("http")),
            ("https", Some("")),
            ("http2", Some("")),
            ("remote_addr", Some("192.0.2.7")),
            ("remote_port", Some("40000")),
            ("server_addr", Some("192.0.2.1")),
            ("server_port", Some("9080")),
            ("arg_x", Some("1")),
            ("arg_y", Some("A b")),
            ("arg_z", Some("")),
            ("arg_w", None),
            ("http_user_agent", Some("curl")),
            ("http_user-agent", Some("curl")),
            ("http_x_odd_name", Some("one, two")),
            ("http_absent", None),
            ("cookie_b", Some("2")),
            ("cookie_c", Some("3")),
            ("cookie_d", None),
            ("http_cookie", Some("a=1; b=2; c=3")),
            ("uri_param_id", Some("7")),
            ("uri_param_other", None),
            ("route_id", Some("r1")),
            ("route_name", Some("first")),
            ("service_id", None),
            ("consumer_name", None),
            ("status", None),
            ("balancer_ip", None),
            ("upstream_status", None),
            ("wardgate_peer_id", Some("spiffe://shop/web")),
            ("wardgate_peer_trust_domain", Some("shop")),
            ("ssl_client_verify", Some("SUCCESS")),
            ("server_name", Some("_")),
        ] {
            assert_eq!(read(&exchange, name).as_deref(), value, "{name}");
        }
        exchange.response.set_status(502);
        exchange.response.append("Content-Type", b"text/html");
        exchange.upstream_statuses.extend([500, 502]);
        exchange.endpoint = Some("[::1]:80".parse().unwrap());
        assert_eq!(read(&exchange, "status").as_deref(), Some("502"));
        assert_eq!(read(&exchange, "sent_http_content_type").as_deref(), Some("text/html"));
        assert_eq!(read(&exchange, "upstream_status").as_deref(), Some("500, 502"));
        assert_eq!(read(&exchange, "balancer_ip").as_deref(), Some("::1"));
        for (unknown, _) in [("foo", ()), ("http_", ()), ("", ()), ("Uri", ())] {
            assert!(Variable::parse(unknown).is_err(), "{unknown}");
        }
        for (name, _) in KNOWN {
            // No panic, whatever the exchange lacks.
            let _ = read(&exchange, name);
        }
    }

    #[test]
    fn numbers_are_what_lua_takes_for_numbers() {
        for (text, number) in [
            ("1", Some(1.0)),
            (" 2.5 ", Some(2.5)),
            ("-3", Some(-3.0)),
            ("1e3", Some(1000.0)),
            ("0x10", Some(16.0)),
            (".5", Some(0.5)),
            ("", None),
            ("-", None),
            ("inf", None),
            ("nan", None),
            ("1a", None),
            ("--1", None),
        ] {
            assert_eq!(number_of(text), number, "{text:?}");
        }
    }

    #[test]
    fn templates_fill_in_what_is_there() {
        let exchange = exchange("GET", "/p?x=1", "h");
        for (template, text, found) in [
            ("plain", "plain", 0),
            ("https://$host$request_uri", "https://h/p?x=1", 2),
            ("${uri}x", "/px", 1),
            ("$arg_none", "", 0),
            ("${arg_none ?? 10}", "10", 1),
            ("${ arg_x ?? 10 }", "1", 1),
            (r"\$host", "$host", 0),
            ("a$", "a$", 0),
            ("$ {host}", "$ {host}", 0),
            ("${host", "${host", 0),
            ("$1-$host", "<1>-h", 1),
        ] {
            let mut out = String::new();
            let parsed = Template::parse(template).unwrap();
            let count = parsed.render_with(
                &exchange,
                &mut |group, out| {
                    let _ = write!(out, "<{group}>");
                },
                &mut out,
            );
            assert_eq!((out.as_str(), count), (text, found), "{template}");
        }
        assert!(Template::parse("$hots").unwrap_err().to_string().contains("'hots'"));
    }
}
