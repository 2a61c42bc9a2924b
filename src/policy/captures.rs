//! Names in braces that a rule has in several places: what they stand for must be the same text in all of them.
//!
//! A rule with several principals and hosts is as several rules with one of each: one of them has to hold.

use smallvec::SmallVec;

use super::action::Facts;
use super::callers::Callers;
use super::path::{Look, Template};
use super::targets::Targets;
use crate::identity::SpiffeId;
use crate::model::PolicyAction;

/// So many names can be compared in one rule.
const MAX_NAMES: usize = 8;

/// Which segment stands for which name.
type Places = SmallVec<[(usize, u8); 2]>;

/// The names that a rule compares, and where they stand. The lists are those of the rule, in their order.
#[derive(Debug)]
pub(super) struct Captures {
    names: Box<[Box<str>]>,
    principals: Box<[Places]>,
    hosts: Box<[Option<u8>]>,
    not_hosts: Box<[Option<u8>]>,
    paths: Box<[Places]>,
    not_paths: Box<[Places]>,
    /// Which lists bear a name that is compared.
    pub(super) in_hosts: bool,
    pub(super) in_not_hosts: bool,
    pub(super) in_paths: bool,
    pub(super) in_not_paths: bool,
}

/// What a name stands for.
#[derive(Clone, Copy)]
struct Captured<'t> {
    text: &'t str,
    /// Its case means nothing where it was found.
    is_folded: bool,
}

/// What the names stand for so far.
type Binding<'t> = [Option<Captured<'t>>; MAX_NAMES];

impl Captures {
    /// `None` when no name stands in two places.
    pub(super) fn of(from: &Callers, to: &Targets) -> Result<Option<Self>, String> {
        let of_principals = || from.principals.iter().flat_map(|p| p.names());
        let of_hosts = || to.hosts.iter().filter_map(|host| host.capture());
        let of_not_hosts = || to.not_hosts.iter().filter_map(|host| host.capture());
        let of_paths = || to.paths.iter().flat_map(|path| path.names());
        let of_not_paths = || to.not_paths.iter().flat_map(|path| path.names());
        let mut names: Vec<Box<str>> = Vec::new();
        // A name is bound by the caller or the host, and compared wherever else it stands.
        for name in of_principals().map(|(_, name)| &**name).chain(of_hosts()) {
            let is = |other: &str| other == name;
            let places = [
                of_principals().any(|(_, other)| is(other)),
                of_hosts().any(is),
                of_not_hosts().any(is),
                of_paths().any(|(_, other)| is(other)),
                of_not_paths().any(|(_, other)| is(other)),
            ];
            let count = places.into_iter().filter(|stands| *stands).count();
            if count > 1 && !names.iter().any(|known| **known == *name) {
                names.push(name.into());
            }
        }
        if names.is_empty() {
            return Ok(None);
        }
        if names.len() > MAX_NAMES {
            return Err(format!("has more than {MAX_NAMES} names in braces that are compared"));
        }
        let number = |name: &str| {
            let at = names.iter().position(|known| **known == *name)?;
            u8::try_from(at).ok()
        };
        let places = |found: &[(usize, Box<str>)]| -> Places {
            found.iter().filter_map(|(at, name)| Some((*at, number(name)?))).collect()
        };
        let paths = |list: &[Template]| -> Box<[Places]> {
            list.iter().map(|template| places(template.names())).collect()
        };
        let hosts = |list: &[super::host::HostPattern]| -> Box<[Option<u8>]> {
            list.iter().map(|host| host.capture().and_then(number)).collect()
        };
        let (of_paths, of_not_paths) = (paths(&to.paths), paths(&to.not_paths));
        let (of_hosts, of_not_hosts) = (hosts(&to.hosts), hosts(&to.not_hosts));
        let some = |list: &[Places]| list.iter().any(|places| !places.is_empty());
        Ok(Some(Self {
            principals: from.principals.iter().map(|p| places(p.names())).collect(),
            in_hosts: of_hosts.iter().any(Option::is_some),
            in_not_hosts: of_not_hosts.iter().any(Option::is_some),
            in_paths: some(&of_paths),
            in_not_paths: some(&of_not_paths),
            hosts: of_hosts,
            not_hosts: of_not_hosts,
            paths: of_paths,
            not_paths: of_not_paths,
            names: names.into(),
        }))
    }

