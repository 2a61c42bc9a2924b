//! `Sites`: the public certificates in force, found by server name.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Site;
use crate::mtls::PublicCertificate;
use crate::rt::Shards;

/// Sites of one name, the one in force first.
type Namesakes = SmallVec<[Arc<Site>; 1]>;

/// All sites, by name and by id. A change copies a small part; versions share the rest.
///
/// A name is looked for exactly, then as `*.` and all behind its first label, then as `*`.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    by_name: Shards<Namesakes>,
    by_id: Shards<Arc<Site>>,
}

/// Bytes of the longest name that DNS has, and one more to be seen as too long.
const LONGEST: usize = 254;

impl Sites {
    /// The site for a server name or a host without port. Allocates nothing; takes as long for one site as for a million.
    pub fn find(&self, name: &str) -> Option<&Arc<Site>> {
        let mut buffer = [0; LONGEST];
        let Some(name) = fold(name, &mut buffer) else { return self.any() };
        let name_of = |bytes: &[u8]| self.named(std::str::from_utf8(bytes).ok()?);
        if let Some(found) = name_of(name) {
            return Some(found);
        }
        let dot = memchr::memchr(b'.', name);
        if let Some(dot) = dot.filter(|dot| *dot > 0) {
            name[dot - 1] = b'*';
            if let Some(found) = name_of(&name[dot - 1..]) {
                return Some(found);
            }
        }
        self.any()
    }

    /// The site for everybody that no other is for: `*`.
    pub fn any(&self) -> Option<&Arc<Site>> {
        self.named("*")
    }

    fn named(&self, name: &str) -> Option<&Arc<Site>> {
        self.by_name.find(name)?.first()
    }

    /// The site of a resource.
    pub fn of(&self, id: &str) -> Option<&Arc<Site>> {
        self.by_id.find(id)
    }

    /// Is there none at all?
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Takes a site in, in place of that with its id.
    pub fn insert(&mut self, site: &Arc<Site>) {
        self.remove(site.id());
        for name in site.names() {
            let namesakes = self.by_name.entry(name);
            // A resource may name one name twice.
            if namesakes.iter().any(|other| other.id() == site.id()) {
                continue;
            }
            let at = namesakes.partition_point(|other| other.order() < site.order());
            namesakes.insert(at, site.clone());
        }
        self.by_id.insert(site.id(), site.clone());
    }

    /// Forgets the site with this id.
    pub fn remove(&mut self, id: &str) {
        let Some(site) = self.by_id.find(id).cloned() else { return };
        for name in site.names() {
            let namesakes = self.by_name.entry(name);
            namesakes.retain(|other| other.id() != id);
            if namesakes.is_empty() {
                self.by_name.remove(name);
            }
        }
        self.by_id.remove(id);
    }

    /// Every certificate of every site, in no order.
    pub fn certificates(&self) -> impl Iterator<Item = &Arc<PublicCertificate>> {
        self.by_id.values().flat_map(|site| site.certificates())
    }
}

/// One form for names of settings, of clients and of requests: lower case, no dot at the end.
pub(in crate::mtls) fn folded(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// [`folded`] without allocation. `None` for what is no name of a server: too long, empty, a pattern, not ASCII.
fn fold<'a>(name: &str, buffer: &'a mut [u8; LONGEST]) -> Option<&'a mut [u8]> {
    let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
    let is_name = !name.is_empty() && name.iter().all(|byte| byte.is_ascii() && *byte != b'*');
    let folded = buffer.get_mut(..name.len()).filter(|_| is_name)?;
    folded.copy_from_slice(name);
    folded.make_ascii_lowercase();
    Some(folded)
}
