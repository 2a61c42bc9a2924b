//! Everything in which two actions can differ for the rules of two sets: a few values of each kind stand for all.

use std::collections::{BTreeSet, HashMap};

use super::super::callers::{Callers, NOBODY};
use super::super::engine::alone;
use super::super::instances::Texts;
use super::super::lines::{Line, OTHER, is_free};
use super::super::shape::{Name, Segment, Shape, Space as Names, atoms};
use super::super::target::{Target, TargetRoute};
use crate::identity::SpiffeId;
use crate::model::{PolicyAction, PolicyRule, To};

/// So many values of a kind are told apart.
const ATOMS: usize = 20_000;

/// A value that stands for all that no rule tells from it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Workload(SpiffeId),
    Caller(Option<SpiffeId>),
    Connection(bool),
    Route(Option<TargetRoute>),
    Port(u16),
    /// None: it is absent, or no host name.
    Host(Option<String>),
    Method(String),
    Path(String),
    Upgrade(Option<String>),
    Lot(u8),
    /// A rule's part, and how it stands with it.
    Condition(Box<PolicyRule>, Standing),
}

/// How it stands with a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It holds.
    Holds,
    /// It does not.
    Fails,
    /// What it asks for is absent: it does not hold to allow, and does to refuse.
    Absent,
}

#[derive(Clone, Debug)]
pub(super) struct Atom {
    pub(super) value: Value,
    /// Which of the dimension's patterns mean it.
    pub(super) met: Vec<u32>,
}

/// For each line, some of a dimension's atoms; `None` for all.
pub(super) type ByLine = Vec<Option<Vec<u32>>>;

/// One kind of difference.
#[derive(Debug)]
pub(super) struct Dimension {
    /// As sentences name it.
    pub(super) what: &'static str,
    pub(super) atoms: Vec<Atom>,
    pub(super) patterns: Vec<String>,
    /// For each line, the atoms for which it can hold; `None` for all.
    pub(super) by_line: ByLine,
}

/// All of them, in the order in which they are looked at.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) dimensions: Vec<Dimension>,
    pub(super) not_compared: Vec<String>,
}

