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
    /// What leads from the parent here; the root's leads from the beginning.
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
        if !key.starts_with(&node.label) {
            return met;
        }
        let mut at = node.label.len();
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
        // A tree of one key is one node: where hosts have a route each there are as many trees.
        Node::enter(self.0.get_or_insert_with(|| Arc::new(Node::new(key))), key).slot(end)
    }

    /// Changes the slot, where there is one; what is empty afterwards is dropped.
    pub(super) fn reduce(&mut self, key: &[u8], end: End, change: impl FnOnce(&mut V)) {
        let Some(root) = &mut self.0 else { return };
        if !key.starts_with(&root.label) {
            return;
        }
        if Node::leave(root, key, end, change) {
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
        Self::enter(&mut self.children[at], key)
    }

    /// The node of `key`, which begins at this node's label: split where the two part.
    fn enter<'n>(this: &'n mut Arc<Self>, key: &[u8]) -> &'n mut Self {
        let node = Arc::make_mut(this);
        let common = node.label.iter().zip(key).take_while(|(a, b)| a == b).count();
        if common < node.label.len() {
            let mut upper = Self::new(&key[..common]);
            upper.first.push(node.label[common]);
            let mut lower = std::mem::replace(node, upper);
            lower.label = lower.label[common..].into();
            node.children.reserve_exact(1);
            node.children.push(Arc::new(lower));
        }
        node.reach(&key[common..])
    }

    fn reduce(&mut self, key: &[u8], end: End, change: impl FnOnce(&mut V)) {
        let Some(first) = key.first() else { return change(self.slot(end)) };
        let Ok(at) = self.first.binary_search(first) else { return };
        if !key.starts_with(&self.children[at].label) {
            return;
        }
        if Self::leave(&mut self.children[at], key, end, change) {
            self.first.remove(at);
            self.children.remove(at);
        }
    }

    /// Changes the slot of `key`, which begins with this node's label. Tells whether the node is empty afterwards; one that only
    /// leads on to another is joined with it.
    fn leave(this: &mut Arc<Self>, key: &[u8], end: End, change: impl FnOnce(&mut V)) -> bool {
        let node = Arc::make_mut(this);
        node.reduce(&key[node.label.len()..], end, change);
        if node.is_bare() && node.children.len() == 1 {
            let mut only = node.children.remove(0);
            let joined = [&*node.label, &*only.label].concat();
            Arc::make_mut(&mut only).label = joined.into();
            *this = only;
            return false;
        }
        node.is_empty()
    }
}
