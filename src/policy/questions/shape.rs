//! `Shape`: a set of names that are made of segments (SPIFFE IDs, paths), and what is left of one when others are taken away.
//!
//! The algebra is exact. Two shapes meet in one shape or in nothing; whether anything is left of a shape is found by looking
//! for a name that is left, over the finitely many segments that tell the shapes apart and one that none of them names.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::{self, Write as _};

use crate::identity::SpiffeId;

/// Which texts may stand in one segment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Segment {
    /// Any one.
    Any,
    /// This one.
    Exactly(Box<str>),
    /// This one in any case; kept in lower case.
    Folded(Box<str>),
    /// Those that begin with the one and end with the other.
    Like { prefix: Box<str>, suffix: Box<str> },
}

impl Segment {
    pub(super) fn exactly(text: &str) -> Self {
        Self::Exactly(text.into())
    }

    /// An entry as `name`, `prefix*`, `*suffix` or `*`.
    pub(super) fn entry(text: &str) -> Self {
        if text == "*" {
            return Self::Any;
        }
        let like = |prefix: &str, suffix: &str| Self::Like {
            prefix: prefix.into(),
            suffix: suffix.into(),
        };
        match (text.strip_suffix('*'), text.strip_prefix('*')) {
            (Some(prefix), _) => like(prefix, ""),
            (None, Some(suffix)) => like("", suffix),
            (None, None) => Self::exactly(text),
        }
    }

    pub(super) fn holds(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(one) => **one == *text,
            Self::Folded(one) => one.eq_ignore_ascii_case(text),
            Self::Like { prefix, suffix } => {
                text.starts_with(&**prefix) && text.ends_with(&**suffix)
            }
        }
    }

    fn meet(&self, other: &Self) -> Option<Self> {
        let longer = |one: &str, other: &str, fits: fn(&str, &str) -> bool| -> Option<Box<str>> {
            match (fits(one, other), fits(other, one)) {
                (true, _) => Some(one.into()),
                (false, true) => Some(other.into()),
                (false, false) => None,
            }
        };
        match (self, other) {
            (Self::Any, one) | (one, Self::Any) => Some(one.clone()),
            (Self::Exactly(text), one) | (one, Self::Exactly(text)) => {
                one.holds(text).then(|| Self::Exactly(text.clone()))
            }
            (Self::Folded(one), Self::Folded(other)) => {
                (one == other).then(|| Self::Folded(one.clone()))
            }
            (
                Self::Like { prefix, suffix },
                Self::Like { prefix: other_prefix, suffix: other_suffix },
            ) => Some(Self::Like {
                prefix: longer(prefix, other_prefix, |a, b| a.starts_with(b))?,
                suffix: longer(suffix, other_suffix, |a, b| a.ends_with(b))?,
            }),
            // Affixes are of IDs and folding is of paths: the two never stand in one space.
            (Self::Folded(_), Self::Like { .. }) | (Self::Like { .. }, Self::Folded(_)) => None,
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_char('*'),
            Self::Exactly(text) => f.write_str(text),
            Self::Folded(text) => write!(f, "[{text} in any case]"),
            Self::Like { prefix, suffix } => write!(f, "{prefix}*{suffix}"),
        }
    }
}

/// What may follow the last segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum End {
    /// Nothing.
    Closed,
    /// A slash.
    Slash,
    /// Nothing, or a slash.
    Either,
    /// One segment or more.
    Some,
    /// Anything, also nothing.
    Rest,
}

impl End {
    /// Of two shapes with as many segments.
    fn meet(self, other: Self) -> Option<Self> {
        use End::{Closed, Either, Rest, Slash, Some};
        match (self, other) {
            (one, same) if one == same => Option::Some(one),
            (Rest, one) | (one, Rest) => Option::Some(one),
            (Either, one @ (Closed | Slash)) | (one @ (Closed | Slash), Either) => {
                Option::Some(one)
            }
            (Some, _) | (_, Some) | (Closed, Slash) | (Slash, Closed) | (Either, Either) => None,
            (Closed, Closed) | (Slash, Slash) => Option::Some(self),
        }
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Some | Self::Rest)
    }
}

