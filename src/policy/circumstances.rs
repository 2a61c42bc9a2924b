//! Under which circumstances: networks, headers, the query, times, claims, and a condition.

use super::action::Facts;
use super::claims::Claim;
use super::condition::{Asks, Condition};
use super::decision::{Clause, Reason};
use super::networks::{self, Networks};
use super::path::Readings;
use super::query;
use super::rule::{Holding, Wrong, each};
use super::times::Window;
use super::values::Wanted;
use crate::model::{From, PolicyAction, When};
use crate::policy::Token;

/// From which networks.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) ip_blocks: Networks,
    pub(super) not_ip_blocks: Networks,
    pub(super) remote_ip_blocks: Networks,
    pub(super) not_remote_ip_blocks: Networks,
}

impl Sources {
    /// `None` when the rule asks for no network.
    pub(super) fn compile(from: &From) -> Result<Option<Box<Self>>, Wrong> {
        let list = |field: &str, texts: &[String]| {
            each(field, texts, networks::parse).map(|nets| Networks::of(&nets))
        };
        let sources = Self {
            ip_blocks: list("from.ip_blocks", &from.ip_blocks)?,
            not_ip_blocks: list("from.not_ip_blocks", &from.not_ip_blocks)?,
            remote_ip_blocks: list("from.remote_ip_blocks", &from.remote_ip_blocks)?,
            not_remote_ip_blocks: list("from.not_remote_ip_blocks", &from.not_remote_ip_blocks)?,
        };
        let Self { ip_blocks, not_ip_blocks, remote_ip_blocks, not_remote_ip_blocks } = &sources;
        let all = [ip_blocks, not_ip_blocks, remote_ip_blocks, not_remote_ip_blocks];
        let asks = all.into_iter().any(|networks| !networks.is_empty());
        Ok(asks.then(|| Box::new(sources)))
    }

    /// The first part that does not hold. An address that is not known allows nothing and refuses.
    pub(super) fn fails(&self, facts: &Facts<'_>, action: PolicyAction) -> Option<Clause> {
        let unknown = action == PolicyAction::Deny;
        let source = facts.action.source;
        let remote = facts.action.remote.or(source);
        let within = |list: &Networks, address: Option<std::net::IpAddr>, wanted: bool| {
            list.is_empty() || address.map_or(unknown, |address| list.contain(address) == wanted)
        };
        [
            (Clause::IpBlocks, within(&self.ip_blocks, source, true)),
            (Clause::NotIpBlocks, within(&self.not_ip_blocks, source, false)),
            (Clause::RemoteIpBlocks, within(&self.remote_ip_blocks, remote, true)),
            (Clause::NotRemoteIpBlocks, within(&self.not_remote_ip_blocks, remote, false)),
        ]
        .into_iter()
        .find_map(|(clause, holds)| (!holds).then_some(clause))
    }
}

/// Under which circumstances.
#[derive(Debug, Default)]
pub(super) struct Circumstances {
    pub(super) headers: Box<[Wanted]>,
    pub(super) query: Box<[Wanted]>,
    pub(super) times: Box<[Window]>,
    pub(super) not_times: Box<[Window]>,
    pub(super) claims: Box<[Claim]>,
    pub(super) condition: Option<Condition>,
}

impl Circumstances {
    /// `None` when the rule asks for none.
    pub(super) fn compile(
        from: Option<&From>,
        when: Option<&When>,
    ) -> Result<Option<Box<Self>>, Wrong> {
        fn list<'m, M, T>(
            field: &str,
            entries: &'m [M],
            compile: impl Fn(&str, &'m M) -> Result<T, Wrong>,
        ) -> Result<Box<[T]>, Wrong> {
            let entries = entries.iter().enumerate();
            entries.map(|(at, entry)| compile(&format!("{field}[{at}]"), entry)).collect()
        }
        let mut all = Self::default();
        if let Some(from) = from {
            all.claims = list("from.claims", &from.claims, Claim::compile)?;
        }
        if let Some(when) = when {
            all.headers = list("when.headers", &when.headers, |field, entry| {
                let wanted = Wanted::compile(field, entry)?;
                check_header(&wanted.name)
                    .map_err(|why| Wrong::new(format!("{field}.name"), why))?;
                Ok(wanted)
            })?;
            all.query = list("when.query", &when.query, Wanted::compile)?;
            all.times = list("when.times", &when.times, Window::compile)?;
            all.not_times = list("when.not_times", &when.not_times, Window::compile)?;
            if let Some(text) = &when.cel {
                let condition =
                    Condition::compile(text).map_err(|why| Wrong::new("when.cel", why))?;
                all.condition = Some(condition);
            }
        }
        let asks = all.condition.is_some()
            || all.asks_time()
            || !(all.claims.is_empty() && all.headers.is_empty() && all.query.is_empty());
        Ok(asks.then(|| Box::new(all)))
    }

