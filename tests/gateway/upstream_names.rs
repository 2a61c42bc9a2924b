//! Nodes that are names: addresses from a DNS server that changes its mind, from the hosts file, and from nowhere.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use serde_json::{Value, json};

use crate::mesh::Wire;
use crate::world::{Part, World, eventually, eventually_async, get, soon};

/// What the server does with a question.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    Fails,
    IsSilent,
}

struct Zone {
    /// Addresses 127.0.0.x by name, and their TTL.
    names: HashMap<String, (u32, Vec<u8>)>,
    mood: Mood,
}

/// A DNS server for IPv4 addresses.
struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<AtomicUsize>,
}

impl Dns {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone { names: HashMap::new(), mood: Mood::Answers }));
        let asked = Arc::<AtomicUsize>::default();
        let (seen, counted) = (zone.clone(), asked.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = answer(&seen.lock().unwrap(), &buffer[..length]);
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, zone, asked }
    }

    fn set(&self, name: &str, ttl: u32, last: &[u8]) {
        self.zone.lock().unwrap().names.insert(format!("{name}."), (ttl, last.to_vec()));
    }

    fn is(&self, mood: Mood) {
        self.zone.lock().unwrap().mood = mood;
    }

    /// Waits until it was asked once more from now on.
    fn is_asked_again(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        eventually("another question", || {
            (self.asked.load(Ordering::SeqCst) > before).then_some(())
        });
    }
}

fn answer(zone: &Zone, question: &[u8]) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let mut answer = Message::response(question.id, question.op_code);
    answer.add_query(query.clone());
    let found = zone.names.get(&query.name().to_utf8().to_ascii_lowercase());
    match (zone.mood, found) {
        (Mood::IsSilent, _) => return None,
        (Mood::Fails, _) => answer.metadata.response_code = ResponseCode::ServFail,
        (Mood::Answers, None) => answer.metadata.response_code = ResponseCode::NXDomain,
        (Mood::Answers, Some((ttl, last))) if query.query_type() == RecordType::A => {
            for last in last {
                let data = RData::A(A(Ipv4Addr::new(127, 0, 0, *last)));
                answer.add_answer(Record::from_rdata(query.name().clone(), *ttl, data));
            }
        }
        (Mood::Answers, Some(_)) => {}
    }
    answer.to_vec().ok()
}

/// One port at which 127.0.0.1, 127.0.0.2 and 127.0.0.3 answer with the last of their numbers.
fn apps() -> u16 {
    let listeners = loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let others = [2, 3].map(|last| TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port)));
        if let [Ok(second), Ok(third)] = others {
            break [first, second, third];
        }
    };
    let port = listeners[0].local_addr().unwrap().port();
    for (number, listener) in (1..).zip(listeners) {
        std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                std::thread::spawn(move || serve(tcp, number));
            }
        });
    }
    port
}

/// Answers each request with the number and the Host that it came with.
fn serve(mut tcp: std::net::TcpStream, number: u8) {
    use std::io::{Read, Write};
    let mut buffer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        while let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..at + 4).collect();
            let head = String::from_utf8_lossy(&head).into_owned();
            let host = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("host").then(|| value.trim().to_owned())
            });
            let body = format!("{number} {}", host.unwrap_or_default());
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if tcp.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
        match tcp.read(&mut piece) {
            Ok(count) if count > 0 => buffer.extend_from_slice(&piece[..count]),
            _ => return,
        }
    }
}

fn asking<'w>(world: &'w World, dns: &Dns, upstream: &Value) -> Part<'w> {
    world
        .ingress()
        .set(
            "dns",
            &json!({
                "dns_resolver": [dns.address.to_string()],
                "enable_resolv_search_opt": false,
                "resolver_timeout": 5,
            }),
        )
        .resources(&json!({ "routes": [{ "id": "all", "uri": "/*", "upstream": upstream }] }))
}

/// Which of the apps answers, `count` times in a row; sorted, each once.
async fn answering(door: SocketAddr, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let answer = get(door, "/").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        seen.push(answer.text().split(' ').next().unwrap().to_owned());
    }
    seen.sort();
    seen.dedup();
    seen
}