/// A set of names: of one root (a trust domain) or of all, by their segments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Shape {
    pub(super) root: Option<Box<str>>,
    pub(super) segments: Vec<Segment>,
    pub(super) end: End,
}

/// One name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub(super) root: String,
    pub(super) segments: Vec<String>,
    /// Ends with a slash. The root path has no segment and a slash.
    pub(super) slash: bool,
}

impl Name {
    pub(super) fn of_id(id: &SpiffeId) -> Self {
        Self {
            root: id.trust_domain_name().to_owned(),
            segments: id.path().split('/').skip(1).map(str::to_owned).collect(),
            slash: false,
        }
    }

    /// The SPIFFE ID; `None` when the name is none.
    pub(super) fn id(&self) -> Option<SpiffeId> {
        let mut text = format!("spiffe://{}", self.root);
        for segment in &self.segments {
            text.push('/');
            text.push_str(segment);
        }
        text.parse().ok()
    }

    /// The path, as a client would send it.
    pub(super) fn path(&self) -> String {
        let mut text = String::new();
        for segment in &self.segments {
            text.push('/');
            text.extend(percent_encoding::utf8_percent_encode(segment, UNSAFE));
        }
        if self.slash || text.is_empty() {
            text.push('/');
        }
        text
    }
}

/// What a client encodes in a segment of a path.
const UNSAFE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'|')
    .add(b'^');

impl Shape {
    /// All names.
    pub(super) const fn all() -> Self {
        Self { root: None, segments: Vec::new(), end: End::Rest }
    }

    /// All IDs of a trust domain, its own among them.
    pub(super) fn of_domain(name: &str) -> Self {
        Self { root: Some(name.into()), ..Self::all() }
    }

    /// Of the text of a pattern that was parsed before. A name in braces is any segment.
    pub(super) fn of_text(text: &str) -> Self {
        let rest = text.get("spiffe://".len()..).unwrap_or_default();
        let (rest, end) = match rest.strip_suffix("/**") {
            Some(closed) => (closed, End::Some),
            None => (rest, End::Closed),
        };
        let mut parts = rest.split('/');
        let root = parts.next().unwrap_or_default();
        let segments = parts.map(|part| match part {
            "*" => Segment::Any,
            _ if part.starts_with('{') => Segment::Any,
            _ => Segment::exactly(part),
        });
        Self { root: Some(root.into()), segments: segments.collect(), end }
    }

    /// The one name that is meant, if it is only one.
    pub(super) fn exact(&self) -> Option<Name> {
        let root = self.root.as_ref()?.to_string();
        if self.end != End::Closed {
            return None;
        }
        let segments = self.segments.iter().map(|segment| match segment {
            Segment::Exactly(text) => Some(text.to_string()),
            _ => None,
        });
        Some(Name { root, segments: segments.collect::<Option<_>>()?, slash: false })
    }

    pub(super) fn holds(&self, name: &Name) -> bool {
        self.root.as_ref().is_none_or(|root| **root == *name.root)
            && self.segments.len() <= name.segments.len()
            && self.segments.iter().zip(&name.segments).all(|(segment, text)| segment.holds(text))
            && self.ends(name.segments.len(), name.slash)
    }

    /// May a name of so many segments, which agree, end so?
    fn ends(&self, count: usize, slash: bool) -> bool {
        if count > self.segments.len() {
            return self.end.is_open();
        }
        count == self.segments.len()
            && match self.end {
                End::Closed => !slash,
                End::Slash => slash,
                End::Either | End::Rest => true,
                End::Some => false,
            }
    }