    /// The first part that does not hold; claims and conditions are judged by [`Circumstances::hold`].
    pub(super) fn fails(&self, facts: &Facts<'_>, action: PolicyAction) -> Option<Clause> {
        let unknown = action == PolicyAction::Deny;
        if !self.headers.is_empty() {
            let holds = |wanted: &Wanted| match facts.http {
                None => unknown,
                Some(http) => {
                    let mut seen = wanted.start();
                    http.fields.each(&wanted.name, &mut |line| seen.line(line));
                    seen.holds(action)
                }
            };
            if !self.headers.iter().all(holds) {
                return Some(Clause::Headers);
            }
        }
        if !self.query.is_empty() {
            let holds = |wanted: &Wanted| match facts.query() {
                None => unknown,
                Some(text) => {
                    let mut seen = wanted.start();
                    query::each(text, &wanted.name, |value| seen.value(value));
                    seen.holds(action)
                }
            };
            if !self.query.iter().all(holds) {
                return Some(Clause::Query);
            }
        }
        if !self.times.is_empty() && !within(&self.times, facts).unwrap_or(unknown) {
            return Some(Clause::Times);
        }
        if !self.not_times.is_empty() && within(&self.not_times, facts).unwrap_or(!unknown) {
            return Some(Clause::NotTimes);
        }
        None
    }

    /// Do the claims and the condition hold? The first that does not.
    pub(super) fn hold(&self, facts: &Facts<'_>, action: PolicyAction) -> Result<Holding, Clause> {
        let unknown = action == PolicyAction::Deny;
        let mut holding = Holding::Yes;
        if !self.claims.is_empty() {
            match facts.token() {
                Token::Awaited => holding = Holding::Pending,
                Token::Absent if !unknown => return Err(Clause::Claims),
                Token::Absent => {}
                Token::Verified(claims) => {
                    if !self.claims.iter().all(|claim| claim.holds(claims, action)) {
                        return Err(Clause::Claims);
                    }
                }
            }
        }
        let Some(condition) = &self.condition else { return Ok(holding) };
        match condition.holds(facts.caller, facts.action) {
            Some(true) => Ok(holding),
            Some(false) => Err(Clause::Cel),
            // What it cannot tell yet it may tell of the token.
            None if condition.asks().claims && matches!(facts.token(), Token::Awaited) => {
                Ok(Holding::Pending)
            }
            None if unknown => Ok(holding),
            None => Err(Clause::Cel),
        }
    }

    fn condition_asks(&self) -> Asks {
        self.condition.as_ref().map_or_else(Asks::default, Condition::asks)
    }

    pub(super) fn condition_asks_time(&self) -> bool {
        self.condition_asks().time
    }

    pub(super) fn asks_time(&self) -> bool {
        !(self.times.is_empty() && self.not_times.is_empty()) || self.condition_asks_time()
    }

    pub(super) fn asks_fields(&self) -> bool {
        !self.headers.is_empty() || self.condition_asks().headers
    }

    pub(super) fn asks_query(&self) -> bool {
        !self.query.is_empty() || self.condition_asks().query
    }

    pub(super) fn asks_token(&self) -> bool {
        !self.claims.is_empty() || self.condition_asks().claims
    }

    /// Does the condition look at the request?
    pub(super) fn condition_asks_http(&self) -> bool {
        self.condition_asks().http
    }

    /// Why a deny rule holds that asks for what cannot be told of this request.
    pub(super) fn unclear(&self, facts: &Facts<'_>) -> Option<Reason> {
        facts.http?;
        let no_token = matches!(facts.token(), Token::Absent);
        if no_token && !self.claims.is_empty() {
            return Some(Reason::NoToken);
        }
        if !self.query.is_empty() && facts.query().is_none() {
            return Some(Reason::UnclearInput);
        }
        let condition = self.condition.as_ref()?;
        if condition.holds(facts.caller, facts.action).is_some() {
            return None;
        }
        let asks = condition.asks();
        Some(match () {
            () if asks.identity && facts.caller.is_none() => Reason::NoIdentity,
            () if asks.claims && no_token => Reason::NoToken,
            () if asks.path && matches!(facts.readings(), Readings::Unclear) => {
                Reason::AmbiguousPath
            }
            () => Reason::UnclearInput,
        })
    }
}

/// Is the moment within one of the windows? `None` for a moment that no calendar has.
fn within(windows: &[Window], facts: &Facts<'_>) -> Option<bool> {
    let mut found = Some(false);
    for window in windows {
        match window.holds(facts.action.unix_seconds) {
            Some(true) => return Some(true),
            Some(false) => {}
            None => found = None,
        }
    }
    found
}

fn check_header(name: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let shown = name.escape_debug();
    if !name.bytes().all(fits) {
        return Err(format!("\"{shown}\" is no name of a header field"));
    }
    // Some protocols carry it elsewhere.
    match name.eq_ignore_ascii_case("host") {
        true => Err(format!("\"{shown}\": hosts are asked for by to.hosts")),
        false => Ok(()),
    }
}
