//! `Caching`: how a plugin answers from a zone and lets answers into it (RFC 9111), for one set of settings.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};

use super::disk::{DiskFill, Readable};
use super::flight::{Boarding, Flight};
use super::freshness::{Directives, Freshness, pieces};
use super::key::{CacheKey, Sum, selection};
use super::stored::{Conditions, Draft, Stored, StoredBody, fields_of};
use super::zone::{CacheZone, Lease};
use crate::pipeline::{
    BodyStream, BodyWatch, Exchange, Fault, Flow, Head, InnerRequest, Known, Reply, ResponseSource,
    Side, Taken, Within,
};
use crate::rt::{coarse_unix_millis, unix_millis};

/// How long one request waits for the answer to another one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers of one zone that are asked for anew beside the traffic.
const MOST_REFRESHES: usize = 64;
/// Fields that `Vary` may name.
const MOST_SELECTING: usize = 16;
/// What the cache has done, for callers.
const STATUS: &str = "Apisix-Cache-Status";

/// What is stored, and for how long.
#[derive(Clone, Debug)]
pub struct CachingRules {
    /// Statuses of answers that are stored. 206 and 304 never are.
    pub statuses: Vec<u16>,
    /// Seconds that an answer is fresh that does not say so itself, or is not heeded in that.
    pub ttl: u64,
    /// `Cache-Control` of requests counts.
    pub heeds_callers: bool,
    /// What answers say of their freshness counts. That they must not be stored always does.
    pub heeds_upstream: bool,
    /// Answers with `Set-Cookie` are stored, with it.
    pub stores_cookies: bool,
    /// Bytes of the largest body that is stored.
    pub most: u64,
    /// `Cache-Control` and `Expires` are taken off answers.
    pub hides: bool,
}

/// A request that may be answered from what is stored.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// Under what.
    pub key: CacheKey,
    /// Nothing stored is given, but what comes is stored.
    pub bypasses: bool,
    /// The key tells callers apart.
    pub isolated: bool,
    /// The request's body is in the key.
    pub has_body: bool,
}

/// The use of a zone by one set of settings.
#[derive(Debug)]
pub struct Caching {
    /// Tells it from others in one exchange.
    id: u64,
    zone: Arc<CacheZone>,
    rules: CachingRules,
}

/// A note: what the cache does in this exchange.
struct Course {
    of: u64,
    status: &'static str,
    /// The answer is the cache's own.
    is_ours: bool,
    lead: Option<Box<Lead>>,
    /// What changes when the upstream has carried the request out.
    changes: Option<CacheKey>,
}

/// Of a request that goes to the upstream and whose answer may be stored.
struct Lead {
    key: CacheKey,
    flight: Option<Flight>,
    /// The request as it was looked for.
    request: Head,
    /// What is there and no longer fresh.
    stale: Option<Arc<Stored>>,
    /// The upstream was asked whether that still holds.
    validates: bool,
    /// What the caller says it has.
    conditions: Conditions,
    /// The request bears credentials that are not in the key.
    is_credentialed: bool,
    /// Seconds that the caller takes it stale for when the upstream fails.
    if_error: u64,
}

