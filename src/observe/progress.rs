//! How far the log is, for whoever follows it; and how far its followers are, for who deletes old files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// How far the decision log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last record that stands in the file; 0 before the first.
    pub seq: u64,
    /// The number that the current file gets when it is put aside: 7 becomes `audit-000007.jsonl`. 0: there is no file.
    pub file: u64,
}

/// All that somebody still has to take from the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Holds(Arc<Mutex<Vec<Arc<AtomicU64>>>>);

impl Holds {
    pub(super) fn hold(&self, delivered: u64) -> Hold {
        let hold = Arc::new(AtomicU64::new(delivered));
        self.0.lock().push(hold.clone());
        Hold(hold)
    }

    /// The last record that nobody needs any more; `None` when nobody holds anything.
    pub(super) fn delivered(&self) -> Option<u64> {
        let mut holds = self.0.lock();
        holds.retain(|hold| hold.load(Ordering::Acquire) != u64::MAX);
        holds.iter().map(|hold| hold.load(Ordering::Acquire)).min()
    }
}

/// Keeps the files of the log from being retired as long as somebody has not taken their records.
///
/// Dropping it releases nothing: a process that ends still has to deliver. See [`Hold::release`].
#[derive(Debug)]
pub struct Hold(Arc<AtomicU64>);

impl Hold {
    /// The record `seq` and all before it are where they belong.
    pub fn delivered(&self, seq: u64) {
        // `u64::MAX` is the mark of a hold that is gone.
        self.0.fetch_max(seq.min(u64::MAX - 1), Ordering::AcqRel);
    }

    /// Nothing is needed any more.
    pub fn release(self) {
        self.0.store(u64::MAX, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_follower_decides_what_is_needed() {
        let holds = Holds::default();
        assert_eq!(holds.delivered(), None);
        let (fast, slow) = (holds.hold(0), holds.hold(3));
        fast.delivered(10);
        assert_eq!(holds.delivered(), Some(3));
        slow.delivered(2);
        assert_eq!(holds.delivered(), Some(3), "what is delivered stays delivered");
        slow.release();
        assert_eq!(holds.delivered(), Some(10));
        drop(fast);
        assert_eq!(holds.delivered(), Some(10), "an end of the process delivers nothing");
    }
}
