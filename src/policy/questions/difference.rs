//! `difference`: what callers gain and lose when one set of policies takes another's place; each claim with a request that both
//! engines have decided.
//!
//! Both sets become boxes (`lines.rs`), the values of each kind that rules tell apart become a few that stand for all
//! ([`space`]), and a decision diagram over both ([`diagram`]) has only what they decide differently.

mod circumstances;
mod diagram;
mod example;
mod routes;
mod space;
#[cfg(test)]
mod tests;
mod words;

use serde::{Deserialize, Serialize};

use self::diagram::{Diagram, Node};
use self::example::Engines;
use self::space::{Space, Value};
use self::words::{Words, describe};
use super::instances::SYMBOLS;
use super::lines::{Lines, lines};
use super::policies::{Policies, Via};
use super::target::{Target, TargetRoute};

/// What differs between two sets of policies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What the new set allows and the old one refuses.
    pub gained: Vec<Change>,
    /// What the new set refuses and the old one allows.
    pub lost: Vec<Change>,
    /// What was not compared, or could not be shown by a request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_compared: Vec<String>,
}

impl Difference {
    /// Do both decide alike, as far as was compared?
    pub fn is_empty(&self) -> bool {
        self.gained.is_empty() && self.lost.is_empty()
    }
}

/// Who gains or loses what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// At which workloads; empty: at all.
    pub workloads: Vec<String>,
    /// At which of them not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads_but: Vec<String>,
    /// Who; empty: anybody.
    pub who: Vec<String>,
    /// Who is meant by `who` and not concerned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub who_but: Vec<String>,
    /// What: one sentence a part, all of which hold; empty: everything.
    pub what: Vec<String>,
    /// A request of this kind, as both sets decide it.
    pub example: Example,
}

/// A request that two sets decide differently.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The workload that is called.
    pub workload: String,
    /// Who calls; nobody: without an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The request.
    pub target: Target,
    /// What the old set decides.
    pub old: Decided,
    /// What the new set decides.
    pub new: Decided,
}

/// A decision and its rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// Is it allowed?
    pub allowed: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Via>,
}

/// So many changes are told at most.
const CHANGES: usize = 1000;
/// So many requests are tried for one claim.
const TRIES: usize = 48;

impl Policies {
    /// What differs when `new` takes this set's place?
    ///
    /// `routes` are the routes that there are; without them, selectors by route are compared over imagined ones. `now` is for
    /// examples, in seconds since 1970. Requests are compared whose host and path read in one way only; what is decided at
    /// public doors where no policy selects a route is not compared.
    pub fn difference(&self, new: &Self, routes: Option<&[TargetRoute]>, now: i64) -> Difference {
        let Lines { lines, texts, mut not_compared } = lines(self, new);
        if lines.is_empty() {
            return Difference { not_compared, ..Difference::default() };
        }
        let space = Space::of(&lines, &texts, routes);
        not_compared.extend(space.not_compared.iter().cloned());
        let mut diagram = Diagram::new(&lines, &space);
        let root = diagram.root();
        let mut walk =
            Walk { nodes: &diagram.nodes, path: Vec::new(), regions: Vec::new(), unknown: false };
        walk.visit(root);
        if walk.unknown {
            not_compared.push("some rules: together they tell too many cases apart".into());
        }
        if walk.regions.len() > CHANGES {
            not_compared
                .push(format!("{} more regions than are told", walk.regions.len() - CHANGES));
            walk.regions.truncate(CHANGES);
        }
        let mut engines = Engines::new(self, new, now);
        let mut found = Difference { not_compared, ..Difference::default() };
        for Region { chosen, gained } in walk.regions {
            match show(&space, &chosen, gained, &mut engines) {
                Ok(change) if gained => found.gained.push(change),
                Ok(change) => found.lost.push(change),
                Err(region) => found.not_compared.push(region),
            }
        }
        found.not_compared.dedup();
        found.gained = without_instances(found.gained);
        found.lost = without_instances(found.lost);
        found
    }
}

/// Leaves out what a claim for any text in the place of a name in braces says already.
fn without_instances(changes: Vec<Change>) -> Vec<Change> {
    let words = |change: &Change| {
        let Change { workloads, workloads_but, who, who_but, what, example: _ } = change;
        [workloads, workloads_but, who, who_but, what].map(|list| list.join("\n")).join("\n\n")
    };
    let all: Vec<String> = changes.iter().map(words).collect();
    let any = SYMBOLS[0].1;
    // Which of the symbols stands for a text means nothing.
    let alike: Vec<String> = all.iter().map(|one| in_order(one)).collect();
    let is_first = |at: usize| match all.contains(&alike[at]) {
        true => alike[at] == all[at],
        false => !alike[..at].contains(&alike[at]),
    };
    let is_instance = |general: &String, one: &String| {
        let Some((before, after)) = general.split_once(any) else { return false };
        let Some(rest) = one.strip_prefix(before) else { return false };
        let end = after.chars().next().and_then(|next| rest.find(next)).unwrap_or(rest.len());
        general != one && general.replace(any, &rest[..end]) == *one
    };
    let kept = changes.into_iter().zip(&all).enumerate();
    kept.filter(|(at, (_, one))| {
        is_first(*at) && !all.iter().any(|general| is_instance(general, one))
    })
    .map(|(_, (change, _))| change)
    .collect()
}

