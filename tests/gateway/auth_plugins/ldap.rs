//! `ldap-auth` and `ldap-auth-advanced` with a real OpenLDAP server: every setting, who tries to get around them, TLS of both kinds, and
//! a directory that is away.

use std::time::Instant;

use serde_json::{Value, json};

use super::super::slapd::{Certified, Slapd};
use super::super::upstream_tls::Authority;
use super::super::world::{PATIENCE, eventually_async};
use super::{Edge, base64, consumer};

const PEOPLE: &[(&str, &str, &str)] = &[
    ("cn=jane,ou=users,dc=shop,dc=test", "jane", "pa:ss word"),
    ("cn=john,ou=users,dc=shop,dc=test", "john", "secret"),
    ("cn=comma\\,user,ou=users,dc=shop,dc=test", "comma,user", "secret"),
    ("cn=star*(\\\\),ou=users,dc=shop,dc=test", "star*(\\)", "secret"),
    ("cn=twin one,ou=users,dc=shop,dc=test", "twin", "secret"),
    ("cn=twin two,ou=users,dc=shop,dc=test", "twin", "secret"),
    ("cn=mary,ou=staff,dc=shop,dc=test", "mary", "secret"),
    ("cn=gateway,dc=shop,dc=test", "gateway", "of the gateway"),
];

fn certified(names: &[&str]) -> (Authority, Slapd) {
    let authority = Authority::new("directory root");
    let pair = authority.issue("directory", names);
    let slapd = Slapd::start(&Certified { chain: &pair.chain, key: &pair.key }, PEOPLE);
    (authority, slapd)
}

fn credentials(scheme: &str, text: &str) -> String {
    format!("{scheme} {}", base64(text))
}

