//! `Advice`: what an operator could do about a refusal.

use std::io::Write;

use serde_json::{Value, json};

use super::denial::Denial;
use crate::cli::text::safe;
use crate::identity::SpiffeId;
use crate::model::{Id, IdentityPolicy};
use crate::policy::{Action, Policy};

/// What an operator could do.
#[derive(Debug, Default)]
pub(super) struct Advice {
    /// Sentences.
    lines: Vec<String>,
    /// The smallest change: which rule, which field, what to add or remove.
    change: Option<String>,
    /// A rule of its own that would allow exactly this.
    rule: Option<Value>,
    /// The policy with the smallest change made, when the policy could be read.
    policy: Option<(String, Value)>,
}

impl Denial<'_> {
    pub(super) fn advice(&self, standing: Option<&Value>) -> Advice {
        let mut advice = Advice::default();
        match self.reason {
            "denied_by_rule" => {
                let (policy, rule) = self.by.unwrap_or_default();
                advice.lines.push("A deny rule refuses it, and no allow rule outweighs a deny rule.".into());
                if let Some(src) = self.src {
                    let what = format!("policy {policy}, rule {rule}: add \"{src}\" to from.not_principals");
                    advice.change = Some(what);
                    advice.edit(standing, policy, rule, |rule| push(rule, "from", "not_principals", src));
                }
            }
            "no_identity" => advice.lines.push(
                "The caller showed no certificate. Let it call through its sidecar, or with its own SVID (mTLS).".into(),
            ),
            "ambiguous_path" => advice.lines.push(
                "The path can be read in several ways, and rules judge them differently. The caller should send it plain: \
                 decoded where it can be, without //, /./, /../, ; and \\."
                    .into(),
            ),
            "broken_policy" => {
                let (policy, _) = self.by.unwrap_or_default();
                advice.lines.push(format!(
                    "Policy {policy} is not valid, and stands in the way until it is put right: write it anew, the Admin API \
                     names the field."
                ));
            }
            "no_token" => advice.lines.push(
                "A rule asks for claims, and no auth plugin of the route verified a token. Let the caller send one, and see that \
                 the route has the plugin that verifies it."
                    .into(),
            ),
            "unclear_input" => advice.lines.push(
                "A deny rule asks for what cannot be told of this request: its query is not properly encoded or has a raw \
                 semicolon, or the rule's condition has no answer. The caller should send it plain; or say in the rule what \
                 is meant where it is absent."
                    .into(),
            ),
            "upgrade_not_allowed" => {
                let (policy, rule) = self.by.unwrap_or_default();
                advice.lines.push(format!(
                    "Policy {policy}, rule {rule} would hold, but it does not allow to switch to this protocol (WebSocket, an \
                     upgrade, a tunnel). That is a permission of its own: a rule with to.upgrades."
                ));
            }
            _ => self.allowing(standing, &mut advice),
        }
        advice
    }

    /// Nothing allowed it: what would?
    fn allowing(&self, standing: Option<&Value>, advice: &mut Advice) {
        if let Some((policy, rule, clause)) = self.nearest {
            let port = self.port.to_string();
            let account = self.src.and_then(service_account);
            // The field, and what is to be added to it or removed from it.
            let edit = match clause {
                "principals" => self.src.map(|src| ("from", "principals", src, true)),
                "trust_domains" => {
                    self.src.and_then(domain).map(|td| ("from", "trust_domains", td, true))
                }
                "namespaces" => {
                    let namespace =
                        account.as_deref().and_then(|account| account.split('/').next());
                    namespace.map(|namespace| ("from", "namespaces", namespace, true))
                }
                "service_accounts" => {
                    account.as_deref().map(|account| ("from", "service_accounts", account, true))
                }
                "methods" => self.method.map(|method| ("to", "methods", method, true)),
                "not_methods" => self.method.map(|method| ("to", "not_methods", method, false)),
                "paths" => self.path.map(|path| ("to", "paths", path, true)),
                "hosts" => self.host.map(|host| ("to", "hosts", name(host), true)),
                "ports" => Some(("to", "ports", port.as_str(), true)),
                _ => None,
            };
            if let Some((part, list, value, add)) = edit {
                let (verb, preposition) = if add { ("add", "to") } else { ("remove", "from") };
                advice.change = Some(format!(
                    "policy {policy}, rule {rule}: {verb} \"{value}\" {preposition} {part}.{list}"
                ));
                advice.edit(standing, policy, rule, |rule| match add {
                    true => push(rule, part, list, value),
                    false => remove(rule, part, list, value),
                });
            } else if clause == "selector" {
                let route = self.route.unwrap_or("(none matched)");
                advice.change = Some(format!(
                    "policy {policy} does not select route {route}: add it to selector.routes, or give the route its labels"
                ));
            } else if !clause.is_empty() && !clause.starts_with("not_") {
                advice.change = Some(format!(
                    "policy {policy}, rule {rule} asks for other {clause}: widen them there, or write a rule of its own"
                ));
            } else if !clause.is_empty() {
                advice.change = Some(format!(
                    "policy {policy}, rule {rule} excludes it by \"{clause}\": a rule of its own is clearer than to loosen that"
                ));
            }
        }
        let Some(src) = self.src else { return };
        let mut rule = json!({"name": "to-be-named", "from": {"principals": [src]}});
        if let (Some(method), Some(path)) = (self.method, self.path) {
            rule["to"] = json!({"methods": [method], "paths": [path]});
        }
        if self.would_allow(&rule) {
            advice.rule = Some(rule);
        } else {
            advice.lines.push("No rule can mean this path as it was sent: use a template, as /files/{name} or /files/**.".into());
        }
    }

    /// Tries a rule with the engine that decides.
    fn would_allow(&self, rule: &Value) -> bool {
        let policy = json!({"action": "allow", "rules": [rule]});
        let (Ok(policy), Ok(id)) =
            (serde_json::from_value::<IdentityPolicy>(policy), Id::parse("tried"))
        else {
            return false;
        };
        let Some(src) = self.src.and_then(|src| src.parse::<SpiffeId>().ok()) else { return false };
        let (compiled, rejected) = Policy::compile([(&id, 0, &policy)], &src);
        let action = match (self.method, self.path) {
            (Some(method), Some(path)) => {
                let host = self.host.unwrap_or_default();
                Action::http(self.port, method, host, path)
            }
            _ => Action::connection(self.port),
        };
        rejected.is_empty()
            && compiled.decide(&compiled.standing_of(Some(&src)), &action).is_allowed()
    }
}

