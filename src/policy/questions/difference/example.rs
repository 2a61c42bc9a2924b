//! A request for every claim: put together from the values of a region, and decided by both engines before it is shown.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::{Map, Value as Json};

use super::super::super::{Outcome, Policy};
use super::super::engine::is_within;
use super::super::policies::Policies;
use super::super::target::Target;
use super::space::{Standing, Value, set};
use super::{Decided, Example};
use crate::identity::SpiffeId;
use crate::model::{From, PolicyRule, TimeWindow, To, ValueMatch, When};

/// Both sets, ready to decide.
pub(super) struct Engines<'a> {
    old: &'a Policies,
    new: &'a Policies,
    by_workload: HashMap<SpiffeId, (Policy, Policy)>,
    /// The time that is now, for claims that do not turn on it.
    now: i64,
}

impl<'a> Engines<'a> {
    pub(super) fn new(old: &'a Policies, new: &'a Policies, now: i64) -> Self {
        Self { old, new, by_workload: HashMap::new(), now }
    }

    /// An example of these values for which the new set allows what the old one refuses (`gained`), or the other way round.
    pub(super) fn example(&mut self, values: &[&Value], gained: bool) -> Option<Example> {
        let workload = values.iter().find_map(|value| match value {
            Value::Workload(id) => Some(id),
            _ => None,
        })?;
        let caller = values.iter().find_map(|value| match value {
            Value::Caller(id) => Some(id.as_ref()),
            _ => None,
        })?;
        let target = put_together(values, self.now)?;
        let (old, new) = self.decide(workload, caller, &target);
        ((old.allowed, new.allowed) == (!gained, gained)).then(|| {
            let (workload, identity) = (workload.to_string(), caller.map(ToString::to_string));
            Example { workload, identity, target, old, new }
        })
    }

    pub(super) fn decide(
        &mut self,
        workload: &SpiffeId,
        caller: Option<&SpiffeId>,
        target: &Target,
    ) -> (Decided, Decided) {
        if self.by_workload.len() > 64 {
            self.by_workload.clear();
        }
        let (old, new) = self
            .by_workload
            .entry(workload.clone())
            .or_insert_with(|| (self.old.engine(workload), self.new.engine(workload)));
        let fields = target.fields();
        let action = target.action(&fields);
        let decided = |policies: &Policies, engine: &Policy| {
            let outcome: Outcome = engine.decide(&engine.standing_of(caller), &action).outcome;
            Decided {
                allowed: outcome.is_allowed(),
                reason: outcome.reason().map(|reason| reason.code().to_owned()),
                rule: policies.via(engine, outcome),
            }
        };
        (decided(self.old, old), decided(self.new, new))
    }
}

/// A whole target; `None` when conditions contradict each other.
fn put_together(values: &[&Value], now: i64) -> Option<Target> {
    let mut target = Target {
        method: Some("GET".into()),
        host: Some("some.test".into()),
        path: Some("/".into()),
        query: Some(String::new()),
        port: Some(15006),
        headers: Some(Vec::new()),
        source: Some(IpAddr::from([192, 0, 2, 1])),
        unix_seconds: Some(now),
        lot: Some(0),
        ..Target::default()
    };
    for value in values {
        set(&mut target, value);
    }
    for value in values {
        if let Value::Condition(rule, Standing::Holds) = value {
            satisfy(rule, &mut target)?;
        }
    }
    for value in values {
        if let Value::Condition(rule, Standing::Fails) = value {
            refute(rule, &mut target)?;
        }
    }
    if target.connection {
        target.method = None;
        target.path = None;
        target.query = None;
        target.headers = None;
        target.claims = None;
        target.upgrade = None;
        target.route = None;
    }
    Some(target)
}

/// Makes a part of a rule hold.
fn satisfy(rule: &PolicyRule, target: &mut Target) -> Option<()> {
    if let Some(To { grpc, .. }) = &rule.to
        && !grpc.is_empty()
    {
        target
            .headers
            .get_or_insert_default()
            .push(("content-type".into(), "application/grpc".into()));
    }
    if let Some(From { ip_blocks, remote_ip_blocks, claims, .. }) = &rule.from {
        if let Some(block) = ip_blocks.first() {
            target.source = Some(address_of(block)?);
        }
        if let Some(block) = remote_ip_blocks.first() {
            target.remote = Some(address_of(block)?);
        }
        for claim in claims {
            if let Some(value) = fitting(claim) {
                put_claim(target.claims.get_or_insert_default(), &claim.name, value)?;
            }
            target.claims.get_or_insert_default();
        }
    }
    if let Some(When { headers, query, times, .. }) = &rule.when {
        for header in headers {
            if let Some(value) = fitting(header) {
                add_header(target, &header.name, value);
            }
        }
        for parameter in query {
            if let Some(value) = fitting(parameter) {
                add_parameter(target, &parameter.name, &value);
            }
        }
        if let Some(span) = times.first() {
            target.unix_seconds = moment_in(span, target.unix_seconds.unwrap_or_default());
        }
    }
    Some(())
}

