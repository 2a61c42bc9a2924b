//! The rule language once more: slow and obvious, straight from the text of the policies. Random policies and actions must
//! be decided alike by it and by the compiled index.
//!
//! Every part of a rule is found to match, not to match, or unclear. What is unclear never allows and always refuses.

mod comparison;
mod generators;
mod paths;
mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;

use generators::{Asked, CONDITIONS, Http, Known};
use ipnet::IpNet;
use paths::path_match;
use values::{Line, claim_values, parameters, value_holds};

use crate::identity::{SpiffeId, SpiffePattern};
use crate::model::{
    From, Id, IdentityPolicy, Mode, PolicyAction, PolicyRule, PolicySelector, TimeWindow, To, When,
};

/// What the reference finds: allowed or not, the policy and rule number that decided, and whether the token can change it.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    allowed: bool,
    rule: Option<(String, usize)>,
    awaits_token: bool,
}

/// Which rules decide.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Candidates {
    /// Those whose mode decides for the connection.
    Deciding,
    /// All of them.
    All,
    /// Those that are only watched.
    Watched,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Match {
    Yes,
    No,
    Unclear,
}

use Match::{No, Unclear, Yes};

fn yes(found: bool) -> Match {
    if found { Yes } else { No }
}

fn decide(
    policies: &[(Id, IdentityPolicy)],
    me: &SpiffeId,
    asked: &Asked,
    candidates: Candidates,
) -> Found {
    let mut sorted: Vec<_> = policies.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let rules = |action: PolicyAction, token_holds: bool| {
        let mut found = Vec::new();
        for (id, policy) in &sorted {
            if policy.action != action || !selects(&policy.selector, me, asked, action) {
                continue;
            }
            for (at, rule) in policy.rules.iter().enumerate() {
                if is_candidate(rule.mode.unwrap_or(policy.mode), asked.lot, candidates)
                    && holds(rule, me, asked, action, token_holds)
                {
                    found.push((id.to_string(), at + 1));
                }
            }
        }
        found
    };
    // Whoever awaits the token supposes once that it fits no rule, and once that it fits all of them.
    let [deny, deny_at_most] = [false, true].map(|fits| rules(PolicyAction::Deny, fits));
    let [allow, allow_at_most] = [false, true].map(|fits| rules(PolicyAction::Allow, fits));
    if let Some(rule) = deny.first() {
        return Found { allowed: false, rule: Some(rule.clone()), awaits_token: false };
    }
    let pending_deny = !deny_at_most.is_empty();
    match (allow.first(), allow_at_most.first()) {
        (Some(rule), _) => {
            Found { allowed: true, rule: Some(rule.clone()), awaits_token: pending_deny }
        }
        (None, Some(rule)) => Found { allowed: true, rule: Some(rule.clone()), awaits_token: true },
        (None, None) => Found { allowed: false, rule: None, awaits_token: false },
    }
}

fn is_candidate(mode: Mode, lot: u8, candidates: Candidates) -> bool {
    let decides = match mode {
        Mode::Enforce => true,
        Mode::Observe => false,
        Mode::Canary(percent) => lot < percent,
    };
    match candidates {
        Candidates::All => true,
        Candidates::Deciding => decides,
        Candidates::Watched => !decides,
    }
}

/// Does a policy with such a rule select the public route?
fn governs(
    policies: &[(Id, IdentityPolicy)],
    me: &SpiffeId,
    asked: &Asked,
    candidates: Candidates,
) -> bool {
    policies.iter().any(|(_, policy)| {
        let mut modes = policy.rules.iter().map(|rule| rule.mode.unwrap_or(policy.mode));
        selects(&policy.selector, me, asked, PolicyAction::Allow)
            && modes.any(|mode| is_candidate(mode, asked.lot, candidates))
    })
}

fn selects(selector: &PolicySelector, me: &SpiffeId, asked: &Asked, action: PolicyAction) -> bool {
    let PolicySelector { workloads, labels, routes } = selector;
    if !workloads.is_empty() && !workloads.iter().any(|text| pattern(text).matches(me)) {
        return false;
    }
    if labels.is_empty() && routes.is_empty() {
        return true;
    }
    match &asked.http {
        Ok(Http { route: Some((id, found)), .. }) => {
            (routes.is_empty() || routes.contains(id))
                && labels.iter().all(|(name, value)| found.get(name) == Some(value))
        }
        Ok(_) => false,
        Err(_) => action == PolicyAction::Deny,
    }
}