#[tokio::test]
async fn a_name_is_all_its_addresses_and_what_it_is_changes_without_a_failed_request() {
    let (world, dns, port) = (World::new(), Dns::start(), apps());
    dns.set("shop.test", 1, &[1, 2]);
    let upstream = json!({ "pass_host": "node", "nodes": { format!("shop.test:{port}"): 1 } });
    let ingress = asking(&world, &dns, &upstream).start();
    let door = ingress.address("ingress");
    assert_eq!(answering(door, 8).await, ["1", "2"], "a share for each, with the node's weight");
    assert_eq!(
        get(door, "/").await.text()[2..],
        format!("shop.test:{port}"),
        "the node is the name"
    );

    dns.set("shop.test", 1, &[3]);
    // Whatever is asked meanwhile is answered.
    eventually_async("the new address alone", || async {
        (answering(door, 4).await == ["3"]).then_some(())
    })
    .await;

    // Servers that fail, and servers that say nothing at all, take nothing away.
    for mood in [Mood::Fails, Mood::IsSilent] {
        dns.is(mood);
        dns.is_asked_again();
        assert_eq!(answering(door, 4).await, ["3"]);
    }
    dns.is(Mood::Answers);
    dns.set("shop.test", 1, &[2]);
    eventually_async("what the server says again", || async {
        (answering(door, 4).await == ["2"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_the_first_requests_wait_for_an_answer() {
    let (world, dns, port) = (World::new(), Dns::start(), apps());
    dns.is(Mood::IsSilent);
    dns.set("shop.test", 600, &[1]);
    let upstream = json!({ "nodes": { format!("shop.test:{port}"): 1 } });
    let ingress = asking(&world, &dns, &upstream).set("dns.resolver_timeout", &json!(60)).start();
    let mut wire = Wire::to(ingress.address("ingress")).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    dns.is_asked_again();
    dns.is(Mood::Answers);
    let answer = soon("the answer", wire.response_to("GET")).await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "1 a"));
    // What is known for ten minutes is not asked for again.
    let asked = dns.asked.load(Ordering::SeqCst);
    dns.is(Mood::IsSilent);
    assert_eq!(answering(ingress.address("ingress"), 20).await, ["1"]);
    assert_eq!(dns.asked.load(Ordering::SeqCst), asked);
}

#[tokio::test]
async fn who_waits_for_a_name_waits_no_longer_than_the_resolver() {
    let (world, dns) = (World::new(), Dns::start());
    dns.is(Mood::IsSilent);
    let upstream = json!({ "nodes": { "shop.test:80": 1 } });
    let ingress = asking(&world, &dns, &upstream).set("dns.resolver_timeout", &json!(1)).start();
    let started = Instant::now();
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 502);
    assert!(started.elapsed() < Duration::from_secs(30), "not the 60 s of the connection");
    ingress.logs("a name cannot be resolved");
    // Nobody waits for what is known to be unknown; and once it is known it is used.
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 502);
    let port = apps();
    let upstream = json!({ "nodes": { format!("shop.test:{port}"): 1 } });
    ingress.write_resources(
        &json!({ "routes": [{ "id": "all", "uri": "/*", "upstream": upstream }] }),
    );
    dns.set("shop.test", 1, &[1]);
    dns.is(Mood::Answers);
    eventually_async("the name is known", || async {
        (get(ingress.address("ingress"), "/").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nodes_that_are_addresses_serve_while_names_beside_them_are_unknown() {
    let (world, dns, port) = (World::new(), Dns::start(), apps());
    let upstream = json!({ "nodes": {
        format!("127.0.0.1:{port}"): 1, format!("nobody.test:{port}"): 1,
    } });
    let ingress = asking(&world, &dns, &upstream).start();
    let door = ingress.address("ingress");
    assert_eq!(answering(door, 4).await, ["1"], "the name does not exist");
    dns.set("nobody.test", 1, &[2]);
    // The answer that there is none is over after some seconds.
    eventually_async("the name exists", || async {
        (answering(door, 4).await == ["1", "2"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_hosts_file_comes_before_the_servers_and_may_change() {
    let (world, dns, port) = (World::new(), Dns::start(), apps());
    dns.set("shop.test", 600, &[3]);
    let hosts = world.folder.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.2 shop.test # here\n").unwrap();
    let upstream = json!({ "nodes": { format!("shop.test:{port}"): 1 } });
    let ingress = asking(&world, &dns, &upstream).set("dns.hosts_file", &json!(hosts)).start();
    let door = ingress.address("ingress");
    assert_eq!(answering(door, 2).await, ["2"]);
    assert_eq!(dns.asked.load(Ordering::SeqCst), 0);
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    eventually_async("the servers are asked", || async {
        (answering(door, 2).await == ["3"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn settings_that_make_no_sense_stop_the_start() {
    let world = World::new();
    let ended = world
        .ingress()
        .resources(&json!({ "routes": [] }))
        .set("dns", &json!({ "dns_resolver": ["dns.example"] }))
        .fails();
    assert!(
        ended.err.contains("dns.dns_resolver") && ended.err.contains("dns.example"),
        "{ended:?}"
    );
}