/// Makes a part of a rule not hold.
fn refute(rule: &PolicyRule, target: &mut Target) -> Option<()> {
    if let Some(From { ip_blocks, remote_ip_blocks, claims, .. }) = &rule.from {
        let inside = |blocks: &[String], address: Option<IpAddr>| {
            let nets = blocks.iter().filter_map(|block| network(block));
            address.is_some_and(|address| nets.into_iter().any(|net| net.contains(&address)))
        };
        let elsewhere = ["192.0.2.1", "198.51.100.7", "203.0.113.9", "2001:db8::7"];
        let outside = |blocks: &[String]| {
            let mut all = elsewhere.iter().filter_map(|text| text.parse::<IpAddr>().ok());
            all.find(|address| !inside(blocks, Some(*address)))
        };
        if !ip_blocks.is_empty() && inside(ip_blocks, target.source) {
            target.source = Some(outside(ip_blocks)?);
        }
        if !remote_ip_blocks.is_empty() && inside(remote_ip_blocks, target.remote.or(target.source))
        {
            target.remote = Some(outside(remote_ip_blocks)?);
        }
        for claim in claims {
            let claims = target.claims.get_or_insert_default();
            if let Some(value) = unfit(claim).filter(|_| !claims.contains_key(&claim.name)) {
                put_claim(claims, &claim.name, value)?;
            }
        }
    }
    if let Some(When { headers, query, times, .. }) = &rule.when {
        for header in headers {
            if let Some(value) = unfit(header) {
                add_header(target, &header.name, value);
            }
        }
        for parameter in query {
            if let Some(value) = unfit(parameter) {
                add_parameter(target, &parameter.name, &value);
            }
        }
        let now = target.unix_seconds.unwrap_or_default();
        if times.iter().any(|span| is_within(span, now)) {
            let all = times.iter().flat_map(|span| moments(span, now));
            let outside = |moment: &i64| !times.iter().any(|span| is_within(span, *moment));
            target.unix_seconds = Some(all.into_iter().find(outside)?);
        }
    }
    Some(())
}

/// A text that a pattern means: a star stands for any text.
fn meant_by(pattern: &str) -> String {
    if pattern == "*" { "any".to_owned() } else { pattern.replace('*', "any") }
}

/// A value for which the entry holds; nothing where it must be absent.
fn fitting(entry: &ValueMatch) -> Option<String> {
    match (entry.present, entry.values.first()) {
        (Some(false), _) => None,
        (_, Some(pattern)) => Some(meant_by(pattern)),
        (_, None) => Some("some-other-value".to_owned()),
    }
}

/// A value for which the entry does not hold; nothing where its absence does.
fn unfit(entry: &ValueMatch) -> Option<String> {
    match (entry.present, entry.not_values.first()) {
        (Some(false), _) => Some("any".to_owned()),
        (Some(true), _) => None,
        (None, Some(pattern)) => Some(meant_by(pattern)),
        (None, None) => Some("some-other-value".to_owned()),
    }
}

/// Adds a header field; what is there already stays alone.
fn add_header(target: &mut Target, name: &str, value: String) {
    let headers = target.headers.get_or_insert_default();
    if !headers.iter().any(|(found, _)| found.eq_ignore_ascii_case(name)) {
        headers.push((name.to_owned(), value));
    }
}

fn add_parameter(target: &mut Target, name: &str, value: &str) {
    let encode = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let query = target.query.get_or_insert_default();
    let name_is = encode(name);
    if query.split('&').any(|pair| pair.split('=').next() == Some(&name_is)) {
        return;
    }
    if !query.is_empty() {
        query.push('&');
    }
    query.push_str(&format!("{}={}", encode(name), encode(value)));
}

/// Puts a claim where its name points; through what is there already and is no object it cannot.
fn put_claim(claims: &mut Map<String, Json>, name: &str, value: String) -> Option<()> {
    let way: Vec<String> = match name.strip_prefix('/') {
        Some(rest) => {
            rest.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect()
        }
        None => vec![name.to_owned()],
    };
    let (last, before) = way.split_last()?;
    let mut place = claims;
    for step in before {
        place = place
            .entry(step.clone())
            .or_insert_with(|| Json::Object(Map::new()))
            .as_object_mut()?;
    }
    place.insert(last.clone(), Json::String(value));
    Some(())
}

fn network(text: &str) -> Option<ipnet::IpNet> {
    text.parse::<ipnet::IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(Into::into))
}

fn address_of(block: &str) -> Option<IpAddr> {
    let net = network(block)?;
    net.hosts().next().or(Some(net.addr()))
}

/// A moment in the span, the next from now on.
fn moment_in(span: &TimeWindow, now: i64) -> Option<i64> {
    moments(span, now).into_iter().find(|moment| is_within(span, *moment))
}

/// Moments at which a span may begin or end: now, its bounds, and each quarter of an hour of a week after them.
fn moments(span: &TimeWindow, now: i64) -> Vec<i64> {
    let bound = |text: &Option<String>| {
        let text = text.as_ref()?;
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(text, format).ok().map(|moment| moment.unix_timestamp())
    };
    let bounds = [
        bound(&span.not_before),
        bound(&span.not_after).map(|end| end - 8 * 86_400),
        bound(&span.not_after),
    ];
    let starts = std::iter::once(now).chain(bounds.into_iter().flatten());
    let around = |start: i64| {
        [start - 1, start].into_iter().chain((0..7 * 96).map(move |quarter| start + 900 * quarter))
    };
    starts.flat_map(around).collect()
}