/// The pattern with stars for names.
fn pattern(text: &str) -> SpiffePattern {
    let parts = text.split('/').map(|part| if part.starts_with('{') { "*" } else { part });
    parts.collect::<Vec<_>>().join("/").parse().unwrap()
}

/// What a name in braces stands for, and whether its case means nothing.
type Binding = BTreeMap<String, (String, bool)>;

/// A rule with several principals and hosts is as several rules with one of each.
fn holds(
    rule: &PolicyRule,
    me: &SpiffeId,
    asked: &Asked,
    action: PolicyAction,
    token_holds: bool,
) -> bool {
    let from = rule.from.clone().unwrap_or_default();
    let to = rule.to.clone().unwrap_or_default();
    let one_each = |texts: &[String]| -> Vec<Vec<String>> {
        if texts.is_empty() {
            vec![vec![]]
        } else {
            texts.iter().map(|text| vec![text.clone()]).collect()
        }
    };
    one_each(&from.principals).into_iter().any(|principals| {
        let from = From { principals, ..from.clone() };
        one_each(&to.hosts).into_iter().any(|hosts| {
            let to = To { hosts, ..to.clone() };
            let when = rule.when.clone().unwrap_or_default();
            single_holds(&from, &to, &when, me, asked, action, token_holds)
        })
    })
}