pub(super) fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl Space {
    pub(super) fn of(lines: &[Line], texts: &Texts, routes: Option<&[TargetRoute]>) -> Self {
        let mut space = Self { dimensions: Vec::new(), not_compared: Vec::new() };
        space.workloads(lines);
        space.callers(lines, texts);
        space.contents(lines);
        space.routes(lines, routes);
        space.ports(lines);
        space.hosts(lines, texts);
        space.methods(lines);
        space.paths(lines);
        space.upgrades(lines);
        space.lots(lines);
        space.conditions(lines);
        // What no rule looks at tells nothing apart; the workload and the caller are always told.
        space
    }

    /// The distinct shapes and, for each, the atoms that it means.
    fn tell_apart(
        &mut self,
        what: &'static str,
        names: Names,
        shapes: impl Iterator<Item = Shape>,
        value: impl Fn(&Name) -> Option<Value>,
    ) -> (Dimension, HashMap<Shape, Vec<u32>>) {
        let shapes: Vec<Shape> = shapes.collect::<BTreeSet<_>>().into_iter().collect();
        let all: Vec<&Shape> = shapes.iter().collect();
        let (found, cut) = atoms(names, &all, &BTreeSet::new(), ATOMS);
        if cut {
            self.not_compared.push(format!("{what}: beyond {ATOMS} that rules tell apart"));
        }
        let mut means: HashMap<Shape, Vec<u32>> = HashMap::new();
        let mut kept = Vec::new();
        for (name, met) in found {
            let Some(value) = value(&name) else { continue };
            for shape in &met {
                means.entry(shapes[*shape as usize].clone()).or_default().push(number(kept.len()));
            }
            kept.push(Atom { value, met });
        }
        let text = |shape: &Shape| match names {
            Names::Ids => shape.to_string(),
            Names::Paths => shape.path_text(),
        };
        let patterns = shapes.iter().map(text).collect();
        let dimension = Dimension { what, atoms: kept, patterns, by_line: Vec::new() };
        (dimension, means)
    }

    fn workloads(&mut self, lines: &[Line]) {
        let shapes = lines.iter().flat_map(|line| line.workloads.clone());
        // Where rules mean the workload's own trust domain, one stands for all that no policy names.
        let all = || lines.iter().flat_map(|line| &line.workloads);
        let asks_own = all().any(|shape| shape.root.as_deref() == Some(OTHER));
        let named: BTreeSet<&str> = all().filter_map(|shape| shape.root.as_deref()).collect();
        let counts = |name: &Name| !asks_own || named.contains(&*name.root);
        let id = |name: &Name| name.id().filter(|_| counts(name)).map(Value::Workload);
        let (mut dimension, means) = self.tell_apart("workload", Names::Ids, shapes, id);
        dimension.by_line = lines
            .iter()
            .map(|line| among(&line.workloads, &[], &means, dimension.atoms.len()))
            .collect();
        self.dimensions.push(dimension);
    }

    fn callers(&mut self, lines: &[Line], texts: &Texts) {
        let both = |callers: &Callers| {
            callers.any_of.iter().chain(&callers.but).cloned().collect::<Vec<_>>()
        };
        // Where names in braces are bound, callers bear one of the texts.
        let mut binders: Vec<&(Shape, Vec<usize>)> = Vec::new();
        for found in lines.iter().filter_map(|line| line.binders.principal.as_ref()) {
            if !binders.contains(&found) {
                binders.push(found);
            }
        }
        let with = |shape: &Shape, at: usize, text: &str| {
            let mut shape = shape.clone();
            shape.segments[at] = Segment::exactly(text);
            shape
        };
        let bound = binders.iter().flat_map(|(shape, places)| {
            let texts =
                places.iter().flat_map(|at| texts.values.iter().map(move |text| (at, text)));
            texts.map(|(at, text)| with(shape, *at, text)).chain([shape.clone()])
        });
        let shapes = lines.iter().flat_map(|line| both(&line.callers)).chain([Shape::all()]);
        let shapes = shapes.chain(bound);
        let counts = |name: &Name| {
            let bears = |at: &usize| texts.values.contains(&name.segments[*at]);
            binders.iter().all(|(shape, places)| !shape.holds(name) || places.iter().all(bears))
        };
        let id = |name: &Name| name.id().filter(|_| counts(name)).map(|id| Value::Caller(Some(id)));
        let (mut dimension, means) = self.tell_apart("caller", Names::Ids, shapes, id);
        let nobody = number(dimension.atoms.len());
        let met = vec![number(dimension.patterns.len())];
        dimension.patterns.push(NOBODY.to_owned());
        dimension.atoms.push(Atom { value: Value::Caller(None), met });
        let holds = |line: &Line| {
            let callers = &line.callers;
            let mut found = match among(&callers.any_of, &callers.but, &means, nobody as usize) {
                Some(found) => found,
                None if callers.nobody => return None,
                None => (0..nobody).collect(),
            };
            if callers.nobody {
                found.push(nobody);
            }
            Some(found)
        };
        dimension.by_line = lines.iter().map(holds).collect();
        self.dimensions.push(dimension);
    }

    fn contents(&mut self, lines: &[Line]) {
        let atom = |connection: bool| Atom {
            value: Value::Connection(connection),
            met: vec![u32::from(connection)],
        };
        self.dimensions.push(Dimension {
            what: "",
            atoms: vec![atom(false), atom(true)],
            patterns: vec!["HTTP requests".into(), "connections (layer 4)".into()],
            by_line: lines.iter().map(|line| Some(vec![u32::from(line.connection)])).collect(),
        });
    }

    fn ports(&mut self, lines: &[Line]) {
        let named: BTreeSet<u16> = lines
            .iter()
            .flat_map(|line| line.to.ports.iter().chain(&line.to.not_ports))
            .copied()
            .collect();
        if named.is_empty() {
            return;
        }
        let fresh = (15006..).find(|port| !named.contains(port)).unwrap_or(1);
        let mut values: Vec<Value> = named.iter().copied().map(Value::Port).collect();
        values.push(Value::Port(fresh));
        let patterns = named.iter().map(ToString::to_string).collect();
        let of = |to: &To| To {
            ports: to.ports.clone(),
            not_ports: to.not_ports.clone(),
            ..To::default()
        };
        self.judged("port", values, patterns, lines, of, |at, value| value == at);
    }

    fn hosts(&mut self, lines: &[Line], texts: &Texts) {
        let listed = lines.iter().flat_map(|line| line.to.hosts.iter().chain(&line.to.not_hosts));
        let mut named: BTreeSet<String> = listed.cloned().collect();
        if named.is_empty() && !lines.iter().any(|line| line.host.is_some()) {
            return;
        }
        // Where a name in braces is bound, hosts bear one of the texts.
        let bound: BTreeSet<&String> =
            lines.iter().filter_map(|line| line.binders.suffix.as_ref()).collect();
        let is_label = |text: &&String| !text.contains('.') && **text == text.to_ascii_lowercase();
        for suffix in &bound {
            named.insert(format!("{{label}}{suffix}"));
            named
                .extend(texts.values.iter().filter(is_label).map(|text| format!("{text}{suffix}")));
        }
        let mut label = "some".to_owned();
        while named.iter().any(|host| host.to_ascii_lowercase().contains(&label)) {
            label.push('x');
        }
        let mut hosts: BTreeSet<String> = BTreeSet::new();
        for host in &named {
            match host.split_once('.') {
                Some((first, rest)) if first == "*" || is_free(first) => {
                    let suffix = format!(".{}", rest.trim_end_matches('.').to_ascii_lowercase());
                    hosts.extend((!bound.contains(&suffix)).then(|| format!("{label}{suffix}")));
                    hosts.insert(format!("{label}.{label}{suffix}"));
                }
                _ => drop(hosts.insert(host.to_ascii_lowercase())),
            }
        }
        // No pattern means it: none holds the label.
        hosts.insert(format!("{label}.{label}"));
        let mut values: Vec<Value> = hosts.into_iter().map(Some).map(Value::Host).collect();
        values.push(Value::Host(None));
        let mut patterns: Vec<String> = named.into_iter().collect();
        let mut means: Vec<Vec<bool>> = patterns
            .iter()
            .map(|host| {
                judge(
                    &To { hosts: vec![host.clone()], ..To::default() },
                    PolicyAction::Allow,
                    &values,
                )
            })
            .collect();
        patterns.push("absent".to_owned());
        means.push(values.iter().map(|value| *value == Value::Host(None)).collect());
        let of = |to: &To| To {
            hosts: to.hosts.clone(),
            not_hosts: to.not_hosts.clone(),
            ..To::default()
        };
        let absent = number(values.len().saturating_sub(1));
        let present: Vec<u32> = (0..absent).collect();
        self.judged("host", values, patterns, lines, of, |pattern, value| means[pattern][value]);
        let Some(dimension) = self.dimensions.last_mut() else { return };
        for (line, holds) in lines.iter().zip(&mut dimension.by_line) {
            let Some(has_host) = line.host else { continue };
            let meant = if has_host { present.clone() } else { vec![absent] };
            let held = |at: &u32| holds.as_ref().is_none_or(|found| found.contains(at));
            *holds = Some(meant.into_iter().filter(held).collect());
        }
    }

    fn methods(&mut self, lines: &[Line]) {
        let listed =
            lines.iter().flat_map(|line| line.to.methods.iter().chain(&line.to.not_methods));
        let mut named: BTreeSet<String> = listed.cloned().collect();
        if lines.iter().any(|line| line.is_call) {
            named.insert("POST".into());
        }
        if named.is_empty() {
            return;
        }
        let usual =
            ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "OTHER", "ANOTHER"];
        let known = |method: &&&str| named.iter().any(|one| one.eq_ignore_ascii_case(method));
        let fresh = usual.iter().find(|method| !known(method)).map_or("X-OTHER", |method| method);
        let mut values: Vec<Value> = named.iter().cloned().map(Value::Method).collect();
        values.push(Value::Method(fresh.to_owned()));
        let post = values.iter().position(|value| *value == Value::Method("POST".into()));
        let patterns = named.into_iter().collect();
        let of = |to: &To| To {
            methods: to.methods.clone(),
            not_methods: to.not_methods.clone(),
            ..To::default()
        };
        self.judged("method", values, patterns, lines, of, |at, value| value == at);
        let Some(dimension) = self.dimensions.last_mut() else { return };
        // A gRPC call is a POST.
        for (line, holds) in
            lines.iter().zip(&mut dimension.by_line).filter(|(line, _)| line.is_call)
        {
            let Some(post) = post.map(number) else { continue };
            let fits = holds.as_ref().is_none_or(|found| found.contains(&post));
            *holds = Some(if fits && line.is_call { vec![post] } else { Vec::new() });
        }
    }

    fn paths(&mut self, lines: &[Line]) {
        let all = |line: &Line| {
            line.paths.all_of.iter().flatten().chain(&line.paths.but).cloned().collect::<Vec<_>>()
        };
        if lines.iter().all(|line| all(line).is_empty()) {
            return;
        }
        let path = |name: &Name| Some(Value::Path(name.path()));
        let shapes = lines.iter().flat_map(all).collect::<Vec<_>>();
        let (mut dimension, means) =
            self.tell_apart("path", Names::Paths, shapes.into_iter(), path);
        let count = dimension.atoms.len();
        let holds = |line: &Line| {
            let mut found: Option<Vec<u32>> = None;
            for list in &line.paths.all_of {
                let more = among(list, &[], &means, count);
                found = match (found, more) {
                    (None, more) => more,
                    (found, None) => found,
                    (Some(found), Some(more)) => Some(
                        found.into_iter().filter(|at| more.binary_search(at).is_ok()).collect(),
                    ),
                };
            }
            if line.paths.but.is_empty() {
                return found;
            }
            let out = among(&line.paths.but, &[], &means, count)
                .unwrap_or_else(|| (0..number(count)).collect());
            let found = found.unwrap_or_else(|| (0..number(count)).collect());
            Some(found.into_iter().filter(|at| out.binary_search(at).is_err()).collect())
        };
        dimension.by_line = lines.iter().map(holds).collect();
        self.dimensions.push(dimension);
    }

    fn upgrades(&mut self, lines: &[Line]) {
        // Where no rule admits a protocol, both sets refuse to switch to any.
        let admits =
            |line: &&Line| line.action == PolicyAction::Allow && !line.to.upgrades.is_empty();
        if !lines.iter().any(|line| admits(&line)) {
            let plain = lines.iter().map(|line| match line.to.upgrades.is_empty() {
                true => None,
                false => Some(Vec::new()),
            });
            let dimension = Dimension {
                what: "upgrade to",
                atoms: vec![Atom { value: Value::Upgrade(None), met: Vec::new() }],
                patterns: Vec::new(),
                by_line: plain.collect(),
            };
            self.dimensions.push(dimension);
            return;
        }
        let listed = lines.iter().flat_map(|line| &line.to.upgrades);
        let named: BTreeSet<String> =
            listed.filter(|name| *name != "*").map(|name| name.to_ascii_lowercase()).collect();
        let mut values = vec![Value::Upgrade(None)];
        values.extend(named.iter().cloned().map(|name| Value::Upgrade(Some(name))));
        values.push(Value::Upgrade(Some("another-protocol".into())));
        let mut patterns = vec!["none".to_owned()];
        patterns.extend(named);
        let of = |to: &To| To { upgrades: to.upgrades.clone(), ..To::default() };
        self.judged("upgrade to", values, patterns, lines, of, |at, value| value == at);
        // A connection switches to nothing.
        if let Some(dimension) = self.dimensions.last_mut() {
            for (line, holds) in lines.iter().zip(&mut dimension.by_line) {
                if line.connection {
                    *holds = None;
                } else if holds.is_none() && line.action == PolicyAction::Allow {
                    *holds = Some(vec![0]);
                }
            }
        }
    }

    fn lots(&mut self, lines: &[Line]) {
        let limits: BTreeSet<u8> =
            lines.iter().map(|line| line.below).filter(|below| *below < 100).collect();
        if limits.is_empty() {
            return;
        }
        let lots: Vec<u8> = std::iter::once(0).chain(limits.iter().copied()).collect();
        let atoms = lots.iter().map(|lot| Atom {
            value: Value::Lot(*lot),
            met: (0..limits.len())
                .filter(|at| limits.iter().nth(*at).is_some_and(|limit| lot < limit))
                .map(number)
                .collect(),
        });
        let below = |line: &Line| {
            let found = lots.iter().enumerate().filter(|(_, lot)| **lot < line.below);
            (line.below < 100).then(|| found.map(|(at, _)| number(at)).collect())
        };
        let dimension = Dimension {
            what: "canary:",
            atoms: atoms.collect(),
            patterns: limits.iter().map(|limit| format!("{limit} % of connections")).collect(),
            by_line: lines.iter().map(below).collect(),
        };
        self.dimensions.push(dimension);
    }

    /// A dimension whose lines the engine judges, value by value.
    fn judged(
        &mut self,
        what: &'static str,
        values: Vec<Value>,
        patterns: Vec<String>,
        lines: &[Line],
        of: impl Fn(&To) -> To,
        means: impl Fn(usize, usize) -> bool,
    ) {
        let mut known: HashMap<String, Option<Vec<u32>>> = HashMap::new();
        let by_line = lines.iter().map(|line| {
            let part = of(&line.to);
            if part == To::default() {
                return None;
            }
            let key = serde_json::json!([line.action, part]).to_string();
            let found = known.entry(key).or_insert_with(|| {
                let holds = judge(&part, line.action, &values);
                let held = holds.iter().enumerate().filter(|(_, holds)| **holds);
                Some(held.map(|(at, _)| number(at)).collect())
            });
            found.clone()
        });
        let by_line = by_line.collect();
        let met =
            |value: usize| (0..patterns.len()).filter(|at| means(*at, value)).map(number).collect();
        let atoms = values.into_iter().enumerate().map(|(at, value)| Atom { value, met: met(at) });
        let atoms = atoms.collect();
        self.dimensions.push(Dimension { what, atoms, patterns, by_line });
    }
}

