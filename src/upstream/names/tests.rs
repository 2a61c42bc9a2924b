//! What is asked, what is believed, and for how long; against a server of our own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::Record;
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA, SRV};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::rt::Tasks;

/// What a server says: by lower-case name and type.
#[derive(Default)]
struct Zone {
    records: HashMap<(String, RecordType), Vec<(u32, RData)>>,
    /// It answers SERVFAIL to everything.
    fails: bool,
    /// Over UDP it says that the answer does not fit.
    truncates: bool,
    asked: Vec<(String, RecordType)>,
}

impl Zone {
    fn answer(&mut self, question: &[u8], over_udp: bool) -> Vec<u8> {
        let question = Message::from_vec(question).unwrap();
        let query = question.queries[0].clone();
        let name = query.name().to_utf8().to_ascii_lowercase();
        self.asked.push((name.clone(), query.query_type()));
        let mut answer = Message::response(question.id, question.op_code);
        answer.add_query(query.clone());
        answer.metadata.recursion_available = true;
        if self.fails {
            answer.metadata.response_code = ResponseCode::ServFail;
            return answer.to_vec().unwrap();
        }
        if over_udp && self.truncates {
            answer.metadata.truncation = true;
            return answer.to_vec().unwrap();
        }
        let mut name = name;
        loop {
            if let Some(found) = self.records.get(&(name.clone(), query.query_type())) {
                for (ttl, data) in found {
                    let owner = Name::from_utf8(&name).unwrap();
                    answer.add_answer(Record::from_rdata(owner, *ttl, data.clone()));
                }
                break;
            }
            let alias = self.records.get(&(name.clone(), RecordType::CNAME));
            let Some((ttl, RData::CNAME(target))) = alias.and_then(|found| found.first()) else {
                if !self.records.keys().any(|(known, _)| *known == name) {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                let zone = Name::from_utf8("test.").unwrap();
                let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 7);
                answer.add_authority(Record::from_rdata(zone, 7, RData::SOA(soa)));
                break;
            };
            let owner = Name::from_utf8(&name).unwrap();
            answer.add_answer(Record::from_rdata(owner, *ttl, RData::CNAME(target.clone())));
            name = target.0.to_utf8().to_ascii_lowercase();
        }
        answer.to_vec().unwrap()
    }
}

struct Server {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    _tasks: Tasks,
}

impl Server {
    async fn start() -> Self {
        // The same port for both protocols.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let zone = Arc::<Mutex<Zone>>::default();
        let mut tasks = Tasks::new();
        let seen = zone.clone();
        tasks.add(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let answer = seen.lock().answer(&buffer[..length], true);
                udp.send_to(&answer, from).await.unwrap();
            }
        });
        let seen = zone.clone();
        tasks.add(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                while let Ok(length) = stream.read_u16().await {
                    let mut question = vec![0; length.into()];
                    stream.read_exact(&mut question).await.unwrap();
                    let answer = seen.lock().answer(&question, false);
                    stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
        Self { address, zone, _tasks: tasks }
    }

    fn put(&self, name: &str, kind: RecordType, records: Vec<(u32, RData)>) {
        self.zone.lock().records.insert((name.to_owned(), kind), records);
    }

    fn settings(&self) -> DnsSettings {
        DnsSettings {
            dns_resolver: vec![self.address.to_string()],
            enable_resolv_search_opt: false,
            hosts_file: "/nonexistent".into(),
            ..DnsSettings::default()
        }
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(&self.settings()).unwrap()
    }
}

fn v4(last: u8) -> RData {
    RData::A(A(Ipv4Addr::new(10, 0, 0, last)))
}

fn v6(last: u16) -> RData {
    RData::AAAA(AAAA(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)))
}