fn single_holds(
    from: &From,
    to: &To,
    when: &When,
    me: &SpiffeId,
    asked: &Asked,
    action: PolicyAction,
    token_holds: bool,
) -> bool {
    let deny = action == PolicyAction::Deny;
    let to = &known_exceptions(from, to, asked, deny);
    let is = |found: Match| found == Yes || (deny && found == Unclear);
    let is_not = |found: Match| found == No || (deny && found == Unclear);
    let Some(binding) = bind(from, to, asked, deny) else { return false };
    let id = asked.caller.as_ref();
    let of_id = |judge: &dyn Fn(&SpiffeId) -> bool| id.map_or(Unclear, |id| yes(judge(id)));
    let principals = |list: &[String]| of_id(&|id| list.iter().any(|p| pattern(p).matches(id)));
    let domains = |list: &[String]| of_id(&|id| list.iter().any(|d| d == id.trust_domain_name()));
    let account = |id: &SpiffeId| {
        let parts: Vec<&str> = id.path().split('/').collect();
        let own = me.trust_domain_name() == id.trust_domain_name();
        let meant = match from.trust_domains.is_empty() {
            true => own,
            false => from.trust_domains.iter().any(|domain| domain == id.trust_domain_name()),
        };
        match parts.as_slice() {
            ["", "ns", namespace, "sa", name] if meant => {
                Some((namespace.to_string(), name.to_string()))
            }
            _ => None,
        }
    };
    let namespaces = |list: &[String]| {
        of_id(&|id| account(id).is_some_and(|(ns, _)| list.iter().any(|text| like(text, &ns))))
    };
    let accounts = |list: &[String]| {
        of_id(&|id| account(id).is_some_and(|(ns, name)| list.contains(&format!("{ns}/{name}"))))
    };
    let remote = asked.remote.or(asked.source);
    let http = asked.http.as_ref().ok();
    let of_http = |judge: &dyn Fn(&Http) -> Match| http.map_or(Unclear, judge);
    let hosts = |list: &[String], fixed: bool| match host(asked) {
        None => Unclear,
        Some(host) => yes(list
            .iter()
            .any(|text| host_means(text, &host) && (!fixed || binds(text, &host, &binding, deny)))),
    };
    let methods = |list: &[String]| {
        of_http(&|http| match http.method {
            ref method if list.contains(method) => Yes,
            ref method if list.iter().any(|m| m.eq_ignore_ascii_case(method)) => Unclear,
            _ => No,
        })
    };
    // What exempts is compared the other way round.
    let paths = |list: &[String], strictly: bool| {
        of_http(&|http| path_match(list, &http.path, &binding, to.ignore_case, strictly))
    };
    let grpc = |list: &[String]| {
        let templates: Vec<String> = list.iter().map(|method| format!("/{method}")).collect();
        of_http(&|http| match path_match(
            &templates,
            &http.path,
            &Binding::new(),
            to.ignore_case,
            true,
        ) {
            Yes if is_grpc(http) => Yes,
            No => No,
            _ => Unclear,
        })
    };
    let upgrades = of_http(&|http| match &http.upgrade {
        None => yes(to.upgrades.is_empty()),
        Some(_) if to.upgrades.is_empty() => Unclear,
        Some(offered) => {
            let among = |name: &str| {
                to.upgrades.iter().any(|text| text == "*" || text.eq_ignore_ascii_case(name))
            };
            let offered: Vec<bool> = offered.split(',').map(|name| among(name.trim())).collect();
            match (offered.contains(&true), offered.contains(&false)) {
                (true, false) => Yes,
                (true, true) => Unclear,
                _ => No,
            }
        }
    });
    let asks = |list: &[String]| !list.is_empty();
    let claims = from.claims.iter().all(|entry| match http.map(|http| &http.token) {
        Some(Known::Awaited) => token_holds,
        Some(Known::Verified(claims)) => {
            let pointer = match entry.name.starts_with('/') {
                true => entry.name.clone(),
                false => format!("/{}", entry.name.replace('~', "~0").replace('/', "~1")),
            };
            value_holds(entry, claim_values(claims.pointer(&pointer), &entry.name), action)
        }
        Some(Known::Absent) | None => deny,
    });
    let headers = when.headers.iter().all(|entry| match http {
        None => deny,
        Some(http) => {
            let lines = http.fields.iter().filter(|(name, _)| *name == entry.name);
            let lines: Vec<Line> = lines.map(|(_, line)| Line::Header(line.clone())).collect();
            value_holds(entry, (!lines.is_empty()).then_some(lines), action)
        }
    });
    let query = when.query.iter().all(|entry| {
        let Some(parameters) = http.and_then(|http| parameters(http.query.as_deref())) else {
            return deny;
        };
        let values = parameters.into_iter().filter(|(name, _)| *name == entry.name);
        let values: Vec<Line> = values.map(|(_, value)| Line::Value(value)).collect();
        value_holds(entry, (!values.is_empty()).then_some(values), action)
    });
    let condition = when.cel.as_ref().is_none_or(|text| match condition(text, asked) {
        Yes => true,
        No => false,
        Unclear => match http.map(|http| &http.token) {
            Some(Known::Awaited) if text.contains("token") => token_holds,
            _ => deny,
        },
    });
    let at = asked.unix_seconds;
    let times = |list: &[TimeWindow]| yes(list.iter().any(|window| in_window(window, at)));
    (!asks(&from.principals) || is(principals(&from.principals)))
        && (!asks(&from.not_principals) || is_not(principals(&from.not_principals)))
        && (!asks(&from.trust_domains) || is(domains(&from.trust_domains)))
        && (!asks(&from.not_trust_domains) || is_not(domains(&from.not_trust_domains)))
        && (!asks(&from.namespaces) || is(namespaces(&from.namespaces)))
        && (!asks(&from.not_namespaces) || is_not(namespaces(&from.not_namespaces)))
        && (!asks(&from.service_accounts) || is(accounts(&from.service_accounts)))
        && (!asks(&from.not_service_accounts) || is_not(accounts(&from.not_service_accounts)))
        && (!asks(&from.ip_blocks) || is(within(&from.ip_blocks, asked.source)))
        && (!asks(&from.not_ip_blocks) || is_not(within(&from.not_ip_blocks, asked.source)))
        && (!asks(&from.remote_ip_blocks) || is(within(&from.remote_ip_blocks, remote)))
        && (!asks(&from.not_remote_ip_blocks) || is_not(within(&from.not_remote_ip_blocks, remote)))
        && (to.ports.is_empty() || to.ports.contains(&asked.port))
        && !to.not_ports.contains(&asked.port)
        && (!asks(&to.hosts) || is(hosts(&to.hosts, false)))
        && (!asks(&to.not_hosts) || is_not(hosts(&to.not_hosts, true)))
        && (!asks(&to.methods) || is(methods(&to.methods)))
        && (!asks(&to.not_methods) || is_not(methods(&to.not_methods)))
        && (!asks(&to.paths) || is(paths(&to.paths, !deny)))
        && (!asks(&to.not_paths) || is_not(paths(&to.not_paths, deny)))
        && (!asks(&to.grpc) || is(grpc(&to.grpc)))
        && (!asks(&to.not_grpc) || is_not(grpc(&to.not_grpc)))
        && (http.is_none() && !asks(&to.upgrades) || is(upgrades))
        && headers
        && query
        && (when.times.is_empty() || is(times(&when.times)))
        && (when.not_times.is_empty() || is_not(times(&when.not_times)))
        && claims
        && condition
}

