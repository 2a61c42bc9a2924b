//! One rule of Istio in our words: sources, operations and conditions.

use serde::Deserialize;

use super::draft::Draft;
use super::istio_path::path_texts;
use super::objects::Object;
use super::options::ImportOptions;
use super::wildcard::{Wildcard, any_of, one_of, quoted};
use crate::model::{PolicyAction, ValueMatch};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    #[serde(default)]
    from: Vec<From>,
    #[serde(default)]
    to: Vec<To>,
    #[serde(default)]
    when: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    #[serde(default)]
    source: Source,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Source {
    principals: Vec<String>,
    not_principals: Vec<String>,
    request_principals: Vec<String>,
    not_request_principals: Vec<String>,
    namespaces: Vec<String>,
    not_namespaces: Vec<String>,
    service_accounts: Vec<String>,
    not_service_accounts: Vec<String>,
    trust_domains: Vec<String>,
    not_trust_domains: Vec<String>,
    ip_blocks: Vec<String>,
    not_ip_blocks: Vec<String>,
    remote_ip_blocks: Vec<String>,
    not_remote_ip_blocks: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    #[serde(default)]
    operation: Operation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Operation {
    hosts: Vec<String>,
    not_hosts: Vec<String>,
    ports: Vec<String>,
    not_ports: Vec<String>,
    methods: Vec<String>,
    not_methods: Vec<String>,
    paths: Vec<String>,
    not_paths: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    key: String,
    #[serde(default)]
    values: Vec<String>,
    #[serde(default)]
    not_values: Vec<String>,
}

/// One of our rules for each pair of a source and an operation.
pub(super) fn drafts(
    at: usize,
    rule: &Rule,
    action: PolicyAction,
    options: &ImportOptions,
    object: &Object,
) -> Vec<Draft> {
    let (anybody, anything) = (Source::default(), Operation::default());
    let sources: Vec<&Source> = match rule.from.as_slice() {
        [] => vec![&anybody],
        from => from.iter().map(|from| &from.source).collect(),
    };
    let operations: Vec<&Operation> = match rule.to.as_slice() {
        [] => vec![&anything],
        to => to.iter().map(|to| &to.operation).collect(),
    };
    let mut drafts = Vec::new();
    for (from, source) in sources.iter().enumerate() {
        for (to, operation) in operations.iter().enumerate() {
            let mut name = format!("rule-{}", at + 1);
            if sources.len() > 1 {
                name += &format!("-from-{}", from + 1);
            }
            if operations.len() > 1 {
                name += &format!("-to-{}", to + 1);
            }
            let mut draft = Draft::new(name, action);
            let mut istio = Istio { draft: &mut draft, options, object };
            istio.source(source, &format!("from[{from}].source"));
            istio.operation(operation, &format!("to[{to}].operation"));
            for (at, condition) in rule.when.iter().enumerate() {
                istio.condition(condition, &format!("when[{at}]"));
            }
            drafts.push(draft);
        }
    }
    drafts
}

struct Istio<'a> {
    draft: &'a mut Draft,
    options: &'a ImportOptions,
    object: &'a Object,
}

