//! `Observations`: what was asked of whom in the past, equal requests counted as one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::audit::{Outcome, Seen};
use crate::identity::SpiffeId;
use crate::model::{Id, Labels};
use crate::policy::{Action, RouteFacts};

/// What was asked, as far as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// The workload that was called.
    pub dst: SpiffeId,
    /// Who called; `None`: a caller without an identity.
    pub src: Option<SpiffeId>,
    /// The listener's port.
    pub port: u16,
    /// The method; `None` for a connection at layer 4.
    pub method: Option<String>,
    /// The authority as received.
    pub host: String,
    /// The path as received, without the query.
    pub path: String,
    /// The route that matched.
    pub route: Option<Id>,
    /// The connection's other end, where the observations keep it.
    pub source: Option<IpAddr>,
    /// The caller that a trusted sender named, where the observations keep it.
    pub remote: Option<IpAddr>,
    /// Policy allowed it.
    pub was_allowed: bool,
}

impl Asked {
    /// The action that policy decides on. The labels are the route's, where they are known.
    pub fn action<'a>(&'a self, labels: Option<&'a Labels>) -> Action<'a> {
        static NONE: Labels = Labels::new();
        let action = match &self.method {
            None => Action::connection(self.port),
            Some(method) => {
                let labels = labels.unwrap_or(&NONE);
                let route = self.route.as_ref().map(|id| RouteFacts { id, labels });
                Action::http(self.port, method, &self.host, &self.path).on_route(route)
            }
        };
        Action { source: self.source, remote: self.remote, ..action }
    }
}

/// How often something was asked, and when. Times are in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Requests.
    pub count: u64,
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
}

impl Evidence {
    /// Nothing so far.
    pub const NONE: Self = Self { count: 0, first: u64::MAX, last: 0 };

    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.count += other.count;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

/// What the log told of and cannot be decided again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Requests to a workload whose identity the log does not tell, or tells as none.
    pub without_workload: u64,
    /// Requests whose caller, method, host or path were hidden before they were logged, or are no text.
    pub hidden: u64,
}

/// Decisions of the past, equal ones counted together.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    all: BTreeMap<Asked, Evidence>,
    keeps_sources: bool,
    skipped: Skipped,
}

impl Observations {
    /// Without the callers' addresses: they matter only to rules that name networks.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the callers' addresses.
    pub fn with_sources() -> Self {
        Self { keeps_sources: true, ..Self::default() }
    }

    /// Takes in one decision.
    pub fn add(&mut self, seen: &Seen) {
        let count = seen.count.max(1);
        let Some(dst) = seen.dst.as_deref().and_then(|dst| dst.parse().ok()) else {
            self.skipped.without_workload += count;
            return;
        };
        let src = match seen.src.as_deref().map(str::parse::<SpiffeId>) {
            None => None,
            Some(Ok(src)) => Some(src),
            Some(Err(_)) => {
                self.skipped.hidden += count;
                return;
            }
        };
        let is_known = seen.is_exact && (seen.method.is_none() || !seen.path.is_empty());
        if !is_known {
            self.skipped.hidden += count;
            return;
        }
        let asked = Asked {
            dst,
            src,
            port: seen.port,
            method: seen.method.clone(),
            host: seen.host.clone(),
            path: seen.path.clone(),
            route: seen.route.as_deref().and_then(|route| Id::parse(route).ok()),
            source: seen.source.filter(|_| self.keeps_sources),
            remote: seen.remote.filter(|_| self.keeps_sources),
            // What a plugin refused, policy had allowed.
            was_allowed: seen.outcome == Outcome::Allow || seen.mode == "plugin",
        };
        let evidence = Evidence { count, first: seen.time, last: seen.time };
        self.all.entry(asked).or_insert(Evidence::NONE).add(evidence);
    }

    /// All of them, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&Asked, Evidence)> {
        self.all.iter().map(|(asked, evidence)| (asked, *evidence))
    }

    /// What could not be taken in.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// Is there nothing?
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}
