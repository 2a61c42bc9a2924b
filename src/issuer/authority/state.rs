//! What an authority consists of now: which roots are in its bundle, which intermediate signs. One file, `authority.json`;
//! whatever it does not name is no part of the authority. Pure: no I/O, no clock.

use serde::{Deserialize, Serialize};

use super::super::Error;
use super::rotation::Step;

/// The file. Replacing it is what makes a change happen.
pub(super) const STATE: &str = "authority.json";
/// What this program can read.
const FORMAT: u32 = 1;

/// Where a root is on its way through the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// In the bundle, so that all learn to trust it; nothing is signed under it yet.
    Prepared,
    /// What is issued now chains to it.
    Active,
    /// Still in the bundle for what was issued under it; nothing new is.
    Outgoing,
}

/// Where an intermediate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "duty")]
pub(super) enum Duty {
    /// It signs as soon as its root is activated.
    Waiting,
    /// It signs SVIDs.
    Signing,
    /// It signs revocation lists only.
    Past {
        /// When the last SVID that it can have signed ends, seconds since 1970.
        until: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootRecord {
    /// Name of its certificate's file and of its key.
    pub(super) name: String,
    pub(super) phase: Phase,
    /// Since when it is in this phase, seconds since 1970.
    pub(super) since: i64,
    /// Its key is kept elsewhere.
    #[serde(default)]
    pub(super) upstream: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IntermediateRecord {
    pub(super) name: String,
    /// The root that it chains to.
    pub(super) root: String,
    #[serde(flatten)]
    pub(super) duty: Duty,
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) format: u32,
    pub(super) trust_domain: String,
    /// Grows with each change.
    pub(super) generation: u64,
    pub(super) roots: Vec<RootRecord>,
    pub(super) intermediates: Vec<IntermediateRecord>,
    /// The intermediate whose certificate was asked for upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<String>,
    /// The number of the newest revocation lists.
    #[serde(default)]
    pub(super) list_number: u64,
}

impl State {
    /// An authority that has nothing yet.
    pub(super) fn empty(trust_domain: &str) -> Self {
        Self {
            format: FORMAT,
            trust_domain: trust_domain.to_owned(),
            generation: 0,
            roots: Vec::new(),
            intermediates: Vec::new(),
            request: None,
            list_number: 0,
        }
    }

    /// Reads the file's text.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let state: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if state.format != FORMAT {
            return Err(format!("format {}: expected {FORMAT}", state.format));
        }
        let count = |phase| state.roots.iter().filter(|root| root.phase == phase).count();
        let signing =
            state.intermediates.iter().filter(|one| matches!(one.duty, Duty::Signing)).count();
        let is_new = state.roots.is_empty() && state.intermediates.is_empty();
        if !is_new && (count(Phase::Active), signing) != (1, 1) {
            return Err("expected one active root and one intermediate that signs".into());
        }
        let orphan = state
            .intermediates
            .iter()
            .find(|one| !matches!(one.duty, Duty::Past { .. }) && state.root(&one.root).is_none());
        if let Some(orphan) = orphan {
            return Err(format!("{} names a root that is not there: {}", orphan.name, orphan.root));
        }
        Ok(state)
    }

