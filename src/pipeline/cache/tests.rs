//! Freshness by tables; keys, zones and files on their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::freshness::{Directives, Freshness, date};
use super::key::{CacheKey, sum_of};
use super::settings::CacheSettings;
use super::stored::{Conditions, Draft, Stored, StoredBody};
use super::zone::{CacheZone, CacheZones, Index};
use crate::model::Labels;
use crate::pipeline::tests::exchange;
use crate::pipeline::{BodySource as _, Consumer, Head};

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::response(200);
    for (name, value) in fields {
        head.append(name, value.as_bytes());
    }
    head
}

#[test]
fn directives_are_read_as_they_are_meant_and_the_stricter_of_two_counts() {
    let of = |value: &str| Directives::of(&head(&[("Cache-Control", value)]));
    assert_eq!(of("MAX-AGE=10, max-age=\"5\"").max_age, Some(5));
    assert_eq!(of("max-age=99999999999999999999").max_age, Some(1 << 31));
    for broken in ["max-age=", "max-age=-1", "max-age=1.5", "max-age=x", "max-age"] {
        assert_eq!(of(broken).max_age, Some(0), "{broken}");
    }
    let quoted = of("private=\"set-cookie, no-store\", public");
    assert!(quoted.private && quoted.public && !quoted.no_store);
    assert_eq!((of("max-stale").max_stale, of("max-stale=3").max_stale), (Some(u64::MAX), Some(3)));
    assert!(of("proxy-revalidate").must_revalidate);
    assert_eq!(of("xmax-age=1, no-storex"), Directives::default());
    assert!(Directives::of(&head(&[("Pragma", "No-Cache")])).no_cache);
    let newer = [("Pragma", "no-cache"), ("Cache-Control", "max-age=1")];
    assert!(!Directives::of(&head(&newer)).no_cache);
}

