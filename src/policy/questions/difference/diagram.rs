//! A decision diagram over two sets: where both decide alike it ends at once, and equal parts are made once.

use std::collections::{BTreeMap, HashMap};

use super::super::lines::Line;
use super::space::Space;
use crate::model::PolicyAction;

/// A place in the diagram.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// Both sets decide alike.
    Same,
    /// The new set allows what the old one refused.
    Gained,
    /// The new set refuses what the old one allowed.
    Lost,
    /// It depends on this dimension: values, and where they lead.
    Split { dimension: usize, branches: Vec<(Vec<u32>, u32)> },
    /// Too much to look at.
    Unknown,
}

/// What one set still has to say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Side {
    Denied,
    Allowed,
    /// Rules that may hold, ascending.
    Open(Vec<u32>),
}

/// So many places are made at most.
const NODES: usize = 200_000;

pub(super) struct Diagram<'a> {
    lines: &'a [Line],
    space: &'a Space,
    /// For each line, the dimensions that it looks at, ascending.
    looks_at: Vec<Vec<usize>>,
    pub(super) nodes: Vec<Node>,
    known: HashMap<Node, u32>,
    /// By the next dimension: the same rules may be met before one and behind it.
    memo: HashMap<(usize, Side, Side), u32>,
}

impl<'a> Diagram<'a> {
    pub(super) fn new(lines: &'a [Line], space: &'a Space) -> Self {
        let looks_at = |line: usize| {
            let all = space.dimensions.iter().enumerate();
            all.filter(|(_, one)| one.by_line[line].is_some()).map(|(at, _)| at).collect()
        };
        Self {
            lines,
            space,
            looks_at: (0..lines.len()).map(looks_at).collect(),
            nodes: Vec::new(),
            known: HashMap::new(),
            memo: HashMap::new(),
        }
    }

    /// The diagram's root.
    pub(super) fn root(&mut self) -> u32 {
        let side = |present: fn(&Line) -> bool| {
            let all = self.lines.iter().enumerate().filter(|(_, line)| present(line));
            all.map(|(at, _)| u32::try_from(at).unwrap_or(u32::MAX)).collect::<Vec<_>>()
        };
        let (old, new) = (side(|line| line.old.is_some()), side(|line| line.new.is_some()));
        let (old, new) = (self.settle(old, 0), self.settle(new, 0));
        self.explore(0, &old, &new)
    }

    fn node(&mut self, node: Node) -> u32 {
        if let Some(at) = self.known.get(&node) {
            return *at;
        }
        let at = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(node.clone());
        self.known.insert(node, at);
        at
    }

    /// What is left of a set's rules when everything before this dimension is settled.
    fn settle(&self, mut rules: Vec<u32>, from: usize) -> Side {
        let done = |at: &u32| self.looks_at[*at as usize].last().is_none_or(|last| *last < from);
        let action = |at: &u32| self.lines[*at as usize].action;
        if rules.iter().any(|at| action(at) == PolicyAction::Deny && done(at)) {
            return Side::Denied;
        }
        if !rules.iter().any(|at| action(at) == PolicyAction::Allow) {
            return Side::Denied;
        }
        if let Some(allows) =
            rules.iter().copied().find(|at| action(at) == PolicyAction::Allow && done(at))
        {
            rules.retain(|at| action(at) == PolicyAction::Deny);
            if rules.is_empty() {
                return Side::Allowed;
            }
            // Whichever rule it is that allows: all the rest of it is settled.
            let _ = allows;
            rules.push(u32::MAX);
        }
        Side::Open(rules)
    }