fn domain(id: &str) -> Option<&str> {
    id.strip_prefix("spiffe://")?.split('/').next()
}

/// `namespace/name`, of an ID in the shape of Kubernetes.
fn service_account(id: &str) -> Option<String> {
    match id.split('/').collect::<Vec<_>>().as_slice() {
        ["spiffe:", "", _, "ns", namespace, "sa", name] => Some(format!("{namespace}/{name}")),
        _ => None,
    }
}

/// A host without its port.
fn name(host: &str) -> &str {
    host.rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name)
}

fn push(rule: &mut Value, part: &str, list: &str, value: &str) {
    if !rule[part].is_object() {
        rule[part] = json!({});
    }
    let value = if list == "ports" {
        value.parse::<u16>().map_or(Value::Null, Value::from)
    } else {
        value.into()
    };
    match rule[part][list].as_array_mut() {
        Some(list) => list.push(value),
        None => rule[part][list] = json!([value]),
    }
}

fn remove(rule: &mut Value, part: &str, list: &str, value: &str) {
    if let Some(list) = rule[part][list].as_array_mut() {
        list.retain(|entry| !entry.as_str().is_some_and(|entry| entry.eq_ignore_ascii_case(value)));
    }
}

impl Advice {
    /// Makes the change in the policy as the Admin API gave it.
    fn edit(
        &mut self,
        standing: Option<&Value>,
        id: &str,
        rule: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let Some(mut policy) = standing.cloned() else { return };
        let Some(rules) = policy["rules"].as_array_mut() else { return };
        let at = rules.iter().position(|one| one["name"] == rule);
        let at = at.or_else(|| rule.parse::<usize>().ok()?.checked_sub(1));
        let Some(found) = at.and_then(|at| rules.get_mut(at)) else {
            self.lines
                .push(format!("Policy {id} has no rule {rule} any more: it was changed since."));
            return;
        };
        change(found);
        if let Some(fields) = policy.as_object_mut() {
            for field in ["id", "create_time", "update_time"] {
                fields.shift_remove(field);
            }
        }
        self.policy = Some((id.to_string(), policy));
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "notes": self.lines,
            "change": self.change,
            "rule": self.rule,
            "policy": self.policy.as_ref().map(|(id, policy)| json!({"id": id, "value": policy})),
        })
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        for line in &self.lines {
            writeln!(out, "\n{}", safe(line))?;
        }
        if let Some(change) = &self.change {
            writeln!(out, "\nThe smallest change that would allow it, if it should be allowed:")?;
            writeln!(out, "  {}", safe(change))?;
        }
        if let Some((id, policy)) = &self.policy {
            let text = safe(&serde_json::to_string(policy)?).replace('\'', "'\\''");
            writeln!(
                out,
                "  curl -X PUT \"$WARDGATE_ADMIN/apisix/admin/identity_policies/{}\" \\",
                safe(id)
            )?;
            writeln!(out, "    -H \"X-API-KEY: $WARDGATE_KEY\" -d '{text}'")?;
        }
        if let Some(rule) = &self.rule {
            writeln!(out, "\nA rule that allows just this, for a policy with action \"allow\":")?;
            writeln!(out, "  {}", safe(&serde_json::to_string(rule)?))?;
        }
        Ok(())
    }
}