#[test]
fn dates_are_read_in_all_three_forms() {
    for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
        assert_eq!(date(text.as_bytes()), Some(784_111_777), "{text}");
    }
    assert_eq!(date(b"Sunday, 06-Nov-22 08:49:37 GMT"), date(b"Sun, 06 Nov 2022 08:49:37 GMT"));
    for text in
        ["", "0", "-1", "yesterday", "Sun, 06 Nov 1994 08:49:37", "Sun, 31 Feb 1994 08:49:37 GMT"]
    {
        assert_eq!(date(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn an_answer_is_as_fresh_as_it_says() {
    const NOW: u64 = 784_111_777_000;
    let of = |fields: &[(&str, &str)]| {
        Freshness::of(&head(fields), true, 300, NOW, Duration::from_secs(2))
    };
    let sent = ("Date", "Sun, 06 Nov 1994 08:49:27 GMT");
    for (fields, age, lifetime) in [
        (vec![], 0, 300),
        (vec![("Age", "500")], 0, 300),
        (vec![("Cache-Control", "max-age=60")], 2, 60),
        (vec![("Cache-Control", "max-age=60, s-maxage=30"), ("Age", "4")], 6, 30),
        (vec![("Cache-Control", "max-age=60"), sent], 10, 60),
        (vec![("Expires", "Sun, 06 Nov 1994 08:50:27 GMT"), sent], 10, 60),
        (vec![("Expires", "Sun, 06 Nov 1994 08:50:27 GMT")], 2, 50),
        (vec![("Expires", "0"), sent], 10, 0),
        (vec![("Expires", "Sun, 06 Nov 1994 08:50:27 GMT"), ("Cache-Control", "max-age=5")], 2, 5),
        (vec![("Cache-Control", "no-cache, max-age=60")], 2, 0),
    ] {
        let fresh = of(&fields);
        assert_eq!((fresh.age, fresh.lifetime), (age, lifetime), "{fields:?}");
    }
    let fresh = of(&[("Cache-Control", "max-age=60, stale-while-revalidate=7, stale-if-error=9")]);
    assert_eq!((fresh.while_revalidate, fresh.if_error, fresh.is_strict), (7, 9, false));
    assert_eq!(fresh.left_at(NOW + 57_999), Some(1));
    assert_eq!((fresh.left_at(NOW + 58_000), fresh.stale_at(NOW + 60_000)), (None, 2));
    let strict = of(&[("Cache-Control", "max-age=60, must-revalidate, stale-if-error=9")]);
    assert_eq!((strict.if_error, strict.is_strict), (0, true));
    let unheeded = Freshness::of(
        &head(&[("Cache-Control", "max-age=0, no-cache")]),
        false,
        300,
        NOW,
        Duration::ZERO,
    );
    assert_eq!((unheeded.lifetime, unheeded.age, unheeded.is_strict), (300, 0, false));
}

#[test]
fn whatever_tells_two_requests_apart_tells_their_keys_apart() {
    let key = |change: &dyn Fn(&mut crate::pipeline::Exchange), parts: &[&str], isolated| {
        let mut exchange = exchange("GET", "/a", "shop");
        change(&mut exchange);
        let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        CacheKey::of(&exchange, &parts, None, isolated)
    };
    let nothing = |_: &mut crate::pipeline::Exchange| {};
    assert_eq!(key(&nothing, &["a"], true), key(&nothing, &["a"], true));
    assert_ne!(key(&nothing, &["ab", "c"], true), key(&nothing, &["a", "bc"], true));
    assert_ne!(key(&nothing, &["a"], true).entry, key(&nothing, &["a"], false).entry);
    let of_everybody: [&dyn Fn(&mut crate::pipeline::Exchange); 3] = [
        &|exchange| exchange.request.set_authority("shop:81"),
        &|exchange| exchange.forwarded_tls = Some(true),
        &|exchange| {
            let mut route = crate::pipeline::tests::route_info();
            route.id = crate::model::Id::parse("r2").unwrap();
            exchange.route = Some(Arc::new(route));
        },
    ];
    for change in of_everybody {
        assert_ne!(key(change, &[], false).resource, key(&nothing, &[], false).resource);
    }
    let peer = |exchange: &mut crate::pipeline::Exchange, id: &str| {
        let mut client = crate::pipeline::tests::client();
        let mut peer = (**client.peer.as_ref().unwrap()).clone();
        peer.id = id.parse().unwrap();
        client.peer = Some(Arc::new(peer));
        exchange.client = Arc::new(client);
    };
    let of_one: [&dyn Fn(&mut crate::pipeline::Exchange); 6] = [
        &|exchange| peer(exchange, "spiffe://shop/other"),
        &|exchange| {
            let (name, labels) = ("alice".to_owned(), Labels::new());
            exchange.consumer = Some(Arc::new(Consumer { name, labels, ..Consumer::default() }));
        },
        &|exchange| {
            let claims = serde_json::json!({"sub": "alice"}).as_object().unwrap().clone();
            exchange.claims = Some(Arc::new(claims));
        },
        &|exchange| exchange.request.append("Authorization", b"Bearer x"),
        &|exchange| exchange.request.append("X-Consumer-Username", b"alice"),
        &|exchange| {
            let mut vouched = crate::pipeline::Vouched::default();
            vouched.add("X-User", b"alice");
            exchange.notes.leave(vouched);
        },
    ];
    for change in of_one {
        assert_ne!(key(change, &[], true).entry, key(&nothing, &[], true).entry);
        assert_eq!(key(change, &[], false), key(&nothing, &[], false), "where all are alike");
        assert_eq!(key(change, &[], true).resource, key(&nothing, &[], true).resource);
    }
    let token = |expiry: u64| {
        move |exchange: &mut crate::pipeline::Exchange| {
            let claims =
                serde_json::json!({"sub": "alice", "exp": expiry, "jti": expiry.to_string()});
            exchange.claims = Some(Arc::new(claims.as_object().unwrap().clone()));
        }
    };
    assert_eq!(
        key(&token(1), &[], true),
        key(&token(2), &[], true),
        "a renewed token is no other caller"
    );
}

fn draft(size: usize, since: u64) -> (Draft, Bytes) {
    let freshness = Freshness {
        since,
        age: 0,
        lifetime: 60,
        while_revalidate: 0,
        if_error: 0,
        is_strict: false,
    };
    let fields = vec![("ETag".to_owned(), "\"1\"".to_owned())];
    let draft = Draft { resource: sum_of(b"r"), vary: Vec::new(), status: 200, fields, freshness };
    (draft, Bytes::from(vec![b'x'; size]))
}

fn key_of(number: u64) -> CacheKey {
    CacheKey { resource: sum_of(b"r"), entry: sum_of(&number.to_le_bytes()) }
}

fn kept(size: usize) -> Arc<Stored> {
    let (draft, body) = draft(size, 1000);
    Arc::new(draft.with(StoredBody::Memory(body)))
}

#[test]
fn a_zone_takes_no_more_than_its_room_and_what_was_not_used_goes_first() {
    let index = Index::new(1 << 20, 0, None);
    let request = Head::request("GET", "/", "a");
    for number in 0..100 {
        index.put(key_of(number).entry, &kept(100_000));
        assert!(index.find(&key_of(0), &request).is_some() || number > 15, "{number}");
    }
    assert!((5..=10).contains(&index.count()), "{}", index.count());
    assert!(index.find(&key_of(99), &request).is_some());
    assert!(index.find(&key_of(1), &request).is_none());
}

#[test]
fn what_changed_counts_for_nothing_whoever_it_was_kept_for() {
    let index = Index::new(1 << 20, 0, None);
    let request = Head::request("GET", "/", "a");
    index.put(key_of(1).entry, &kept(10));
    index.put(key_of(2).entry, &kept(10));
    assert!(index.find(&key_of(1), &request).is_some());
    index.change(key_of(1).resource, 1000);
    assert!(
        index.find(&key_of(1), &request).is_none() && index.find(&key_of(2), &request).is_none()
    );
    assert!(!index.purge(&key_of(1).entry), "nobody would have been given it");
    // What was asked for before the change and comes after it is as old as before.
    index.put(key_of(1).entry, &kept(10));
    assert!(index.find(&key_of(1), &request).is_none());
    let (draft, body) = draft(10, 1001);
    index.put(key_of(1).entry, &Arc::new(draft.with(StoredBody::Memory(body))));
    assert!(index.find(&key_of(1), &request).is_some() && index.purge(&key_of(1).entry));
}

#[test]
fn variants_are_bounded_and_chosen_by_what_requests_say() {
    let index = Index::new(1 << 20, 0, None);
    let request = |lang: &str| {
        let mut request = Head::request("GET", "/", "a");
        request.append("Accept-Language", lang.as_bytes());
        request
    };
    for number in 0..40 {
        let (mut draft, body) = draft(10, 1000);
        let said =
            super::key::selection(&request(&number.to_string()), &["accept-language".into()]);
        draft.vary = said.unwrap();
        index.put(key_of(1).entry, &Arc::new(draft.with(StoredBody::Memory(body))));
    }
    let found =
        (0..40).filter(|number| index.find(&key_of(1), &request(&number.to_string())).is_some());
    assert_eq!(found.collect::<Vec<_>>(), (8..40).collect::<Vec<_>>());
    assert!(index.find(&key_of(1), &Head::request("GET", "/", "a")).is_none());
}

#[test]
fn a_caller_who_has_it_is_known_by_tag_before_date() {
    let (mut draft, body) = draft(10, 1000);
    draft.fields.push(("Last-Modified".into(), "Sun, 06 Nov 1994 08:49:37 GMT".into()));
    let stored = draft.with(StoredBody::Memory(body));
    let known = |fields: &[(&str, &str)]| stored.is_known_to(&Conditions::of(&head(fields)));
    assert!(known(&[("If-None-Match", "\"0\""), ("If-None-Match", "W/\"1\"")]));
    assert!(known(&[("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT")]));
    assert!(!known(&[
        ("If-None-Match", "\"2\""),
        ("If-Modified-Since", "Sun, 06 Nov 2094 08:49:37 GMT")
    ]));
    assert!(!known(&[("If-None-Match", "1")]) && !known(&[]));
}

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("wardgate-cache-{:x}", fastrand::u64(..)));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn zone(&self) -> Arc<CacheZone> {
        let zones = serde_json::json!({"zones": [{"name": "z", "memory_size": "1m", "disk_size": "1m", "cache_levels": "2"}]});
        let settings: CacheSettings = serde_json::from_value(zones).unwrap();
        let zones: CacheZones = settings.zones(&self.0).unwrap();
        zones.find("z").unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        fn below(folder: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => below(&path, files),
                    path => files.push(path),
                }
            }
        }
        let mut files = Vec::new();
        below(&self.0, &mut files);
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "it did not come so far");
        std::thread::yield_now();
    }
}