    pub(super) fn to_text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("names and numbers are JSON");
        text.push(b'\n');
        text
    }

    pub(super) fn root(&self, name: &str) -> Option<&RootRecord> {
        self.roots.iter().find(|root| root.name == name)
    }

    pub(super) fn root_in(&self, phase: Phase) -> Option<&RootRecord> {
        self.roots.iter().find(|root| root.phase == phase)
    }

    pub(super) fn signing(&self) -> Option<&IntermediateRecord> {
        self.intermediates.iter().find(|one| matches!(one.duty, Duty::Signing))
    }

    /// The step that a rotation takes next.
    pub(super) fn next_step(&self) -> Step {
        if self.root_in(Phase::Outgoing).is_some() {
            Step::Retire
        } else if self.root_in(Phase::Prepared).is_some() {
            Step::Activate
        } else {
            Step::Prepare
        }
    }

    /// Is `step` the next one?
    pub(super) fn expect(&self, step: Step) -> Result<(), Error> {
        let next = self.next_step();
        if next == step { Ok(()) } else { Err(Error::Step { step, next }) }
    }

    /// A new root is in the bundle; its intermediate waits. An upstream root has none before it is adopted.
    pub(super) fn prepare(
        &self,
        root: RootRecord,
        intermediate: Option<IntermediateRecord>,
    ) -> Result<Self, Error> {
        self.expect(Step::Prepare)?;
        let mut next = self.clone();
        next.roots.push(root);
        next.intermediates.extend(intermediate);
        Ok(next)
    }

    /// The waiting intermediate signs from now on, under its own root; what the other one signed ends by `until`.
    pub(super) fn activate(&self, now: i64, until: i64) -> Result<Self, Error> {
        self.expect(Step::Activate)?;
        let mut next = self.clone();
        if !next.intermediates.iter().any(|one| one.duty == Duty::Waiting) {
            return Err(Error::Upstream {
                detail: "no intermediate under the prepared root was adopted yet: \
                         `wardgate identity request`, then `wardgate identity adopt`"
                    .into(),
            });
        }
        for one in &mut next.intermediates {
            one.duty = match one.duty {
                Duty::Waiting => Duty::Signing,
                Duty::Signing => Duty::Past { until },
                past @ Duty::Past { .. } => past,
            };
        }
        for root in &mut next.roots {
            root.since = now;
            root.phase = match root.phase {
                Phase::Prepared => Phase::Active,
                Phase::Active | Phase::Outgoing => Phase::Outgoing,
            };
        }
        Ok(next)
    }

    /// The outgoing root leaves the bundle, with all that chains to it.
    pub(super) fn retire(&self) -> Result<Self, Error> {
        self.expect(Step::Retire)?;
        let mut next = self.clone();
        next.roots.retain(|root| root.phase != Phase::Outgoing);
        let roots = next.roots.clone();
        next.intermediates.retain(|one| roots.iter().any(|root| root.name == one.root));
        Ok(next)
    }

    /// Another intermediate under the active root signs; what the former one signed ends by `until`.
    pub(super) fn renew(&self, name: &str, until: i64) -> Option<Self> {
        let root = self.root_in(Phase::Active)?.name.clone();
        let mut next = self.clone();
        for one in &mut next.intermediates {
            if one.duty == Duty::Signing {
                one.duty = Duty::Past { until };
            }
        }
        let record = IntermediateRecord { name: name.to_owned(), root, duty: Duty::Signing };
        next.intermediates.push(record);
        Some(next)
    }

    /// Without the intermediates that nothing alive chains to; `None` when there are none.
    pub(super) fn without_past(&self, now: i64) -> Option<Self> {
        let is_over =
            |one: &IntermediateRecord| matches!(one.duty, Duty::Past { until } if until < now);
        if !self.intermediates.iter().any(is_over) {
            return None;
        }
        let mut next = self.clone();
        next.intermediates.retain(|one| !is_over(one));
        Some(next)
    }

    /// All names of certificates and keys.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let roots = self.roots.iter().map(|root| root.name.as_str());
        let intermediates = self.intermediates.iter().map(|one| one.name.as_str());
        roots.chain(intermediates).chain(self.request.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str, phase: Phase) -> RootRecord {
        RootRecord { name: name.into(), phase, since: 0, upstream: false }
    }

    fn intermediate(name: &str, root: &str, duty: Duty) -> IntermediateRecord {
        IntermediateRecord { name: name.into(), root: root.into(), duty }
    }

    fn steady() -> State {
        State {
            roots: vec![root("root-1", Phase::Active)],
            intermediates: vec![intermediate("intermediate-1", "root-1", Duty::Signing)],
            ..State::empty("a.test")
        }
    }

    fn prepared() -> State {
        let waiting = intermediate("intermediate-2", "root-2", Duty::Waiting);
        steady().prepare(root("root-2", Phase::Prepared), Some(waiting)).unwrap()
    }

    fn overlapping() -> State {
        prepared().activate(100, 200).unwrap()
    }

    /// Who signs, and the bundle: `1: 1` before, `1: 1 2` prepared, `2: 1 2` overlapping, `2: 2` after.
    fn shape(state: &State) -> String {
        let number = |name: &str| name.rsplit('-').next().unwrap().to_owned();
        let active = state.root_in(Phase::Active).unwrap();
        assert_eq!(
            state.signing().unwrap().root,
            active.name,
            "who signs is under the active root"
        );
        let roots: Vec<String> = state.roots.iter().map(|root| number(&root.name)).collect();
        format!("{}: {}", number(&active.name), roots.join(" "))
    }

    #[test]
    fn a_rotation_goes_its_three_steps_and_no_other_way() {
        let step = |state: &State, step: Step| match step {
            Step::Prepare => {
                let waiting = intermediate("intermediate-3", "root-3", Duty::Waiting);
                state.prepare(root("root-3", Phase::Prepared), Some(waiting))
            }
            Step::Activate => state.activate(100, 200),
            Step::Retire => state.retire(),
        };
        for (name, state, from, next, then) in [
            ("steady", steady(), "1: 1", Step::Prepare, "1: 1 3"),
            ("prepared", prepared(), "1: 1 2", Step::Activate, "2: 1 2"),
            ("overlapping", overlapping(), "2: 1 2", Step::Retire, "2: 2"),
        ] {
            assert_eq!((shape(&state).as_str(), state.next_step()), (from, next), "{name}");
            for tried in [Step::Prepare, Step::Activate, Step::Retire] {
                match step(&state, tried) {
                    Ok(after) => {
                        assert_eq!((tried, shape(&after).as_str()), (next, then), "{name}");
                        // What is written can be read.
                        assert_eq!(State::parse(&after.to_text()).unwrap(), after);
                    }
                    Err(Error::Step { step, next: expected }) => {
                        assert!(tried != next, "{name}: {tried:?} is refused");
                        assert_eq!((step, expected), (tried, next), "{name}");
                    }
                    Err(error) => panic!("{name}: {error}"),
                }
            }
        }
        let waiting = State { intermediates: steady().intermediates, ..prepared() };
        assert!(matches!(waiting.activate(1, 2), Err(Error::Upstream { .. })), "not adopted yet");
    }

    #[test]
    fn intermediates_that_do_not_sign_stay_for_their_revocation_lists_until_nothing_is_left() {
        let state = steady().renew("intermediate-9", 500).unwrap();
        assert_eq!(state.signing().unwrap().name, "intermediate-9");
        assert_eq!(state.intermediates[0].duty, Duty::Past { until: 500 });
        assert_eq!(state.without_past(500), None);
        let after = state.without_past(501).unwrap();
        assert_eq!(after.names().collect::<Vec<_>>(), ["root-1", "intermediate-9"]);
        assert_eq!(overlapping().retire().unwrap().names().count(), 2);
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let two =
            State { roots: vec![root("a", Phase::Active), root("b", Phase::Active)], ..steady() };
        let orphan = State {
            intermediates: vec![intermediate("intermediate-1", "root-7", Duty::Signing)],
            ..steady()
        };
        let newer = State { format: 2, ..steady() };
        for (bad, says) in [
            (two.to_text(), "one active root"),
            (State { intermediates: vec![], ..steady() }.to_text(), "one intermediate"),
            (orphan.to_text(), "root-7"),
            (newer.to_text(), "format 2"),
            (b"{".to_vec(), "EOF"),
            (br#"{"format":1,"trust_domain":"a","generation":1,"roots":[],"intermediates":[],"x":1}"#.to_vec(), "x"),
        ] {
            let error = State::parse(&bad).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(State::parse(&State::empty("a.test").to_text()).is_ok(), "waits for upstream");
    }
}