impl Caching {
    /// Stores in `zone` by these rules.
    pub fn new(zone: Arc<CacheZone>, rules: CachingRules) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), zone, rules }
    }

    /// May such a request have to do with caches at all? What an upstream might read differently than the key says does not.
    pub fn may_concern(exchange: &Exchange, with_body: bool) -> bool {
        let request = &exchange.request;
        let is_grpc = || {
            let kind = request.value("content-type").unwrap_or_default();
            kind.get(..16).is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/grpc"))
        };
        exchange.upgrade.is_none()
            && (with_body || !exchange.has_body)
            && exchange.rewritten.method.as_deref().is_none_or(|to| to == request.method())
            && request.known(Known::MethodOverride).is_none()
            && request.value("if-match").is_none()
            && request.value("if-unmodified-since").is_none()
            && !is_grpc()
    }

    /// The cache has nothing to do with this request but to say so, and to forget what it changes.
    pub fn passes(&self, exchange: &mut Exchange, status: &'static str, changes: Option<CacheKey>) {
        if exchange.notes.find::<Course>().is_none() {
            let course = Course { of: self.id, status, is_ours: false, lead: None, changes };
            exchange.notes.leave(course);
        }
    }

    /// Removes what the caller would be given under `key`, and makes what others would be given count for nothing.
    pub fn purge(&self, key: &CacheKey) -> Flow {
        let Some(index) = self.zone.index() else {
            return Flow::Reply(Box::new(Reply::empty(404)));
        };
        let was_there = index.purge(&key.entry);
        self.changed(key);
        Flow::Reply(Box::new(Reply::empty(if was_there { 200 } else { 404 })))
    }

    fn changed(&self, key: &CacheKey) {
        let now = unix_millis();
        if let Some(index) = self.zone.index() {
            index.change(key.resource, now);
        }
        if let Some(disk) = self.zone.disk() {
            disk.change(key.resource, now);
        }
    }

    /// Answers from what is stored, or lets the request go on.
    ///
    /// # Errors
    /// None so far.
    pub async fn look(&self, exchange: &mut Exchange, asking: Asking) -> Result<Flow, Fault> {
        if exchange.notes.find::<Course>().is_some() {
            // Another cache is at it.
            return Ok(Flow::Next);
        }
        let Some(index) = self.zone.index() else {
            self.passes(exchange, "BYPASS", None);
            return Ok(Flow::Next);
        };
        let said = match self.rules.heeds_callers {
            true => Directives::of(&exchange.request),
            false => Directives::default(),
        };
        let is_refresh = exchange.within == Some(Within::Refresh);
        let is_head = exchange.request.method() == "HEAD";
        let bypasses = asking.bypasses || said.no_store || said.no_cache;
        let conditions = Conditions::of(&exchange.request);
        let deadline = Instant::now() + PATIENCE;
        let (mut stale, mut flight, mut status) = (None, None, "MISS");
        loop {
            if bypasses {
                break;
            }
            let now = coarse_unix_millis();
            let found = index.find(&asking.key, &exchange.request);
            if let Some(stored) = found.as_ref().filter(|_| !is_refresh) {
                let given = match stands(&stored.freshness, &said, now) {
                    Stand::Fresh => Some("HIT"),
                    Stand::Refused => None,
                    Stand::Tolerated => Some("STALE"),
                    Stand::Stale(by) => {
                        let within = stored.freshness.while_revalidate;
                        let within = within > 0 && by <= within;
                        (within && !asking.has_body && self.refreshes(exchange, &asking.key))
                            .then_some("STALE")
                    }
                };
                if let Some(status) = given {
                    match opened(stored, &conditions, is_head, now).await {
                        Ok(reply) => return Ok(self.gives(exchange, status, reply)),
                        Err(error) => {
                            tracing::warn!(zone = %self.zone.name(), %error, "a stored answer is lost");
                            index.remove(asking.key.entry, stored);
                            if let Some(disk) = self.zone.disk() {
                                disk.sweep();
                            }
                            continue;
                        }
                    }
                }
                // Somebody who wants it fresher than it is is told so as APISIX tells it.
                let is_fresh = stored.freshness.left_at(now).is_some();
                status = if is_fresh { "STALE" } else { "EXPIRED" };
            }
            if said.only_if_cached {
                return Ok(self.gives(exchange, status, Reply::empty(504)));
            }
            let is_fresh = |stored: &Arc<Stored>| stored.freshness.left_at(now).is_some();
            if is_refresh && found.as_ref().is_some_and(is_fresh) {
                // Somebody else was faster.
                return Ok(self.gives(exchange, status, Reply::empty(204)));
            }
            stale = found;
            if is_head || flight.is_some() {
                break;
            }
            match self.zone.flights().board(asking.key.entry, now) {
                // Between the look and the boarding another one may have landed: one more look.
                Boarding::Leads(own) => flight = Some(own),
                Boarding::Passes => break,
                Boarding::Waits(_) if is_refresh => {
                    return Ok(self.gives(exchange, status, Reply::empty(204)));
                }
                Boarding::Waits(mut over) => {
                    if timeout_at(deadline, over.changed()).await.is_err() {
                        break;
                    }
                }
            }
        }
        if bypasses {
            status = "BYPASS";
            if said.only_if_cached {
                return Ok(self.gives(exchange, status, Reply::empty(504)));
            }
        }
        let lead = (!is_head && !said.no_store).then(|| {
            Box::new(Lead {
                key: asking.key,
                flight,
                request: exchange.request.clone(),
                stale,
                validates: false,
                conditions,
                is_credentialed: is_credentialed(exchange, asking.isolated),
                if_error: said.if_error.unwrap_or(0),
            })
        });
        let lead = lead.map(|mut lead| {
            lead.validates =
                !asking.has_body && validate(&mut exchange.request, lead.stale.as_deref());
            lead
        });
        exchange.notes.leave(Course { of: self.id, status, is_ours: false, lead, changes: None });
        Ok(Flow::Next)
    }

    fn gives(&self, exchange: &mut Exchange, status: &'static str, reply: Reply) -> Flow {
        let course = Course { of: self.id, status, is_ours: true, lead: None, changes: None };
        exchange.notes.leave(course);
        Flow::Reply(Box::new(reply))
    }

    /// Has the answer asked for anew beside the traffic; `false` when nobody does.
    fn refreshes(&self, exchange: &Exchange, key: &CacheKey) -> bool {
        let Some(inner) = &exchange.inner else { return false };
        if self.zone.flights().is_under_way(&key.entry) {
            return true;
        }
        let Some(one) = Refreshing::one_of(self.zone.refreshing()) else { return false };
        let mut head = inner.original().clone();
        head.set_method("GET");
        for name in
            ["if-none-match", "if-modified-since", "if-range", "range", "cache-control", "pragma"]
        {
            head.remove(name);
        }
        let request = InnerRequest { within: Within::Refresh, head, body: Bytes::new(), most: 0 };
        inner.ask_aside(request, Arc::new(one));
        true
    }

    fn course<'e>(&self, exchange: &'e mut Exchange) -> Option<&'e mut Course> {
        exchange.notes.find_mut::<Course>().filter(|course| course.of == self.id)
    }

    /// The upstream has answered. With `declines` the answer is not stored.
    pub fn answered(&self, exchange: &mut Exchange, declines: bool) -> Taken {
        let status = exchange.response.status();
        let Some(course) = self.course(exchange) else { return Taken::Passes };
        if let Some(key) = course.changes.filter(|_| (200..400).contains(&status)) {
            if let Some(index) = self.zone.index() {
                index.purge(&key.entry);
            }
            self.changed(&key);
        }
        let (lead, Some(index)) = (course.lead.take(), self.zone.index()) else {
            return Taken::Passes;
        };
        let Some(mut lead) = lead else { return Taken::Passes };
        if status == 304
            && lead.validates
            && let Some(stale) = lead.stale.take()
        {
            return self.validated(exchange, &lead, &stale);
        }
        if matches!(status, 500 | 502 | 503 | 504)
            && let Some(reply) = self.despite(exchange, &lead)
        {
            return Taken::Replaced(reply);
        }
        let Some(draft) = self.draft(exchange, &lead, declines) else {
            if status < 500 {
                let now = coarse_unix_millis();
                if lead.flight.is_some() && status != 304 {
                    self.zone.flights().let_pass(lead.key.entry, now);
                }
                if let Some(stale) = lead.stale.as_ref().filter(|_| status != 304) {
                    index.remove(lead.key.entry, stale);
                }
            }
            return Taken::Passes;
        };
        let fill = match self.zone.disk() {
            None => Some(Fill::Memory(BytesMut::new(), self.zone.lease())),
            Some(disk) => disk.begin().map(Fill::Disk),
        };
        let Some(fill) = fill else { return Taken::Passes };
        Taken::Watched(Box::new(Filling {
            zone: self.zone.clone(),
            entry: lead.key.entry,
            left: self.rules.most.min(self.zone.most()),
            whole: Some((draft, fill)),
            flight: lead.flight.take(),
        }))
    }

    /// The upstream has not answered.
    pub fn failed(&self, exchange: &mut Exchange, fault: &Fault) -> Option<Box<Reply>> {
        let lead = self.course(exchange)?.lead.take()?;
        if fault.side != Side::Upstream {
            return None;
        }
        self.despite(exchange, &lead)
    }

    /// The head of whatever goes to the caller.
    pub fn response_head(&self, exchange: &mut Exchange) {
        let is_upstreams = exchange.source != ResponseSource::Gateway;
        let Some(course) = self.course(exchange) else { return };
        if !course.is_ours && !is_upstreams {
            return;
        }
        let status = course.status;
        exchange.response.set(STATUS, status.as_bytes());
        if self.rules.hides {
            exchange.response.remove("cache-control");
            exchange.response.remove("expires");
        }
    }

    /// What is stored still holds: the upstream has said so.
    fn validated(&self, exchange: &mut Exchange, lead: &Lead, stale: &Arc<Stored>) -> Taken {
        let now = unix_millis();
        let fields = stale.updated(&exchange.response).unwrap_or_else(|| stale.fields.clone());
        let mut head = Stored::head(&fields, stale.status);
        // How old it was when it came is said of this answer, and is not stored.
        if let Some(age) = exchange.response.value("age") {
            head.append("age", age);
        }
        let said = Directives::of(&head);
        let stored = Arc::new(Stored {
            resource: stale.resource,
            vary: stale.vary.clone(),
            status: stale.status,
            fields,
            freshness: self.freshness(&head, exchange, now),
            body: stale.body.clone(),
        });
        if let Some(index) = self.zone.index() {
            match said.no_store || said.private {
                true => index.remove(lead.key.entry, stale),
                false => index.put(lead.key.entry, &stored),
            }
        }
        let reply = reply(&stored, &lead.conditions, false, now);
        let reply = with_body(reply, &stored);
        if let Flow::Reply(reply) = self.gives(exchange, "REVALIDATED", reply) {
            return Taken::Replaced(reply);
        }
        Taken::Passes
    }

    /// What there is although the upstream fails (RFC 5861 section 4).
    fn despite(&self, exchange: &mut Exchange, lead: &Lead) -> Option<Box<Reply>> {
        let now = unix_millis();
        let stale = lead.stale.as_ref()?;
        let Freshness { is_strict, if_error, .. } = stale.freshness;
        let allowed = if is_strict { 0 } else { if_error.max(lead.if_error) };
        let is_usable = allowed > 0 && stale.freshness.stale_at(now) <= allowed;
        if !is_usable {
            return None;
        }
        let reply = with_body(reply(stale, &lead.conditions, false, now), stale);
        match self.gives(exchange, "STALE", reply) {
            Flow::Reply(reply) => Some(reply),
            Flow::Next => None,
        }
    }

    fn freshness(&self, head: &Head, exchange: &Exchange, now: u64) -> Freshness {
        let delay = exchange.times.forwarded.map_or_else(Duration::default, |at| at.elapsed());
        Freshness::of(head, self.rules.heeds_upstream, self.rules.ttl, now, delay)
    }

    /// What is stored of this answer; nothing when it must not be (RFC 9111 section 3).
    fn draft(&self, exchange: &Exchange, lead: &Lead, declines: bool) -> Option<Draft> {
        let (rules, response) = (&self.rules, &exchange.response);
        let status = response.status();
        let is_stored = rules.statuses.contains(&status) && !matches!(status, 0..=199 | 206 | 304);
        if declines || !is_stored {
            return None;
        }
        let said = Directives::of(response);
        if said.no_store || said.private {
            return None;
        }
        let is_shared = said.public || said.shared_max_age.is_some() || said.must_revalidate;
        if lead.is_credentialed && !is_shared {
            return None;
        }
        if !rules.stores_cookies && response.value("set-cookie").is_some() {
            return None;
        }
        let length: u64 =
            response.text("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        if length > rules.most.min(self.zone.most()) {
            return None;
        }
        let names = varying(response)?;
        let vary = selection(&lead.request, &names)?;
        // A plugin that has changed such a field since has made another request of it.
        if selection(&exchange.request, &names)? != vary {
            return None;
        }
        let fields = fields_of(response, rules.stores_cookies)?;
        let freshness = self.freshness(response, exchange, unix_millis());
        let validates =
            response.value("etag").is_some() || response.value("last-modified").is_some();
        let may_be_used = freshness.lifetime > freshness.age
            || freshness.if_error > 0
            || freshness.while_revalidate > 0;
        if !may_be_used && !validates {
            return None;
        }
        Some(Draft { resource: lead.key.resource, vary, status, fields, freshness })
    }
}

