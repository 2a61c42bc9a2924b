//! `Case`: one question to the engine, and what has to come of it.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::text::{
    CaseText, ConnectionText, Door, ExpectText, OneOrMany, OutcomeText, PolicyTest, RequestText,
};
use crate::identity::SpiffeId;
use crate::model::{Id, Labels};
use crate::policy::action::{Action, Content, Fields, Request, RouteFacts, Token};
use crate::policy::files::{Flaw, Node, Place};
use crate::policy::{Decision, Outcome, Policy, Reason};

/// The port of a sidecar's inbound listener where nothing else is said.
const INBOUND_PORT: u16 = 15006;

/// One question to the engine, and what has to come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Where it is written.
    pub place: Place,
    /// The test's name and the case's.
    pub name: String,
    /// Who asks; `None`: a caller without identity.
    pub caller: Option<SpiffeId>,
    /// The workload that decides.
    pub to: SpiffeId,
    pub(super) door: Door,
    pub(super) asked: Asked,
    /// What has to come of it.
    pub expected: Expected,
}

/// What has to come of a case. What is `None` may be anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Allowed?
    pub allowed: bool,
    /// The code of the reason.
    pub reason: Option<String>,
    /// The rule that decided: `policy/rule`.
    pub rule: Option<String>,
    /// Whether it would have been allowed, if what is only watched decided as well.
    pub would_be: Option<bool>,
}

/// What is asked for, owned.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    port: u16,
    source: Option<IpAddr>,
    remote: Option<IpAddr>,
    unix_seconds: Option<i64>,
    lot: u8,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Connection(Option<String>),
    Request(Box<AskedRequest>),
}

#[derive(Clone, Debug, Default)]
struct AskedRequest {
    method: String,
    host: String,
    path: String,
    query: Option<String>,
    headers: Headers,
    claims: Option<Map<String, Value>>,
    upgrade: Option<String>,
    route: Option<(Id, Labels)>,
}

#[derive(Clone, Debug, Default)]
struct Headers(Vec<(String, String)>);

impl Fields for Headers {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let named = self.0.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.for_each(|(_, value)| see(value.as_bytes()));
    }
}

