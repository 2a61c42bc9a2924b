//! `DenialId`: what a refused caller is told, and what the operator looks up.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::rt::crypto::rand::{SecureRandom, SystemRandom};

/// The id of one refusal: `d-` and ten letters and digits.
///
/// Unique within a process, of 2^50 in all, and not to be guessed from others. Made without lock and allocation.
/// ```
/// # use wardgate::observe::DenialId;
/// let (one, other) = (DenialId::new(), DenialId::new());
/// assert_ne!(one, other);
/// assert_eq!(one.as_str().len(), 12);
/// assert!(one.as_str().starts_with("d-"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DenialId([u8; 12]);

/// Crockford's base32 in lower case: no i, l, o, u.
const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const HALF: u64 = (1 << 25) - 1;

/// Keys of the permutation, by chance at each start.
struct Keys([u64; 4]);

impl DenialId {
    /// The next id.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        static KEYS: OnceLock<Keys> = OnceLock::new();
        let keys = KEYS.get_or_init(|| {
            let mut keys = [0; 4];
            let random = SystemRandom::new();
            for key in &mut keys {
                let mut bytes = [0; 8];
                // Without the system's random numbers the ids would only be easier to guess; the standard library's are next.
                *key = match random.fill(&mut bytes) {
                    Ok(()) => u64::from_le_bytes(bytes),
                    Err(_) => fastrand::u64(..),
                };
            }
            Keys(keys)
        });
        Self::of(permute(NEXT.fetch_add(1, Ordering::Relaxed), keys))
    }

    fn of(mut number: u64) -> Self {
        let mut text = *b"d-0000000000";
        for place in text[2..].iter_mut().rev() {
            *place = LETTERS[usize::try_from(number % 32).unwrap_or_default()];
            number /= 32;
        }
        Self(text)
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A Feistel network on 50 bits: no two numbers below 2^50 give the same result.
fn permute(number: u64, keys: &Keys) -> u64 {
    let (mut left, mut right) = (number >> 25 & HALF, number & HALF);
    for key in keys.0 {
        let mut mixed = (right ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 29 ^ key.rotate_left(17)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (left, right) = (right, left ^ (mixed >> 37 & HALF));
    }
    left << 25 | right
}

impl fmt::Display for DenialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DenialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_never_repeat_and_do_not_follow_each_other() {
        let ids: HashSet<DenialId> = (0..100_000).map(|_| DenialId::new()).collect();
        assert_eq!(ids.len(), 100_000);
        let keys = Keys([1, 2, 3, 4]);
        let (one, two) = (permute(1, &keys), permute(2, &keys));
        assert!(one.abs_diff(two) > 1 << 20, "{one} {two}");
        assert_ne!(permute(1, &Keys([5, 2, 3, 4])), one);
    }
}
