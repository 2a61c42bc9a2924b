//! `Throttle`: who fails too often has to wait, before anything that it shows is looked at.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Failures that an address has free, and how soon each is forgiven.
const BURST: u32 = 10;
const FORGIVEN_AFTER: Duration = Duration::from_secs(6);
/// Addresses that are remembered; beyond that the oldest failures are forgotten first.
const MAX_ADDRESSES: usize = 8192;

/// Failed proofs by address.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// When all failures of an address will be forgiven.
    clear_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl Throttle {
    /// May somebody from this address try?
    pub(super) fn admits(&self, address: IpAddr, now: Instant) -> bool {
        let clear_at = self.clear_at.lock();
        let debt = clear_at.get(&site(address)).map_or(Duration::ZERO, |at| *at - now);
        debt + FORGIVEN_AFTER <= FORGIVEN_AFTER * BURST
    }

    /// Somebody from this address failed.
    pub(super) fn failed(&self, address: IpAddr, now: Instant) {
        let mut clear_at = self.clear_at.lock();
        if clear_at.len() >= MAX_ADDRESSES && !clear_at.contains_key(&site(address)) {
            clear_at.retain(|_, at| *at > now);
            if clear_at.len() >= MAX_ADDRESSES {
                let oldest = clear_at.iter().min_by_key(|(_, at)| **at).map(|(site, _)| *site);
                oldest.map(|site| clear_at.remove(&site));
            }
        }
        let at = clear_at.entry(site(address)).or_insert(now);
        *at = (*at).max(now) + FORGIVEN_AFTER;
    }
}

/// What counts as one caller: an IPv4 address, or an IPv6 network of 64 bits, in which one machine has as many as it likes.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn after_ten_failures_an_address_waits_and_others_do_not() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for _ in 0..BURST {
            assert!(throttle.admits(ip("192.0.2.1"), start));
            throttle.failed(ip("192.0.2.1"), start);
        }
        assert!(!throttle.admits(ip("192.0.2.1"), start));
        assert!(!throttle.admits(ip("::ffff:192.0.2.1"), start), "the same address");
        assert!(throttle.admits(ip("192.0.2.2"), start));
        assert!(throttle.admits(ip("192.0.2.1"), start + FORGIVEN_AFTER));
        throttle.failed(ip("192.0.2.1"), start + FORGIVEN_AFTER);
        assert!(!throttle.admits(ip("192.0.2.1"), start + FORGIVEN_AFTER));
        assert!(throttle.admits(ip("192.0.2.1"), start + FORGIVEN_AFTER * 100));
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_caller() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for last in 0..BURST {
            throttle.failed(ip(&format!("2001:db8::{last}")), start);
        }
        assert!(!throttle.admits(ip("2001:db8::ffff"), start));
        assert!(throttle.admits(ip("2001:db8:0:1::1"), start));
    }

    #[test]
    fn many_addresses_do_not_fill_the_memory() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for number in 0..u32::try_from(MAX_ADDRESSES).unwrap() + 10 {
            let later = start + Duration::from_micros(number.into());
            throttle.failed(std::net::Ipv4Addr::from(number).into(), later);
        }
        assert_eq!(throttle.clear_at.lock().len(), MAX_ADDRESSES);
    }
}
