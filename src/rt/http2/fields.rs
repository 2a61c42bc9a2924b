//! `Fields`: a block of fields, unpacked.

/// The fields of a head or of trailers in their order, pseudo-header fields among them. Names are in lower case.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    /// Where each one begins, and the lengths of its name and value.
    entries: Vec<(u32, u32, u32)>,
}

impl Fields {
    /// Adds one behind the others.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        // Blocks are bounded far below 4 GiB.
        let narrow = |length: usize| u32::try_from(length).unwrap_or(0);
        self.entries.push((narrow(self.bytes.len()), narrow(name.len()), narrow(value.len())));
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
    }

    /// All of them: name and value, slices of [`Fields::raw`].
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|(start, name, value)| {
            let start = *start as usize;
            let middle = start + *name as usize;
            (&self.bytes[start..middle], &self.bytes[middle..middle + *value as usize])
        })
    }

    /// The first value of that name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// The bytes of all of them.
    pub fn raw(&self) -> &[u8] {
        &self.bytes
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets them, and keeps the memory unless it is much.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.bytes.shrink_to(4096);
        self.entries.shrink_to(128);
    }
}
