//! A kept connection that its peer closes while a request is on its way: the request goes again, whatever its method, where the
//! system says that nothing of it has arrived; otherwise only where a repetition does no harm.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, mpsc};

use serde_json::json;
use socket2::{SockFilter, SockRef};

use crate::mesh::{RawApp, RawStream, Wire, field};
use crate::world::{App, PATIENCE, World, allow, eventually};

/// From here on nothing that comes is acknowledged: as if the end of the connection were on its way to the other end already.
fn deafen(tcp: &TcpStream) {
    const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);
    SockRef::from(tcp).attach_filter(&[DROP]).unwrap();
}

/// Does somebody wait for the acknowledgement of bytes that he sent to this port?
fn awaits_acknowledgement(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (remote, queues) = (columns[2], columns[4]);
        let port_of = |place: &str| u16::from_str_radix(place.rsplit_once(':').unwrap().1, 16);
        port_of(remote) == Ok(port) && !queues.starts_with("00000000:")
    })
}

/// A request of `app`, whole, and its body.
fn request(stream: &mut RawStream) -> Option<String> {
    let head = stream.head()?;
    let body = match field(&head, "content-length") {
        Some(length) => stream.body(length.parse().unwrap())?,
        None if field(&head, "transfer-encoding").is_some() => {
            let last = |buffer: &[u8]| buffer.windows(5).any(|five| five == b"\r\n0\r\n");
            while !(last(&stream.buffer) && stream.buffer.ends_with(b"\r\n\r\n")) {
                assert!(stream.fill());
            }
            std::mem::take(&mut stream.buffer)
        }
        None => vec![],
    };
    Some(String::from_utf8(body).unwrap())
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

struct Scene {
    app: RawApp,
    /// Lets the first connection go on: to its end.
    go: mpsc::Sender<()>,
    /// The bodies of the requests that the app read.
    read: mpsc::Receiver<String>,
}

/// The first connection answers one request. What comes next it never gets, and ends as who has been idle for too long does; or
/// it gets it, does not answer, and breaks off.
fn scene(deaf: bool) -> Scene {
    let (go, wait) = mpsc::channel::<()>();
    let (tell, read) = mpsc::channel();
    let wait = Arc::new(Mutex::new(wait));
    let app = RawApp::serving(move |stream| {
        if stream.number > 0 {
            while let Some(body) = request(stream) {
                tell.send(body).unwrap();
                stream.send(OK);
            }
            return;
        }
        request(stream).unwrap();
        if deaf {
            deafen(&stream.tcp);
        }
        stream.send(OK);
        if !deaf {
            tell.send(request(stream).unwrap()).unwrap();
        }
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        if !deaf {
            // No acknowledgement need have gone out before: the reset alone says nothing of what was read.
            stream.reset();
        }
    });
    Scene { app, go, read }
}

const POST: &str = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";

/// Requests of each method and framing, the body with the head and behind it.
const REQUESTS: [(&str, &str, &str); 5] = [
    (POST, "", "body"),
    ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", "body", "body"),
    (
        "PATCH /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "2\r\nbo\r\n2\r\ndy\r\n0\r\nX-Sum: 7\r\n\r\n",
        "2\r\nbo\r\n2\r\ndy\r\n0\r\nx-sum: 7\r\n\r\n",
    ),
    ("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", "body", "body"),
    ("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "", ""),
];

async fn ingress_before(world: &World, app: &RawApp) -> (crate::world::Process, Wire) {
    let route = json!({ "id": "all", "uri": "/*", "upstream": {
        "nodes": { app.address.to_string(): 1 }, "retries": 0,
    } });
    let ingress = world.ingress().resources(&json!({ "routes": [route] })).start();
    let mut wire = Wire::to(ingress.address("ingress")).await;
    assert_eq!(wire.ask("GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
    (ingress, wire)
}

#[tokio::test]
async fn a_request_of_which_nothing_arrived_goes_again_whatever_its_method() {
    let world = World::new();
    for (head, rest, body) in REQUESTS {
        let Scene { app, go, read } = scene(true);
        let (_ingress, mut wire) = ingress_before(&world, &app).await;
        wire.send(head).await;
        eventually("the request is on its way", || {
            awaits_acknowledgement(app.address.port()).then_some(())
        });
        wire.send(rest).await;
        go.send(()).unwrap();
        let answer = wire.response_to("POST").await.unwrap();
        assert_eq!(answer.status, 200, "{head}{rest}");
        let seen = read.recv_timeout(PATIENCE).unwrap();
        let unchunked = |text: &str| text.replace("\r\n", " ");
        match body.starts_with("2\r\n") {
            false => assert_eq!(seen, body, "{head}{rest}"),
            true => {
                assert!(unchunked(&seen).ends_with("0 x-sum: 7  "), "{seen:?}");
                let data: String = seen.lines().filter(|line| "body".contains(line)).collect();
                assert_eq!(data, "body", "{seen:?}");
            }
        }
        assert!(read.try_recv().is_err(), "once");
    }
}

#[tokio::test]
async fn a_request_that_may_have_been_read_goes_again_only_when_that_does_no_harm() {
    let world = World::new();
    for (head, rest, body) in REQUESTS {
        let is_idempotent = head.starts_with("GET") || head.starts_with("PUT");
        let Scene { app, go, read } = scene(false);
        let (_ingress, mut wire) = ingress_before(&world, &app).await;
        wire.send([head, rest].concat()).await;
        read.recv_timeout(PATIENCE).unwrap();
        go.send(()).unwrap();
        let answer = wire.response_to("POST").await.unwrap();
        assert_eq!(answer.status, if is_idempotent { 200 } else { 502 }, "{head}{rest}");
        match is_idempotent {
            true => assert_eq!(read.recv_timeout(PATIENCE).unwrap(), body, "{head}{rest}"),
            false => assert!(read.try_recv().is_err(), "{head}{rest}: it was repeated"),
        }
    }
}

/// Carries bytes between who connects and `to`, makes the first connection deaf when it is told to, says so, and ends it.
fn relay(to: SocketAddr) -> (RawApp, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let wait = Arc::new(Mutex::new(wait));
    let relay = RawApp::serving(move |stream| {
        let far = TcpStream::connect(to).unwrap();
        let (mut near, mut into) = (stream.tcp.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut near, &mut into));
        if stream.number > 0 {
            let _ = std::io::copy(&mut &far, &mut stream.tcp);
            return;
        }
        let (mut back, mut from) = (stream.tcp.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut back));
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        deafen(&stream.tcp);
        tell.send(()).unwrap();
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        // The other threads hold the socket as well: only this ends it for all.
        let _ = stream.tcp.shutdown(std::net::Shutdown::Both);
    });
    (relay, go, told)
}

#[tokio::test]
async fn the_same_holds_for_connections_that_are_encrypted() {
    let world = World::new();
    let app = App::echo("app");
    let billing = world
        .sidecar("/billing")
        .set("sidecar.app", &json!(format!("http://{}", app.address)))
        .resources(&json!({
            "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])],
        }))
        .start();
    let (relay, go, told) = relay(billing.address("inbound"));
    let route = json!({
        "id": "billing", "uri": "/*", "workload_selector": { "listener": "outbound" },
        "upstream": {
            "nodes": { relay.address.to_string(): 1 }, "retries": 0,
            "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
        },
    });
    let shop = world.sidecar("/shop").resources(&json!({ "routes": [route] })).start();
    let mut wire = Wire::to(shop.address("outbound")).await;
    assert_eq!(wire.ask("GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
    go.send(()).unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    wire.send(POST).await;
    eventually("the request is on its way", || {
        awaits_acknowledgement(relay.address.port()).then_some(())
    });
    go.send(()).unwrap();
    let answer = wire.response_to("POST").await.unwrap();
    assert_eq!((answer.status, &answer.json()["body"]), (200, &json!("body")));
    assert_eq!(app.requests(), 2, "the first one, and this one once");
}
