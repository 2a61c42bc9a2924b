//! Rotation under load: certificates change all the time and the root changes once, and no request fails.
//!
//! `benches/rotation/run.sh` runs the same for longer, with a release build: it sets the variables below.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wardgate::issuer::Authority;
use wardgate::rt::Clock;

use crate::mesh::RawApp;
use crate::world::{PATIENCE, Process, World, allow, eventually};

/// How hard and how long.
struct Plan {
    /// Requests a second, of all ways together.
    rate: u32,
    seconds: u64,
    /// Between two SVIDs of a sidecar.
    every: Duration,
    /// How many times as often a kept way is gone as a fresh one: a handshake costs a debug build much.
    kept_to_fresh: u32,
    program: Option<PathBuf>,
}

impl Plan {
    fn from_environment() -> Self {
        let number = |name: &str, or: u64| {
            std::env::var(name).map_or(or, |text| text.parse().expect("a number"))
        };
        Self {
            rate: number("WARDGATE_ROTATION_RATE", 200).try_into().unwrap(),
            seconds: number("WARDGATE_ROTATION_SECONDS", 10),
            every: Duration::from_millis(number("WARDGATE_ROTATION_EVERY_MILLIS", 1200)),
            kept_to_fresh: number("WARDGATE_ROTATION_KEPT_TO_FRESH", 9).try_into().unwrap(),
            program: std::env::var_os("WARDGATE_ROTATION_PROGRAM").map(PathBuf::from),
        }
    }
}

/// How a client comes, and how the two sidecars are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Everything stays open as long as it may.
    Kept,
    /// A connection for each request, from the client and between the sidecars.
    Fresh,
    /// The same, the client's request having a body that must not be sent twice.
    Posted,
    /// Kept, with such a body.
    PostedKept,
}

impl Way {
    const ALL: [Self; 4] = [Self::Kept, Self::Fresh, Self::Posted, Self::PostedKept];

    fn is_kept(self) -> bool {
        matches!(self, Self::Kept | Self::PostedKept)
    }

    fn request(self) -> &'static [u8] {
        match self {
            Self::Kept => b"GET /kept HTTP/1.1\r\nhost: app\r\n\r\n",
            Self::Fresh => b"GET /fresh HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n",
            Self::Posted => {
                b"POST /fresh HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"
            }
            Self::PostedKept => b"POST /kept HTTP/1.1\r\nhost: app\r\ncontent-length: 5\r\n\r\nhello",
        }
    }
}

/// What became of all requests.
#[derive(Default)]
struct Outcome {
    latencies: Vec<Duration>,
    failures: Vec<String>,
}

/// One client: a request each `period` until `over`. Times count from when a request was due, so that a stall shows in each
/// request that it kept waiting.
fn client(to: SocketAddr, way: Way, period: Duration, over: &AtomicBool, outcome: &Mutex<Outcome>) {
    let mut kept: Option<BufReader<TcpStream>> = None;
    let mut due = Instant::now() + period.mul_f64(fastrand::f64());
    let mut mine = Outcome::default();
    while !over.load(Ordering::Relaxed) {
        #[expect(clippy::disallowed_methods, reason = "a client's pace on its own thread")]
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        match exchange(to, way, &mut kept) {
            Ok(()) => mine.latencies.push(due.elapsed()),
            Err(why) => {
                kept = None;
                mine.failures.push(format!("{way:?}: {why}"));
            }
        }
        due += period;
    }
    let mut all = outcome.lock().unwrap();
    all.latencies.append(&mut mine.latencies);
    all.failures.append(&mut mine.failures);
}

fn exchange(
    to: SocketAddr,
    way: Way,
    kept: &mut Option<BufReader<TcpStream>>,
) -> Result<(), String> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => {
            let tcp = TcpStream::connect(to).map_err(|error| format!("connect: {error}"))?;
            tcp.set_nodelay(true).unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            BufReader::new(tcp)
        }
    };
    connection.get_mut().write_all(way.request()).map_err(|error| format!("send: {error}"))?;
    let (mut status, mut length, mut close) = (String::new(), 0, false);
    connection.read_line(&mut status).map_err(|error| format!("read: {error}"))?;
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).map_err(|error| format!("read: {error}"))?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(text) = line.strip_prefix("content-length: ") {
            length = text.parse().unwrap();
        }
        close |= line == "connection: close";
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).map_err(|error| format!("body: {error}"))?;
    if !status.starts_with("HTTP/1.1 200 ") || body != b"ok" {
        return Err(format!("{} {}", status.trim_end(), String::from_utf8_lossy(&body)));
    }
    if way.is_kept() && !close {
        *kept = Some(connection);
    }
    Ok(())
}

/// An identity's files, replaced one after the other as a careful operator does.
struct Files {
    folder: PathBuf,
    id: String,
}