impl Asked {
    /// As the engine takes it.
    pub(super) fn action(&self, now: i64) -> Action<'_> {
        let content = match &self.what {
            What::Connection(server_name) => {
                Content::Connection { server_name: server_name.as_deref() }
            }
            What::Request(request) => Content::Request(Request {
                method: &request.method,
                host: &request.host,
                path: &request.path,
                query: request.query.as_deref(),
                fields: &request.headers,
                upgrade: request.upgrade.as_deref(),
                token: request.claims.as_ref().map_or(Token::Absent, Token::Verified),
                route: request.route.as_ref().map(|(id, labels)| RouteFacts { id, labels }),
            }),
        };
        let Self { port, source, remote, lot, .. } = *self;
        let unix_seconds = self.unix_seconds.unwrap_or(now);
        Action { port, source, remote, unix_seconds, lot, content }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Connection(None) => write!(f, "connection to port {}", self.port),
            What::Connection(Some(name)) => {
                write!(f, "connection to port {}, server name {name}", self.port)
            }
            What::Request(request) => {
                write!(f, "{} ", request.method)?;
                if !request.host.is_empty() {
                    write!(f, "http://{}", request.host)?;
                }
                f.write_str(&request.path)?;
                match &request.query {
                    Some(query) => write!(f, "?{query}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Case {
    /// What is asked for, in words.
    pub fn what(&self) -> String {
        self.asked.to_string()
    }

    /// Who asks, in words.
    pub fn caller_text(&self) -> String {
        self.caller.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
    }

    pub(super) fn decide(&self, policy: &Policy, now: i64) -> Decision {
        let standing = policy.standing_of(self.caller.as_ref());
        let action = self.asked.action(now);
        match self.door {
            Door::Inbound => policy.decide(&standing, &action),
            Door::Ingress => policy.decide_public(&standing, &action),
        }
    }
}

impl Expected {
    /// What differs, in words; `None` when all is as expected.
    pub(super) fn differs(&self, policy: &Policy, decision: &Decision) -> Option<String> {
        let rule = rule_text(policy, decision.outcome);
        let reason = decision.outcome.reason().map(Reason::code);
        let would_be = decision.would_be.map(Outcome::is_allowed);
        let mut differs = Vec::new();
        if decision.is_allowed() != self.allowed {
            differs.push(format!("expected {}", word(self.allowed)));
        }
        if self.reason.is_some() && self.reason.as_deref() != reason {
            differs.push(format!("expected reason {}", self.reason.as_deref().unwrap_or_default()));
        }
        if self.rule.is_some() && self.rule != rule {
            differs.push(format!("expected rule {}", self.rule.as_deref().unwrap_or_default()));
        }
        if let Some(expected) = self.would_be
            && would_be.unwrap_or(decision.is_allowed()) != expected
        {
            differs.push(format!("expected would_be {}", word(expected)));
        }
        (!differs.is_empty()).then(|| differs.join(", "))
    }
}

pub(super) const fn word(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

/// `policy/rule` of the rule that decided.
pub(super) fn rule_text(policy: &Policy, outcome: Outcome) -> Option<String> {
    let name = policy.rule(outcome.rule()?)?;
    Some(format!("{}/{}", name.policy, name.rule))
}

/// All cases of a document: each caller, workload and request of each of them.
pub(in crate::policy) fn cases(file: &str, document: &Node) -> Result<Vec<Case>, Flaw> {
    let test: PolicyTest =
        document.without(&["kind"]).read().map_err(|misfit| misfit.in_file(file))?;
    if test.cases.is_empty() {
        return Err(Flaw::new(file, document.line_of("cases"), "cases: expected at least one"));
    }
    let mut cases = Vec::new();
    for (at, text) in test.cases.iter().enumerate() {
        let field = format!("cases[{at}]");
        let line = document.line_of(&field);
        let expanded = expand(&test, text, &Place { file: file.to_owned(), line });
        let flaw = |sentence: String| {
            let sentence = format!("{field}.{sentence}");
            Flaw::new(file, document.line_of(&sentence), sentence)
        };
        cases.extend(expanded.map_err(flaw)?);
    }
    Ok(cases)
}

fn expand(test: &PolicyTest, text: &CaseText, place: &Place) -> Result<Vec<Case>, String> {
    let callers = text.callers.as_ref().or(test.callers.as_ref());
    let callers = callers.ok_or("as: expected who asks: a SPIFFE ID, or none")?;
    let to = text.to.as_ref().or(test.to.as_ref());
    let to = to.ok_or("to: expected the SPIFFE ID of the workload")?;
    let expected = expected(&text.expect)?;
    let name = match &test.name {
        Some(test) => format!("{test}: {}", text.name),
        None => text.name.clone(),
    };
    let mut cases = Vec::new();
    for asked in asked(test, text)? {
        for to in &to.0 {
            let to: SpiffeId =
                to.parse().map_err(|error| format!("to: \"{}\" {error}", to.escape_debug()))?;
            for caller in &callers.0 {
                let caller = match caller.as_str() {
                    "none" => None,
                    id => Some(id.parse::<SpiffeId>().map_err(|error| {
                        format!("as: \"{}\" is neither none nor an ID: {error}", id.escape_debug())
                    })?),
                };
                cases.push(Case {
                    place: place.clone(),
                    name: name.clone(),
                    caller,
                    to: to.clone(),
                    door: text.door.or(test.door).unwrap_or_default(),
                    asked: asked.clone(),
                    expected: expected.clone(),
                });
            }
        }
    }
    Ok(cases)
}

fn asked(test: &PolicyTest, text: &CaseText) -> Result<Vec<Asked>, String> {
    let address = |field: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => match text.parse::<IpAddr>() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(format!("{field}: \"{}\" is no address", text.escape_debug())),
        },
    };
    let port = text.port.or(test.port).unwrap_or(INBOUND_PORT);
    let unix_seconds = match text.time.as_ref().or(test.time.as_ref()) {
        None => None,
        Some(text) => Some(
            OffsetDateTime::parse(text, &Rfc3339)
                .map_err(|_| format!("time: \"{}\" is no time of RFC 3339", text.escape_debug()))?
                .unix_timestamp(),
        ),
    };
    let lot = text.lot.unwrap_or(0);
    if lot > 99 {
        return Err("lot: expected 0 to 99".into());
    }
    if port == 0 {
        return Err("port: a port is 1 to 65535".into());
    }
    let asked = Asked {
        port,
        source: address("source", &text.source)?,
        remote: address("remote", &text.remote)?,
        unix_seconds,
        lot,
        what: What::Connection(None),
    };
    match (&text.request, &text.connection) {
        (Some(OneOrMany(requests)), None) => requests
            .iter()
            .map(|request| {
                let request =
                    request_of(request).map_err(|sentence| format!("request: {sentence}"))?;
                Ok(Asked { what: What::Request(Box::new(request)), ..asked.clone() })
            })
            .collect(),
        (None, Some(OneOrMany(connections))) => Ok(connections
            .iter()
            .map(|ConnectionText { port, server_name }| Asked {
                port: port.unwrap_or(asked.port),
                what: What::Connection(server_name.clone()),
                ..asked.clone()
            })
            .collect()),
        _ => Err("request: expected either a request or a connection".into()),
    }
}

fn request_of(text: &RequestText) -> Result<AskedRequest, String> {
    let parts = match text {
        RequestText::Line(line) => {
            let (method, url) = line
                .split_once(' ')
                .ok_or_else(|| format!("\"{}\": expected METHOD URL", line.escape_debug()))?;
            let mut request = url_of(url.trim())?;
            request.method = method.to_owned();
            return Ok(request);
        }
        RequestText::Parts(parts) => parts,
    };
    let mut request = match (&parts.url, &parts.host, &parts.path) {
        (Some(url), None, None) => url_of(url)?,
        (None, host, Some(path)) => {
            let mut request = AskedRequest::default();
            request.set_path(path);
            request.host = host.clone().unwrap_or_default();
            request
        }
        _ => return Err("expected either url, or path and host".into()),
    };
    request.method = parts.method.clone().unwrap_or_else(|| "GET".to_owned());
    for (name, values) in &parts.headers {
        request.headers.0.extend(values.0.iter().map(|value| (name.clone(), value.clone())));
    }
    request.claims.clone_from(&parts.claims);
    request.upgrade = parts.upgrade.as_ref().map(|upgrade| upgrade.to_ascii_lowercase());
    request.route = parts.route.as_ref().map(|route| (route.id.clone(), route.labels.clone()));
    Ok(request)
}

impl AskedRequest {
    fn set_path(&mut self, text: &str) {
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (text, None),
        };
        (self.path, self.query) = (path.to_owned(), query);
    }
}

/// `http://host/path?query`, or only its path. The path stays as it is written.
fn url_of(url: &str) -> Result<AskedRequest, String> {
    let mut request = AskedRequest::default();
    if let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        request.host = rest[..end].to_owned();
        match &rest[end..] {
            "" => request.path = "/".to_owned(),
            path if path.starts_with('?') => request.set_path(&format!("/{path}")),
            path => request.set_path(path),
        }
    } else if url.starts_with('/') || url == "*" {
        request.set_path(url);
    } else {
        let url = url.escape_debug();
        return Err(format!("\"{url}\": expected http://host/path, or a path"));
    }
    Ok(request)
}

fn expected(text: &ExpectText) -> Result<Expected, String> {
    let allowed = |outcome| outcome == OutcomeText::Allow;
    let parts = match text {
        ExpectText::Outcome(outcome) => {
            let (reason, rule, would_be) = (None, None, None);
            return Ok(Expected { allowed: allowed(*outcome), reason, rule, would_be });
        }
        ExpectText::Parts(parts) => parts,
    };
    if let Some(reason) = &parts.reason {
        let codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        if !codes.contains(&reason.as_str()) {
            let reason = reason.escape_debug();
            return Err(format!(
                "expect.reason: \"{reason}\": expected one of {}",
                codes.join(", ")
            ));
        }
        if allowed(parts.outcome) {
            return Err("expect.reason: only a refusal has one".into());
        }
    }
    if parts.rule.as_ref().is_some_and(|rule| !rule.contains('/')) {
        return Err("expect.rule: expected policy/rule".into());
    }
    Ok(Expected {
        allowed: allowed(parts.outcome),
        reason: parts.reason.clone(),
        rule: parts.rule.clone(),
        would_be: parts.would_be.map(allowed),
    })
}
