//! Routes, as selectors tell them apart.

use std::collections::BTreeSet;

use super::super::lines::Line;
use super::super::target::TargetRoute;
use super::space::{Atom, Dimension, Space, Value, number};
use crate::model::{Id, Labels, PolicySelector};

impl Space {
    pub(super) fn routes(&mut self, lines: &[Line], known: Option<&[TargetRoute]>) {
        let selectors: Vec<&PolicySelector> = lines.iter().map(|line| &line.selector).collect();
        let asks = |one: &PolicySelector| !(one.routes.is_empty() && one.labels.is_empty());
        if !selectors.iter().any(|one| asks(one)) {
            return;
        }
        let mut routes: Vec<Option<TargetRoute>> = vec![None];
        match known {
            Some(known) => routes.extend(known.iter().cloned().map(Some)),
            None => {
                let (found, cut) = imagined(&selectors);
                routes.extend(found.into_iter().map(Some));
                if cut {
                    self.not_compared.push(format!("routes: beyond {LABELS} sets of labels"));
                }
            }
        }
        let selects = |selector: &PolicySelector, route: &Option<TargetRoute>| match route {
            None => false,
            Some(route) => {
                (selector.routes.is_empty() || selector.routes.contains(&route.id))
                    && selector
                        .labels
                        .iter()
                        .all(|(name, value)| route.labels.get(name) == Some(value))
            }
        };
        let atoms = routes
            .iter()
            .enumerate()
            .map(|(at, route)| Atom { value: Value::Route(route.clone()), met: vec![number(at)] });
        let text = |route: &Option<TargetRoute>| match route {
            None => "none".to_owned(),
            Some(route) if known.is_some() || route.id.as_str() != OTHER_ROUTE => {
                route.id.to_string()
            }
            Some(route) if route.labels.is_empty() => "any other".to_owned(),
            Some(route) => {
                let labels = route.labels.iter().map(|(name, value)| format!("{name}={value}"));
                format!("any other labelled {}", labels.collect::<Vec<_>>().join(" "))
            }
        };
        let by_line = lines.iter().map(|line| {
            asks(&line.selector).then(|| {
                let chosen =
                    routes.iter().enumerate().filter(|(_, route)| selects(&line.selector, route));
                chosen.map(|(at, _)| number(at)).collect()
            })
        });
        let dimension = Dimension {
            what: "route",
            atoms: atoms.collect(),
            patterns: routes.iter().map(text).collect(),
            by_line: by_line.collect(),
        };
        self.dimensions.push(dimension);
    }
}

/// The id of a route that no policy names.
const OTHER_ROUTE: &str = "other-route";
/// So many sets of labels are imagined.
const LABELS: usize = 128;

/// Routes that selectors tell apart, where the real ones are not known.
fn imagined(selectors: &[&PolicySelector]) -> (Vec<TargetRoute>, bool) {
    let other = || Id::parse(OTHER_ROUTE).unwrap_or_else(|_| Id::from(0));
    let ids: BTreeSet<Id> =
        selectors.iter().flat_map(|one| one.routes.iter().cloned()).chain([other()]).collect();
    let mut labels: Vec<Labels> = vec![Labels::default()];
    let mut cut = false;
    for selector in selectors.iter().filter(|one| !one.labels.is_empty()) {
        // A route may bear what several selectors ask for, or only one.
        for at in 0..labels.len() {
            let mut both = labels[at].clone();
            let clash = selector
                .labels
                .iter()
                .any(|(name, value)| both.get(name).is_some_and(|found| found != value));
            both.extend(selector.labels.clone());
            if !clash && !labels.contains(&both) {
                cut |= labels.len() == LABELS;
                labels.extend((!cut).then_some(both));
            }
        }
    }
    let routes = ids.iter().flat_map(|id| labels.iter().map(|labels| (id.clone(), labels.clone())));
    (routes.map(|(id, labels)| TargetRoute { id, labels }).collect(), cut)
}