    fn explore(&mut self, from: usize, old: &Side, new: &Side) -> u32 {
        match (old, new) {
            _ if old == new => return self.node(Node::Same),
            (Side::Denied, Side::Allowed) => return self.node(Node::Gained),
            (Side::Allowed, Side::Denied) => return self.node(Node::Lost),
            _ => {}
        }
        let next = |side: &Side| match side {
            Side::Open(rules) => rules
                .iter()
                .filter(|at| **at != u32::MAX)
                .filter_map(|at| self.looks_at[*at as usize].iter().find(|one| **one >= from))
                .min()
                .copied(),
            Side::Denied | Side::Allowed => None,
        };
        let Some(dimension) = next(old).into_iter().chain(next(new)).min() else {
            return self.node(Node::Unknown);
        };
        let key = (dimension, old.clone(), new.clone());
        if let Some(at) = self.memo.get(&key) {
            return *at;
        }
        if self.nodes.len() + self.memo.len() > NODES {
            return self.node(Node::Unknown);
        }
        let found = self.split(dimension, old, new);
        self.memo.insert(key, found);
        found
    }

    fn split(&mut self, dimension: usize, old: &Side, new: &Side) -> u32 {
        let (always_old, by_atom_old) = self.by_atom(dimension, old);
        let (always_new, by_atom_new) = self.by_atom(dimension, new);
        // Atoms with the same rules lead to the same place.
        let mut groups: BTreeMap<(&[u32], &[u32]), Vec<u32>> = BTreeMap::new();
        let none: &[u32] = &[];
        let count = u32::try_from(self.space.dimensions[dimension].atoms.len()).unwrap_or(u32::MAX);
        for atom in 0..count {
            let old = by_atom_old.get(&atom).map_or(none, Vec::as_slice);
            let new = by_atom_new.get(&atom).map_or(none, Vec::as_slice);
            groups.entry((old, new)).or_default().push(atom);
        }
        let groups: Vec<(Side, Side, Vec<u32>)> = groups
            .into_iter()
            .map(|((met_old, met_new), atoms)| {
                let side = |side: &Side, always: &[u32], met: &[u32]| match side {
                    Side::Open(_) => {
                        let mut rules = [always, met].concat();
                        rules.sort_unstable();
                        self.settle_open(rules, dimension + 1)
                    }
                    done => done.clone(),
                };
                (side(old, &always_old, met_old), side(new, &always_new, met_new), atoms)
            })
            .collect();
        let mut branches: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (old, new, atoms) in groups {
            let child = self.explore(dimension + 1, &old, &new);
            branches.entry(child).or_default().extend(atoms);
        }
        if let [(child, _)] = branches.iter().collect::<Vec<_>>()[..] {
            return *child;
        }
        let mut branches: Vec<(Vec<u32>, u32)> = branches
            .into_iter()
            .map(|(child, mut atoms)| {
                atoms.sort_unstable();
                (atoms, child)
            })
            .collect();
        branches.sort();
        self.node(Node::Split { dimension, branches })
    }

    /// As [`Diagram::settle`], where an allow rule may be settled already.
    fn settle_open(&self, mut rules: Vec<u32>, from: usize) -> Side {
        if rules.last() != Some(&u32::MAX) {
            return self.settle(rules, from);
        }
        rules.retain(|at| *at != u32::MAX && self.lines[*at as usize].action == PolicyAction::Deny);
        let done = |at: &u32| self.looks_at[*at as usize].last().is_none_or(|last| *last < from);
        if rules.iter().any(done) {
            return Side::Denied;
        }
        if rules.is_empty() {
            return Side::Allowed;
        }
        rules.push(u32::MAX);
        Side::Open(rules)
    }

    /// The rules that hold for every value, and for each value those that hold for it.
    fn by_atom(&self, dimension: usize, side: &Side) -> (Vec<u32>, HashMap<u32, Vec<u32>>) {
        let (mut always, mut by_atom): (Vec<u32>, HashMap<u32, Vec<u32>>) = Default::default();
        let Side::Open(rules) = side else { return (always, by_atom) };
        let dimension = &self.space.dimensions[dimension];
        for rule in rules.iter().copied() {
            let atoms = match rule {
                u32::MAX => &None,
                _ => &dimension.by_line[rule as usize],
            };
            match atoms {
                None => always.push(rule),
                Some(atoms) => {
                    for atom in atoms {
                        by_atom.entry(*atom).or_default().push(rule);
                    }
                }
            }
        }
        (always, by_atom)
    }
}
