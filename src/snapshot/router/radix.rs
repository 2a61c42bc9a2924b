//! `Radix`: byte strings to values, exact ones and prefixes, as a tree whose versions share all that did not change.

use std::sync::Arc;

use smallvec::SmallVec;

/// What stands in a tree: it begins empty, and an empty one is dropped.
pub(super) trait Slot: Clone + Default {
    /// Is there nothing in it?
    fn is_empty(&self) -> bool;
}

/// Keys to slots. A change copies the nodes on its way; everything else is shared with older versions.
#[derive(Clone, Debug)]
pub(super) struct Radix<V>(Option<Arc<Node<V>>>);

impl<V> Default for Radix<V> {
    fn default() -> Self {
        Self(None)
    }
}

/// Which of a key's two slots is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// For the key itself.
    Exact,
    /// For whatever begins with the key.
    Open,
}

#[derive(Clone, Debug)]
struct Node<V> {
    /// What leads from the parent here.
    label: Box<[u8]>,
    exact: V,
    open: V,
    /// First bytes of the children's labels, sorted; in step with `children`.
    first: SmallVec<[u8; 16]>,
    children: Vec<Arc<Self>>,
}

/// What a key meets: its own slot, and those of its prefixes with their lengths, the shortest first.
#[derive(Debug)]
pub(super) struct Met<'a, V> {
    pub(super) exact: Option<&'a V>,
    pub(super) open: SmallVec<[(usize, &'a V); 8]>,
}

impl<V> Radix<V> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl<V: Slot> Radix<V> {
    /// All slots with something in them that `key` meets.
    pub(super) fn meet<'a>(&'a self, key: &[u8]) -> Met<'a, V> {
        let mut met = Met { exact: None, open: SmallVec::new() };
        let Some(root) = &self.0 else { return met };
        let mut node = &**root;
        let mut at = 0;
        loop {
            if !node.open.is_empty() {
                met.open.push((at, &node.open));
            }
            let rest = &key[at..];
            let Some(first) = rest.first() else {
                met.exact = Some(&node.exact).filter(|slot| !slot.is_empty());
                return met;
            };
            let Ok(child) = node.first.binary_search(first) else { return met };
            let child = &*node.children[child];
            if !rest.starts_with(&child.label) {
                return met;
            }
            at += child.label.len();
            node = child;
        }
    }

    /// The slot to change, made where it is missing.
    pub(super) fn reach(&mut self, key: &[u8], end: End) -> &mut V {
        let root = self.0.get_or_insert_with(|| Arc::new(Node::new(b"")));
        Arc::make_mut(root).reach(key).slot(end)
    }

    /// Changes the slot, where there is one; what is empty afterwards is dropped.
    pub(super) fn reduce(&mut self, key: &[u8], end: End, change: impl FnOnce(&mut V)) {
        let Some(root) = &mut self.0 else { return };
        let root = Arc::make_mut(root);
        root.reduce(key, end, change);
        if root.is_empty() {
            self.0 = None;
        }
    }
}

impl<V: Slot> Slot for Radix<V> {
    fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl<V: Slot> Node<V> {
    fn new(label: &[u8]) -> Self {
        Self {
            label: label.into(),
            exact: V::default(),
            open: V::default(),
            first: SmallVec::new(),
            children: Vec::new(),
        }
    }

    fn slot(&mut self, end: End) -> &mut V {
        match end {
            End::Exact => &mut self.exact,
            End::Open => &mut self.open,
        }
    }

    fn is_bare(&self) -> bool {
        self.exact.is_empty() && self.open.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.is_bare() && self.children.is_empty()
    }

    fn reach(&mut self, key: &[u8]) -> &mut Self {
        let Some(first) = key.first() else { return self };
        let at = match self.first.binary_search(first) {
            Err(at) => {
                self.first.insert(at, *first);
                // Most nodes never get a second child.
                self.children.reserve_exact(1);
                self.children.insert(at, Arc::new(Self::new(key)));
                return Arc::make_mut(&mut self.children[at]);
            }
            Ok(at) => at,
        };
        let child = Arc::make_mut(&mut self.children[at]);
        let common = child.label.iter().zip(key).take_while(|(a, b)| a == b).count();
        if common < child.label.len() {
            let mut upper = Self::new(&key[..common]);
            upper.first.push(child.label[common]);
            let mut lower = std::mem::replace(child, upper);
            lower.label = lower.label[common..].into();
            child.children.push(Arc::new(lower));
        }
        child.reach(&key[common..])
    }

    fn reduce(&mut self, key: &[u8], end: End, change: impl FnOnce(&mut V)) {
        let Some(first) = key.first() else { return change(self.slot(end)) };
        let Ok(at) = self.first.binary_search(first) else { return };
        if !key.starts_with(&self.children[at].label) {
            return;
        }
        let child = Arc::make_mut(&mut self.children[at]);
        child.reduce(&key[child.label.len()..], end, change);
        if child.is_empty() {
            self.first.remove(at);
            self.children.remove(at);
        } else if child.is_bare() && child.children.len() == 1 {
            let mut only = child.children.remove(0);
            let joined = [&*child.label, &*only.label].concat();
            Arc::make_mut(&mut only).label = joined.into();
            self.children[at] = only;
        }
    }
}
