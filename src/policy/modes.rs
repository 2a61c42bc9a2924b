//! `Modes`: how strictly the doors of one workload ask for identity, by port.

use crate::identity::{SpiffeId, SpiffePattern};
use crate::model::{Id, IdentityMode, Invalid, Kind, Rejected, Revision, Strictness};

/// How strictly the doors of one workload ask for identity. Immutable; replaced as a whole.
///
/// ```
/// # use wardgate::{model::{Id, IdentityMode, Strictness}, policy::Modes};
/// let text = serde_json::json!({"mode": "strict", "ports": {"15006": "permissive"}});
/// let mode: IdentityMode = serde_json::from_value(text).unwrap();
/// let (id, me) = (Id::parse("onboarding").unwrap(), "spiffe://shop/billing".parse().unwrap());
/// let (modes, rejected) = Modes::compile([(&id, 7, &mode)], &me);
/// assert!(rejected.is_empty());
/// assert_eq!(modes.at(15006), Strictness::Permissive);
/// assert_eq!(modes.at(15007), Strictness::Strict);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// Ascending by port.
    ports: Box<[(u16, Strictness)]>,
    /// At all other ports.
    elsewhere: Strictness,
    is_lax: bool,
}

/// May this one stand? What [`Modes::compile`] would reject, this refuses with the same sentence.
///
/// # Errors
/// The sentence names the field and what was expected.
pub fn check_mode(mode: &IdentityMode) -> Result<(), Invalid> {
    if mode.ports.contains_key(&0) {
        return Err(Invalid::new("ports: 0 is no port; expected 1 to 65535"));
    }
    selects(mode, None).map(drop)
}

/// Is it about this workload? `None` only checks the patterns.
fn selects(mode: &IdentityMode, me: Option<&SpiffeId>) -> Result<bool, Invalid> {
    let mut found = mode.workloads.is_empty();
    for (at, text) in mode.workloads.iter().enumerate() {
        let pattern: SpiffePattern = text.parse().map_err(|error| {
            Invalid(format!("workloads[{at}]: {text:?} is not a SPIFFE ID pattern: {error}"))
        })?;
        found |= me.is_some_and(|me| pattern.matches(me));
    }
    Ok(found)
}

impl Modes {
    /// Compiles those that select `me`: where several speak of a port, the strictest holds.
    ///
    /// One that is not valid is named in the result, and asks for `strict` wherever it may have meant `me`.
    pub fn compile<'a>(
        modes: impl IntoIterator<Item = (&'a Id, Revision, &'a IdentityMode)>,
        me: &SpiffeId,
    ) -> (Self, Vec<Rejected>) {
        let (mut selecting, mut rejected, mut is_broken) = (Vec::new(), Vec::new(), false);
        for (id, revision, mode) in modes {
            let selected = selects(mode, Some(me));
            if let Err(Invalid(reason)) = check_mode(mode) {
                let kind = Kind::IdentityModes;
                rejected.push(Rejected { kind, id: id.clone(), revision, reason });
                is_broken |= selected != Ok(false);
            } else if selected == Ok(true) {
                selecting.push(mode);
            }
        }
        if is_broken || selecting.is_empty() {
            return (Self::default(), rejected);
        }
        let strictest = |of: &dyn Fn(&IdentityMode) -> Strictness| {
            selecting.iter().map(|mode| of(mode)).max().unwrap_or_default()
        };
        let named: std::collections::BTreeSet<u16> =
            selecting.iter().flat_map(|mode| mode.ports.keys().copied()).collect();
        let elsewhere = strictest(&|mode| mode.mode);
        let at = |port: u16| strictest(&|mode| mode.ports.get(&port).copied().unwrap_or(mode.mode));
        let ports: Box<[_]> = named.into_iter().map(|port| (port, at(port))).collect();
        let is_lax = ports.iter().map(|(_, mode)| *mode).any(|mode| mode != Strictness::Strict)
            || elsewhere != Strictness::Strict;
        (Self { ports, elsewhere, is_lax }, rejected)
    }

    /// How strictly the door at this port asks for identity.
    pub fn at(&self, port: u16) -> Strictness {
        if !self.is_lax {
            return Strictness::Strict;
        }
        match self.ports.binary_search_by_key(&port, |(port, _)| *port) {
            Ok(found) => self.ports[found].1,
            Err(_) => self.elsewhere,
        }
    }

    /// Is any door less than strict?
    pub const fn is_lax(&self) -> bool {
        self.is_lax
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compiled(texts: &[Value]) -> (Modes, usize) {
        let modes: Vec<(Id, IdentityMode)> = texts
            .iter()
            .enumerate()
            .map(|(at, text)| {
                (Id::parse(&at.to_string()).unwrap(), serde_json::from_value(text.clone()).unwrap())
            })
            .collect();
        let me = "spiffe://shop/billing".parse().unwrap();
        let (modes, rejected) = Modes::compile(modes.iter().map(|(id, mode)| (id, 1, mode)), &me);
        (modes, rejected.len())
    }

    #[test]
    fn nobody_says_anything_and_everything_is_strict() {
        let (modes, _) = compiled(&[]);
        assert!(!modes.is_lax());
        assert_eq!(modes.at(80), Strictness::Strict);
        let (modes, _) =
            compiled(&[json!({"workloads": ["spiffe://shop/cart"], "mode": "observe"})]);
        assert!(!modes.is_lax());
        assert_eq!(modes.at(80), Strictness::Strict);
    }

    #[test]
    fn of_several_about_a_port_the_strictest_holds() {
        let (modes, rejected) = compiled(&[
            json!({"mode": "observe", "ports": {"1": "strict", "2": "permissive"}}),
            json!({"workloads": ["spiffe://shop/*"], "mode": "permissive", "ports": {"2": "observe", "3": "observe"}}),
            json!({"workloads": ["spiffe://other/**"], "mode": "strict"}),
        ]);
        assert_eq!(rejected, 0);
        let at: Vec<_> = [1, 2, 3, 4].map(|port| modes.at(port)).into();
        let wanted = [
            Strictness::Strict,
            Strictness::Permissive,
            Strictness::Observe,
            Strictness::Permissive,
        ];
        assert_eq!(at, wanted);
    }

    #[test]
    fn what_cannot_be_read_asks_for_everything() {
        for broken in [
            json!({"workloads": ["shop/billing"], "mode": "observe"}),
            json!({"mode": "observe", "ports": {"0": "observe"}}),
        ] {
            let (modes, rejected) = compiled(&[json!({"mode": "observe"}), broken]);
            assert_eq!((modes.at(80), rejected), (Strictness::Strict, 1));
        }
        let elsewhere = json!({"workloads": ["spiffe://other/a"], "mode": "observe", "ports": {"0": "observe"}});
        let (modes, rejected) = compiled(&[json!({"mode": "observe"}), elsewhere]);
        assert_eq!((modes.at(80), rejected), (Strictness::Observe, 1));
    }
}