/// The symbols of a claim named in the order in which they stand there.
fn in_order(words: &str) -> String {
    let mut found: Vec<(usize, &str)> =
        SYMBOLS.iter().filter_map(|(_, shown)| Some((words.find(shown)?, *shown))).collect();
    found.sort_unstable();
    let mut text = words.to_owned();
    for (at, (_, shown)) in found.iter().enumerate() {
        text = text.replace(shown, &format!("{{{at}}}"));
    }
    for (at, (_, shown)) in SYMBOLS.iter().enumerate() {
        text = text.replace(&format!("{{{at}}}"), shown);
    }
    text
}

/// Values for which both sets decide differently: for each dimension that counts, some of its atoms.
pub(super) struct Region {
    pub(super) chosen: Vec<(usize, Vec<u32>)>,
    pub(super) gained: bool,
}

struct Walk<'a> {
    nodes: &'a [Node],
    path: Vec<(usize, Vec<u32>)>,
    regions: Vec<Region>,
    unknown: bool,
}

impl Walk<'_> {
    fn visit(&mut self, at: u32) {
        if self.regions.len() > 4 * CHANGES {
            self.unknown = true;
            return;
        }
        match &self.nodes[at as usize] {
            Node::Same => {}
            Node::Unknown => self.unknown = true,
            Node::Gained => self.regions.push(Region { chosen: self.path.clone(), gained: true }),
            Node::Lost => self.regions.push(Region { chosen: self.path.clone(), gained: false }),
            Node::Split { dimension, branches } => {
                for (atoms, child) in branches {
                    self.path.push((*dimension, atoms.clone()));
                    self.visit(*child);
                    self.path.pop();
                }
            }
        }
    }
}

/// The region in words, with an example; where there is none, what could not be shown.
fn show(
    space: &Space,
    chosen: &[(usize, Vec<u32>)],
    gained: bool,
    engines: &mut Engines<'_>,
) -> Result<Change, String> {
    let mut change = Change {
        workloads: Vec::new(),
        workloads_but: Vec::new(),
        who: Vec::new(),
        who_but: Vec::new(),
        what: Vec::new(),
        example: Example {
            workload: String::new(),
            identity: None,
            target: Target::default(),
            old: Decided { allowed: false, reason: None, rule: None },
            new: Decided { allowed: false, reason: None, rule: None },
        },
    };
    for (at, atoms) in chosen {
        let dimension = &space.dimensions[*at];
        let Words { any_of, but } = describe(dimension, atoms);
        let named = |texts: Vec<String>| -> Vec<String> {
            let named = |text: String| {
                SYMBOLS.iter().fold(text, |text, (symbol, shown)| text.replace(symbol, shown))
            };
            texts.into_iter().map(named).collect()
        };
        let (any_of, but) = (named(any_of), named(but));
        match dimension.atoms.first().map(|atom| &atom.value) {
            Some(Value::Workload(_)) => (change.workloads, change.workloads_but) = (any_of, but),
            Some(Value::Caller(_)) => (change.who, change.who_but) = (any_of, but),
            _ => change.what.push(sentence(dimension.what, &any_of, &but)),
        }
    }
    let example = (0..TRIES).find_map(|attempt| {
        let values: Vec<&Value> = space
            .dimensions
            .iter()
            .enumerate()
            .filter_map(|(at, dimension)| {
                let atoms = chosen.iter().find(|(one, _)| *one == at).map(|(_, atoms)| atoms);
                let atom = match atoms {
                    Some(atoms) => atoms[attempt % atoms.len()] as usize,
                    // Whatever it is, it makes no difference: what is not asked for is best not there.
                    None if matches!(dimension.atoms[0].value, Value::Condition(..)) => {
                        return None;
                    }
                    None => 0,
                };
                dimension.atoms.get(atom).map(|atom| &atom.value)
            })
            .collect();
        engines.example(&values, gained)
    });
    match example {
        Some(example) => Ok(Change { example, ..change }),
        None => {
            let verb = if gained { "gained" } else { "lost" };
            let or_all = |list: &[String], all: &str| match list {
                [] => all.to_owned(),
                list => list.join(", "),
            };
            let who = or_all(&change.who, "anybody");
            let at = or_all(&change.workloads, "all workloads");
            let what = or_all(&change.what, "everything");
            Err(format!("no request shows it: {verb} by {who} at {at}: {what}"))
        }
    }
}

fn sentence(what: &str, any_of: &[String], but: &[String]) -> String {
    let mut text = what.to_owned();
    if !any_of.is_empty() {
        text = format!("{text} {}", any_of.join(" or "));
    }
    if !but.is_empty() {
        let not = if any_of.is_empty() { "not" } else { "but not" };
        text = format!("{text} {not} {}", but.join(" nor "));
    }
    text.trim_start().to_owned()
}