    /// The names that both mean.
    pub(super) fn meet(&self, other: &Self) -> Option<Self> {
        let root = match (&self.root, &other.root) {
            (None, root) | (root, None) => root.clone(),
            (Some(one), Some(other)) => Some((one == other).then(|| one.clone())?),
        };
        let (short, long) = match self.segments.len() <= other.segments.len() {
            true => (self, other),
            false => (other, self),
        };
        let common = short.segments.iter().zip(&long.segments);
        let mut segments =
            common.map(|(one, other)| one.meet(other)).collect::<Option<Vec<_>>>()?;
        let end = match short.segments.len() == long.segments.len() {
            true => short.end.meet(long.end)?,
            false if short.end.is_open() => long.end,
            false => return None,
        };
        segments.extend_from_slice(&long.segments[short.segments.len()..]);
        Some(Self { root, segments, end })
    }

    /// Does it mean everything that the other means, and is told so by their texts alone?
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.meet(other).as_ref() == Some(other)
    }
}

/// As an ID's pattern; of all trust domains, and of one with its own ID, in words.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.root, &*self.segments, self.end) {
            (None, [], End::Rest) => return f.write_str("anybody with an identity"),
            (Some(root), [], End::Rest) => return write!(f, "anybody of {root}"),
            _ => {}
        }
        write!(f, "spiffe://{}", self.root.as_deref().unwrap_or("*"))?;
        for segment in &self.segments {
            write!(f, "/{segment}")?;
        }
        f.write_str(match self.end {
            End::Closed | End::Either => "",
            End::Slash => "/",
            End::Some => "/**",
            End::Rest => "[/**]",
        })
    }
}

/// Whose names a search makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// SPIFFE IDs.
    Ids,
    /// Paths.
    Paths,
}

/// A walk over all names, as far as they differ for these shapes.
struct Walk<'a> {
    space: Space,
    shapes: Vec<&'a Shape>,
    /// Texts that count although no shape names them.
    also: &'a BTreeSet<String>,
    /// A segment that no shape names, nor any part of it.
    fresh: String,
    longest: usize,
}

impl<'a> Walk<'a> {
    fn new(space: Space, shapes: Vec<&'a Shape>, also: &'a BTreeSet<String>) -> Self {
        let named = |text: &str| {
            also.iter().any(|one| one.contains(text))
                || shapes.iter().any(|shape| {
                    shape.root.as_deref().is_some_and(|root| root.contains(text))
                        || shape.segments.iter().any(|segment| match segment {
                            Segment::Any => false,
                            Segment::Exactly(one) | Segment::Folded(one) => {
                                one.to_ascii_lowercase().contains(text)
                            }
                            Segment::Like { prefix, suffix } => {
                                prefix.contains(text) || suffix.contains(text)
                            }
                        })
                })
        };
        let word = match space {
            Space::Ids => "other",
            Space::Paths => "x",
        };
        let mut fresh = word.to_owned();
        let mut number = 0;
        while named(&fresh) {
            number += 1;
            fresh = format!("{word}{number}");
        }
        let longest = shapes.iter().map(|shape| shape.segments.len()).max().unwrap_or_default();
        Self { space, shapes, also, fresh, longest }
    }

    /// The roots that count, each with the shapes that mean names of it.
    fn roots(&self) -> Vec<(String, Vec<u32>)> {
        let all = || 0..u32::try_from(self.shapes.len()).unwrap_or(u32::MAX);
        let mut names: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        let mut any = Vec::new();
        for at in all() {
            match &self.shapes[at as usize].root {
                Some(root) => names.entry(root).or_default().push(at),
                None => any.push(at),
            }
        }
        let fresh = match self.space {
            Space::Ids => self.fresh.clone(),
            Space::Paths => String::new(),
        };
        let named = names.into_iter().map(|(name, list)| {
            let mut list: Vec<u32> = list.into_iter().chain(any.iter().copied()).collect();
            list.sort_unstable();
            (name.to_owned(), list)
        });
        let mut roots: Vec<_> = named.collect();
        roots.push((fresh, any));
        roots
    }

