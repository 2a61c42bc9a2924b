//! The cryptographic library of the build, seen from outside.

use serde_json::json;
use wardgate::rt::crypto;

use crate::world::{App, World, allow, eventually_async, get, send};

/// The key exchange that two of us agree on.
const BEST: &str = if cfg!(feature = "aws-lc") { "X25519MLKEM768" } else { "X25519" };

#[tokio::test]
async fn two_sidecars_agree_on_the_best_key_exchange_of_the_build_and_say_which_library_they_have()
{
    let world = World::new();
    let app = App::echo("app");
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .set("status", &json!("127.0.0.1:0"))
        .resources(&json!({
            "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])],
        }))
        .start();
    let shop = world
        .sidecar("/shop")
        .resources(&json!({
            "routes": [{
                "id": "b", "uri": "/*", "workload_selector": { "listener": "outbound" },
                "upstream": {
                    "nodes": { billing.address("inbound").to_string(): 1 },
                    "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
                },
            }],
        }))
        .start();
    assert_eq!(send(shop.address("outbound"), "GET", "/", &[], "").await.status, 200);
    let sample = format!("wardgate_tls_handshakes_total{{group=\"{BEST}\"}} 1");
    eventually_async(&sample, || async {
        let metrics = get(billing.address("status"), "/metrics").await.text();
        metrics.contains(&sample).then_some(())
    })
    .await;
    let posture = billing.record_with("/type", &json!("posture"));
    assert_eq!(posture["crypto_provider"], crypto::LIBRARY);
}