/// The few conditions that are generated.
fn condition(text: &str, asked: &Asked) -> Match {
    let claim = |name: &str| match &asked.http {
        Ok(Http { token: Known::Verified(claims), .. }) => yes(claims.get(name).is_some()),
        _ => Unclear,
    };
    match CONDITIONS.iter().position(|known| *known == text) {
        Some(0) => asked.http.as_ref().map_or(Unclear, |http| yes(http.method == "GET")),
        Some(1) => claim("role"),
        Some(2) if asked.port == 80 => Yes,
        Some(2) => claim("n"),
        _ => panic!("{text}"),
    }
}

/// To refuse, nothing is exempt by a name that whoever is not there would have bound.
fn known_exceptions(from: &From, to: &To, asked: &Asked, deny: bool) -> To {
    let names = |text: &String| -> Vec<String> {
        text.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.into())).collect()
    };
    let callers: Vec<String> = from.principals.iter().flat_map(names).collect();
    let hosts: Vec<String> = to.hosts.iter().flat_map(names).collect();
    let (caller_is_there, host_is_there) = (asked.caller.is_some(), host(asked).is_some());
    let is_open = |name: &String| {
        let (by_caller, by_host) = (callers.contains(name), hosts.contains(name));
        let is_bound = (by_caller && caller_is_there) || (by_host && host_is_there);
        (by_caller || by_host) && !is_bound
    };
    let keep = |list: &[String]| -> Vec<String> {
        list.iter().filter(|text| !(deny && names(text).iter().any(is_open))).cloned().collect()
    };
    To { not_hosts: keep(&to.not_hosts), not_paths: keep(&to.not_paths), ..to.clone() }
}

/// What the names of the one principal and the one host stand for; `None` when one name stands for two things.
fn bind(from: &From, to: &To, asked: &Asked, deny: bool) -> Option<Binding> {
    let mut binding = Binding::new();
    if let (Some(text), Some(id)) = (from.principals.first(), &asked.caller)
        && pattern(text).matches(id)
    {
        // "spiffe:", "" and the trust domain come first.
        for (part, found) in text.split('/').zip(id.as_str().split('/')) {
            if let Some(name) = part.strip_prefix('{') {
                let name = name.trim_end_matches('}').to_string();
                binding.insert(name, (found.to_string(), false));
            }
        }
    }
    if let (Some(text), Some(host)) = (to.hosts.first(), host(asked))
        && host_means(text, &host)
        && let Some((name, _)) = text.strip_prefix('{').and_then(|rest| rest.split_once('}'))
    {
        let label = host.split('.').next().unwrap().to_string();
        if let Some(known) = binding.get(name) {
            same(known, &(label, true), !deny).then_some(())?;
        } else {
            binding.insert(name.to_string(), (label, true));
        }
    }
    Some(binding)
}

fn same(one: &(String, bool), other: &(String, bool), strictly: bool) -> bool {
    let ((one, one_folded), (other, other_folded)) = (one, other);
    let lower = str::to_ascii_lowercase;
    match (one_folded, other_folded) {
        (false, false) => one == other,
        (true, false) if strictly => lower(one) == *other,
        (false, true) if strictly => *one == lower(other),
        _ => lower(one) == lower(other),
    }
}