fn with(settings: &Value, more: Value) -> Value {
    let mut all = settings.clone();
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

fn people(plugin: &str) -> Value {
    // A name that was found is written as the directory writes it.
    let comma = if plugin == "ldap-auth" { "comma\\,user" } else { "comma\\2Cuser" };
    json!([
        consumer("jane", plugin, json!({ "user_dn": "cn=jane,ou=users,dc=shop,dc=test" })),
        consumer(
            "comma",
            plugin,
            json!({ "user_dn": format!("cn={comma},ou=users,dc=shop,dc=test") })
        ),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn who_binds_with_a_password_is_the_consumer_of_that_name() {
    let (_, mut slapd) = certified(&["127.0.0.1"]);
    let uri = format!("127.0.0.1:{}", slapd.port);
    let plain = json!({ "base_dn": "ou=users,dc=shop,dc=test", "ldap_uri": uri });
    let edge = Edge::new(
        &[
            ("/plain", json!({ "ldap-auth": plain })),
            (
                "/hidden",
                json!({ "ldap-auth": with(&plain, json!({ "hide_credentials": true, "realm": "shop", "uid": "cn",
                "use_tls": false, "tls_verify": false })) }),
            ),
            ("/other", json!({ "ldap-auth": with(&plain, json!({ "uid": "uid" })) })),
        ],
        &json!({ "consumers": people("ldap-auth") }),
    );
    let basic = |text: &str| credentials("Basic", text);
    let jane = basic("jane:pa:ss word");
    let answer = edge.get("/plain", &[("authorization", &jane)]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jane"));
    assert_eq!(answer.seen("authorization"), Some(jane.clone()));
    let answer = edge.get("/hidden", &[("authorization", &jane)]).await;
    assert_eq!(answer.seen("authorization"), None);
    let answer = edge.get("/plain", &[("authorization", &basic("comma,user:secret"))]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("comma"));

    let nobody = "Invalid user authorization";
    let huge = basic(&format!("jane:{}", "x".repeat(12_000)));
    for (path, line, message) in [
        ("/hidden", None, "Missing authorization in request"),
        ("/hidden", Some("Bearer abc"), "Invalid authorization in request"),
        ("/hidden", Some("Basic %%%"), "Invalid authorization in request"),
        ("/hidden", Some(&*basic("jane:wrong")), nobody),
        // An empty password would bind as nobody, and the directory says yes.
        ("/hidden", Some(&*basic("jane:")), nobody),
        ("/hidden", Some(&*basic(":pa:ss word")), nobody),
        ("/hidden", Some(&*basic(":")), nobody),
        // The directory knows him, but no consumer has his name.
        ("/hidden", Some(&*basic("john:secret")), nobody),
        ("/hidden", Some(&*basic("JANE:pa:ss word")), nobody),
        // Whatever the name says, it stays a name below the base.
        ("/hidden", Some(&*basic("jane,ou=users,dc=shop,dc=test:pa:ss word")), nobody),
        ("/hidden", Some(&*basic("mary,ou=staff:secret")), nobody),
        ("/hidden", Some(&*basic("jane+uid=jane:pa:ss word")), nobody),
        ("/hidden", Some(&*basic("jane\\:pa:ss word")), nobody),
        ("/hidden", Some(&*basic("jane\0:pa:ss word")), nobody),
        ("/hidden", Some(&*basic("*:secret")), nobody),
        ("/hidden", Some(&*basic("#6a616e65:pa:ss word")), nobody),
        ("/hidden", Some(&*huge), nobody),
        // Entries are called by their cn, not by their uid.
        ("/other", Some(&*jane), nobody),
    ] {
        let headers: Vec<_> = line.map(|line| ("authorization", line)).into_iter().collect();
        let seen = edge.app.requests();
        let refused = edge.get(path, &headers).await;
        assert_eq!(refused.message(), (401, message.into()), "{line:?}");
        let realm = if path == "/hidden" { "Basic realm=\"shop\"" } else { "Basic realm=\"ldap\"" };
        assert_eq!(refused.header("www-authenticate"), Some(realm));
        assert_eq!(edge.app.requests(), seen, "{line:?}");
    }
    // Nobody is there any more, then there is again: connections that were kept are dead.
    slapd.stop();
    let away = edge.get("/plain", &[("authorization", &jane)]).await;
    assert_eq!(
        (away.status, away.json()),
        (500, json!({ "error_msg": "the directory cannot be asked" }))
    );
    slapd.resume();
    assert_eq!(edge.get("/plain", &[("authorization", &jane)]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_found_by_an_attribute_binds_as_that_entry() {
    let (_, slapd) = certified(&["127.0.0.1"]);
    let uri = format!("127.0.0.1:{}", slapd.port);
    let plain = json!({ "base_dn": "dc=shop,dc=test", "ldap_uri": uri });
    let free = with(
        &plain,
        json!({ "attribute": "uid", "header_type": "basic", "consumer_required": false, "realm": "shop",
        "keepalive": true, "keepalive_pool_name": "p", "keepalive_pool_size": 2, "keepalive_timeout": 5000, "size_limit": 10, "time_limit": 3 }),
    );
    let by = json!({ "bind_dn": "cn=gateway,dc=shop,dc=test", "ldap_password": "of the gateway" });
    let edge = Edge::new(
        &[
            ("/plain", json!({ "ldap-auth-advanced": plain })),
            ("/free", json!({ "ldap-auth-advanced": free })),
            ("/staff", json!({ "ldap-auth-advanced": with(&free, by.clone()) })),
            (
                "/unkept",
                json!({ "ldap-auth-advanced": with(&free, json!({ "keepalive": false })) }),
            ),
            (
                "/wrong",
                json!({ "ldap-auth-advanced": with(&with(&free, by), json!({ "ldap_password": "wrong" })) }),
            ),
            (
                "/nowhere",
                json!({ "ldap-auth-advanced": with(&free, json!({ "base_dn": "dc=elsewhere" })) }),
            ),
            ("/hasty", json!({ "ldap-auth-advanced": with(&free, json!({ "timeout": 300 })) })),
        ],
        &json!({ "consumers": people("ldap-auth-advanced") }),
    );
    let ldap = |text: &str| credentials("ldap", text);
    let basic = |text: &str| credentials("Basic", text);
    for header in ["authorization", "proxy-authorization"] {
        let answer = edge.get("/plain", &[(header, &ldap("jane:pa:ss word"))]).await;
        assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jane"), "{header}");
    }
    let answer = edge.get("/plain", &[("authorization", &ldap("comma,user:secret"))]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("comma"));
    // Who needs no consumer is nobody in particular, whatever it says of itself.
    let spoofed = basic("john:secret");
    let spoofed = [("authorization", &*spoofed), ("X-Consumer-Username", "root")];
    let answer = edge.get("/free", &spoofed).await;
    assert_eq!(answer.seen("x-consumer-username"), None);
    let answer = edge.get("/free", &[("authorization", &basic("jane:pa:ss word"))]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jane"));
    for (path, name) in [
        ("/free", "star*(\\)"),
        ("/unkept", "john"),
        ("/unkept", "john"),
        ("/staff", "mary"),
        ("/staff", "john"),
    ] {
        let answer = edge.get(path, &[("authorization", &basic(&format!("{name}:secret")))]).await;
        assert_eq!(answer.status, 200, "{path} {name}: {}", answer.text());
    }

    let seen = edge.app.requests();
    for (path, line) in [
        ("/free", None),
        ("/free", Some("Bearer abc".to_owned())),
        ("/free", Some(ldap("john:secret"))),
        ("/plain", Some(basic("jane:pa:ss word"))),
        ("/free", Some("Basic %%%".to_owned())),
    ] {
        let headers: Vec<_> = line.iter().map(|line| ("authorization", &**line)).collect();
        let refused = edge.get(path, &headers).await;
        assert_eq!(refused.message(), (401, "Authorization required".into()), "{path} {line:?}");
        let challenge =
            if path == "/free" { "Basic realm=\"shop\"" } else { "ldap realm=\"ldap\"" };
        assert_eq!(refused.header("www-authenticate"), Some(challenge));
    }
    for (path, text) in [
        ("/free", "john:wrong"),
        ("/free", "john:"),
        ("/free", ":secret"),
        ("/free", "nobody:secret"),
        // Two entries have the name.
        ("/free", "twin:secret"),
        // What would mean more in a filter's text means nothing.
        ("/free", "*:secret"),
        ("/free", "j*:secret"),
        ("/free", "john)(uid=*:secret"),
        ("/free", "nobody)(|(uid=john:secret"),
        ("/free", "john\0:secret"),
        ("/free", "\\6a\\6f\\68\\6e:secret"),
        // Nobody in particular may not see the staff.
        ("/free", "mary:secret"),
    ] {
        let refused = edge.get(path, &[("authorization", &basic(text))]).await;
        assert_eq!((refused.status, refused.text()), (401, String::new()), "{text}");
        assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"shop\""));
    }
    // The directory knows him, but no consumer has his name.
    assert_eq!(edge.get("/plain", &[("authorization", &ldap("john:secret"))]).await.status, 401);
    for path in ["/wrong", "/nowhere"] {
        let failed = edge.get(path, &[("authorization", &basic("john:secret"))]).await;
        assert_eq!(
            failed.json(),
            json!({ "error_msg": "the directory cannot be asked" }),
            "{path}"
        );
        assert_eq!(failed.status, 500);
    }
    assert_eq!(edge.app.requests(), seen);
    // It hears and does not answer: never a hang, and never a way in.
    slapd.freeze();
    let since = Instant::now();
    let late = edge.get("/hasty", &[("authorization", &basic("john:secret"))]).await;
    assert_eq!(late.status, 500);
    assert!(since.elapsed() < PATIENCE);
    slapd.thaw();
    eventually_async("it is asked again", || async {
        let answer = edge.get("/hasty", &[("authorization", &basic("john:secret"))]).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_of_either_kind_is_verified_with_the_systems_roots() {
    let (authority, slapd) = certified(&["127.0.0.1"]);
    let (_, stranger) = certified(&["127.0.0.1"]);
    let misnamed = authority.issue("directory", &["elsewhere.test"]);
    let misnamed = Slapd::start(&Certified { chain: &misnamed.chain, key: &misnamed.key }, PEOPLE);
    let roots = std::env::temp_dir().join(format!("wardgate-roots-{}.pem", uuid::Uuid::new_v4()));
    std::fs::write(&roots, authority.pem()).unwrap();
    let plain = |port: u16, more: Value| {
        let uri = format!("127.0.0.1:{port}");
        with(&json!({ "base_dn": "ou=users,dc=shop,dc=test", "ldap_uri": uri }), more)
    };
    let simple = |port: u16, verify: bool| json!({ "ldap-auth": plain(port, json!({ "use_tls": true, "tls_verify": verify })) });
    let advanced = |port: u16, way: &str, verify: bool| {
        json!({ "ldap-auth-advanced": plain(port, json!({
        way: true, "ssl_verify": verify, "header_type": "basic" })) })
    };
    let mut routes = Vec::new();
    for (server, of, good) in
        [(&slapd, "good", true), (&stranger, "stranger", false), (&misnamed, "misnamed", false)]
    {
        for verify in [true, false] {
            for (way, plugins) in [
                ("simple", simple(server.tls_port, verify)),
                ("ldaps", advanced(server.tls_port, "use_ldaps", verify)),
                ("starttls", advanced(server.port, "use_starttls", verify)),
            ] {
                routes.push((format!("/{of}-{way}-{verify}"), plugins, good || !verify));
            }
        }
    }
    // TLS where there is none, and none where there is.
    routes.push(("/none".into(), simple(slapd.port, false), false));
    routes.push(("/clear".into(), json!({ "ldap-auth": plain(slapd.tls_port, json!({})) }), false));
    let declared: Vec<_> =
        routes.iter().map(|(path, plugins, _)| (&**path, plugins.clone())).collect();
    let mut consumers = people("ldap-auth");
    consumers[0]["plugins"]["ldap-auth-advanced"] =
        json!({ "user_dn": "cn=jane,ou=users,dc=shop,dc=test" });
    let edge = Edge::in_environment(
        &[("SSL_CERT_FILE", roots.to_str().unwrap())],
        &declared,
        &json!({ "consumers": consumers }),
    );
    let jane = credentials("Basic", "jane:pa:ss word");
    for (path, _, good) in &routes {
        let answer = edge.get(path, &[("authorization", &jane)]).await;
        assert_eq!(answer.status, if *good { 200 } else { 500 }, "{path}: {}", answer.text());
    }
    std::fs::remove_file(roots).unwrap();
}
