//! What a message says of its sender and of its hop: taken off, and set by us alone.

use serde_json::{Value, json};
use wardgate::rt::crypto::digest::{SHA256, digest};

use crate::mesh::{DOORS, Door, Mesh, RawApp, Response};
use crate::world::App;

fn headers(answer: &Response) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["headers"].clone()
}

#[tokio::test]
async fn claims_of_identity_are_taken_off_in_every_spelling_and_ours_is_put_on() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let forged = [
        "X-Forwarded-Client-Cert",
        "x-forwarded-client-cert",
        "X-FORWARDED-CLIENT-CERT",
        "X_Forwarded_Client_Cert",
        "x-forwarded_client-cert",
        "Client-Cert",
        "client_cert",
        "Client-Cert-Chain",
        "X-Client-Cert",
        "X-Client-Cert-Hash",
        "X-SSL-Client-Verify",
        "x_ssl_client_s_dn",
        "SSL_CLIENT_CERT",
        "Ssl-Client-Verify",
        "X-SPIFFE-ID",
        "x_spiffe_id",
        "l5d-client-id",
        "L5d-Client-Id",
        "X-Wardgate-Peer",
        "X-Consumer-Username",
        "x_consumer_custom_id",
        "X-Credential-Identifier",
        "X-Userinfo",
    ];
    let fields: String = forged.iter().map(|name| format!("{name}: forged\r\n")).collect();
    for door in DOORS {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}X-Kept: 1\r\n\r\n");
        let found = headers(&mesh.wire(door).await.ask(request).await);
        assert_eq!(found["x-kept"], "1");
        let text = found.to_string();
        assert!(!text.contains("forged"), "{door:?}: {text}");

        // As Envoy writes it, with the certificate that the last hop's handshake proved.
        let caller = if door == Door::Ingress { "/wardgate/ingress" } else { "/shop" };
        let identity = mesh.world.identity(caller);
        let hash = digest(&SHA256, &identity.svid.chain[0]);
        let expected = format!(
            "By={};Hash={};URI={}",
            mesh.world.id("/billing"),
            hex::encode(hash),
            mesh.world.id(caller)
        );
        assert_eq!(found["x-forwarded-client-cert"], json!(expected), "{door:?}");
    }
}

#[tokio::test]
async fn what_belongs_to_one_hop_ends_there_in_requests() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    for door in DOORS {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Own, x-other\r\n\
            X-Own: 1\r\nX-Other: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
            TE: trailers, deflate\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\n\
            X-End: 1\r\nX-End: 2\r\nAccept: a\r\nCookie: b=c\r\n\r\n";
        let found = headers(&mesh.wire(door).await.ask(request).await);
        for gone in ["x-own", "x-other", "keep-alive", "proxy-connection", "upgrade"] {
            assert_eq!(found.get(gone), None, "{door:?} {gone}");
        }
        // Trailers are carried, so each hop asks for them in turn, and for nothing else.
        assert_eq!((&found["te"], &found["connection"]), (&json!("trailers"), &json!("te")));
        assert_eq!(found["trailer"], "X-Sum", "{door:?}");
        assert_eq!((&found["x-end"], &found["accept"]), (&json!("1, 2"), &json!("a")));
        assert_eq!((&found["host"], &found["cookie"]), (&json!("a"), &json!("b=c")));
    }
}

#[tokio::test]
async fn connection_cannot_name_away_what_others_rely_on() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    for door in DOORS {
        let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\
            Connection: host, content-length, x-forwarded-client-cert, x-forwarded-for, x-real-ip\r\n\r\nbody";
        let answer = mesh.wire(door).await.ask(request).await;
        let found = headers(&answer);
        assert_eq!((&answer.json()["body"], &found["host"]), (&json!("body"), &json!("a")));
        assert!(found.get("x-forwarded-client-cert").is_some(), "{door:?}");
        assert_eq!(found.get("x-real-ip").is_some(), door == Door::Ingress, "{door:?}");
    }
}

#[tokio::test]
async fn what_belongs_to_one_hop_ends_there_in_responses() {
    let app = RawApp::answering(
        "HTTP/1.1 200 OK\r\nConnection: X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
         Trailer: X-T\r\nProxy-Connection: close\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nServer: app\r\n\
         Date: today\r\nContent-Length: 2\r\n\r\nok",
        false,
    );
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let answer = mesh.wire(door).await.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let names: Vec<String> =
            answer.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let expected = ["trailer", "set-cookie", "set-cookie", "server", "date", "content-length"];
        assert_eq!(names, expected, "{door:?}");
        assert_eq!(answer.field("server"), Some("app"), "{door:?}");
    }
}

#[tokio::test]
async fn the_ingress_tells_where_a_request_came_from_and_believes_nobody_who_does() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let port = mesh.address(Door::Ingress).port().to_string();
    let request = "GET / HTTP/1.1\r\nHost: Shop.example:81\r\nX-Real-IP: 9.9.9.9\r\nX-Forwarded-For: 9.9.9.9\r\n\
        X-Forwarded-For: 8.8.8.8\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\
        Forwarded: for=9.9.9.9\r\n\r\n";
    let found = headers(&mesh.wire(Door::Ingress).await.ask(request).await);
    for (name, value) in [
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-for", "9.9.9.9, 8.8.8.8, 127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "Shop.example:81"),
        ("x-forwarded-port", &port),
        ("host", "Shop.example:81"),
    ] {
        assert_eq!(found[name], value, "{name}");
    }
    assert_eq!(found.get("forwarded"), None);

    // Inside the mesh the sidecars leave them to who set them.
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n";
    let found = headers(&mesh.wire(Door::Outbound).await.ask(request).await);
    assert_eq!((&found["x-forwarded-for"], found.get("x-real-ip")), (&json!("10.0.0.1"), None));
}

#[tokio::test]
async fn a_consumer_is_believed_only_from_our_own_ingress() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let claim = [("x-consumer-username", "jack")];
    let by = |path: &'static str| {
        let (peer, billing) = (mesh.world.peer(path), &mesh.billing);
        async move { peer.send(billing, "GET", "/", &claim, "").await.json() }
    };
    assert_eq!(by("/wardgate/ingress").await["headers"]["x-consumer-username"], "jack");
    assert_eq!(by("/shop").await["headers"].get("x-consumer-username"), None);
}

#[tokio::test]
async fn a_refusal_and_an_answer_of_our_own_say_who_speaks() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let refused = mesh.world.peer("/stranger").get(&mesh.billing, "/").await;
    assert_eq!((refused.status, refused.header("server")), (403, Some("Wardgate")));
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    let (denial, body) = (refused.denial().to_owned(), refused.json());
    assert_eq!((&body["status"], &body["denial"]), (&json!(403), &json!(denial)));
    assert_eq!(mesh.billing.record_with("/denial_id", &json!(denial))["outcome"], "deny");
    assert_eq!(app.requests(), 0);
}
