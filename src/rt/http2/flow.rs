//! Windows of flow control (RFC 9113 section 5.2).

/// The largest window.
const MOST: i64 = 0x7fff_ffff;
/// The window that everything begins with.
pub(super) const INITIAL: i64 = 65_535;

/// How much we may send. It may be negative, when the peer has made it smaller.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub(super) fn new(size: i64) -> Self {
        Self(size)
    }

    /// Bytes that may go out.
    pub(super) fn room(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub(super) fn take(&mut self, count: usize) {
        self.0 -= count as i64;
    }

    /// `false` when it gets larger than any window may be.
    #[must_use]
    pub(super) fn change(&mut self, by: i64) -> bool {
        self.0 += by;
        self.0 <= MOST
    }
}

/// How much the peer may send, and what of it was used up and not given back yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveWindow {
    left: i64,
    used: u32,
    size: u32,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        Self { left: size.into(), used: 0, size }
    }

    /// Takes what has come. `false` when that is more than was allowed.
    #[must_use]
    pub(super) fn take(&mut self, count: usize) -> bool {
        self.left -= count as i64;
        self.left >= 0
    }

    /// So many bytes were used. The peer is told when it is worth it: `Some` is by how much its window grows.
    pub(super) fn give_back(&mut self, count: usize) -> Option<u32> {
        self.used = self.used.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if self.used < self.size / 2 {
            return None;
        }
        self.left += i64::from(self.used);
        Some(std::mem::take(&mut self.used))
    }
}
