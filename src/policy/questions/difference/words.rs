//! Sets of values in the words of the policies: the patterns that mean them, without those that mean others.

use std::collections::HashSet;

use super::super::instances::SYMBOLS;
use super::space::{Dimension, Value};

/// A set in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// Nothing: everything.
    pub(super) any_of: Vec<String>,
    pub(super) but: Vec<String>,
}

/// Says which values are meant. Where patterns cannot say it, examples do: `such as ..`.
pub(super) fn describe(dimension: &Dimension, chosen: &[u32]) -> Words {
    let all = dimension.atoms.len();
    if chosen.len() == all {
        return Words::default();
    }
    let chosen: HashSet<u32> = chosen.iter().copied().collect();
    let mut meant: Vec<(usize, Vec<u32>)> =
        (0..dimension.patterns.len()).map(|at| (at, Vec::new())).collect();
    for (at, atom) in dimension.atoms.iter().enumerate() {
        for pattern in &atom.met {
            meant[*pattern as usize].1.push(u32::try_from(at).unwrap_or(u32::MAX));
        }
    }
    meant.retain(|(_, atoms)| !atoms.is_empty());
    // The widest first; of those that mean the same, those with a text that is the same elsewhere.
    let names_text =
        |at: usize| SYMBOLS.iter().any(|(symbol, _)| dimension.patterns[at].contains(symbol));
    meant.sort_by_key(|(at, atoms)| (std::cmp::Reverse(atoms.len()), !names_text(*at), *at));
    let apart: Vec<&(usize, Vec<u32>)> =
        meant.iter().filter(|(_, atoms)| atoms.iter().all(|atom| !chosen.contains(atom))).collect();
    let mut words = Words::default();
    let mut left: HashSet<u32> = chosen.clone();
    let mut out: HashSet<usize> = HashSet::new();
    for (pattern, atoms) in &meant {
        if left.is_empty() {
            break;
        }
        if atoms.iter().all(|atom| chosen.contains(atom))
            && atoms.iter().any(|atom| left.contains(atom))
        {
            words.any_of.push(dimension.patterns[*pattern].clone());
            left.retain(|atom| !atoms.contains(atom));
        }
    }
    // What no pattern means alone: a wider one, without patterns that mean nothing of it.
    let without = |atoms: &[u32]| -> Option<Vec<usize>> {
        let mut wrong: HashSet<u32> =
            atoms.iter().copied().filter(|atom| !chosen.contains(atom)).collect();
        let mut used = Vec::new();
        for (pattern, atoms) in &apart {
            if atoms.iter().any(|atom| wrong.contains(atom)) {
                wrong.retain(|atom| !atoms.contains(atom));
                used.push(*pattern);
            }
        }
        wrong.is_empty().then_some(used)
    };
    for (pattern, atoms) in &meant {
        if left.is_empty() || !atoms.iter().any(|atom| left.contains(atom)) {
            continue;
        }
        if let Some(used) = without(atoms) {
            words.any_of.push(dimension.patterns[*pattern].clone());
            out.extend(used);
            left.retain(|atom| !atoms.contains(atom));
        }
    }
    if !left.is_empty() {
        let everything: Vec<u32> = (0..u32::try_from(all).unwrap_or(u32::MAX)).collect();
        if let Some(used) = without(&everything) {
            words.any_of.clear();
            out = used.into_iter().collect();
            left.clear();
        }
    }
    let mut examples: Vec<u32> = left.into_iter().collect();
    examples.sort_unstable();
    words.any_of.extend(
        examples.iter().map(|at| format!("such as {}", text(&dimension.atoms[*at as usize].value))),
    );
    let mut out: Vec<usize> = out.into_iter().collect();
    out.sort_unstable();
    words.but = out.into_iter().map(|at| dimension.patterns[at].clone()).collect();
    words
}

/// A value as people read it.
pub(super) fn text(value: &Value) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
    match value {
        Value::Workload(id) => id.to_string(),
        Value::Caller(id) => id.as_ref().map_or_else(|| "nobody".into(), ToString::to_string),
        Value::Connection(connection) => {
            (if *connection { "a connection" } else { "a request" }).into()
        }
        Value::Route(route) => {
            route.as_ref().map_or_else(|| "none".into(), |route| route.id.to_string())
        }
        Value::Port(port) => port.to_string(),
        Value::Host(host) => host.clone().unwrap_or_else(|| "absent".into()),
        Value::Method(text) | Value::Path(text) => text.clone(),
        Value::Upgrade(upgrade) => or_none(upgrade),
        Value::Lot(lot) => format!("lot {lot}"),
        Value::Condition(..) => String::new(),
    }
}
