//! How long identities and certificates last: shown in metrics, status and `check`, and said aloud in time.

use serde_json::{Value, json};

use crate::world::{App, Process, World, eventually_async, get, run};

async fn identity(process: &Process) -> Value {
    get(process.address("status"), "/identity").await.json()
}

async fn metrics(process: &Process) -> String {
    get(process.address("status"), "/metrics").await.text()
}

#[tokio::test]
async fn the_identity_budget_says_how_long_and_what_ends_first() {
    let world = World::new();
    let app = App::echo("app");
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .set("status", &json!("127.0.0.1:0"))
        .resources(&json!({}))
        .start();
    let status = identity(&billing).await;
    let mine = &status["identities"][0];
    assert_eq!(mine["spiffe_id"], json!(world.id("/billing")));
    assert_eq!((&mine["fails_first"], &mine["withdrawn"]), (&json!("svid"), &json!(false)));
    let left = mine["budget_seconds"].as_i64().unwrap();
    assert!((3000..=3600).contains(&left), "{status:#}");
    let limits = &mine["limits_seconds"];
    let seconds = |name: &str| limits[name].as_i64().unwrap();
    assert!(seconds("svid") < seconds("intermediate") && seconds("intermediate") < seconds("root"));
    assert_eq!(status["memory_closed"], true);

    let series = format!(
        "wardgate_identity_budget_seconds{{spiffe_id=\"{}\",fails_first=\"",
        world.id("/billing")
    );
    let text = metrics(&billing).await;
    let shown: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(&series)).collect();
    let [svid] = shown[..] else { panic!("{text}") };
    let value: f64 = svid.strip_prefix("svid\"} ").unwrap().parse().unwrap();
    assert!((3000.0..=3600.0).contains(&value));
}

#[tokio::test]
async fn check_tells_how_long_the_running_process_lasts_and_whether_its_memory_is_open() {
    let world = World::new();
    let port = crate::world::free_port();
    let part = world
        .sidecar("/billing")
        .set("status", &json!(format!("127.0.0.1:{port}")))
        .resources(&json!({}));
    let settings = part.settings_file();
    let check = || run(["check", "-c", settings.to_str().unwrap()]).out;
    let mut running = part.start();
    let told = check();
    assert!(told.contains(&format!("{} lasts ", world.id("/billing"))), "{told}");
    assert!(told.contains("first ends its svid") && !told.contains("its memory"), "{told}");
    running.end();
    let _opened = part.env("WARDGATE_ALLOW_CORE_DUMPS", "1").start();
    let told = check();
    assert!(told.contains("its memory, private keys with it, is open"), "{told}");
}

#[tokio::test]
async fn an_svid_that_nobody_renews_is_named_in_log_record_and_metric() {
    let world = World::new();
    let files = world.files("/billing");
    world.issue("/billing", &files, 10);
    let billing = world
        .sidecar("/billing")
        .set("status", &json!("127.0.0.1:0"))
        .set("warnings", &json!({ "svid": [0.1, 0.3], "public_certificates": [] }))
        .resources(&json!({}))
        .start();
    let record = billing.record("0.3", |record| {
        record["event"] == "expiring" && record["detail"].as_str().unwrap().starts_with("0.3 ")
    });
    assert_eq!(
        (&record["type"], &record["spiffe_id"]),
        (&json!("identity"), &json!(world.id("/billing")))
    );
    billing.logs("our SVID was not renewed in time");
    let sample = "wardgate_expiry_warnings_total{kind=\"svid\",threshold=\"0.3\"} 1\n";
    eventually_async("the metric", || async {
        metrics(&billing).await.contains(sample).then_some(())
    })
    .await;
    // Its end makes the budget negative: peers refuse us.
    eventually_async("the end", || async {
        let left = identity(&billing).await["identities"][0]["budget_seconds"].as_i64()?;
        (left < 0).then_some(())
    })
    .await;
    let expiring = billing.audit().into_iter().filter(|record| record["event"] == "expiring");
    assert!(expiring.count() <= 2, "once for each threshold");
}

#[tokio::test]
async fn a_public_certificate_that_ends_soon_is_named_with_its_resource() {
    let world = World::new();
    let mut params = rcgen::CertificateParams::new(["shop.example".to_owned()]).unwrap();
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(50);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let ssl = json!({
        "id": "edge", "sni": "shop.example", "cert": certificate.pem(), "key": key.serialize_pem(),
    });
    let ingress = world
        .ingress()
        .set("status", &json!("127.0.0.1:0"))
        .set("ingress.https", &json!("127.0.0.1:0"))
        .resources(&json!({ "ssls": [ssl] }))
        .start();
    let record = ingress.record_with("/event", &json!("expiring"));
    assert_eq!((&record["type"], &record["kind"]), (&json!("config"), &json!("ssls")));
    assert_eq!(record["id"], "edge");
    assert!(record["reason"].as_str().unwrap().contains("shop.example"), "{record}");
    ingress.logs("a public certificate ends soon");
    let sample = "wardgate_expiry_warnings_total{kind=\"public_certificate\",threshold=\"3d\"} 1\n";
    let text = metrics(&ingress).await;
    assert!(text.contains(sample), "{text}");
    let status = identity(&ingress).await;
    assert_eq!(status["public_certificates"][0]["names"], json!(["shop.example"]));
    let settings = ingress.settings_file.to_str().unwrap().to_owned();
    drop(ingress);
    let bad = std::fs::read_to_string(&settings)
        .unwrap()
        .replace("\"workers\"", "\"warnings\": { \"svid\": [1.5] }, \"workers\"");
    std::fs::write(&settings, bad).unwrap();
    let refused = run(["run", "-c", &settings]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("above 0 and below 1"), "{}", refused.err);
}