impl Istio<'_> {
    fn source(&mut self, source: &Source, field: &str) {
        let sub = |name: &str| format!("{field}.{name}");
        self.principals(&source.principals, &sub("principals"));
        self.not_principals(&source.not_principals, &sub("notPrincipals"));
        self.request_principals(
            &source.request_principals,
            &source.not_request_principals,
            &sub("requestPrincipals"),
        );
        self.namespaces(&source.namespaces, &sub("namespaces"));
        self.not_namespaces(&source.not_namespaces, &sub("notNamespaces"));
        self.service_accounts(&source.service_accounts, false, &sub("serviceAccounts"));
        self.service_accounts(&source.not_service_accounts, true, &sub("notServiceAccounts"));
        if !source.trust_domains.is_empty() {
            match source.trust_domains.iter().any(|name| name.contains('*')) {
                true => self.draft.require(one_of("source.trust_domain", &source.trust_domains)),
                false => self.draft.from.trust_domains.clone_from(&source.trust_domains),
            }
        }
        if !source.not_trust_domains.is_empty() {
            match source.not_trust_domains.iter().any(|name| name.contains('*')) {
                true => self.draft.forbid("source.trust_domain", &source.not_trust_domains),
                false => self.draft.from.not_trust_domains.clone_from(&source.not_trust_domains),
            }
        }
        let from = &mut self.draft.from;
        from.ip_blocks.extend_from_slice(&source.ip_blocks);
        from.not_ip_blocks.extend_from_slice(&source.not_ip_blocks);
        from.remote_ip_blocks.extend_from_slice(&source.remote_ip_blocks);
        from.not_remote_ip_blocks.extend_from_slice(&source.not_remote_ip_blocks);
    }

    /// A principal as a pattern of ours; `None`: only CEL says it.
    fn pattern(&self, principal: &str) -> Option<String> {
        let id = |rest: &str| {
            let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
            // In Istio `cluster.local` is the mesh's trust domain, whatever it is called.
            let domain = match domain {
                "cluster.local" => self.options.trust_domain.as_str(),
                domain => domain,
            };
            format!("spiffe://{domain}/{path}")
        };
        let pattern = match Wildcard::of(principal) {
            Wildcard::Exact(exact) => id(exact),
            Wildcard::Prefix(prefix) if prefix.ends_with('/') && prefix.contains('/') => {
                // Stars stand for whole segments, and an ID never ends with a slash: `a/*` is all below a.
                format!("{}**", id(prefix))
            }
            _ => return None,
        };
        pattern.parse::<crate::identity::SpiffePattern>().is_ok().then_some(pattern)
    }

    /// A principal as a condition on `source.id`.
    fn principal_cel(&self, principal: &str) -> String {
        let domain = self.options.trust_domain.as_str();
        let spelled = |text: &str| match text.strip_prefix("cluster.local/") {
            Some(rest) => format!("spiffe://{domain}/{rest}"),
            None => format!("spiffe://{text}"),
        };
        match Wildcard::of(principal) {
            Wildcard::Exact(text) => Wildcard::Exact(&spelled(text)).cel("source.id"),
            Wildcard::Prefix(text) => Wildcard::Prefix(&spelled(text)).cel("source.id"),
            other => other.cel("source.id"),
        }
    }

    fn principals(&mut self, principals: &[String], field: &str) {
        if principals.is_empty() {
            return;
        }
        let patterns: Option<Vec<String>> =
            principals.iter().map(|principal| self.pattern(principal)).collect();
        match patterns {
            Some(patterns) if self.draft.from.principals.is_empty() => {
                self.draft.from.principals = patterns;
            }
            _ => {
                let conditions: Vec<_> =
                    principals.iter().map(|principal| self.principal_cel(principal)).collect();
                self.draft.require(any_of(&conditions));
                self.draft
                    .note(field, "said in CEL: our patterns have stars for whole segments only");
            }
        }
    }

    fn not_principals(&mut self, principals: &[String], field: &str) {
        if principals.is_empty() {
            return;
        }
        let patterns: Option<Vec<String>> =
            principals.iter().map(|principal| self.pattern(principal)).collect();
        match patterns {
            Some(patterns) => self.draft.from.not_principals.extend(patterns),
            None => {
                let conditions: Vec<_> =
                    principals.iter().map(|principal| self.principal_cel(principal)).collect();
                self.draft.require(format!("!({})", any_of(&conditions)));
                self.draft
                    .note(field, "said in CEL: our patterns have stars for whole segments only");
            }
        }
    }

    /// `issuer/subject` of a verified token.
    fn request_principals(&mut self, wanted: &[String], unwanted: &[String], field: &str) {
        let subject = "(token.claims.iss + \"/\" + token.claims.sub)";
        let anyone = |texts: &[String]| texts.iter().any(|text| text == "*");
        let present = |present| ValueMatch {
            name: "iss".into(),
            present: Some(present),
            ..ValueMatch::default()
        };
        if anyone(wanted) {
            self.draft.claim(present(true));
        } else if !wanted.is_empty() {
            self.draft.require(one_of(subject, wanted));
        }
        if anyone(unwanted) {
            self.draft.claim(present(false));
        } else if !unwanted.is_empty() {
            self.draft.forbid(subject, unwanted);
        }
        if !wanted.is_empty() && !self.draft.allows() {
            let sentence = "a request without a verified token is refused as well";
            self.draft.refuses_more(field, sentence);
        }
        if anyone(unwanted) && self.draft.allows() {
            let sentence = "what is absent allows nothing here: the rule admits nobody";
            self.draft.refuses_more(field, sentence);
        }
        if !(wanted.is_empty() && unwanted.is_empty()) {
            self.draft.note(field, "asks for a token that a plugin of the route has verified");
        }
    }

    fn namespaces(&mut self, namespaces: &[String], field: &str) {
        if namespaces.is_empty() {
            return;
        }
        if namespaces.iter().any(|name| name == "*") {
            return self.principals(&["*".to_owned()], field);
        }
        // A list of an allow rule may be narrower than before (our own trust domain), one of a deny rule may not.
        if self.draft.allows() && self.draft.from.namespaces.is_empty() {
            self.draft.from.namespaces = namespaces.to_vec();
        } else {
            self.draft.require(one_of("source.namespace", namespaces));
        }
    }

    fn not_namespaces(&mut self, namespaces: &[String], field: &str) {
        if namespaces.is_empty() {
            return;
        }
        if self.draft.allows() || namespaces.iter().any(|name| name == "*") {
            self.draft.forbid("source.namespace", namespaces);
            self.draft.note(field, "said in CEL, so that it means every trust domain");
        } else {
            self.draft.from.not_namespaces.extend_from_slice(namespaces);
        }
    }

    fn service_accounts(&mut self, accounts: &[String], not: bool, field: &str) {
        if accounts.is_empty() {
            return;
        }
        // Without a namespace it is the policy's.
        let full: Vec<(String, String)> = accounts
            .iter()
            .map(|account| match account.split_once('/') {
                Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
                None => (self.object.namespace.clone(), account.clone()),
            })
            .collect();
        let plain = !accounts.iter().any(|account| account.contains('*'));
        let joined = full.iter().map(|(namespace, name)| format!("{namespace}/{name}"));
        let from = &mut self.draft.from;
        if plain && not != self.draft.action.eq(&PolicyAction::Allow) {
            match not {
                true => from.not_service_accounts.extend(joined),
                false => from.service_accounts.extend(joined),
            }
            return;
        }
        let conditions: Vec<String> = full
            .iter()
            .map(|(namespace, name)| {
                let namespace = Wildcard::of(namespace).cel("source.namespace");
                let name = Wildcard::of(name).cel("source.service_account");
                format!("({namespace} && {name})")
            })
            .collect();
        let condition = any_of(&conditions);
        self.draft.require(if not { format!("!({condition})") } else { condition });
        self.draft.note(field, "said in CEL, so that it means every trust domain");
    }

    fn operation(&mut self, operation: &Operation, field: &str) {
        let sub = |name: &str| format!("{field}.{name}");
        self.hosts(&operation.hosts, &operation.not_hosts, &sub("hosts"));
        self.ports(&operation.ports, false, &sub("ports"));
        self.ports(&operation.not_ports, true, &sub("notPorts"));
        self.methods(&operation.methods, &operation.not_methods, &sub("methods"));
        self.paths(&operation.paths, &sub("paths"));
        self.not_paths(&operation.not_paths, &sub("notPaths"));
    }

    fn hosts(&mut self, wanted: &[String], unwanted: &[String], field: &str) {
        // `example.com:*` beside `example.com` is how Istio's users say what ours says anyway.
        let portless = |hosts: &[String]| -> Vec<String> {
            let mut portless: Vec<String> = Vec::new();
            for host in hosts {
                let host = host.strip_suffix(":*").unwrap_or(host).to_lowercase();
                if !portless.contains(&host) {
                    portless.push(host);
                }
            }
            portless
        };
        let plain = |hosts: &[String]| {
            hosts.iter().all(|host| match Wildcard::of(host) {
                Wildcard::Exact(host) => !host.contains(':'),
                Wildcard::Suffix(suffix) => suffix.starts_with('.') && !suffix.contains('*'),
                Wildcard::Any | Wildcard::Prefix(_) => false,
            })
        };
        let (wanted, unwanted) = (portless(wanted), portless(unwanted));
        let ported = |hosts: &[String]| hosts.iter().any(|host| host.contains(':'));
        if ported(&wanted) || ported(&unwanted) {
            return self.draft.cannot_say(field, "hosts with one port are not told apart");
        }
        match wanted.as_slice() {
            [] => {}
            wanted if plain(wanted) => self.draft.to.hosts.extend_from_slice(wanted),
            wanted => {
                self.draft.require(one_of("request.host", wanted));
                self.draft.note(
                    field,
                    "said in CEL: our hosts have a star as the whole first label only",
                );
            }
        }
        match unwanted.as_slice() {
            [] => {}
            unwanted if plain(unwanted) => self.draft.to.not_hosts.extend_from_slice(unwanted),
            unwanted => self.draft.forbid("request.host", unwanted),
        }
    }

    fn ports(&mut self, texts: &[String], not: bool, field: &str) {
        if texts.is_empty() {
            return;
        }
        let ports: Option<Vec<u16>> =
            texts.iter().map(|port| port.parse().ok().filter(|port| *port > 0)).collect();
        let Some(ports) = ports else {
            return self.draft.cannot_say(field, "a port is 1 to 65535");
        };
        let to = &mut self.draft.to;
        match not {
            true => to.not_ports.extend(ports),
            false if to.ports.is_empty() => to.ports = ports,
            false => {
                to.ports.retain(|port| ports.contains(port));
                // No port is both.
                self.draft.never |= self.draft.to.ports.is_empty();
            }
        }
    }

    fn methods(&mut self, wanted: &[String], unwanted: &[String], field: &str) {
        let plain = |methods: &[String]| {
            methods.iter().all(|method| {
                !method.contains('*') && method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
            })
        };
        match wanted {
            [] => {}
            wanted if plain(wanted) => self.draft.to.methods.extend_from_slice(wanted),
            wanted => {
                self.draft.require(one_of("request.method", wanted));
                self.draft.note(field, "said in CEL: our methods have no stars");
            }
        }
        match unwanted {
            [] => {}
            unwanted if plain(unwanted) => self.draft.to.not_methods.extend_from_slice(unwanted),
            unwanted => self.draft.forbid("request.method", unwanted),
        }
    }

    fn paths(&mut self, paths: &[String], field: &str) {
        if paths.is_empty() {
            return;
        }
        let said = path_texts(paths);
        let templates: Option<Vec<String>> =
            said.iter().map(|path| path.template.clone()).collect();
        let exact = said.iter().all(|path| path.exact) && templates.is_some();
        if let Some(templates) = templates {
            self.draft.to.paths = templates;
        }
        if exact {
            return;
        }
        if !self.draft.allows() && !self.draft.to.paths.is_empty() {
            let sentence = "`/a/**` means `/a` as well, which `/a/*` does not in Istio";
            return self.draft.refuses_more(field, sentence);
        }
        let conditions: Vec<String> = said.into_iter().map(|path| path.cel).collect();
        self.draft.require(any_of(&conditions));
        self.path_in_cel(field);
    }

    fn path_in_cel(&mut self, field: &str) {
        let sentence = match self.draft.allows() {
            true => {
                "said in CEL, since our templates do not mean the same: a path that can be read in several ways (`/a%20b`, \
                     `//a`) is not allowed"
            }
            false => {
                "said in CEL, since our templates do not mean the same: a path that can be read in several ways (`/a%20b`, \
                      `//a`) is refused"
            }
        };
        self.draft.refuses_more(field, sentence);
    }

    fn not_paths(&mut self, paths: &[String], field: &str) {
        if paths.is_empty() {
            return;
        }
        let said = path_texts(paths);
        let templates: Option<Vec<String>> =
            said.iter().map(|path| path.template.clone()).collect();
        let exact = said.iter().all(|path| path.exact);
        match templates {
            // What an allow rule excludes may be more than before.
            Some(templates) if exact || self.draft.allows() => {
                self.draft.to.not_paths = templates;
                if !exact {
                    let sentence = "`/a/**` excludes `/a` as well, which `/a/*` does not in Istio";
                    self.draft.refuses_more(field, sentence);
                }
            }
            _ => {
                let conditions: Vec<String> = said.into_iter().map(|path| path.cel).collect();
                self.draft.require(format!("!({})", any_of(&conditions)));
                self.path_in_cel(field);
            }
        }
    }

    fn condition(&mut self, condition: &Condition, field: &str) {
        let Condition { key, values, not_values } = condition;
        let named = |prefix: &str| {
            let rest = key.strip_prefix(prefix)?.strip_suffix(']')?;
            Some(rest.split("][").map(str::to_owned).collect::<Vec<_>>())
        };
        let field = format!("{field} {key}");
        if let Some(names) = named("request.headers[") {
            let [name] = names.as_slice() else {
                return self.draft.cannot_say(field, "a header has one name");
            };
            // What is absent refuses here, and matches nothing in Istio.
            let present = (!self.draft.allows() && !values.is_empty()).then_some(true);
            if self.draft.allows() && !not_values.is_empty() {
                let sentence = "a request without the field is not allowed, which it is in Istio";
                self.draft.refuses_more(&field, sentence);
            }
            return self.draft.when.headers.push(ValueMatch {
                name: name.to_lowercase(),
                values: values.clone(),
                not_values: not_values.clone(),
                present,
            });
        }
        if let Some(names) = named("request.auth.claims[") {
            return self.claims(&names, values, not_values, &field);
        }
        match key.as_str() {
            "source.ip" => {
                self.addresses(values, not_values, &field, |from| {
                    (&mut from.ip_blocks, &mut from.not_ip_blocks)
                });
            }
            "remote.ip" => {
                self.addresses(values, not_values, &field, |from| {
                    (&mut from.remote_ip_blocks, &mut from.not_remote_ip_blocks)
                });
            }
            "source.namespace" => {
                self.namespaces(values, &field);
                self.not_namespaces(not_values, &field);
            }
            "source.principal" => {
                self.principals(values, &field);
                self.not_principals(not_values, &field);
            }
            "source.serviceAccount" => {
                self.service_accounts(values, false, &field);
                self.service_accounts(not_values, true, &field);
            }
            "source.trustDomain" => {
                if !values.is_empty() {
                    self.draft.require(one_of("source.trust_domain", values));
                }
                if !not_values.is_empty() {
                    self.draft.forbid("source.trust_domain", not_values);
                }
            }
            "request.auth.principal" => self.request_principals(values, not_values, &field),
            "request.auth.audiences" => self.claims(&["aud".into()], values, not_values, &field),
            "request.auth.presenter" => self.claims(&["azp".into()], values, not_values, &field),
            "destination.port" => {
                self.ports(values, false, &field);
                self.ports(not_values, true, &field);
            }
            "connection.sni" => {
                if !values.is_empty() {
                    self.draft.require(one_of("connection.server_name", values));
                }
                if !not_values.is_empty() {
                    self.draft.forbid("connection.server_name", not_values);
                }
                let sentence = "the server name is known of TLS that is passed through only: of a request it cannot be told, which \
                                never allows and always refuses";
                self.draft.refuses_more(field, sentence);
            }
            key if key.starts_with("experimental.envoy.filters.") => {
                self.draft.cannot_say(field, "what filters of Envoy note is not known here");
            }
            "destination.ip" => {
                self.draft
                    .cannot_say(field, "the destination's address is not among what rules ask for");
            }
            _ => self.draft.cannot_say(field, "this key is not known"),
        }
    }

    fn addresses(
        &mut self,
        values: &[String],
        not_values: &[String],
        field: &str,
        lists: fn(&mut crate::model::From) -> (&mut Vec<String>, &mut Vec<String>),
    ) {
        let (blocks, not_blocks) = lists(&mut self.draft.from);
        not_blocks.extend_from_slice(not_values);
        if values.is_empty() {
            return;
        }
        if blocks.is_empty() {
            blocks.extend_from_slice(values);
        } else {
            self.draft.cannot_say(field, "networks stand in `from` already, and both must hold");
        }
    }

    /// A claim, possibly within others.
    fn claims(&mut self, names: &[String], values: &[String], not_values: &[String], field: &str) {
        let name = match names {
            [one] if !one.starts_with('/') => one.clone(),
            several => {
                let escaped = several.iter().map(|name| name.replace('~', "~0").replace('/', "~1"));
                escaped.map(|name| format!("/{name}")).collect()
            }
        };
        let any_value = values.iter().any(|value| value == "*");
        let mut claim =
            ValueMatch { name, not_values: not_values.to_vec(), ..ValueMatch::default() };
        if any_value {
            claim.present = Some(true);
        } else if !self.draft.allows() {
            claim.values = values.to_vec();
            claim.present = (!values.is_empty()).then_some(true);
            let sentence = "a request without a verified token is refused as well";
            self.draft.refuses_more(field, sentence);
        } else if !values.is_empty() {
            // Of a claim with several values, ours must all be listed; in Istio one suffices.
            let subject = names.iter().fold("token.claims".to_owned(), |subject, name| {
                format!("{subject}[{}]", quoted(name))
            });
            let plain = one_of(&subject, values);
            let listed = match values.iter().all(|value| !value.contains('*')) {
                true => {
                    let each: Vec<_> = values
                        .iter()
                        .map(|value| format!("{} in {subject}", quoted(value)))
                        .collect();
                    any_of(&each)
                }
                false => format!("{subject}.exists(value, {})", one_of("value", values)),
            };
            self.draft.require(format!("({plain} || {listed})"));
            self.draft.note(field, "said in CEL: one value of a list of claims suffices");
        }
        if claim.present.is_some() || !claim.values.is_empty() || !claim.not_values.is_empty() {
            self.draft.claim(claim);
        }
        self.draft.note(field, "asks for a token that a plugin of the route has verified");
    }
}
