//! JWT-SVIDs of our issuer as others use them: go-spiffe, py-spiffe and the `spiffe` crate.

use serde_json::{Value, json};
use spiffe::{JwtSource, WorkloadApiClient};

use crate::clients::{Client, address, entry, issuer};
use crate::programs::programs;
use crate::world::{World, soon};

const DOMAIN: &str = "shop.test";
const AUDIENCE: &str = "spiffe://shop.test/billing";

#[test]
fn other_clients_fetch_jwt_svids_and_verify_them_with_our_bundles_and_by_our_word() {
    let Some(programs) = programs() else { return };
    let world = World::new();
    let _issuer = issuer(&world, &json!([entry(&world, "/shop", 3600)])).start();
    let clients = Client::both(&programs, &address(&world));
    let mut tokens = Vec::new();
    for client in &clients {
        let told = client.ask(&["jwt", AUDIENCE]);
        for field in ["id", "validated_here", "validated_there"] {
            assert_eq!(told[field], json!(world.id("/shop")), "{}: {field}", client.name);
        }
        assert_eq!(told["audience"], json!([AUDIENCE]), "{}", client.name);
        let left = told["expiry"].as_i64().unwrap() - wardgate::rt::unix_seconds();
        assert!((1..=3600).contains(&left), "{}: {left} s", client.name);
        tokens.push(told["token"].as_str().unwrap().to_owned());
    }
    // Each verifies what the other fetched; neither takes it for another audience, nor when it was touched.
    for (client, token) in clients.iter().zip(tokens.iter().rev()) {
        assert_eq!(
            client.ask(&["jwt-validate", AUDIENCE, token])["id"],
            json!(world.id("/shop")),
            "{}",
            client.name
        );
        let elsewhere = client.run(&["jwt-validate", "elsewhere", token]);
        assert_eq!(elsewhere.code, Some(1), "{}: {}", client.name, elsewhere.out);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let other = if signature.starts_with('A') { 'B' } else { 'A' };
        let touched = format!("{signed}.{other}{}", &signature[1..]);
        let refused = client.run(&["jwt-validate", AUDIENCE, &touched]);
        assert_eq!(refused.code, Some(1), "{}: {}", client.name, refused.out);
    }
}

#[test]
fn other_clients_read_our_jwt_bundles_and_see_the_same_keys() {
    let Some(programs) = programs() else { return };
    let world = World::new();
    let _issuer = issuer(&world, &json!([entry(&world, "/shop", 3600)])).start();
    let told = Client::both(&programs, &address(&world))
        .map(|client| client.ask(&["jwt-bundles"])["bundles"].clone());
    let keys = |told: &Value| {
        let mut keys: Vec<String> =
            serde_json::from_value(told[DOMAIN].clone()).unwrap_or_else(|_| panic!("{told}"));
        keys.sort();
        keys
    };
    assert!(!keys(&told[0]).is_empty());
    assert_eq!(keys(&told[0]), keys(&told[1]));
}

#[test]
fn who_is_not_registered_gets_no_jwt_svid() {
    let Some(programs) = programs() else { return };
    let world = World::new();
    let _issuer = issuer(&world, &json!([])).start();
    for client in Client::both(&programs, &address(&world)) {
        for command in [&["jwt", AUDIENCE][..], &["jwt-bundles"]] {
            let ended = client.run(command);
            assert_eq!(ended.code, Some(1), "{}: {}", client.name, ended.out);
        }
    }
}

#[tokio::test]
async fn the_spiffe_crate_fetches_jwt_svids_and_has_them_validated() {
    let Some(_programs) = programs() else { return };
    let world = World::new();
    let entries = json!([entry(&world, "/shop", 3600), entry(&world, "/cart", 3600)]);
    let _issuer = issuer(&world, &entries).start();
    let source = JwtSource::builder().endpoint(address(&world)).build();
    let source = soon("the spiffe crate's source", source).await.unwrap();
    let id = world.id("/cart").parse().unwrap();
    let svid = source.fetch_jwt_svid_with_id([AUDIENCE], Some(&id)).await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), world.id("/cart"), "the one that was asked for");
    assert_eq!(svid.audience(), [AUDIENCE]);
    let bundles = source.bundle_set().unwrap();
    let bundle = bundles.get(&DOMAIN.try_into().unwrap()).unwrap();
    assert!(bundle.find_jwt_authority(svid.key_id()).is_some(), "the bundle has the token's key");

    let client = WorkloadApiClient::connect_to(address(&world)).await.unwrap();
    let validated = client.validate_jwt_token(AUDIENCE, svid.token()).await.unwrap();
    assert_eq!(validated.spiffe_id().to_string(), world.id("/cart"));
    client.validate_jwt_token("elsewhere", svid.token()).await.unwrap_err();
    let stranger = world.id("/stranger").parse().unwrap();
    source.fetch_jwt_svid_with_id([AUDIENCE], Some(&stranger)).await.unwrap_err();
    source.shutdown().await;
}

/// The same on SPIRE: what these clients expect of a Workload API is what they get there.
#[test]
fn the_clients_of_these_tests_hold_against_spire() {
    let Some(programs) = programs() else { return };
    let spire = crate::spire::Spire::start(&programs, DOMAIN);
    let selectors = [format!("unix:uid:{}", crate::clients::uid())];
    spire.server.register("/shop", &selectors, &[]);
    for client in Client::both(&programs, &spire.agent.address()) {
        let told = crate::world::eventually("a JWT-SVID of SPIRE", || {
            let ended = client.run(&["jwt", AUDIENCE]);
            (ended.code == Some(0)).then(|| serde_json::from_str::<Value>(&ended.out).unwrap())
        });
        assert_eq!(told["id"], json!(spire.server.id("/shop")), "{}", client.name);
        let token = told["token"].as_str().unwrap();
        let refused = client.run(&["jwt-validate", "elsewhere", token]);
        assert_eq!(refused.code, Some(1), "{}", client.name);
    }
}
