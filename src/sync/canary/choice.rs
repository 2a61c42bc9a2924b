//! Who tries a change first: chosen of all data planes that it concerns, whichever control plane feeds them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::settings::CanarySettings;
use crate::sync::publisher::Outlook;

/// So many lots a control plane tells of, the lowest. Where more than so many shall try a change, the share is one of all lots there can be.
const TOLD: usize = 64;

/// Of the data planes of one control plane, those that the newest change concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concerned {
    /// The newest revision that would be tried.
    pub revision: u64,
    /// How many it concerns.
    pub count: u64,
    /// How many of them bear the labels that canaries bear.
    pub bearing: u64,
    /// Their lots, lowest first; of very many only the lowest.
    pub lots: Vec<u64>,
}

impl Concerned {
    /// As others are told of it.
    pub(in crate::sync) fn of(outlook: &Outlook) -> Self {
        let Outlook { revision, concerned, .. } = outlook;
        let large = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Self {
            revision: *revision,
            count: large(concerned.len()),
            bearing: large(concerned.iter().filter(|(_, bears)| *bears).count()),
            lots: concerned.iter().map(|(lot, _)| *lot).take(TOLD).collect(),
        }
    }
}

/// Who tries what concerns `all` of these, at least one: the threshold up to which lots count, or labels.
pub(super) fn choose(
    all: &[Concerned],
    settings: &CanarySettings,
) -> (u64, BTreeMap<String, String>) {
    if !settings.labels.is_empty() && all.iter().any(|one| one.bearing > 0) {
        return (0, settings.labels.clone());
    }
    let count: u64 = all.iter().map(|one| one.count).sum();
    let share = (count * u64::from(settings.share)).div_ceil(100);
    let share = share.clamp(1, count.saturating_sub(1).max(1));
    let mut lots: Vec<u64> = all.iter().flat_map(|one| one.lots.iter().copied()).collect();
    lots.sort_unstable();
    let threshold = match usize::try_from(share - 1) {
        // Each has told of its lowest: so many of them all are among these.
        Ok(last) if last < TOLD => lots.get(last).copied().unwrap_or_default(),
        // Lots are evenly spread.
        _ => u64::try_from(u128::from(u64::MAX) * u128::from(share) / u128::from(count))
            .unwrap_or(u64::MAX),
    };
    (threshold, BTreeMap::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a control plane with these lots; the second of them bears the labels where `bears` says so.
    fn told(lots: &[u64], bears: bool) -> Concerned {
        let concerned = lots.iter().enumerate();
        let concerned = concerned.map(|(at, lot)| (*lot, bears && at == 1)).collect();
        Concerned::of(&Outlook { revision: 1, concerned, data_planes: 0 })
    }

    #[test]
    fn a_share_of_all_is_chosen_and_never_all_of_two_or_more() {
        let settings = CanarySettings::default();
        let lots = |count: u64| (0..count).map(|lot| lot * 7).collect::<Vec<_>>();
        for (count, last) in [(1, 0), (2, 0), (10, 0), (11, 7), (20, 7), (100, 63)] {
            assert_eq!(choose(&[told(&lots(count), false)], &settings).0, last, "{count}");
        }
        let half = CanarySettings { share: 50, ..CanarySettings::default() };
        assert_eq!(choose(&[told(&lots(2), false)], &half).0, 0);
        assert_eq!(choose(&[told(&lots(3), false)], &half).0, 7);
    }

    #[test]
    fn the_same_are_chosen_wherever_they_are_connected() {
        let half = CanarySettings { share: 50, ..CanarySettings::default() };
        let apart = [told(&[1, 9], false), told(&[4], false), told(&[], false), told(&[20], false)];
        assert_eq!(choose(&apart, &half), choose(&[told(&[1, 4, 9, 20], false)], &half));
        assert_eq!(choose(&apart, &half).0, 4);
        let one_each = [told(&[3], false), told(&[2], false)];
        assert_eq!(choose(&one_each, &half).0, 2, "one of two, though each has only one");
    }

    #[test]
    fn labels_choose_where_anybody_bears_them() {
        let labels = BTreeMap::from([("canary".to_owned(), "yes".to_owned())]);
        let settings = CanarySettings { labels: labels.clone(), ..CanarySettings::default() };
        let elsewhere = [told(&[1], false), told(&[2, 3], true)];
        assert_eq!(choose(&elsewhere, &settings), (0, labels));
        assert_eq!(choose(&[told(&[1, 2], false)], &settings), (1, BTreeMap::new()));
    }

    #[test]
    fn of_very_many_about_the_share_is_chosen() {
        let half = CanarySettings { share: 50, ..CanarySettings::default() };
        let step = u64::MAX / 4000;
        let lots = |first: u64| (0..1000).map(|at| (at * 4 + first) * step).collect::<Vec<_>>();
        let all: Vec<Concerned> = (0..4).map(|first| told(&lots(first), false)).collect();
        let (threshold, _) = choose(&all, &half);
        let chosen = (0..4).flat_map(lots).filter(|lot| *lot <= threshold).count();
        assert!((1990..=2010).contains(&chosen), "{chosen}");
    }
}