    pub(super) fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// Is there a principal and a host of the rule with which everything that bears names holds?
    ///
    /// What is absent or unclear leaves its names open: to refuse, that suffices, and nothing is exempt by such a name. (An allow
    /// rule has failed by it already.)
    pub(super) fn hold(
        &self,
        from: &Callers,
        to: &Targets,
        facts: &Facts<'_>,
        action: PolicyAction,
    ) -> bool {
        let look = if action == PolicyAction::Allow { Look::Strict } else { Look::Wide };
        let open: Binding<'_> = [None; MAX_NAMES];
        let absent = self.absent(facts);
        let by_host = |binding: &Binding<'_>| match facts.host().filter(|_| self.in_hosts) {
            None => self.rest_holds(to, facts, action, binding, absent),
            Some(host) => to.hosts.iter().zip(&self.hosts).any(|(pattern, name)| {
                pattern.matches(host)
                    && name
                        .map_or(Some(*binding), |name| {
                            extend(binding, name, first_label(host), look)
                        })
                        .is_some_and(|binding| self.rest_holds(to, facts, action, &binding, absent))
            }),
        };
        match facts.caller.filter(|_| !self.principals.is_empty()) {
            None => by_host(&open),
            Some(id) => from.principals.iter().zip(&self.principals).any(|(pattern, places)| {
                pattern.matches(id)
                    && extend_all(&open, places, |at| segment_of(id, at), false, look)
                        .is_some_and(|binding| by_host(&binding))
            }),
        }
    }

    /// The names that whoever is not there would have bound, a bit for each.
    fn absent(&self, facts: &Facts<'_>) -> u8 {
        let bit = |name: u8| 1_u8.checked_shl(name.into()).unwrap_or(0);
        let callers = self.principals.iter().flatten().filter(|_| facts.caller.is_none());
        let hosts = self.hosts.iter().flatten().filter(|_| facts.host().is_none());
        callers
            .map(|(_, name)| bit(*name))
            .chain(hosts.map(|name| bit(*name)))
            .fold(0, |all, bit| all | bit)
    }

    fn rest_holds(
        &self,
        to: &Targets,
        facts: &Facts<'_>,
        action: PolicyAction,
        binding: &Binding<'_>,
        absent: u8,
    ) -> bool {
        let allow = action == PolicyAction::Allow;
        // To refuse, nobody is exempt by a name of which it is not known what it stands for.
        let is_known = |name: u8| {
            let is_bound = binding.get(usize::from(name)).is_some_and(Option::is_some);
            is_bound || absent.checked_shr(name.into()).unwrap_or(0) & 1 == 0
        };
        let exempts = |name: u8| allow || is_known(name);
        let (look, other) = match allow {
            true => (Look::Strict, Look::Wide),
            false => (Look::Wide, Look::Strict),
        };
        if self.in_not_hosts {
            let excluded = facts.host().is_some_and(|host| {
                to.not_hosts.iter().zip(&self.not_hosts).any(|(pattern, name)| {
                    pattern.matches(host)
                        && name.is_none_or(|name| {
                            exempts(name)
                                && extend(binding, name, first_label(host), other).is_some()
                        })
                })
            });
            if excluded {
                return false;
            }
        }
        if !(self.in_paths || self.in_not_paths) {
            return true;
        }
        let is_meant = |template: &Template, places: &Places, path: &str, look| {
            let segment = |at: usize| path.split('/').nth(at + 1);
            template.matches(path, look)
                && extend_all(binding, places, segment, template.ignores_case(), look).is_some()
        };
        let means = |list: &[Template], places: &[Places], path: &str, look| {
            let mut each = list.iter().zip(places);
            each.any(|(template, places)| is_meant(template, places, path, look))
        };
        let readings = facts.readings();
        let meant = !self.in_paths
            || match allow {
                true => readings.all(|path| means(&to.paths, &self.paths, path, look)),
                false => readings.any(|path| means(&to.paths, &self.paths, path, look)),
            };
        let excluded = self.in_not_paths
            && match allow {
                true => readings.any(|path| means(&to.not_paths, &self.not_paths, path, other)),
                false => readings.all(|path| {
                    let named = to.not_paths.iter().zip(&self.not_paths);
                    let mut known =
                        named.filter(|(_, places)| places.iter().all(|(_, name)| exempts(*name)));
                    known.any(|(template, places)| is_meant(template, places, path, other))
                }),
            };
        meant && !excluded
    }
}

fn segment_of(id: &SpiffeId, at: usize) -> Option<&str> {
    id.path().split('/').nth(at + 1)
}

/// A host's name has no case.
fn first_label(host: &str) -> Captured<'_> {
    Captured { text: host.split('.').next().unwrap_or_default(), is_folded: true }
}

fn extend_all<'t>(
    binding: &Binding<'t>,
    places: &Places,
    segment: impl Fn(usize) -> Option<&'t str>,
    is_folded: bool,
    look: Look,
) -> Option<Binding<'t>> {
    let mut binding = *binding;
    for (at, name) in places {
        let captured = Captured { text: segment(*at)?, is_folded };
        binding = extend(&binding, *name, captured, look)?;
    }
    Some(binding)
}

/// The binding with this name as well; `None` when it stands for something else already.
fn extend<'t>(
    binding: &Binding<'t>,
    name: u8,
    found: Captured<'t>,
    look: Look,
) -> Option<Binding<'t>> {
    let mut binding = *binding;
    let known = binding.get_mut(usize::from(name))?;
    match known {
        Some(known) => is_same(*known, found, look).then_some(binding),
        None => {
            *known = Some(found);
            Some(binding)
        }
    }
}

/// Text whose case means nothing is its lower case; to refuse, case alone makes no difference then.
fn is_same(one: Captured<'_>, other: Captured<'_>, look: Look) -> bool {
    match (one.is_folded, other.is_folded) {
        (false, false) => one.text == other.text,
        (true, true) => one.text.eq_ignore_ascii_case(other.text),
        _ if look == Look::Wide => one.text.eq_ignore_ascii_case(other.text),
        (true, false) => is_lower_case_of(other.text, one.text),
        (false, true) => is_lower_case_of(one.text, other.text),
    }
}

fn is_lower_case_of(lower: &str, text: &str) -> bool {
    lower.len() == text.len()
        && lower.bytes().zip(text.bytes()).all(|(lower, byte)| lower == byte.to_ascii_lowercase())
}