    /// The ways in which a name of so many segments may end.
    fn ends(&self, count: usize) -> &'static [bool] {
        match (self.space, count) {
            (Space::Ids, _) => &[false],
            (Space::Paths, 0) => &[true],
            (Space::Paths, _) => &[false, true],
        }
    }

    fn ended(&self, active: &[u32], count: usize, slash: bool) -> Vec<u32> {
        active.iter().copied().filter(|at| self.shapes[*at as usize].ends(count, slash)).collect()
    }

    /// The next segments that count, each with the shapes that are still met. The one that no shape names comes first.
    fn branches(&self, at: usize, active: &[u32]) -> Vec<(String, Vec<u32>)> {
        let mut exact: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        let mut others: Vec<(u32, &Segment)> = Vec::new();
        let mut texts: BTreeSet<String> = self.also.clone();
        let (mut prefixes, mut suffixes) = (BTreeSet::from([""]), BTreeSet::from([""]));
        for index in active.iter().copied() {
            let shape = self.shapes[index as usize];
            match shape.segments.get(at) {
                None if shape.end.is_open() => others.push((index, &Segment::Any)),
                None => {}
                Some(Segment::Exactly(text)) => exact.entry(text).or_default().push(index),
                Some(segment) => {
                    match segment {
                        Segment::Like { prefix, suffix } => {
                            prefixes.insert(prefix);
                            suffixes.insert(suffix);
                        }
                        Segment::Any | Segment::Exactly(_) | Segment::Folded(_) => {}
                    }
                    others.push((index, segment));
                }
            }
        }
        let mut order: Vec<String> = Vec::new();
        for prefix in &prefixes {
            for suffix in &suffixes {
                order.push(format!("{prefix}{}{suffix}", self.fresh));
            }
        }
        texts.extend(exact.keys().map(|text| (*text).to_owned()));
        // Each text in a case in which no shape names it.
        let folded = others.iter().filter_map(|(_, segment)| match segment {
            Segment::Folded(text) => cases(text).find(|case| !exact.contains_key(&**case)),
            _ => None,
        });
        texts.extend(folded.collect::<Vec<_>>());
        order.extend(texts);
        let branch = |text: String| {
            let met = others.iter().filter(|(_, segment)| segment.holds(&text)).map(|(at, _)| *at);
            let mut next: Vec<u32> =
                met.chain(exact.get(&*text).into_iter().flatten().copied()).collect();
            next.sort_unstable();
            (text, next)
        };
        order.into_iter().map(branch).collect()
    }
}

/// A text in lower case, in upper case, and then in others.
fn cases(text: &str) -> impl Iterator<Item = String> + use<'_> {
    let letters = text.bytes().filter(u8::is_ascii_alphabetic).count();
    let last = (1_u32 << letters.min(16)) - 1;
    let written = move |upper: u32| {
        let mut letter = 0;
        let written = text.chars().map(|char| {
            if !char.is_ascii_alphabetic() {
                return char;
            }
            letter += 1;
            let is_upper =
                upper == last || upper.checked_shr(letter - 1).is_some_and(|bits| bits & 1 == 1);
            if is_upper { char.to_ascii_uppercase() } else { char.to_ascii_lowercase() }
        });
        written.collect()
    };
    [0, last].into_iter().chain(1..last).map(written)
}

/// A name that `include` means and none of `minus`.
pub(super) fn left_over(space: Space, include: &Shape, minus: &[&Shape]) -> Option<Name> {
    // Most often one of them means all of it, or none any of it.
    let met: Vec<&Shape> =
        minus.iter().copied().filter(|shape| shape.meet(include).is_some()).collect();
    if met.iter().any(|shape| shape.covers(include)) {
        return None;
    }
    let also = BTreeSet::new();
    let mut shapes = vec![include];
    shapes.extend(met);
    let walk = Walk::new(space, shapes, &also);
    let mut dead = HashSet::new();
    walk.roots().into_iter().find_map(|(root, active)| {
        let mut name = Name { root, segments: Vec::new(), slash: false };
        search(&walk, &active, &mut name, &mut dead).then_some(name)
    })
}

