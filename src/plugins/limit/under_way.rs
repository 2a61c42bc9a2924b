//! `Room`: who is under way at once, by key, in this process or in Redis; `Taken`: a place there, given back at the latest when the
//! request is forgotten.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::keyed::{Keep, Keyed, Name, Passing};
use super::remote::{Remote, state_name};
use crate::pipeline::{RedisError, Script};

/// Who is under way, by key, and how long that takes by experience.
pub(super) struct Room {
    places: Places,
    /// Seconds, as the bits of an `f64`.
    delay: AtomicU64,
}

/// Where places are counted.
enum Places {
    Local(Keyed<UnderWay>),
    Remote(Arc<Ledger>),
}

struct UnderWay {
    count: u64,
    since: Instant,
}

impl Passing for UnderWay {
    fn forgotten_at(&self) -> Instant {
        // What is under way is never given up: its number is that of open requests, which has bounds of its own.
        self.since + Duration::from_secs(u64::from(u32::MAX))
    }
}

/// A place.
pub(super) struct Taken {
    room: Arc<Room>,
    at: At,
    given_back: AtomicBool,
}

enum At {
    Local(Name),
    Remote(Place),
}

/// A place in Redis.
struct Place {
    /// What the key's places are called.
    name: Box<str>,
    /// Which of them it is.
    member: Box<str>,
    /// When Redis gives it up by itself.
    until: Instant,
}

impl Taken {
    pub(super) fn is_in(&self, room: &Arc<Room>) -> bool {
        Arc::ptr_eq(&self.room, room)
    }

    pub(super) fn learn(&self, seconds: f64) {
        self.room.learn(seconds);
    }

    pub(super) fn give_back(&self) {
        if self.given_back.swap(true, Ordering::Relaxed) {
            return;
        }
        match (&self.room.places, &self.at) {
            (Places::Local(places), At::Local(name)) => {
                places.look(*name, |under_way| {
                    under_way.count = under_way.count.saturating_sub(1);
                    ((), if under_way.count == 0 { Keep::No } else { Keep::Yes })
                });
            }
            (Places::Remote(ledger), At::Remote(place)) => ledger.give_back(place),
            // A room's places stay where they are.
            _ => {}
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// What somebody asks for who wants to enter.
pub(super) struct Wish<'a> {
    /// Whether the request has a key, and that or its address.
    pub(super) key: (bool, &'a str),
    /// How many there may be at once.
    pub(super) most: u64,
    /// When it is.
    pub(super) now: Instant,
}

impl Room {
    /// A room in this process.
    pub(super) fn here(delay: f64) -> Self {
        Self { places: Places::Local(Keyed::default()), delay: AtomicU64::new(delay.to_bits()) }
    }

    /// A room in Redis, whose state has names that begin with `owner`. Who never leaves is given up after `ttl`.
    pub(super) fn in_redis(delay: f64, remote: Arc<Remote>, owner: String, ttl: Duration) -> Self {
        let ledger =
            Ledger { remote, owner, ttl, queue: Mutex::default(), sends: AtomicBool::new(false) };
        Self { places: Places::Remote(Arc::new(ledger)), delay: AtomicU64::new(delay.to_bits()) }
    }

    /// Takes a place; gives how many are taken by now, or nothing when there is no room.
    ///
    /// # Errors
    /// Redis does not answer.
    pub(super) async fn enter(
        self: &Arc<Self>,
        wish: Wish<'_>,
    ) -> Result<Option<(Taken, u64)>, RedisError> {
        let taken = |at: At| Taken { room: self.clone(), at, given_back: AtomicBool::new(false) };
        match &self.places {
            Places::Local(places) => {
                let name = places.name(wish.key);
                let fresh = || UnderWay { count: 0, since: wish.now };
                let count = places.change(name, wish.now, fresh, |under_way| {
                    if under_way.count >= wish.most {
                        return None;
                    }
                    under_way.count += 1;
                    Some(under_way.count)
                });
                Ok(count.map(|count| (taken(At::Local(name)), count)))
            }
            Places::Remote(ledger) => {
                let place = ledger.place(&wish);
                let (name, member) = (place.name.clone(), place.member.clone());
                // It is ours before anybody has said so: who breaks off meanwhile, or hears no answer, gives it back.
                let mut taken = taken(At::Remote(place));
                let count = ledger.enter(&name, &member, wish.most).await?;
                if count.is_none() {
                    *taken.given_back.get_mut() = true;
                }
                Ok(count.map(|count| (taken, count)))
            }
        }
    }

    /// Seconds that a request takes.
    pub(super) fn delay(&self) -> f64 {
        f64::from_bits(self.delay.load(Ordering::Relaxed))
    }

    /// The mean of what was known and what was seen, as in APISIX.
    fn learn(&self, seconds: f64) {
        let learned = |bits| Some(f64::midpoint(f64::from_bits(bits), seconds).to_bits());
        // The closure always gives a value.
        let _ = self.delay.fetch_update(Ordering::Relaxed, Ordering::Relaxed, learned);
    }
}

/// Enters if there is room: `{how many there are by then}`, 0 when there is none. Each has a time, by Redis' clock, at which it is
/// given up. Asked twice it is the same place.
static ENTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local most, ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local count = redis.call('ZCARD', KEYS[1])
if redis.call('ZSCORE', KEYS[1], ARGV[3]) then return {count} end
if count >= most then return {0} end
redis.call('ZADD', KEYS[1], now + ttl, ARGV[3])
redis.call('PEXPIRE', KEYS[1], ttl)
return {count + 1}
",
    )
});

