//! `SpiffePattern`: which SPIFFE IDs are meant. Compared segment by segment, never as a string prefix.

use std::fmt;
use std::str::FromStr;

use super::spiffe_id::{Error, SpiffeId, TrustDomain};

/// A set of SPIFFE IDs of one trust domain: `*` stands for exactly one segment, a last `**` for one or more.
///
/// A pattern never spans trust domains, and `*` is a whole segment: `web-*` is refused.
/// ```
/// # use wardgate::identity::{SpiffeId, SpiffePattern};
/// let pattern: SpiffePattern = "spiffe://shop/ns/*/sa/cart".parse().unwrap();
/// assert!(pattern.matches(&"spiffe://shop/ns/web/sa/cart".parse().unwrap()));
/// assert!(!pattern.matches(&"spiffe://shop.evil/ns/web/sa/cart".parse().unwrap()));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffePattern {
    domain: TrustDomain,
    segments: Box<[Segment]>,
    /// A last `**`.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Segment {
    Exactly(Box<str>),
    Any,
}

impl SpiffePattern {
    /// The pattern that only `id` matches.
    pub fn exactly(id: &SpiffeId) -> Self {
        let segments = id.path().split('/').skip(1).map(|s| Segment::Exactly(s.into())).collect();
        Self { domain: id.trust_domain(), segments, open: false }
    }

    /// Does the pattern mean this ID?
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if self.domain.as_str() != id.trust_domain_name() {
            return false;
        }
        let mut presented = id.path().split('/').skip(1);
        for segment in &self.segments {
            match (segment, presented.next()) {
                (Segment::Any, Some(_)) => {}
                (Segment::Exactly(wanted), Some(found)) if **wanted == *found => {}
                _ => return false,
            }
        }
        presented.next().is_some() == self.open
    }

    /// The trust domain whose IDs are meant.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The one ID that is meant, when the pattern has no wildcard.
    pub fn exact(&self) -> Option<SpiffeId> {
        if self.open || self.segments.contains(&Segment::Any) {
            return None;
        }
        self.to_string().parse().ok()
    }
}

impl FromStr for SpiffePattern {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let (closed, open) = match text.strip_suffix("/**") {
            Some(closed) => (closed, true),
            None => (text, false),
        };
        // A star is no lawful byte of an ID, so it stands for a lawful one while the ID's own rules judge the rest.
        let mut plain = String::with_capacity(closed.len());
        let mut stars = Vec::new();
        for (at, segment) in closed.split('/').enumerate() {
            if at > 0 {
                plain.push('/');
            }
            if at > 2 && segment == "*" {
                stars.push(at - 3);
                plain.push('s');
            } else {
                plain.push_str(segment);
            }
        }
        let id: SpiffeId = plain.parse()?;
        let mut pattern = Self { open, ..Self::exactly(&id) };
        for star in stars {
            pattern.segments[star] = Segment::Any;
        }
        Ok(pattern)
    }
}

impl fmt::Display for SpiffePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.domain)?;
        for segment in &self.segments {
            match segment {
                Segment::Exactly(text) => write!(f, "/{text}")?,
                Segment::Any => f.write_str("/*")?,
            }
        }
        if self.open { f.write_str("/**") } else { Ok(()) }
    }
}

impl fmt::Debug for SpiffePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_whole_segments_of_one_trust_domain() {
        for (pattern, id, meant) in [
            ("spiffe://a.local/web", "spiffe://a.local/web", true),
            ("spiffe://a.local/web", "spiffe://a.local.evil/web", false),
            ("spiffe://a.local/web", "spiffe://a.local/web/x", false),
            ("spiffe://a.local/web", "spiffe://a.local/webs", false),
            ("spiffe://a/*", "spiffe://a/web", true),
            ("spiffe://a/*", "spiffe://a/web/x", false),
            ("spiffe://a/*", "spiffe://a", false),
            ("spiffe://a/**", "spiffe://a/web/x", true),
            ("spiffe://a/**", "spiffe://a", false),
            ("spiffe://a/ns/*/sa/b", "spiffe://a/ns/x/sa/b", true),
            ("spiffe://a/ns/*/sa/b", "spiffe://a/ns/x/sa/c", false),
            ("spiffe://a/ns/*/**", "spiffe://a/ns/x", false),
            ("spiffe://a/ns/*/**", "spiffe://a/ns/x/sa", true),
        ] {
            let parsed: SpiffePattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(&id.parse().unwrap()), meant, "{pattern} {id}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for bad in
            ["spiffe://*/a", "spiffe://a/web-*", "spiffe://a/**/b", "*", "spiffe://a//b", "a/*"]
        {
            assert!(bad.parse::<SpiffePattern>().is_err(), "{bad}");
        }
    }
}
