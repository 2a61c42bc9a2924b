//! Responses kept for later requests (RFC 9111): zones, what is stored in them, and how a plugin uses them. A door.

mod caching;
mod disk;
mod flight;
mod freshness;
mod key;
mod settings;
mod stored;
mod zone;

#[cfg(test)]
mod tests;

pub use caching::{Asking, Caching, CachingRules};
pub use key::CacheKey;
pub use settings::{CacheSettings, CacheStrategy, InvalidZone, ZoneSettings};
pub use zone::{CacheZone, CacheZones};