/// The atoms that one of these means and none of those; `None` for all.
fn among(
    any_of: &[Shape],
    but: &[Shape],
    means: &HashMap<Shape, Vec<u32>>,
    count: usize,
) -> Option<Vec<u32>> {
    if but.is_empty() && any_of.contains(&Shape::all()) {
        return None;
    }
    let union = |shapes: &[Shape]| -> Vec<u32> {
        let mut found: Vec<u32> =
            shapes.iter().filter_map(|shape| means.get(shape)).flatten().copied().collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let mut found = match any_of.contains(&Shape::all()) {
        true => (0..number(count)).collect(),
        false => union(any_of),
    };
    let out = union(but);
    found.retain(|at| out.binary_search(at).is_err());
    Some(found)
}

/// For which values a rule with this part alone holds.
pub(super) fn judge(part: &To, action: PolicyAction, values: &[Value]) -> Vec<bool> {
    let engine = alone(PolicyRule { to: Some(part.clone()), ..PolicyRule::default() }, action);
    let held = |value: &Value| {
        let text = |text: &str| Some(text.to_owned());
        let mut target = Target {
            method: text("GET"),
            host: text("host.test"),
            path: text("/"),
            ..Target::default()
        };
        set(&mut target, value);
        let fields = target.fields();
        engine.held(None, &target.action(&fields)).first() == Some(&true)
    };
    values.iter().map(held).collect()
}

/// Puts a value into a target. Workload, caller and conditions are no parts of one.
pub(super) fn set(target: &mut Target, value: &Value) {
    match value {
        Value::Workload(_) | Value::Caller(_) | Value::Condition(..) => {}
        Value::Connection(connection) => target.connection = *connection,
        Value::Route(route) => target.route.clone_from(route),
        Value::Port(port) => target.port = Some(*port),
        Value::Host(host) => target.host.clone_from(host),
        Value::Method(method) => target.method = Some(method.clone()),
        Value::Path(path) => target.path = Some(path.clone()),
        Value::Upgrade(upgrade) => target.upgrade.clone_from(upgrade),
        Value::Lot(lot) => target.lot = Some(*lot),
    }
}
