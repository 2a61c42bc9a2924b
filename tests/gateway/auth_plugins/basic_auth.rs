//! `basic-auth`: every setting, and who tries to get around it.

use serde_json::json;

use super::{Edge, base64, consumer};

fn basic(credentials: &str) -> String {
    format!("Basic {}", base64(credentials))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_and_its_password_are_a_consumers() {
    let edge = Edge::new(
        &[
            ("/plain", json!({ "basic-auth": {} })),
            ("/hidden", json!({ "basic-auth": { "hide_credentials": true, "realm": "shop" } })),
            ("/anybody", json!({ "basic-auth": { "anonymous_consumer": "guest" } })),
            ("/ghost", json!({ "basic-auth": { "anonymous_consumer": "ghost" } })),
        ],
        &json!({ "consumers": [
            consumer("jack", "basic-auth", json!({ "username": "jack", "password": "pa:ss word" })),
            { "username": "guest" },
        ], "credentials": [
            { "id": "jack/credentials/one", "plugins": {
                "basic-auth": { "username": "jim", "password": "other" } } },
        ] }),
    );
    let jack = basic("jack:pa:ss word");

    let answer = edge.get("/plain", &[("authorization", &jack)]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jack"));
    assert_eq!(answer.seen("authorization"), Some(jack.clone()), "the upstream may have it");
    let answer = edge.get("/hidden", &[("authorization", &jack)]).await;
    assert_eq!(answer.seen("authorization"), None);
    let answer = edge.get("/plain", &[("authorization", &basic("jim:other"))]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jack"));
    assert_eq!(answer.seen("x-credential-identifier").as_deref(), Some("one"));

    let invalid = "Invalid authorization in request";
    let nobody = "Invalid user authorization";
    let huge = basic(&format!("jack:{}", "x".repeat(12_000)));
    for (line, message) in [
        (None, "Missing authorization in request"),
        (Some("Bearer abc"), invalid),
        (Some("Basic"), invalid),
        (Some("Basic %%%"), invalid),
        (Some(&*basic("jack")), invalid),
        // Name or password: nobody learns which of them was wrong.
        (Some(&*basic("jack:wrong")), nobody),
        (Some(&*basic("jack:")), nobody),
        (Some(&*basic("nobody:pa:ss word")), nobody),
        (Some(&*basic(":")), nobody),
        (Some(&*basic("../consumers/jack:pa:ss word")), nobody),
        (Some(&*basic("jack\0:pa:ss word")), nobody),
        (Some(&*huge), nobody),
    ] {
        let headers: Vec<_> = line.map(|line| ("authorization", line)).into_iter().collect();
        let seen = edge.app.requests();
        let refused = edge.get("/hidden", &headers).await;
        assert_eq!(refused.message(), (401, message.into()), "{line:?}");
        assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"shop\""));
        assert_eq!(edge.app.requests(), seen);
        let guest = edge.get("/anybody", &headers).await;
        assert_eq!(guest.seen("x-consumer-username").as_deref(), Some("guest"), "{line:?}");
    }
    assert_eq!(edge.get("/ghost", &[]).await.message(), (401, nobody.into()));
    let known = edge.get("/anybody", &[("authorization", &jack)]).await;
    assert_eq!(known.seen("x-consumer-username").as_deref(), Some("jack"));
}
