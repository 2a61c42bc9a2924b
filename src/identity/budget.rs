//! `Budget`: how long an identity lasts if nothing is renewed, and what would end it.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Identity, RevocationList, RevocationMode};

/// Something whose end makes peers refuse us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// Our own certificate.
    Svid,
    /// An intermediate authority in our chain.
    Intermediate,
    /// The root above our chain, as our own bundle has it; of several the one that lasts longest.
    Root,
    /// Where our own trust domain's revocation is `hard`: the list that speaks for our chain.
    RevocationList,
    /// The source took the identity away: nothing lasts.
    Withdrawn,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Svid, Self::Intermediate, Self::Root, Self::RevocationList, Self::Withdrawn];

    /// The stable name, for metrics and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Svid => "svid",
            Self::Intermediate => "intermediate",
            Self::Root => "root",
            Self::RevocationList => "revocation_list",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// When each limit of an identity ends, the first one first. The time is the wall clock's: after a suspend, or when the clock
/// was set, what is left is right at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    limits: Vec<(i64, Limit)>,
}

impl Budget {
    /// Reads it from an identity. That is some parsing and, for roots and lists, a few signatures: keep it with the identity.
    pub fn of(identity: &Identity) -> Self {
        let mut limits = vec![(identity.svid.not_after, Limit::Svid)];
        if identity.is_withdrawn() {
            limits.push((i64::MIN, Limit::Withdrawn));
        }
        let chain = &identity.svid.chain;
        limits.extend(
            chain.iter().skip(1).filter_map(|one| Some((end_of(one)?, Limit::Intermediate))),
        );
        let domain = identity.svid.id.trust_domain();
        let roots = identity.trust.bundles.find(&domain).map_or(&[][..], |bundle| &bundle.roots);
        let above = chain.last().and_then(|last| {
            let issuers = roots.iter().filter(|root| is_issued_by(last, root));
            issuers.filter_map(|root| Some((end_of(root)?, root))).max_by_key(|(end, _)| *end)
        });
        // A root that is gone refuses us already.
        limits.push((above.map_or(i64::MIN, |(end, _)| end), Limit::Root));
        if let Some(revocation) = identity.trust.revocation.by_domain.get(&domain)
            && revocation.mode == RevocationMode::Hard
        {
            let lists: Vec<RevocationList> = revocation
                .lists
                .iter()
                .filter_map(|list| RevocationList::from_der(list.clone()).ok())
                .collect();
            let issuers = chain.iter().skip(1).chain(above.map(|(_, root)| root));
            limits.extend(issuers.map(|issuer| {
                let own = lists.iter().filter(|list| list.is_signed_by(issuer));
                let until = own.map(RevocationList::next_update).max().unwrap_or(i64::MIN);
                (until, Limit::RevocationList)
            }));
        }
        // Of the same kind the first to end; of the same time the first of the order above.
        limits.sort_unstable_by_key(|(end, limit)| (*limit, *end));
        limits.dedup_by_key(|(_, limit)| *limit);
        limits.sort_unstable();
        Self { limits }
    }

    /// When the first refusal is due, seconds since 1970, and why.
    pub fn first(&self) -> (i64, Limit) {
        self.limits.first().copied().unwrap_or((i64::MIN, Limit::Withdrawn))
    }

    /// Seconds until the first refusal; 0 or less when it is here.
    pub fn seconds_left(&self, now: i64) -> i64 {
        left(self.first().0, now)
    }

    /// Each limit with the seconds until its end, the first one first.
    pub fn limits(&self, now: i64) -> impl Iterator<Item = (Limit, i64)> {
        self.limits.iter().map(move |(end, limit)| (*limit, left(*end, now)))
    }
}

/// What never was is over for a second, not for all time.
fn left(end: i64, now: i64) -> i64 {
    if end == i64::MIN { -1 } else { end.saturating_sub(now) }
}

fn end_of(der: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

fn is_issued_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let parse = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed).ok();
    let (Some(certificate), Some(issuer)) = (parse(certificate), parse(issuer)) else {
        return false;
    };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;
    use crate::identity::{RevocationLists, Revocations, Rules, Trust};
    use crate::rt::unix_seconds;

    fn budget(identity: &Identity) -> (Limit, Vec<Limit>) {
        let budget = Budget::of(identity);
        (budget.first().1, budget.limits(unix_seconds()).map(|(limit, _)| limit).collect())
    }

    #[test]
    fn the_first_of_certificate_intermediate_and_root_ends_the_identity() {
        let a = Forge::new("a.test");
        let identity = a.identity("/web", &[]);
        let (first, all) = budget(&identity);
        assert_eq!(first, Limit::Svid);
        assert_eq!(all, [Limit::Svid, Limit::Intermediate, Limit::Root]);
        let budget = Budget::of(&identity);
        let end = identity.svid.not_after;
        assert_eq!((budget.seconds_left(end - 10), budget.seconds_left(end + 10)), (10, -10));
    }

    #[test]
    fn an_identity_that_peers_refuse_now_has_nothing_left() {
        let (a, b) = (Forge::new("a.test"), Forge::new("a.test"));
        let now = unix_seconds();
        let withdrawn = Budget::of(&a.identity("/web", &[]).withdrawn());
        assert!(withdrawn.seconds_left(now) < 0);
        assert!(withdrawn.limits(now).any(|(limit, _)| limit == Limit::Withdrawn));
        // The bundle's root is another one of the same domain.
        let stranger = Identity::new(a.svid("/web"), b.identity("/web", &[]).trust.bundles.clone());
        let budget = Budget::of(&stranger);
        assert_eq!((budget.first().1, budget.seconds_left(now)), (Limit::Root, -1));
    }

    #[test]
    fn where_lists_must_be_current_the_list_of_our_own_issuer_counts() {
        let a = Forge::new("a.test");
        let identity = a.identity("/web", &[]);
        let lists = RevocationLists { mode: RevocationMode::Hard, lists: Vec::new() };
        let revocation =
            Revocations { by_domain: [(a.domain, lists)].into(), ..Revocations::default() };
        let trust = Trust::new(identity.trust.bundles.clone(), revocation, Rules::default());
        let hard = Budget::of(&Identity::new(identity.svid, trust));
        assert_eq!(hard.first().1, Limit::RevocationList, "there is no list at all");
        assert!(hard.seconds_left(unix_seconds()) < 0);
    }
}