/// One of a bounded number.
struct Refreshing(Arc<AtomicUsize>);

impl Refreshing {
    fn one_of(count: &Arc<AtomicUsize>) -> Option<Self> {
        let one = Self(count.clone());
        (count.fetch_add(1, Ordering::Relaxed) < MOST_REFRESHES).then_some(one)
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How it stands with something stored.
enum Stand {
    Fresh,
    /// It is stale, and the caller takes it.
    Tolerated,
    /// The caller wants it fresher.
    Refused,
    /// For so many seconds.
    Stale(u64),
}

fn stands(freshness: &Freshness, said: &Directives, now: u64) -> Stand {
    let age = freshness.age_at(now);
    let too_old = said.max_age.is_some_and(|most| age > most);
    match freshness.left_at(now) {
        Some(left) if !too_old && said.min_fresh.is_none_or(|least| left >= least) => Stand::Fresh,
        Some(_) => Stand::Refused,
        None => {
            let by = freshness.stale_at(now);
            let is_taken = said.max_stale.is_some_and(|most| by <= most);
            match is_taken && !freshness.is_strict && !too_old && said.min_fresh.is_none() {
                true => Stand::Tolerated,
                false if too_old || said.min_fresh.is_some() => Stand::Refused,
                false => Stand::Stale(by),
            }
        }
    }
}

/// Credentials that are not in the key make an answer one for this caller alone (RFC 9111 section 3.5).
fn is_credentialed(exchange: &Exchange, isolated: bool) -> bool {
    let is_known = exchange.consumer.is_some() || exchange.verified_claims().is_some();
    exchange.request.value("authorization").is_some() && !(isolated && is_known)
}

/// Has the upstream asked whether what is there still holds.
fn validate(request: &mut Head, stale: Option<&Stored>) -> bool {
    let Some(stale) = stale.filter(|stale| stale.has_validator()) else { return false };
    request.remove("if-none-match");
    request.remove("if-modified-since");
    for (name, by) in [("If-None-Match", "etag"), ("If-Modified-Since", "last-modified")] {
        if let Some(value) = stale.field(by) {
            request.append(name, value.as_bytes());
        }
    }
    true
}

/// The fields that an answer was chosen by; nothing where it was chosen by more than fields, or by too many.
fn varying(response: &Head) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for line in response.all("vary") {
        for name in pieces(line) {
            let name = std::str::from_utf8(name).ok().filter(|name| *name != "*")?;
            names.push(name.to_ascii_lowercase());
        }
    }
    names.sort();
    names.dedup();
    (names.len() <= MOST_SELECTING).then_some(names)
}

/// The head of the answer, without a body. For HEAD the body's length is told.
fn reply(stored: &Stored, conditions: &Conditions, is_head: bool, now: u64) -> Reply {
    let mut reply = Reply {
        status: stored.status,
        fields: stored.fields.clone(),
        is_kept: true,
        ..Reply::default()
    };
    reply.fields.push(("Age".to_owned(), stored.freshness.age_at(now).to_string()));
    if stored.is_known_to(conditions) {
        reply.status = 304;
        let of_body = ["content-type", "content-encoding", "content-language", "content-range"];
        reply.fields.retain(|(name, _)| !of_body.iter().any(|one| name.eq_ignore_ascii_case(one)));
    } else if is_head {
        reply.fields.push(("Content-Length".to_owned(), stored.body.length().to_string()));
    }
    reply
}

/// With the body behind it, read when it is sent.
fn with_body(mut reply: Reply, stored: &Stored) -> Reply {
    if reply.status != 304 {
        match &stored.body {
            StoredBody::Memory(bytes) => reply.body = bytes.clone(),
            StoredBody::File(file) => reply.rest = Some(BodyStream::new(file.later())),
        }
    }
    reply
}

/// The whole answer, once it is known that its body can be read.
async fn opened(
    stored: &Stored,
    conditions: &Conditions,
    is_head: bool,
    now: u64,
) -> io::Result<Reply> {
    let mut reply = reply(stored, conditions, is_head, now);
    if reply.status == 304 || is_head {
        return Ok(reply);
    }
    match &stored.body {
        StoredBody::Memory(bytes) => reply.body = bytes.clone(),
        StoredBody::File(file) => match file.open().await? {
            Readable::Whole(bytes) => reply.body = bytes,
            Readable::Pieces(source) => reply.rest = Some(BodyStream::new(source)),
        },
    }
    Ok(reply)
}

/// Where a body is collected.
enum Fill {
    Memory(BytesMut, Lease),
    Disk(DiskFill),
}

/// Stores a body as it passes. What breaks off, or is too much, is not stored.
struct Filling {
    zone: Arc<CacheZone>,
    entry: Sum,
    left: u64,
    whole: Option<(Draft, Fill)>,
    flight: Option<Flight>,
}

impl BodyWatch for Filling {
    fn chunk(&mut self, data: &Bytes) {
        let Some((_, fill)) = &mut self.whole else { return };
        let length = data.len() as u64;
        let fits = length <= self.left;
        self.left = self.left.saturating_sub(length);
        let is_kept = fits
            && match fill {
                Fill::Memory(bytes, lease) => {
                    let has_room = lease.take(length);
                    if has_room {
                        bytes.extend_from_slice(data);
                    }
                    has_room
                }
                Fill::Disk(fill) => fill.add(data),
            };
        if !is_kept {
            if !fits {
                self.zone.flights().let_pass(self.entry, coarse_unix_millis());
            }
            // Nobody need wait for it.
            (self.whole, self.flight) = (None, None);
        }
    }

    fn end(&mut self) {
        let Some((draft, fill)) = self.whole.take() else { return };
        let flight = self.flight.take();
        self.zone.flights().is_stored(&self.entry);
        match fill {
            Fill::Memory(bytes, _lease) => {
                let stored = draft.with(StoredBody::Memory(bytes.freeze()));
                if let Some(index) = self.zone.index() {
                    index.put(self.entry, &Arc::new(stored));
                }
            }
            Fill::Disk(fill) => fill.end(self.entry, draft, flight),
        }
    }
}
