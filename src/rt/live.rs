//! `Live<T>`: the current value of something that changes, and the end that publishes it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// The reading end: the current value, and a way to wait for the next one.
///
/// Cloning is cheap; each clone waits on its own. Reading never blocks and never fails.
/// ```
/// # use wardgate::rt::Publisher;
/// let (publisher, live) = Publisher::new(1);
/// publisher.set(2);
/// assert_eq!(*live.load(), 2);
/// ```
pub struct Live<T> {
    current: Arc<ArcSwap<T>>,
    version: watch::Receiver<u64>,
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone(), version: self.version.clone() }
    }
}

impl<T> std::fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("version", &*self.version.borrow()).finish()
    }
}

impl<T> Live<T> {
    /// A value that never changes.
    pub fn fixed(value: T) -> Self {
        let (_, version) = watch::channel(0);
        Self { current: Arc::new(ArcSwap::from_pointee(value)), version }
    }

    /// The current value.
    pub fn load(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// How many values were published before the current one.
    pub fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// Waits until a value is published that this reader has not waited for yet.
    ///
    /// `false` when the publisher is gone: the current value is final.
    pub async fn changed(&mut self) -> bool {
        self.version.changed().await.is_ok()
    }

    /// A reader for hot paths: one atomic load a call while nothing changes.
    pub fn cached(&self) -> Cached<T> {
        Cached { inner: arc_swap::Cache::new(self.current.clone()) }
    }
}

/// A reader that keeps its own copy of the current `Arc`, for one worker's hot path.
pub struct Cached<T> {
    inner: arc_swap::Cache<Arc<ArcSwap<T>>, Arc<T>>,
}

impl<T> Cached<T> {
    /// The current value; revalidated with one atomic load.
    pub fn load(&mut self) -> &Arc<T> {
        self.inner.load()
    }
}

/// The writing end of a [`Live`] value.
pub struct Publisher<T> {
    current: Arc<ArcSwap<T>>,
    version: watch::Sender<u64>,
}

impl<T> Publisher<T> {
    /// A publisher and its first reader. Further readers are clones, or [`Publisher::live`].
    pub fn new(first: T) -> (Self, Live<T>) {
        Self::of(Arc::new(first))
    }

    /// As [`Publisher::new`], for a first value that is shared already.
    pub fn of(first: Arc<T>) -> (Self, Live<T>) {
        let (sender, version) = watch::channel(0);
        let current = Arc::new(ArcSwap::new(first));
        (Self { current: current.clone(), version: sender }, Live { current, version })
    }

    /// Makes `value` the current one and wakes whoever waits for a change.
    pub fn set(&self, value: T) {
        self.set_arc(Arc::new(value));
    }

    /// As [`Publisher::set`], for a value that is shared already.
    pub fn set_arc(&self, value: Arc<T>) {
        self.current.store(value);
        self.version.send_modify(|version| *version += 1);
    }

    /// Another reading end.
    pub fn live(&self) -> Live<T> {
        Live { current: self.current.clone(), version: self.version.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_sees_the_newest_value_and_learns_when_the_publisher_is_gone() {
        let (publisher, mut live) = Publisher::new("a");
        let mut cached = live.cached();
        assert_eq!(**cached.load(), "a");
        publisher.set("b");
        assert!(live.changed().await);
        assert_eq!((*live.load(), **cached.load()), ("b", "b"));
        drop(publisher);
        assert!(!live.changed().await);
        assert_eq!(*live.load(), "b");
    }
}
