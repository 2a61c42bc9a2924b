//! The ways in which an output reaches its receiver: shown our SVID, over plain TCP, to a socket of this machine; and receivers
//! that take only a part.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixDatagram};
use tokio_rustls::TlsAcceptor;
use wardgate::rt::Tasks;

use crate::outputs::{
    Collector, Door, Got, billing_policy, grpc_collector, message_of, messages, seq_of, tls_of,
};
use crate::upstream_tls::Authority;
use crate::world::{App, World, eventually_async, get};

/// What a client showed: the leaf of its chain, as hexadecimal.
fn shown(tls: &tokio_rustls::server::TlsStream<TcpStream>) -> String {
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    chain.first().map(hex::encode).unwrap_or_default()
}

/// Takes lines of JSON over HTTPS, and remembers with each whose certificate was shown.
async fn https_collector(tcp: TcpStream, tls: TlsAcceptor, got: Got) {
    let Ok(tls) = tls.accept(tcp).await else { return };
    let leaf = shown(&tls);
    let service = service_fn(move |request: Request<Incoming>| {
        let (got, leaf) = (got.clone(), leaf.clone());
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            for line in std::str::from_utf8(&body).unwrap().lines() {
                let mut record: Value = serde_json::from_str(line).unwrap();
                record["shown"] = leaf.clone().into();
                got.add(record);
            }
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    });
    let _ =
        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_shows_our_svid_to_a_receiver_that_asks_for_it_and_the_renewed_one_afterwards() {
    let (world, app) = (World::new(), App::echo("app"));
    let authority = Authority::new("collectors");
    let server = authority.issue("collector", &["collector.test"]);
    let ca = world.folder.join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let mesh = std::fs::read_to_string(world.authority().join("root.pem")).unwrap();
    let acceptor = tls_of(&mesh, &server);

    let (web, otel, siem, resources) =
        (Got::default(), Got::default(), Got::default(), Got::default());
    let [mut web_door, mut otel_door, mut siem_door] =
        [Door::new().await, Door::new().await, Door::new().await];
    let (tls, got) = (acceptor.clone(), web.clone());
    web_door.open(move |tcp| https_collector(tcp, tls.clone(), got.clone())).await;
    let tls = acceptor.clone();
    let collector = Collector { got: otel.clone(), resources, rejects: 1 };
    otel_door.open(move |tcp| grpc_collector(tcp, tls.clone(), collector.clone())).await;
    let (tls, got) = (acceptor, siem.clone());
    siem_door
        .open(move |tcp: TcpStream| {
            let (tls, got) = (tls.clone(), got.clone());
            async move {
                let Ok(tls) = tls.accept(tcp).await else { return };
                let leaf = shown(&tls);
                messages(tls, &leaf, got).await;
            }
        })
        .await;

    let tls = json!({ "ca": ca, "server_name": "collector.test", "svid": true });
    let outputs = json!([
        { "name": "web", "http": { "url": format!("https://{}/in", web_door.address), "tls": tls } },
        { "name": "otel", "otlp": {
            "endpoint": format!("https://{}", otel_door.address), "headers": { "x-key": "otel" }, "tls": tls } },
        { "name": "siem", "syslog": { "address": format!("tls://{}", siem_door.address), "tls": tls } },
    ]);
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .resources(&billing_policy(&world))
        .set("status", &json!("127.0.0.1:0"))
        .set("audit", &json!({ "outputs": outputs }))
        .start();
    let stranger = world.peer("/stranger");
    stranger.get(&billing, "/first").await;
    let seq = seq_of(&billing, "/first");
    for (name, got) in [("web", &web), ("otel", &otel), ("siem", &siem)] {
        got.has(name, seq).await;
    }
    let own = || hex::encode(&world.identity("/billing").svid.chain[0]);
    assert!(web.all().iter().all(|record| record["shown"] == json!(own())));
    assert!(siem.all().iter().all(|message| message["peer"] == json!(own())));

    // What a collector of OpenTelemetry says that it did not take is counted, and does not come again.
    let metrics = get(billing.address("status"), "/metrics").await.text();
    let counted = "wardgate_audit_undeliverable_total{output=\"otel\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(counted)).unwrap();
    assert_ne!(count, "0", "{metrics}");
    billing.logs("some are too old");

    // A renewed SVID is shown on the connections that are made with it.
    world.issue("/billing", &world.files("/billing"), 3600);
    billing.record_with("/event", &json!("rotated"));
    let renewed = own();
    let latest = |got: &Got, field: &str| got.all().last().map(|one| one[field].clone());
    eventually_async("the renewed SVID is shown", || async {
        stranger.get(&billing, "/again").await;
        let all = [latest(&web, "shown"), latest(&siem, "peer")];
        all.iter().all(|shown| *shown == Some(json!(renewed))).then_some(())
    })
    .await;
    let mut numbers = otel.all().iter().map(|one| one["seq"].as_u64()).collect::<Vec<_>>();
    let came = numbers.len();
    numbers.dedup();
    assert_eq!(numbers.len(), came, "a partial success is a success");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syslog_goes_over_plain_tcp_with_counted_octets_and_to_a_socket_of_this_machine() {
    let (world, app) = (World::new(), App::echo("app"));
    let (tcp_got, unix_got) = (Got::default(), Got::default());
    let mut door = Door::new().await;
    let got = tcp_got.clone();
    door.open(move |tcp| {
        let got = got.clone();
        async move { messages(tcp, "", got).await }
    })
    .await;
    let path = world.folder.join("log");
    let bind = || UnixDatagram::bind(&path).unwrap();
    let receive = |socket: Arc<UnixDatagram>, got: Got| {
        let mut tasks = Tasks::new();
        tasks.add(async move {
            let mut message = vec![0; 1 << 16];
            while let Ok(length) = socket.recv(&mut message).await {
                got.add(message_of(&message[..length], ""));
            }
        });
        tasks
    };
    let receiving = receive(Arc::new(bind()), unix_got.clone());

    let outputs = json!([
        { "name": "tcp", "syslog": { "address": format!("tcp://{}", door.address) } },
        { "name": "unix", "syslog": { "address": format!("unix://{}", path.display()), "facility": "authpriv" } },
    ]);
    let part = world.sidecar("/billing").app(&app).resources(&billing_policy(&world));
    let billing = part.set("audit", &json!({ "outputs": outputs })).start();
    let stranger = world.peer("/stranger");
    let denial = stranger.get(&billing, "/first").await.denial().to_owned();
    let seq = seq_of(&billing, "/first");
    for (name, got, priority) in [("tcp", &tcp_got, "<108>1 "), ("unix", &unix_got, "<84>1 ")] {
        got.has(name, seq).await;
        let is_it = |one: &Value| one["record"]["denial_id"] == json!(denial);
        let one = got.all().into_iter().find(is_it).unwrap();
        assert!(one["head"].as_str().unwrap().starts_with(priority), "{name}: {one}");
        assert!(one["fields"].as_str().unwrap().contains("outcome=\"deny\""), "{name}: {one}");
    }

    // While nobody listens at the socket records wait, and nothing is left out.
    drop(receiving);
    std::fs::remove_file(&path).unwrap();
    stranger.get(&billing, "/while-away").await;
    tcp_got.has("tcp", seq_of(&billing, "/while-away")).await;
    let _receiving = receive(Arc::new(bind()), unix_got.clone());
    unix_got.has("unix", seq_of(&billing, "/while-away")).await;
}

#[tokio::test]
async fn what_an_output_cannot_show_is_refused_by_name() {
    let (world, app) = (World::new(), App::echo("app"));
    let svid = json!({ "svid": true });
    for (output, expected) in [
        (
            json!({ "syslog": { "address": "tcp://127.0.0.1:601", "tls": svid } }),
            "syslog.tls: the address is tcp://",
        ),
        (
            json!({ "syslog": { "address": "unix:///dev/log", "tls": svid } }),
            "syslog.tls: the address is unix://",
        ),
        (
            json!({ "otlp": { "endpoint": "http://127.0.0.1:4317", "tls": svid } }),
            "tls: the endpoint is http://",
        ),
        (json!({ "http": { "url": "http://127.0.0.1/", "tls": svid } }), "tls"),
        (
            json!({ "http": { "url": "https://a/", "tls": { "svid": true, "certificate": "/a", "key": "/b" } } }),
            "give either svid or certificate and key",
        ),
    ] {
        let mut output = output;
        output["name"] = "a".into();
        let part = world.sidecar("/billing").app(&app).resources(&billing_policy(&world));
        let said = part.set("audit", &json!({ "outputs": [output] })).fails().err;
        assert!(said.contains("audit.outputs") && said.contains(expected), "{expected}: {said}");
    }
}
