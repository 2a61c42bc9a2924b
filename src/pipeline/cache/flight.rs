//! One request at a time asks the upstream for what many want: the others wait for its answer to be stored.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::key::Sum;

/// Keys that are remembered as not worth waiting for.
const MOST_PASSES: usize = 16_384;
/// For how long one is, in milliseconds.
const PASS_FOR: u64 = 10_000;

/// Who asks for what at the moment.
#[derive(Debug, Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<Sum, watch::Receiver<()>>>,
    /// What turned out not to be stored, and until when nobody waits for it.
    passes: Mutex<HashMap<Sum, u64>>,
}

/// The one that asks. Whatever becomes of it, the others hear of its end.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Arc<Flights>,
    key: Sum,
    /// Those who wait hear that it is gone.
    _over: watch::Sender<()>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.under_way.lock().remove(&self.key);
    }
}

/// What somebody who finds nothing does.
#[derive(Debug)]
pub(super) enum Boarding {
    /// Ask; others wait.
    Leads(Flight),
    /// Wait until somebody else's asking is over.
    Waits(watch::Receiver<()>),
    /// Ask, as everybody does: such answers are not stored.
    Passes,
}

impl Flights {
    pub(super) fn board(self: &Arc<Self>, key: Sum, now: u64) -> Boarding {
        if self.passes.lock().get(&key).is_some_and(|until| *until > now) {
            return Boarding::Passes;
        }
        let mut under_way = self.under_way.lock();
        if let Some(over) = under_way.get(&key) {
            return Boarding::Waits(over.clone());
        }
        let (sender, receiver) = watch::channel(());
        under_way.insert(key, receiver);
        Boarding::Leads(Flight { flights: self.clone(), key, _over: sender })
    }

    /// Is somebody asking?
    pub(super) fn is_under_way(&self, key: &Sum) -> bool {
        self.under_way.lock().contains_key(key)
    }

    /// Such an answer is not stored: for a while nobody waits for one.
    pub(super) fn let_pass(&self, key: Sum, now: u64) {
        let mut passes = self.passes.lock();
        if passes.len() >= MOST_PASSES {
            passes.retain(|_, until| *until > now);
            if passes.len() >= MOST_PASSES {
                passes.clear();
            }
        }
        passes.insert(key, now + PASS_FOR);
    }

    /// It is stored after all.
    pub(super) fn is_stored(&self, key: &Sum) {
        self.passes.lock().remove(key);
    }
}
