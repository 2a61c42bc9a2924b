//! How often a source may ask, and how often it may show a key that is none.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// So many sources are told apart; further ones share one measure.
const MOST_SOURCES: usize = 10_000;

/// How many requests and failures of one source are let pass.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Requests a second, and twice as many at once.
    requests: f64,
    /// Wrong keys a second; at once those of a minute.
    failures: f64,
    sources: Mutex<HashMap<IpAddr, Source>>,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    requests: f64,
    failures: f64,
    at: Instant,
}

/// Too much of something; to be tried again after so long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pressure(pub(crate) Duration);

impl Limits {
    /// 0 means no limit.
    pub(crate) fn new(requests_per_second: u32, failures_per_minute: u32) -> Self {
        let (requests, failures) =
            (f64::from(requests_per_second), f64::from(failures_per_minute) / 60.0);
        Self { requests, failures, sources: Mutex::default() }
    }

    /// One more request of this source.
    pub(crate) fn asks(&self, from: IpAddr) -> Result<(), Pressure> {
        if self.requests == 0.0 {
            return Ok(());
        }
        self.with(from, |source| take(&mut source.requests, self.requests))
    }

    /// May this source try a key? Not while it has shown too many wrong ones.
    pub(crate) fn may_try(&self, from: IpAddr) -> Result<(), Pressure> {
        if self.failures == 0.0 {
            return Ok(());
        }
        self.with(from, |source| match source.failures >= 1.0 {
            true => Ok(()),
            false => Err(pressure(source.failures, self.failures)),
        })
    }

    /// This source showed a key that is none.
    pub(crate) fn failed(&self, from: IpAddr) {
        if self.failures > 0.0 {
            let _ = self.with(from, |source| take(&mut source.failures, self.failures));
        }
    }

    fn with<T>(&self, from: IpAddr, work: impl FnOnce(&mut Source) -> T) -> T {
        let now = Instant::now();
        let mut sources = self.sources.lock();
        let mut place = neighbourhood(from);
        if sources.len() >= MOST_SOURCES && !sources.contains_key(&place) {
            // Who has not asked for so long that nothing is held against it need not be remembered.
            sources.retain(|_, source| !self.is_full(&self.refilled(*source, now)));
            if sources.len() >= MOST_SOURCES {
                place = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let source = sources.entry(place).or_insert_with(|| self.fresh(now));
        *source = self.refilled(*source, now);
        work(source)
    }

    fn fresh(&self, at: Instant) -> Source {
        Source { requests: self.requests * 2.0, failures: self.failures * 60.0, at }
    }

    fn refilled(&self, source: Source, now: Instant) -> Source {
        let since = now.saturating_duration_since(source.at).as_secs_f64();
        let fresh = self.fresh(now);
        Source {
            requests: (source.requests + since * self.requests).min(fresh.requests),
            failures: (source.failures + since * self.failures).min(fresh.failures),
            at: now,
        }
    }

    fn is_full(&self, source: &Source) -> bool {
        let fresh = self.fresh(source.at);
        source.requests >= fresh.requests && source.failures >= fresh.failures
    }
}

fn take(left: &mut f64, rate: f64) -> Result<(), Pressure> {
    if *left >= 1.0 {
        *left -= 1.0;
        return Ok(());
    }
    Err(pressure(*left, rate))
}

fn pressure(left: f64, rate: f64) -> Pressure {
    Pressure(Duration::from_secs_f64(((1.0 - left) / rate).min(3600.0)))
}

/// Whoever has an IPv6 address has a whole network of them.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            let [a, b, c, d, ..] = segments;
            IpAddr::V6(match v6.is_loopback() {
                true => v6,
                false => Ipv6Addr::new(a, b, c, d, 0, 0, 0, 1),
            })
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_asks_too_often_waits_and_others_do_not() {
        let limits = Limits::new(5, 0);
        let (one, other) = (source("10.0.0.1"), source("10.0.0.2"));
        for _ in 0..10 {
            assert_eq!(limits.asks(one), Ok(()));
        }
        let Pressure(wait) = limits.asks(one).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(200), "{wait:?}");
        assert_eq!(limits.asks(other), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..5 {
            assert_eq!(limits.asks(one), Ok(()));
        }
        assert!(limits.asks(one).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_shows_wrong_keys_may_try_again_later() {
        let limits = Limits::new(0, 3);
        let (one, neighbour) = (source("2001:db8::1"), source("2001:db8::2"));
        for _ in 0..3 {
            assert_eq!(limits.may_try(one), Ok(()));
            limits.failed(one);
        }
        assert!(limits.may_try(one).is_err());
        assert!(limits.may_try(neighbour).is_err(), "it is the same network");
        assert_eq!(limits.may_try(source("2001:db8:0:1::1")), Ok(()));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(limits.may_try(one), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let limits = Limits::new(1, 1);
        for number in 0..u32::try_from(MOST_SOURCES).unwrap() + 100 {
            limits.failed(IpAddr::V4(std::net::Ipv4Addr::from(number)));
        }
        assert!(limits.sources.lock().len() <= MOST_SOURCES + 1);
        tokio::time::advance(Duration::from_secs(61)).await;
        limits.failed(source("192.0.2.1"));
        assert_eq!(limits.sources.lock().len(), 1);
    }
}