/// An excluded host's label is what the name stands for, if the name stands for anything.
fn binds(text: &str, host: &str, binding: &Binding, strictly: bool) -> bool {
    let name = text.strip_prefix('{').and_then(|rest| rest.split_once('}'));
    let Some(known) = name.and_then(|(name, _)| binding.get(name)) else { return true };
    same(known, &(host.split('.').next().unwrap().to_string(), true), strictly)
}

fn like(text: &str, value: &str) -> bool {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text == "*" => !value.is_empty(),
        (Some(suffix), _) => value.ends_with(suffix),
        (_, Some(prefix)) => value.starts_with(prefix),
        _ => text == value,
    }
}

fn within(list: &[String], address: Option<IpAddr>) -> Match {
    let Some(address) = address else { return Unclear };
    let address = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    };
    // IPv4 within IPv6 is IPv4.
    let list = list.iter().map(|text| text.replace("::ffff:192.0.2.0/120", "192.0.2.0/24"));
    yes(list.into_iter().any(|text| match text.parse::<IpNet>() {
        Ok(net) => net.contains(&address),
        Err(_) => text.parse::<IpAddr>().unwrap() == address,
    }))
}

fn in_window(window: &TimeWindow, at: i64) -> bool {
    use time::{Duration, OffsetDateTime, UtcOffset, Weekday};
    let moment = OffsetDateTime::from_unix_timestamp(at).unwrap();
    let rfc3339 = |text: &String| {
        OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
    };
    let offset = match window.zone.as_deref() {
        None | Some("UTC") => 0,
        Some("+05:30") => 330,
        Some("-03:00") => -180,
        // Summer time from the last Sunday of March to that of October, at one o'clock UTC; in 2026 the 29th and the 25th.
        Some("Europe/Berlin") => {
            let summer = (1_774_746_000..1_792_890_000).contains(&at);
            if summer { 120 } else { 60 }
        }
        Some(other) => panic!("{other}"),
    };
    let local = moment.to_offset(UtcOffset::from_whole_seconds(offset * 60).unwrap());
    let named = |day: Weekday| day.to_string()[..3].to_lowercase();
    let on =
        |day: OffsetDateTime| window.days.is_empty() || window.days.contains(&named(day.weekday()));
    let clock = format!("{:02}:{:02}", local.hour(), local.minute());
    let from = window.from.clone().unwrap_or("00:00".into());
    let until = window.until.clone().unwrap_or("24:00".into());
    let in_day = match from < until {
        true => on(local) && from <= clock && clock < until,
        false => (on(local) && from <= clock) || (on(local - Duration::days(1)) && clock < until),
    };
    in_day
        && window.not_before.as_ref().is_none_or(|text| rfc3339(text) <= moment)
        && window.not_after.as_ref().is_none_or(|text| moment < rfc3339(text))
}

fn is_grpc(http: &Http) -> bool {
    let types: Vec<_> = http.fields.iter().filter(|(name, _)| name == "content-type").collect();
    match types.as_slice() {
        [(_, text)] => {
            let text = text.to_lowercase();
            let name = text.split(['+', ';', '-', ' ']).next().unwrap();
            http.method == "POST" && name == "application/grpc"
        }
        _ => false,
    }
}

fn host(asked: &Asked) -> Option<String> {
    let host = match &asked.http {
        Ok(http) => &http.host,
        Err(server_name) => server_name.as_ref()?,
    };
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    let name = name.strip_suffix('.').unwrap_or(name).to_string();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_*".contains(c);
    (port.chars().all(|c| c.is_ascii_digit())
        && name.split('.').all(|label| !label.is_empty() && label.chars().all(fits)))
    .then_some(name)
}

fn host_means(text: &str, host: &str) -> bool {
    let host = host.to_lowercase();
    if let Some(suffix) = text.strip_prefix('*') {
        return host.ends_with(suffix) && host.len() > suffix.len();
    }
    match text.strip_prefix('{').and_then(|rest| rest.split_once("}.")) {
        Some((_, rest)) => host.split_once('.').is_some_and(|(_, behind)| behind == rest),
        None => text == host,
    }
}
