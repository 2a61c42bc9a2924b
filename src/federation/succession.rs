//! May this bundle take the place of that one? Sequence numbers decide (67, 68).

use super::Error;
use crate::identity::{BundleDocument, TrustBundle};

/// Does `next` differ from the bundle that is held? The order of authorities means nothing.
///
/// # Errors
/// `next` may not be installed: it is older, may be older, or is another one under the same number.
pub(super) fn succeeds(
    held: Option<(&TrustBundle, Option<u64>)>,
    next: &BundleDocument,
) -> Result<bool, Error> {
    let Some((bundle, held)) = held else { return Ok(true) };
    let is_same = same_authorities(bundle, &next.bundle);
    match (held, next.sequence) {
        (Some(held), Some(found)) if found < held => Err(Error::Rollback { found, held }),
        (Some(held), Some(found)) if found == held => match is_same {
            true => Ok(false),
            false => Err(Error::SameSequence { sequence: found }),
        },
        (Some(held), None) => Err(Error::SequenceGone { held }),
        (Some(_) | None, Some(_)) => Ok(true),
        (None, None) => Ok(!is_same),
    }
}

fn same_authorities(one: &TrustBundle, other: &TrustBundle) -> bool {
    let keys = |bundle: &TrustBundle| {
        let mut roots: Vec<Vec<u8>> = bundle.roots.iter().map(|root| root.to_vec()).collect();
        let mut keys: Vec<String> = bundle
            .jwt_authorities
            .iter()
            .map(|authority| format!("{} {}", authority.key_id, authority.key))
            .collect();
        roots.sort_unstable();
        keys.sort_unstable();
        (roots, keys)
    };
    keys(one) == keys(other)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::TrustDomain;

    fn document(roots: &[u8], sequence: Option<u64>) -> BundleDocument {
        let domain: TrustDomain = "b.test".parse().unwrap();
        let roots = roots.iter().map(|root| vec![*root].into()).collect();
        let refresh_after = Duration::from_secs(300);
        BundleDocument { bundle: TrustBundle::new(domain, roots), sequence, refresh_after }
    }

    #[test]
    fn rules_67_and_68_decide_whether_a_bundle_takes_anothers_place() {
        let outcome = |held: (&[u8], Option<u64>), next: (&[u8], Option<u64>)| {
            let held = document(held.0, held.1);
            let next = document(next.0, next.1);
            match succeeds(Some((&held.bundle, held.sequence)), &next) {
                Ok(true) => "taken",
                Ok(false) => "the same",
                Err(error) => error.code(),
            }
        };
        for (rule, held, next, wanted) in [
            ("67 a higher sequence", (&[1][..], Some(1)), (&[2][..], Some(2)), "taken"),
            ("67 a higher sequence, same content", (&[1], Some(1)), (&[1], Some(9)), "taken"),
            ("67 a lower sequence", (&[1], Some(2)), (&[2], Some(1)), "rollback"),
            ("67 a lower sequence, same content", (&[1], Some(2)), (&[1], Some(1)), "rollback"),
            ("67 to nothing", (&[1], Some(2)), (&[], Some(1)), "rollback"),
            ("67 the sequence is gone", (&[1], Some(2)), (&[2], None), "rollback"),
            ("67 a sequence begins", (&[1], None), (&[2], Some(1)), "taken"),
            ("67 there never was one", (&[1], None), (&[2], None), "taken"),
            ("67 there never was one, same content", (&[1], None), (&[1], None), "the same"),
            ("68 the same again", (&[1, 2], Some(2)), (&[1, 2], Some(2)), "the same"),
            ("68 in another order", (&[1, 2], Some(2)), (&[2, 1], Some(2)), "the same"),
            ("68 other content", (&[1], Some(2)), (&[1, 2], Some(2)), "same_sequence"),
            ("68 less content", (&[1, 2], Some(2)), (&[1], Some(2)), "same_sequence"),
            ("66 64 bits", (&[1], Some(u64::MAX - 1)), (&[2], Some(u64::MAX)), "taken"),
        ] {
            assert_eq!(outcome(held, next), wanted, "{rule}");
        }
        assert!(succeeds(None, &document(&[], Some(0))).unwrap(), "57 the first may be empty");
    }
}
