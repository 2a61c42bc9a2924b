//! Explanations: every rule that was tried, what did not hold, and what came nearest.

use serde::Serialize;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::action::{Action, Content, Facts, Request, Token};
use super::circumstances::{Circumstances, Sources};
use super::decision::{Clause, Decision};
use super::networks::Networks;
use super::policy_set::Policy;
use super::rule::Rule;
use super::targets::grpc_name;
use super::values::Wanted;
use crate::identity::SpiffeId;
use crate::model::{Mode, PolicyAction, Revision};

/// Why a decision is what it is.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What was decided.
    pub decision: Decision,
    /// All rules of the policies that select this workload, in order.
    pub tried: Vec<TriedRule>,
    /// The enforced allow rule that came nearest, when nothing allowed.
    pub nearest: Option<TriedRule>,
}

/// One rule, and whether it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TriedRule {
    /// The policy's id.
    pub policy: String,
    /// The rule's name, else its number, counted from 1.
    pub rule: String,
    /// The store's revision of the policy.
    pub revision: Revision,
    /// What a match means.
    pub action: PolicyAction,
    /// Whether the rule decides.
    pub mode: Mode,
    /// The first part that did not hold; `None` when the rule matched.
    pub failed: Option<Failure>,
}

/// A part of a rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Which part.
    pub clause: Clause,
    /// What the rule asks for.
    pub wanted: Vec<String>,
    /// What the action has.
    pub found: String,
}

impl Policy {
    /// Decides, and tells about every rule. For people: it looks at all rules and allocates.
    pub fn explain(&self, caller: Option<&SpiffeId>, action: &Action<'_>) -> Explanation {
        let standing = self.standing_of(caller);
        let decision = self.decide(&standing, action);
        let facts = Facts::of(action, caller);
        let tried = self.rules.iter().map(|rule| self.tried(rule, &facts)).collect();
        let nearest = match decision.is_allowed() {
            true => None,
            false => self.nearest(&standing, action),
        };
        let nearest = nearest.map(|near| self.tried(&self.rules[near.rule.0 as usize], &facts));
        Explanation { decision, tried, nearest }
    }

    fn tried(&self, rule: &Rule, facts: &Facts<'_>) -> TriedRule {
        let stated = self.stated(rule);
        let clause = self.failed(rule, facts).first().copied();
        TriedRule {
            policy: stated.id.to_string(),
            rule: rule.name.to_string(),
            revision: stated.revision,
            action: rule.action,
            mode: rule.mode,
            failed: clause.map(|clause| Failure {
                clause,
                wanted: self.wanted(rule, clause),
                found: found(rule, clause, facts),
            }),
        }
    }

    /// What the rule asks for by this part.
    fn wanted(&self, rule: &Rule, clause: Clause) -> Vec<String> {
        fn texts<T: ToString>(list: &[T]) -> Vec<String> {
            list.iter().map(T::to_string).collect()
        }
        let Rule { from, to, .. } = rule;
        let grpc = |list: &[super::path::Template]| list.iter().map(grpc_name).collect();
        let blocks = |of: fn(&Sources) -> &Networks| {
            rule.sources.as_ref().map_or_else(Vec::new, |sources| texts(of(sources).texts()))
        };
        let when = |of: fn(&Circumstances) -> Vec<String>| {
            rule.when.as_ref().map_or_else(Vec::new, |when| of(when))
        };
        match clause {
            Clause::Principals => texts(&from.principals),
            Clause::NotPrincipals => texts(&from.not_principals),
            Clause::TrustDomains => texts(&from.trust_domains),
            Clause::NotTrustDomains => texts(&from.not_trust_domains),
            Clause::Namespaces => texts(&from.namespaces),
            Clause::NotNamespaces => texts(&from.not_namespaces),
            Clause::ServiceAccounts => texts(&from.service_accounts),
            Clause::NotServiceAccounts => texts(&from.not_service_accounts),
            Clause::IpBlocks => blocks(|sources| &sources.ip_blocks),
            Clause::NotIpBlocks => blocks(|sources| &sources.not_ip_blocks),
            Clause::RemoteIpBlocks => blocks(|sources| &sources.remote_ip_blocks),
            Clause::NotRemoteIpBlocks => blocks(|sources| &sources.not_remote_ip_blocks),
            Clause::Selector => {
                let selector = &self.stated(rule).selector;
                let routes = selector.routes.iter().map(|id| format!("route {id}"));
                let labels =
                    selector.labels.iter().map(|(name, value)| format!("label {name}={value}"));
                routes.chain(labels).collect()
            }
            Clause::Ports => texts(&to.ports),
            Clause::NotPorts => texts(&to.not_ports),
            Clause::Methods => texts(&to.methods),
            Clause::NotMethods => texts(&to.not_methods),
            Clause::Hosts => texts(&to.hosts),
            Clause::NotHosts => texts(&to.not_hosts),
            Clause::Paths => texts(&to.paths),
            Clause::NotPaths => texts(&to.not_paths),
            Clause::Grpc => grpc(&to.grpc),
            Clause::NotGrpc => grpc(&to.not_grpc),
            Clause::Upgrades => texts(&to.upgrades),
            Clause::Captures => {
                let names = rule.captures.as_ref().map_or(&[][..], |captures| captures.names());
                names.iter().map(|name| format!("{{{name}}} is the same everywhere")).collect()
            }
            Clause::Claims => {
                when(|when| when.claims.iter().map(|claim| claim.wanted.to_string()).collect())
            }
            Clause::Headers => when(|when| texts(&when.headers)),
            Clause::Query => when(|when| texts(&when.query)),
            Clause::Times => when(|when| texts(&when.times)),
            Clause::NotTimes => when(|when| texts(&when.not_times)),
            Clause::Cel => when(|when| {
                when.condition.iter().map(|condition| condition.text().to_string()).collect()
            }),
        }
    }
}