static LEAVE: LazyLock<Script> =
    LazyLock::new(|| Script::new("return {redis.call('ZREM', KEYS[1], unpack(ARGV))}"));

/// The places of one limit in Redis. Those that are given back are sent by one task at a time, which ends when none is left.
struct Ledger {
    remote: Arc<Remote>,
    owner: String,
    ttl: Duration,
    /// What is to be given back: no more than there are open requests.
    queue: Mutex<Vec<Leaving>>,
    sends: AtomicBool,
}

struct Leaving {
    name: Box<str>,
    member: Box<str>,
    until: Instant,
}

/// Places that are given back with one question.
const TOGETHER: usize = 100;
/// Until Redis is asked again that did not answer.
const AGAIN: Duration = Duration::from_millis(200);

impl Ledger {
    fn place(&self, wish: &Wish<'_>) -> Place {
        let (has_key, key) = wish.key;
        let member = uuid::Uuid::new_v4().simple().to_string();
        Place {
            name: state_name(&self.owner, "conn", has_key, key).into(),
            member: member.into(),
            until: wish.now + self.ttl,
        }
    }

    async fn enter(&self, name: &str, member: &str, most: u64) -> Result<Option<u64>, RedisError> {
        let (most, ttl) = (most.to_string(), self.ttl.as_millis().to_string());
        let arguments = [most.as_bytes(), ttl.as_bytes(), member.as_bytes()];
        let [count] = self.remote.run(&ENTER, name.as_bytes(), &arguments).await?;
        Ok(u64::try_from(count).ok().filter(|count| *count > 0))
    }

    fn give_back(self: &Arc<Self>, place: &Place) {
        let (name, member) = (place.name.clone(), place.member.clone());
        self.queue.lock().push(Leaving { name, member, until: place.until });
        self.send();
    }

    /// Sees to it that somebody sends what is queued.
    fn send(self: &Arc<Self>) {
        // Outside of a runtime the process ends: what it held is given up when its time is over.
        if tokio::runtime::Handle::try_current().is_err() || self.sends.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let ledger = self.clone();
        // Its owner is the ledger, which it holds; it ends by itself.
        drop(crate::rt::spawn(async move {
            let _ended = Ended(ledger.clone());
            ledger.send_all().await;
        }));
    }

    async fn send_all(&self) {
        loop {
            let Some(first) = self.queue.lock().pop() else { return };
            let mut together = vec![first];
            {
                let mut queue = self.queue.lock();
                while together.len() < TOGETHER
                    && let Some(at) = queue.iter().rposition(|one| one.name == together[0].name)
                {
                    together.push(queue.swap_remove(at));
                }
            }
            let members: Vec<&[u8]> = together.iter().map(|one| one.member.as_bytes()).collect();
            let left = self.remote.run::<1>(&LEAVE, together[0].name.as_bytes(), &members).await;
            if let Err(why) = left {
                tracing::debug!(why = %why.told(), "limit-conn cannot give places back yet");
                let now = Instant::now();
                together.retain(|one| one.until > now);
                self.queue.lock().append(&mut together);
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Whoever sent has ended, also when its runtime did.
struct Ended(Arc<Ledger>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.sends.store(false, Ordering::Release);
        // Something may have come between the last look and this.
        if !self.0.queue.lock().is_empty() {
            self.0.send();
        }
    }
}