fn texts(answer: &Answer<IpAddr>) -> Vec<String> {
    answer.records.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn addresses_come_with_the_time_for_which_they_hold() {
    let server = Server::start().await;
    let resolver = server.resolver();
    server.put("shop.test.", RecordType::A, vec![(60, v4(2)), (40, v4(1))]);
    let answer = resolver.addresses("Shop.test").await.unwrap();
    assert_eq!(texts(&answer), ["10.0.0.1", "10.0.0.2"]);
    assert!((39..=40).contains(&answer.holds.as_secs()), "the shortest: {:?}", answer.holds);

    // An alias is followed, and holds no longer than any step.
    let alias = RData::CNAME(CNAME(Name::from_utf8("shop.test.").unwrap()));
    server.put("www.test.", RecordType::CNAME, vec![(9, alias)]);
    let answer = resolver.addresses("www.test").await.unwrap();
    assert_eq!(texts(&answer), ["10.0.0.1", "10.0.0.2"]);
    assert!(answer.holds.as_secs() <= 9);

    // IPv6 where there is nothing else, and where it is wanted.
    server.put("six.test.", RecordType::AAAA, vec![(60, v6(1))]);
    assert_eq!(texts(&resolver.addresses("six.test").await.unwrap()), ["fd00::1"]);
    let settings = DnsSettings { enable_ipv6: false, ..server.settings() };
    let without = Resolver::new(&settings).unwrap();
    assert!(without.addresses("six.test").await.unwrap().records.is_empty());
}

#[tokio::test]
async fn times_are_held_to_their_bounds() {
    let server = Server::start().await;
    server.put("now.test.", RecordType::A, vec![(0, v4(1))]);
    server.put("long.test.", RecordType::A, vec![(80_000, v4(1))]);
    let resolver = server.resolver();
    assert_eq!(resolver.addresses("now.test").await.unwrap().holds, SHORTEST);
    assert_eq!(resolver.addresses("long.test").await.unwrap().holds.as_secs(), 3600);
    // That there is nothing is known as long as the zone says.
    let nothing = resolver.addresses("nobody.test").await.unwrap();
    assert_eq!((nothing.records.len(), nothing.holds.as_secs()), (0, 7));
    let settings = DnsSettings { dns_resolver_valid: Some(30), ..server.settings() };
    let fixed = Resolver::new(&settings).unwrap();
    assert_eq!(fixed.addresses("now.test").await.unwrap().holds.as_secs(), 30);
}

#[tokio::test]
async fn services_name_hosts_ports_and_shares() {
    let server = Server::start().await;
    let target = |name: &str| Name::from_utf8(name).unwrap();
    server.put(
        "_http._tcp.test.",
        RecordType::SRV,
        vec![
            (20, RData::SRV(SRV::new(10, 3, 8080, target("b.test.")))),
            (20, RData::SRV(SRV::new(5, 1, 80, target("a.test.")))),
        ],
    );
    let answer = server.resolver().services("_http._tcp.test").await.unwrap();
    let seen: Vec<_> =
        answer.records.iter().map(|s| (s.priority, s.weight, &*s.host, s.port)).collect();
    assert_eq!(seen, [(5, 1, "a.test", 80), (10, 3, "b.test", 8080)]);
    server.put(
        "_none._tcp.test.",
        RecordType::SRV,
        vec![(20, RData::SRV(SRV::new(0, 0, 0, Name::root())))],
    );
    assert!(server.resolver().services("_none._tcp.test").await.unwrap().records.is_empty());
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_asked_for_over_tcp() {
    let server = Server::start().await;
    server.zone.lock().truncates = true;
    server.put("big.test.", RecordType::A, (0..200).map(|last| (60, v4(last))).collect());
    let answer = server.resolver().addresses("big.test").await.unwrap();
    assert_eq!(answer.records.len(), 200);
}

#[tokio::test]
async fn a_server_that_fails_or_is_silent_says_nothing_about_the_name() {
    let server = Server::start().await;
    server.zone.lock().fails = true;
    let error = server.resolver().addresses("shop.test").await.unwrap_err();
    assert!(matches!(&error, NameError::Server { name, .. } if name == "shop.test"), "{error}");

    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let settings = DnsSettings {
        dns_resolver: vec![silent.local_addr().unwrap().to_string()],
        resolver_timeout: 0.2,
        ..server.settings()
    };
    assert!(Resolver::new(&settings).unwrap().addresses("shop.test").await.is_err());
    assert!(matches!(
        server.resolver().addresses("a..b").await.unwrap_err(),
        NameError::NoName { .. }
    ));
}

#[test]
fn settings_that_make_no_sense_are_named() {
    for (settings, says) in [
        (
            DnsSettings { dns_resolver: vec!["dns.example".into()], ..DnsSettings::default() },
            "dns.dns_resolver: expected address or address:port, got \"dns.example\"",
        ),
        (
            DnsSettings { resolver_timeout: 0.0, ..DnsSettings::default() },
            "dns.resolver_timeout: expected seconds above 0",
        ),
        (
            DnsSettings { dns_resolver_valid: Some(0), ..DnsSettings::default() },
            "dns.dns_resolver_valid: expected seconds above 0",
        ),
    ] {
        assert_eq!(Resolver::new(&settings).unwrap_err().to_string(), says);
    }
    let servers = ["1.2.3.4", "[fd00::1]:5353", "fd00::1", "[fd00::1]"].map(server);
    let expected = ["1.2.3.4:53", "[fd00::1]:5353", "[fd00::1]:53", "[fd00::1]:53"];
    assert_eq!(servers, expected.map(|text| Some(text.parse().unwrap())));
}

/// Addresses that a roster keeps, and a way to see what they are by now.
async fn until(live: &mut Live<Option<Arc<[IpAddr]>>>, expected: &[&str]) {
    let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
    while live.load().as_deref() != Some(&expected) {
        assert!(live.changed().await);
    }
}

#[tokio::test]
async fn addresses_are_asked_for_again_when_they_are_over_and_stay_while_nobody_answers() {
    let server = Server::start().await;
    server.put("shop.test.", RecordType::A, vec![(1, v4(1))]);
    let roster = Roster::attending().with_names(server.resolver());
    let mut tasks = Tasks::new();
    tasks.add(roster.clone().run());
    let addresses = Addresses::keep("shop.test", &roster);
    let mut live = addresses.live().clone();
    assert!(live.load().is_none());
    until(&mut live, &["10.0.0.1"]).await;
    assert!(Arc::ptr_eq(&addresses, &Addresses::keep("SHOP.test", &roster)), "one task for all");

    server.put("shop.test.", RecordType::A, vec![(1, v4(2)), (1, v4(3))]);
    until(&mut live, &["10.0.0.2", "10.0.0.3"]).await;

    server.zone.lock().fails = true;
    server.zone.lock().asked.clear();
    while server.zone.lock().asked.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(live.load().as_ref().as_ref().unwrap().len(), 2, "the last good answer stays");

    server.zone.lock().fails = false;
    server.zone.lock().records.clear();
    until(&mut live, &[]).await;
}