impl Files {
    fn write(&self, name: &str, text: &str) {
        let fresh = self.folder.join(format!("{name}.fresh"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, self.folder.join(name)).unwrap();
    }

    /// A new SVID, which lives for `ttl`; its serial number.
    fn renew(&self, authority: &Authority, ttl: Duration) -> String {
        let svid = authority.issue(&self.id.parse().unwrap(), ttl, &[]).unwrap();
        self.write("key.pem", &svid.key_pem());
        self.write("svid.pem", &svid.chain_pem());
        svid.serial.clone()
    }

    fn trust(&self, roots: &[&Authority]) {
        let text: String = roots.iter().map(|authority| authority.bundle().to_pem()).collect();
        self.write("bundle.pem", &text);
    }
}

/// What a process says of its identity.
fn identity(process: &Process) -> Value {
    let mut tcp = TcpStream::connect(process.address("status")).unwrap();
    tcp.write_all(b"GET /identity HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).unwrap();
    let body = text.split_once("\r\n\r\n").expect("an answer").1;
    serde_json::from_str::<Value>(body).unwrap()["identities"][0].clone()
}

fn wait_for(process: &Process, what: &str, fits: impl Fn(&Value) -> bool) {
    eventually(&format!("{} has {what}", process.name), || fits(&identity(process)).then_some(()));
}

fn sidecars(world: &World, plan: &Plan, app: &RawApp) -> (Process, Process) {
    let program = plan.program.clone();
    let program = program.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_wardgate")));
    let billing = world
        .sidecar("/billing")
        .program(&program)
        .set("sidecar.app", &json!(app.url()))
        .set("status", &json!("127.0.0.1:0"))
        .set("warnings", &json!({ "svid": [] }))
        .resources(&json!({
            "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])],
        }))
        .start();
    let route = |id: &str, pool: Value| {
        json!({
            "id": id, "uri": format!("/{id}"), "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": { billing.address("inbound").to_string(): 1 },
                "keepalive_pool": pool,
                "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
            },
        })
    };
    let kept = json!({ "size": 320, "idle_timeout": 60, "requests": 1_000_000 });
    let fresh = json!({ "size": 1, "idle_timeout": 60, "requests": 1 });
    let shop = world
        .sidecar("/shop")
        .program(&program)
        .set("status", &json!("127.0.0.1:0"))
        .set("warnings", &json!({ "svid": [] }))
        .resources(&json!({ "routes": [route("kept", kept), route("fresh", fresh)] }))
        .start();
    (shop, billing)
}

/// Rotates SVIDs all the time, and in the middle the root: both are trusted, then the new one signs, then the old one goes.
fn rotate(
    files: &[Files; 2],
    processes: [&Process; 2],
    (old, new): (&Authority, &Authority),
    plan: &Plan,
) -> usize {
    let began = Instant::now();
    let ttl = plan.every * 5 + Duration::from_secs(4);
    let whole = Duration::from_secs(plan.seconds);
    let mut rotations = 0;
    let mut signing = old;
    let mut turned = false;
    while began.elapsed() < whole {
        if !turned && began.elapsed() > whole * 2 / 5 {
            turned = true;
            files.iter().for_each(|files| files.trust(&[old, new]));
            let domain = old.domain().to_string();
            let roots = |count: u64| {
                let domain = domain.clone();
                move |seen: &Value| seen["trust_domains"][&domain]["roots"] == count
            };
            processes.iter().for_each(|process| wait_for(process, "both roots", roots(2)));
            signing = new;
            let serials = files.each_ref().map(|files| files.renew(signing, ttl));
            for (process, serial) in processes.iter().zip(&serials) {
                wait_for(process, "an SVID of the new root", |seen| seen["serial"] == **serial);
            }
            files.iter().for_each(|files| files.trust(&[new]));
            processes.iter().for_each(|process| wait_for(process, "one root", roots(1)));
        }
        for files in files {
            files.renew(signing, ttl);
            rotations += 1;
        }
        #[expect(clippy::disallowed_methods, reason = "the pace of a rotation, on its own thread")]
        std::thread::sleep(plan.every);
    }
    assert!(turned, "too short for a change of the root");
    rotations
}

fn authority(world: &World, folder: &Path) -> Authority {
    match folder.exists() {
        true => Authority::open(folder, Clock::system()).unwrap(),
        false => {
            let domain = world.domain.parse().unwrap();
            Authority::create(domain, folder, Clock::system()).unwrap()
        }
    }
}

#[test]
fn no_request_fails_while_certificates_and_the_root_rotate() {
    let plan = Plan::from_environment();
    let world = World::new();
    let app = RawApp::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false);
    let (old, new) =
        (authority(&world, &world.authority()), authority(&world, &world.folder.join("second")));
    let files =
        ["/shop", "/billing"].map(|path| Files { folder: world.files(path), id: world.id(path) });
    let (shop, billing) = sidecars(&world, &plan, &app);
    let first = [&shop, &billing].map(|process| identity(process)["serial"].clone());

    let (over, outcome) = (AtomicBool::new(false), Mutex::<Outcome>::default());
    // As many clients of each way; those of the fresh ones at a pace of their own.
    let each = (plan.rate / 100).max(1);
    let shares = each * 2 * (plan.kept_to_fresh + 1);
    let period = |way: Way| {
        let share = if way.is_kept() { plan.kept_to_fresh } else { 1 };
        Duration::from_secs(1) * shares / (plan.rate * share)
    };
    let to = shop.address("outbound");
    let began = Instant::now();
    let rotations = std::thread::scope(|scope| {
        for way in Way::ALL.repeat(each as usize) {
            let (over, outcome, period) = (&over, &outcome, period(way));
            scope.spawn(move || client(to, way, period, over, outcome));
        }
        let rotations = rotate(&files, [&shop, &billing], (&old, &new), &plan);
        over.store(true, Ordering::Relaxed);
        rotations
    });
    let Outcome { mut latencies, failures } = outcome.into_inner().unwrap();
    latencies.sort_unstable();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    eprintln!(
        "requests={} rate={:.0}/s failed={} p50={:?} p99={:?} p999={:?} max={:?} svids={rotations}",
        latencies.len() + failures.len(),
        latencies.len() as f64 / began.elapsed().as_secs_f64(),
        failures.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    let last = [&shop, &billing].map(|process| identity(process)["serial"].clone());
    assert!(first[0] != last[0] && first[1] != last[1], "nothing rotated");
    assert!(
        failures.is_empty(),
        "{} failed, the first: {:#?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
}
