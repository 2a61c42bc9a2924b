//! Where requests go. What stands here is only what `snapshot` needs to name; the room itself is written elsewhere.

use std::sync::Arc;

use crate::model::{Invalid, Timeout, Upstream};

/// A compiled upstream.
#[derive(Debug)]
pub struct Cluster {
    /// The upstream's id, or its carrier's.
    pub name: String,
    /// The time limits that hold.
    pub timeout: Timeout,
}

impl Cluster {
    /// Compiles an upstream. `timeout` is the route's, which wins.
    ///
    /// # Errors
    /// The sentence names the field.
    pub fn compile(
        name: &str,
        upstream: &Upstream,
        timeout: Option<Timeout>,
    ) -> Result<Arc<Self>, Invalid> {
        if upstream.nodes.is_none() {
            return Err(Invalid::new("nodes: an upstream needs nodes"));
        }
        let timeout = timeout.or(upstream.timeout).unwrap_or_default();
        Ok(Arc::new(Self { name: name.to_owned(), timeout }))
    }
}