fn write(zone: &CacheZone, number: u64, size: usize) {
    let (draft, body) = draft(size, 1000);
    let fill = zone.disk().unwrap().begin().unwrap();
    for piece in body.chunks(1000) {
        eventually(|| fill.add(&Bytes::copy_from_slice(piece)).then_some(()));
    }
    fill.end(key_of(number).entry, draft, None);
}

fn found(zone: &CacheZone, number: u64) -> Option<Arc<Stored>> {
    zone.index().unwrap().find(&key_of(number), &Head::request("GET", "/", "a"))
}

async fn read(stored: &Stored) -> Result<usize, String> {
    let StoredBody::File(file) = &stored.body else { panic!("it is no file") };
    let mut source = file.later();
    let mut length = 0;
    loop {
        let next = std::future::poll_fn(|context| source.poll_next(context)).await;
        match next.map_err(|fault| fault.cause)? {
            Some(piece) => length += piece.len(),
            None => return Ok(length),
        }
    }
}

#[tokio::test]
async fn files_are_whole_or_not_there_and_the_next_process_finds_them() {
    let folder = Folder::new();
    let zone = folder.zone();
    for (number, size) in [(1, 0), (2, 1), (3, 64 << 10), (4, 150_000)] {
        write(&zone, number, size);
        let stored = eventually(|| found(&zone, number));
        assert_eq!(read(&stored).await.unwrap(), size);
        let StoredBody::File(file) = &stored.body else { panic!("it is no file") };
        assert!(file.open().await.is_ok());
    }
    // One that is given up leaves nothing.
    let fill = zone.disk().unwrap().begin().unwrap();
    assert!(fill.add(&Bytes::from_static(b"half")));
    drop(fill);
    drop(zone);
    let again = folder.zone();
    for (number, size) in [(1, 0), (2, 1), (3, 64 << 10), (4, 150_000)] {
        let stored = eventually(|| found(&again, number));
        assert_eq!((stored.status, stored.field("etag")), (200, Some("\"1\"")));
        assert_eq!(read(&stored).await.unwrap(), size);
    }
    use std::os::unix::fs::PermissionsExt as _;
    for file in folder.files() {
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn damage_is_seen_wherever_it_is() {
    let folder = Folder::new();
    let zone = folder.zone();
    write(&zone, 1, 70_000);
    let stored = eventually(|| found(&zone, 1));
    let file =
        folder.files().into_iter().find(|path| !path.to_string_lossy().contains("unfinished"));
    let file = file.unwrap();
    let whole = std::fs::read(&file).unwrap();
    for at in [0, 66_000, 70_010, whole.len() - 40, whole.len() - 10, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert!(read(&stored).await.is_err(), "{at}");
    }
    for length in [0, 10, 69_999, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        assert!(read(&stored).await.is_err(), "{length}");
    }
    // The next process does not even take it in.
    let again = folder.zone();
    eventually(|| (again.index().is_some() && !file.exists()).then_some(()));
    assert!(found(&again, 1).is_none());
}

#[tokio::test]
async fn the_disk_is_bounded_and_what_is_thrown_away_is_removed() {
    let folder = Folder::new();
    let zone = folder.zone();
    for number in 0..40 {
        write(&zone, number, 100_000);
        eventually(|| found(&zone, number));
    }
    // The thread removes with its next job.
    let size = || {
        folder
            .files()
            .iter()
            .map(|path| std::fs::metadata(path).map_or(0, |facts| facts.len()))
            .sum::<u64>()
    };
    eventually(|| {
        zone.disk().unwrap().sweep();
        (size() <= 1 << 20).then_some(())
    });
    zone.disk().unwrap().change(key_of(1).resource, 5000);
    zone.index().unwrap().change(key_of(1).resource, 5000);
    eventually(|| folder.0.join("z/changes").exists().then_some(()));
    drop(zone);
    let again = folder.zone();
    assert!(again.index().is_some());
    eventually(|| folder.files().is_empty().then_some(()));
}
