//! `Patterns`: values found by the SPIFFE ID that a pattern means, the most particular pattern first.

use std::collections::HashMap;
use std::sync::Arc;

use crate::identity::{SpiffeId, SpiffePattern};

/// Patterns to values, as a tree of segments below the trust domain. Cheap to copy: a change copies the nodes on its way.
///
/// Of several patterns that mean an ID, the one counts that is exact further to the left; an ID itself goes before every
/// wildcard, and `*` before a last `**`.
#[derive(Clone, Debug)]
pub(super) struct Patterns<V> {
    domains: HashMap<Box<str>, Arc<Node<V>>>,
}

#[derive(Clone, Debug)]
struct Node<V> {
    exactly: HashMap<Box<str>, Arc<Self>>,
    /// `*`.
    any: Option<Arc<Self>>,
    /// Of the pattern that ends here.
    here: Option<V>,
    /// Of the pattern that goes on with `**`.
    below: Option<V>,
}

impl<V> Default for Patterns<V> {
    fn default() -> Self {
        Self { domains: HashMap::new() }
    }
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { exactly: HashMap::new(), any: None, here: None, below: None }
    }
}

impl<V: Clone> Patterns<V> {
    /// The value of the most particular pattern that means `id`.
    pub(super) fn find(&self, id: &SpiffeId) -> Option<&V> {
        let path = id.path().strip_prefix('/');
        self.domains.get(id.trust_domain_name())?.find(path)
    }

    pub(super) fn insert(&mut self, pattern: &SpiffePattern, value: V) {
        *self.slot(pattern) = Some(value);
    }

    pub(super) fn remove(&mut self, pattern: &SpiffePattern) {
        let domain = pattern.trust_domain().as_str();
        let text = pattern.to_string();
        let path: Vec<&str> = text.split('/').skip(3).collect();
        if let Some(node) = self.domains.get_mut(domain)
            && Arc::make_mut(node).remove(&path)
        {
            self.domains.remove(domain);
        }
    }

    fn slot(&mut self, pattern: &SpiffePattern) -> &mut Option<V> {
        let text = pattern.to_string();
        let domain = pattern.trust_domain().as_str();
        let path = text.split('/').skip(3);
        let mut node = Arc::make_mut(self.domains.entry(domain.into()).or_default());
        for segment in path {
            match segment {
                "**" => return &mut node.below,
                "*" => node = Arc::make_mut(node.any.get_or_insert_default()),
                exactly => {
                    node = Arc::make_mut(node.exactly.entry(exactly.into()).or_default());
                }
            }
        }
        &mut node.here
    }
}

impl<V: Clone> Node<V> {
    /// `path` is what is left of it, without the slash before it; `None` at its end.
    fn find(&self, path: Option<&str>) -> Option<&V> {
        let Some(path) = path else { return self.here.as_ref() };
        let (segment, rest) = match path.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (path, None),
        };
        let exactly = self.exactly.get(segment).and_then(|node| node.find(rest));
        let any = || self.any.as_ref().and_then(|node| node.find(rest));
        exactly.or_else(any).or(self.below.as_ref())
    }

    /// Takes the value of a pattern away; does this node hold nothing any more?
    fn remove(&mut self, path: &[&str]) -> bool {
        match path {
            [] => self.here = None,
            ["**", ..] => self.below = None,
            ["*", rest @ ..] => {
                if self.any.as_mut().is_some_and(|node| Arc::make_mut(node).remove(rest)) {
                    self.any = None;
                }
            }
            [segment, rest @ ..] => {
                let node = self.exactly.get_mut(*segment);
                if node.is_some_and(|node| Arc::make_mut(node).remove(rest)) {
                    self.exactly.remove(*segment);
                }
            }
        }
        self.exactly.is_empty() && self.any.is_none() && self.here.is_none() && self.below.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_particular_pattern_counts() {
        let mut patterns = Patterns::default();
        let all = [
            "spiffe://a/**",
            "spiffe://a/ns/*/sa/web",
            "spiffe://a/ns/prod/sa/*",
            "spiffe://a/ns/prod/**",
            "spiffe://a/ns/prod/sa/web",
            "spiffe://a/*",
            "spiffe://b/ns/*/sa/web",
        ];
        for pattern in all {
            patterns.insert(&pattern.parse().unwrap(), pattern);
        }
        let mut left: Vec<&str> = all.to_vec();
        // What is found is always one that means the ID, and with each that is taken away the next particular one counts.
        for expected in [
            "spiffe://a/ns/prod/sa/web",
            "spiffe://a/ns/prod/sa/*",
            "spiffe://a/ns/prod/**",
            "spiffe://a/ns/*/sa/web",
            "spiffe://a/**",
        ] {
            let id: SpiffeId = "spiffe://a/ns/prod/sa/web".parse().unwrap();
            assert_eq!(patterns.find(&id), Some(&expected));
            patterns.remove(&expected.parse().unwrap());
            left.retain(|pattern| *pattern != expected);
        }
        let find = |id: &str| patterns.find(&id.parse().unwrap()).copied();
        assert_eq!(find("spiffe://a/ns/prod/sa/web"), None);
        assert_eq!(find("spiffe://a/x"), Some("spiffe://a/*"));
        assert_eq!(find("spiffe://a"), None);
        assert_eq!(find("spiffe://b/ns/x/sa/web"), Some("spiffe://b/ns/*/sa/web"));
        assert_eq!(find("spiffe://b/ns/x/sa/web/y"), None);
        for pattern in left {
            patterns.remove(&pattern.parse().unwrap());
        }
        assert!(patterns.domains.is_empty(), "nothing is left behind: {patterns:?}");
    }

    #[test]
    fn a_copy_does_not_see_what_changes_afterwards() {
        let mut patterns = Patterns::default();
        let pattern: SpiffePattern = "spiffe://a/*".parse().unwrap();
        patterns.insert(&pattern, 1);
        let before = patterns.clone();
        patterns.insert(&pattern, 2);
        let id: SpiffeId = "spiffe://a/web".parse().unwrap();
        assert_eq!((before.find(&id), patterns.find(&id)), (Some(&1), Some(&2)));
    }
}
