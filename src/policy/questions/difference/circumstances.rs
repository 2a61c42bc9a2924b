//! Conditions: whether each holds, fails, or is absent.

use std::collections::BTreeMap;

use super::super::conditions::conditions;
use super::super::lines::Line;
use super::space::{Atom, ByLine, Dimension, Space, Standing, Value, number};
use crate::model::{Mode, PolicyAction, PolicyRule, PolicySelector};

impl Space {
    pub(super) fn conditions(&mut self, lines: &[Line]) {
        let mut all: BTreeMap<String, (PolicyRule, ByLine)> = BTreeMap::new();
        for (at, line) in lines.iter().enumerate() {
            for (rule, holds) in &line.conditions {
                let key = serde_json::json!(rule).to_string();
                let entry =
                    all.entry(key).or_insert_with(|| (rule.clone(), vec![None; lines.len()]));
                let wanted = match (holds, line.action) {
                    (false, _) => vec![1],
                    (true, PolicyAction::Allow) => vec![0],
                    (true, PolicyAction::Deny) if may_be_absent(rule) => vec![0, 2],
                    (true, PolicyAction::Deny) => vec![0],
                };
                // Asked to hold and not to hold: it never does.
                let before = entry.1[at].take().unwrap_or_else(|| vec![0, 1, 2]);
                entry.1[at] = Some(before.into_iter().filter(|one| wanted.contains(one)).collect());
            }
        }
        for (rule, by_line) in all.into_values() {
            let standings = [Standing::Holds, Standing::Fails, Standing::Absent];
            let count = if may_be_absent(&rule) { 3 } else { 2 };
            let atoms = standings.iter().take(count).enumerate().map(|(at, standing)| Atom {
                value: Value::Condition(Box::new(rule.clone()), *standing),
                met: vec![number(at)],
            });
            let atoms = atoms.collect();
            let text = conditions(&PolicySelector::default(), &rule, Mode::Enforce);
            let text = text.join(", ");
            let absent = match asks_value(&rule) {
                true => format!("absent or unclear: {text}"),
                false => format!("unclear: {text}"),
            };
            let patterns = vec![text.clone(), format!("not: {text}"), absent];
            self.dimensions.push(Dimension { what: "", atoms, patterns, by_line });
        }
    }
}

/// Can what the part asks for be absent or unclear, so that it neither allows nor exempts from refusal?
fn may_be_absent(rule: &PolicyRule) -> bool {
    // There may be no token at all, and a query that reads in several ways; whether a header field is there is always clear.
    rule.from.iter().any(|from| !from.claims.is_empty())
        || rule.when.iter().any(|when| !when.query.is_empty() || when.cel.is_some())
        || asks_value(rule)
}

/// Does the part ask for the value of something?
fn asks_value(rule: &PolicyRule) -> bool {
    let claims = rule.from.iter().flat_map(|from| &from.claims);
    let when = rule.when.iter().flat_map(|when| when.headers.iter().chain(&when.query));
    claims.chain(when).any(|entry| !(entry.values.is_empty() && entry.not_values.is_empty()))
        || rule.when.as_ref().is_some_and(|when| when.cel.is_some())
}