/// Completes the name to one that only the first shape means.
fn search(
    walk: &Walk<'_>,
    active: &[u32],
    name: &mut Name,
    dead: &mut HashSet<(String, usize, Vec<u32>)>,
) -> bool {
    let count = name.segments.len();
    if active.first() != Some(&0) {
        return false;
    }
    if dead.contains(&(name.root.clone(), count, active.to_vec())) {
        return false;
    }
    for slash in walk.ends(count) {
        if walk.ended(active, count, *slash) == [0] {
            name.slash = *slash;
            return true;
        }
    }
    if count <= walk.longest {
        for (text, next) in walk.branches(count, active) {
            name.segments.push(text);
            if search(walk, &next, name, dead) {
                return true;
            }
            name.segments.pop();
        }
    }
    dead.insert((name.root.clone(), count, active.to_vec()));
    false
}

/// One name for each way in which names can differ for these shapes, with the shapes that mean it.
///
/// `also` are texts that count as segments although no shape names them. Stops at `most` names; tells whether it had to.
pub(super) fn atoms(
    space: Space,
    shapes: &[&Shape],
    also: &BTreeSet<String>,
    most: usize,
) -> (Vec<(Name, Vec<u32>)>, bool) {
    let walk = Walk::new(space, shapes.to_vec(), also);
    let mut found = Found { by_met: HashSet::new(), names: Vec::new(), most, cut: false };
    let mut seen = HashSet::new();
    for (root, active) in walk.roots() {
        let mut name = Name { root, segments: Vec::new(), slash: false };
        visit(&walk, &active, &mut name, &mut seen, &mut found);
    }
    (found.names, found.cut)
}

struct Found {
    by_met: HashSet<(Vec<String>, Vec<u32>)>,
    names: Vec<(Name, Vec<u32>)>,
    most: usize,
    cut: bool,
}

fn visit(
    walk: &Walk<'_>,
    active: &[u32],
    name: &mut Name,
    seen: &mut HashSet<(usize, Vec<u32>, Vec<String>)>,
    found: &mut Found,
) {
    let count = name.segments.len();
    // Texts that count beside the shapes' own make names differ that the same shapes mean.
    let also = |name: &Name| -> Vec<String> {
        name.segments.iter().filter(|text| walk.also.contains(*text)).cloned().collect()
    };
    if found.cut || !seen.insert((count, active.to_vec(), also(name))) {
        return;
    }
    // Whoever calls or is called bears an ID with a path.
    let ends = if (walk.space, count) == (Space::Ids, 0) { &[] } else { walk.ends(count) };
    for slash in ends {
        let met = walk.ended(active, count, *slash);
        if found.by_met.insert((also(name), met.clone())) {
            if found.names.len() == found.most {
                found.cut = true;
                return;
            }
            found.names.push((Name { slash: *slash, ..name.clone() }, met));
        }
    }
    if count > walk.longest {
        return;
    }
    for (text, next) in walk.branches(count, active) {
        name.segments.push(text);
        visit(walk, &next, name, seen, found);
        name.segments.pop();
    }
}

impl Shape {
    /// As a path template.
    pub(super) fn path_text(&self) -> String {
        let mut text = String::new();
        for segment in &self.segments {
            text.push('/');
            match segment {
                Segment::Any => text.push('*'),
                Segment::Exactly(one) | Segment::Folded(one) => {
                    text.extend(percent_encoding::utf8_percent_encode(one, UNSAFE));
                }
                Segment::Like { prefix, suffix } => {
                    text.push_str(prefix);
                    text.push('*');
                    text.push_str(suffix);
                }
            }
        }
        match self.end {
            End::Closed => {}
            End::Slash => text.push('/'),
            End::Either if self.segments.is_empty() => text.push('/'),
            End::Either => text.push_str("[/]"),
            End::Some | End::Rest => text.push_str("/**"),
        }
        text
    }
}
