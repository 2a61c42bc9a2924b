//! Names in braces that a rule has in several places, and the rule with a text in their place.

use std::collections::BTreeSet;

use super::shape::{Name, Shape};
use crate::identity::SpiffeId;
use crate::model::{From, PolicyRule, To};

/// The names that a rule compares: those that a principal or a host binds and that stand in another list as well.
pub(super) fn compared(rule: &PolicyRule) -> Vec<String> {
    let to = rule.to.as_ref();
    let list = |list: fn(&To) -> &[String]| to.map_or(&[][..], list);
    let lists: [&[String]; 5] = [
        rule.from.as_ref().map_or(&[], |from| &from.principals),
        list(|to| &to.hosts),
        list(|to| &to.not_hosts),
        list(|to| &to.paths),
        list(|to| &to.not_paths),
    ];
    if !lists.iter().any(|list| list.iter().any(|text| text.contains('{'))) {
        return Vec::new();
    }
    let named: Vec<BTreeSet<&str>> = lists.iter().map(|list| names(list)).collect();
    let bound = named[0].union(&named[1]);
    let stands_twice = |name: &&&str| named.iter().filter(|list| list.contains(**name)).count() > 1;
    bound.filter(stands_twice).map(|name| (*name).to_owned()).collect()
}

fn names(list: &[String]) -> BTreeSet<&str> {
    list.iter().flat_map(|text| names_of(text)).collect()
}

/// The names in braces of a pattern, a host or a template.
pub(super) fn names_of(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name)
}

/// The rule with a text in a name's place, wherever it stands.
pub(super) fn with(rule: &PolicyRule, name: &str, text: &str) -> PolicyRule {
    let braced = format!("{{{name}}}");
    let put = |list: &[String]| list.iter().map(|entry| entry.replace(&braced, text)).collect();
    let from =
        rule.from.as_ref().map(|from| From { principals: put(&from.principals), ..from.clone() });
    let to = rule.to.as_ref().map(|to| To {
        hosts: put(&to.hosts),
        not_hosts: put(&to.not_hosts),
        paths: put(&to.paths),
        not_paths: put(&to.not_paths),
        ..to.clone()
    });
    PolicyRule { from, to, ..rule.clone() }
}

/// The rule as it is for this caller: for each principal that means it, with the caller's own texts in the place of names.
pub(super) fn bound_by(rule: &PolicyRule, caller: &SpiffeId) -> Vec<PolicyRule> {
    let principals = rule.from.as_ref().map(|from| from.principals.clone()).unwrap_or_default();
    if principals.is_empty() || compared(rule).is_empty() {
        return vec![rule.clone()];
    }
    let name = Name::of_id(caller);
    let meant = principals.iter().filter(|text| Shape::of_text(text).holds(&name));
    let bind = |principal: &String| {
        let from = rule.from.clone().unwrap_or_default();
        let from = From { principals: vec![principal.clone()], ..from };
        let mut rule = PolicyRule { from: Some(from), ..rule.clone() };
        for (part, text) in principal.split('/').skip(3).zip(&name.segments) {
            for captured in names_of(part) {
                rule = with(&rule, captured, text);
            }
        }
        rule
    };
    meant.map(bind).collect()
}

/// Can it stand in a SPIFFE ID?
pub(super) fn is_segment(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(fits)
}
