//! `Sources`: what each source address has open, and how many handshakes it may begin. Asked once a connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::limits::SourceLimits;

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 16;
/// Sources that one part remembers. Beyond, who is new shares one budget with all who are: a flood from many addresses must
/// not cost memory without bound.
const MAX_SOURCES: usize = 4096;
/// The budget of those that find no place.
const OTHERS: u128 = u128::MAX;

/// One source.
#[derive(Clone, Copy, Debug)]
struct Source {
    connections: u32,
    /// Handshakes that it may begin now.
    credit: f64,
    at: Instant,
}

#[derive(Debug, Default)]
struct Shard {
    known: HashMap<u128, Source, RandomState>,
    /// How many there may be before those are looked for that need not be remembered.
    sweep_at: usize,
}

/// The sources of all workers' connections.
#[derive(Debug)]
pub(in crate::proxy) struct Sources {
    limits: SourceLimits,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

/// Why a source's connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Spent {
    Connections,
    Handshakes,
}

/// A place that a connection of a source takes until this is dropped.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Seat(Option<(Arc<Sources>, usize, u128)>);

impl Drop for Seat {
    fn drop(&mut self) {
        let Some((sources, shard, key)) = self.0.take() else { return };
        if let Some(source) = sources.shards[shard].lock().known.get_mut(&key) {
            source.connections = source.connections.saturating_sub(1);
        }
    }
}

impl Sources {
    pub(in crate::proxy) fn new(limits: SourceLimits) -> Arc<Self> {
        Arc::new(Self { limits, shards: Default::default(), hasher: RandomState::default() })
    }

    /// One more connection of `address`, with a handshake to come or without.
    pub(in crate::proxy) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        shakes_hands: bool,
        now: Instant,
    ) -> Result<Seat, Spent> {
        if self.limits == SourceLimits::default() {
            return Ok(Seat::default());
        }
        let key = key(address);
        let number = self.shard(key);
        let mut shard = self.shards[number].lock();
        let key = self.place(&mut shard, key, now);
        let burst = f64::from(self.limits.handshakes) * 2.0;
        let source =
            shard.known.entry(key).or_insert(Source { connections: 0, credit: burst, at: now });
        self.refill(source, now);
        if self.limits.connections > 0 && source.connections >= self.limits.connections {
            return Err(Spent::Connections);
        }
        if self.limits.handshakes > 0 && shakes_hands {
            if source.credit < 1.0 {
                return Err(Spent::Handshakes);
            }
            source.credit -= 1.0;
        }
        source.connections += 1;
        drop(shard);
        Ok(Seat(Some((self.clone(), number, key))))
    }

    fn shard(&self, key: u128) -> usize {
        use std::hash::BuildHasher as _;
        // By a hash that nobody outside can foresee.
        let hash = self.hasher.hash_one(key);
        usize::try_from(hash % SHARDS as u64).unwrap_or_default()
    }

    fn refill(&self, source: &mut Source, now: Instant) {
        let rate = f64::from(self.limits.handshakes);
        let gained = now.saturating_duration_since(source.at).as_secs_f64() * rate;
        source.credit = (source.credit + gained).min(rate * 2.0);
        source.at = now;
    }

    /// Under which key a source is counted: its own, or the one of those that find no place.
    fn place(&self, shard: &mut Shard, key: u128, now: Instant) -> u128 {
        if shard.known.contains_key(&key) || shard.known.len() < shard.sweep_at {
            return key;
        }
        let burst = f64::from(self.limits.handshakes) * 2.0;
        shard.known.retain(|_, source| {
            self.refill(source, now);
            source.connections > 0 || source.credit < burst
        });
        shard.sweep_at = (shard.known.len() * 2).clamp(256, MAX_SOURCES);
        if shard.known.len() < MAX_SOURCES { key } else { OTHERS }
    }
}

/// An IPv4 address, or the /64 of an IPv6 address.
fn key(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        // Never that of an IPv4 address, nor `OTHERS`: the host's half is 1.
        IpAddr::V6(address) => (address.to_bits() >> 64 << 64) | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    fn of(connections: u32, handshakes: u32) -> Arc<Sources> {
        Sources::new(SourceLimits { connections, handshakes })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_so_many_connections_and_no_more_until_one_ends() {
        let (sources, now) = (of(2, 0), Instant::now());
        let enter = |address: &str| sources.enter(ip(address), true, now);
        let first = enter("192.0.2.1").unwrap();
        let _second = enter("::ffff:192.0.2.1").unwrap();
        assert_eq!(enter("192.0.2.1").unwrap_err(), Spent::Connections);
        let _other = enter("192.0.2.2").unwrap();
        drop(first);
        let _third = enter("192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_err());
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let (sources, now) = (of(1, 0), Instant::now());
        let _one = sources.enter(ip("2001:db8::1"), true, now).unwrap();
        assert!(sources.enter(ip("2001:db8::ffff:1"), true, now).is_err());
        assert!(sources.enter(ip("2001:db8:0:1::1"), true, now).is_ok());
    }

    #[test]
    fn handshakes_come_back_with_time_and_plain_connections_need_none() {
        let (sources, start) = (of(0, 5), Instant::now());
        let begun =
            |now| (0..100).filter(|_| sources.enter(ip("192.0.2.1"), true, now).is_ok()).count();
        assert_eq!(begun(start), 10, "the burst");
        assert!(sources.enter(ip("192.0.2.1"), false, start).is_ok());
        assert_eq!(begun(start + Duration::from_secs(1)), 5);
        assert_eq!(begun(start + Duration::from_secs(60)), 10, "no more than the burst");
    }

    #[test]
    fn a_flood_from_everywhere_is_remembered_within_bounds() {
        let (sources, now) = (of(1, 1), Instant::now());
        let count = 200_000_u32;
        let admitted = (0..count)
            .filter(|number| sources.enter(Ipv4Addr::from_bits(*number).into(), true, now).is_ok())
            .count();
        let remembered: usize = sources.shards.iter().map(|shard| shard.lock().known.len()).sum();
        assert!(remembered <= SHARDS * (MAX_SOURCES + 1), "{remembered}");
        assert!(admitted >= SHARDS * MAX_SOURCES && admitted < count as usize, "{admitted}");
        // Once they are gone and their budgets full again, there is room for others.
        let later = now + Duration::from_secs(10);
        let late = Ipv6Addr::from_bits(7 << 100);
        assert!(sources.enter(late.into(), true, later).is_ok());
        let kept = sources.shards.iter().map(|shard| shard.lock().known.len()).min();
        assert!(kept < Some(MAX_SOURCES), "{kept:?}");
    }
}