/// What the action has, where the part looks. Never a header's value, a claim or the query: they may be secret.
fn found(rule: &Rule, clause: Clause, facts: &Facts<'_>) -> String {
    let http = |part: &dyn Fn(&Request<'_>) -> String| {
        facts.http.map_or_else(|| "nothing: not HTTP".to_string(), part)
    };
    let names = |wanted: &[Wanted]| {
        wanted.iter().map(|wanted| &*wanted.name).collect::<Vec<_>>().join(", ")
    };
    let when =
        |of: &dyn Fn(&Circumstances) -> String| rule.when.as_deref().map_or_else(String::new, of);
    let address = |address: Option<std::net::IpAddr>| {
        address.map_or_else(|| "unknown".to_string(), |address| address.to_canonical().to_string())
    };
    match clause {
        Clause::Principals
        | Clause::NotPrincipals
        | Clause::TrustDomains
        | Clause::NotTrustDomains
        | Clause::Namespaces
        | Clause::NotNamespaces
        | Clause::ServiceAccounts
        | Clause::NotServiceAccounts => {
            facts.caller.map_or_else(|| "no identity".to_string(), ToString::to_string)
        }
        Clause::IpBlocks | Clause::NotIpBlocks => address(facts.action.source),
        Clause::RemoteIpBlocks | Clause::NotRemoteIpBlocks => {
            address(facts.action.remote.or(facts.action.source))
        }
        Clause::Selector => facts.route.map_or_else(
            || "no route".to_string(),
            |route| format!("route {} {:?}", route.id, route.labels),
        ),
        Clause::Ports | Clause::NotPorts => facts.port.to_string(),
        Clause::Methods | Clause::NotMethods => http(&|http| http.method.to_string()),
        Clause::Hosts | Clause::NotHosts => match facts.action.content {
            Content::Request(request) => request.host.to_string(),
            Content::Connection { server_name } => {
                server_name.unwrap_or("nothing: no server name").to_string()
            }
        },
        Clause::Paths | Clause::NotPaths => http(&|http| http.path.to_string()),
        Clause::Grpc | Clause::NotGrpc => http(&|http| format!("{} {}", http.method, http.path)),
        Clause::Upgrades => http(&|http| http.upgrade.unwrap_or("no upgrade").to_string()),
        Clause::Captures => {
            let caller = facts.caller.map_or("no identity", SpiffeId::as_str);
            let host = facts.host().unwrap_or("no host");
            format!("{caller}, {host}, {}", http(&|http| http.path.to_string()))
        }
        Clause::Claims => match facts.token() {
            Token::Awaited => "a token that is awaited".into(),
            Token::Absent => "no verified token".into(),
            Token::Verified(claims) => {
                let names = claims.keys().map(String::as_str).collect::<Vec<_>>();
                format!("a token with the claims {}", names.join(", "))
            }
        },
        Clause::Headers => {
            http(&|_| when(&|when| format!("other values of {}", names(&when.headers))))
        }
        Clause::Query if facts.http.is_some() && facts.query().is_none() => {
            "a query that can be read in more than one way".into()
        }
        Clause::Query => http(&|_| when(&|when| format!("other values of {}", names(&when.query)))),
        Clause::Times | Clause::NotTimes => {
            let moment = OffsetDateTime::from_unix_timestamp(facts.action.unix_seconds).ok();
            let text = moment.and_then(|moment| moment.format(&Rfc3339).ok());
            text.unwrap_or_else(|| facts.action.unix_seconds.to_string())
        }
        Clause::Cel => when(&|when| match &when.condition {
            Some(condition) if condition.holds(facts.caller, facts.action).is_none() => {
                "it cannot be told".into()
            }
            _ => "it is not so".into(),
        }),
    }
}
