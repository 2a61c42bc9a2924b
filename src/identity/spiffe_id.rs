//! `SpiffeId` and `TrustDomain`: parsed once, compared cheaply (SPIFFE-ID specification, sections 2.1 to 2.4).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is not a SPIFFE ID or a trust domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More than 2048 bytes.
    #[error("longer than 2048 bytes")]
    TooLong,
    /// Another scheme, or none.
    #[error("does not start with spiffe://")]
    Scheme,
    /// Nothing between `spiffe://` and the path.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// More than 255 bytes.
    #[error("the trust domain is longer than 255 bytes")]
    LongTrustDomain,
    /// Ports, user names, upper case, percent-encoding and the like.
    #[error("the trust domain may have only a-z, 0-9, dot, dash and underscore")]
    TrustDomainByte,
    /// `//` or a slash at the end.
    #[error("the path has an empty segment or ends with a slash")]
    EmptySegment,
    /// `.` or `..`.
    #[error("the path has a dot segment")]
    DotSegment,
    /// Queries, fragments, percent-encoding, control and non-ASCII bytes.
    #[error("the path may have only A-Z, a-z, 0-9, dot, dash and underscore")]
    PathByte,
}

const PREFIX: &str = "spiffe://";

/// A trust domain's name: 1 to 255 of `a-z 0-9 . - _`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, without the scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID of the trust domain itself, as signing certificates bear it: `spiffe://<name>`.
    pub fn id(&self) -> SpiffeId {
        let text = format!("{PREFIX}{}", self.0);
        SpiffeId { domain_end: text.len(), text: text.into() }
    }

    /// A workload's ID in this trust domain.
    ///
    /// # Errors
    /// The path is not empty and does not follow the rules of [`SpiffeId`]; a path starts with a slash.
    pub fn workload(&self, path: &str) -> Result<SpiffeId, Error> {
        format!("{PREFIX}{}{path}", self.0).parse()
    }
}

impl FromStr for TrustDomain {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        check_domain(name)?;
        Ok(Self(name.into()))
    }
}

fn check_domain(name: &str) -> Result<(), Error> {
    match name.len() {
        0 => return Err(Error::EmptyTrustDomain),
        256.. => return Err(Error::LongTrustDomain),
        _ => {}
    }
    let fits =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if name.bytes().all(fits) { Ok(()) } else { Err(Error::TrustDomainByte) }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID: `spiffe://<trust domain>[/<path>]`, at most 2048 bytes.
///
/// Nothing is folded or repaired: upper case in the trust domain, percent-encoding, empty or dot segments, ports, queries
/// and fragments are refused. Only the scheme is compared without case.
/// ```
/// # use wardgate::identity::SpiffeId;
/// let id: SpiffeId = "spiffe://shop.example/ns/web/sa/cart".parse().unwrap();
/// assert_eq!(id.trust_domain_name(), "shop.example");
/// assert_eq!(id.path(), "/ns/web/sa/cart");
/// assert!("spiffe://shop.example/../admin".parse::<SpiffeId>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    domain_end: usize,
}

impl SpiffeId {
    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    pub fn trust_domain_name(&self) -> &str {
        &self.text[PREFIX.len()..self.domain_end]
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_name().into())
    }

    /// The path with its leading slash; empty for the ID of a trust domain.
    pub fn path(&self) -> &str {
        &self.text[self.domain_end..]
    }
}

impl FromStr for SpiffeId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > 2048 {
            return Err(Error::TooLong);
        }
        let scheme = text.as_bytes().get(..PREFIX.len()).ok_or(Error::Scheme)?;
        if !scheme.eq_ignore_ascii_case(PREFIX.as_bytes()) {
            return Err(Error::Scheme);
        }
        let rest = &text[PREFIX.len()..];
        let domain = rest.split('/').next().unwrap_or_default();
        check_domain(domain)?;
        for segment in rest[domain.len()..].split('/').skip(1) {
            match segment {
                "" => return Err(Error::EmptySegment),
                "." | ".." => return Err(Error::DotSegment),
                _ => {}
            }
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if !segment.bytes().all(fits) {
                return Err(Error::PathByte);
            }
        }
        let text =
            if text.starts_with(PREFIX) { text.into() } else { format!("{PREFIX}{rest}").into() };
        Ok(Self { text, domain_end: PREFIX.len() + domain.len() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_specification_allows_is_taken_and_everything_else_has_its_reason() {
        let long_domain = format!("spiffe://{}/a", "d".repeat(255));
        let longest = format!("spiffe://d/{}", "a".repeat(2048 - "spiffe://d/".len()));
        for good in [
            "spiffe://d",
            "spiffe://d/a",
            "SPIFFE://d/A.b-c_9",
            "spiffe://127.0.0.1/a",
            "spiffe://a_b-c.d/...",
            &long_domain,
            &longest,
        ] {
            assert!(good.parse::<SpiffeId>().is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", Error::Scheme),
            ("https://d/a", Error::Scheme),
            ("spiffe:/d/a", Error::Scheme),
            ("spiffe://", Error::EmptyTrustDomain),
            ("spiffe:///a", Error::EmptyTrustDomain),
            ("spiffe://D/a", Error::TrustDomainByte),
            ("spiffe://d:80/a", Error::TrustDomainByte),
            ("spiffe://d:/a", Error::TrustDomainByte),
            ("spiffe://u@d/a", Error::TrustDomainByte),
            ("spiffe://[::1]/a", Error::TrustDomainByte),
            ("spiffe://d%41/a", Error::TrustDomainByte),
            ("spiffe://d?q", Error::TrustDomainByte),
            ("spiffe://d/", Error::EmptySegment),
            ("spiffe://d/a/", Error::EmptySegment),
            ("spiffe://d//a", Error::EmptySegment),
            ("spiffe://d/./a", Error::DotSegment),
            ("spiffe://d/a/..", Error::DotSegment),
            ("spiffe://d/a?q=1", Error::PathByte),
            ("spiffe://d/a#f", Error::PathByte),
            ("spiffe://d/%61", Error::PathByte),
            ("spiffe://d/a\0", Error::PathByte),
            ("spiffe://d/a\n", Error::PathByte),
            ("spiffe://d/ä", Error::PathByte),
        ] {
            assert_eq!(bad.parse::<SpiffeId>(), Err(why), "{bad:?}");
        }
        assert_eq!(
            format!("spiffe://{}/a", "d".repeat(256)).parse::<SpiffeId>(),
            Err(Error::LongTrustDomain)
        );
        assert_eq!(format!("{longest}a").parse::<SpiffeId>(), Err(Error::TooLong));
    }

    #[test]
    fn paths_differ_by_case_and_the_scheme_does_not() {
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        assert_ne!(id("spiffe://d/a"), id("spiffe://d/A"));
        assert_eq!(id("Spiffe://d/a"), id("spiffe://d/a"));
        assert_eq!(id("spiffe://d/a").trust_domain(), "d".parse().unwrap());
    }
}
