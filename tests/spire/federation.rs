//! Two trust domains, each with its own SPIRE: who federates is believed, and nobody else.

use std::path::Path;

use serde_json::{Value, json};

use crate::programs::programs;
use crate::spire::{Agent, OnSpire, Server, Spire, program_of, selectors_of};
use crate::world::{App, Process, World, allow, eventually_async, free_port, send};

const OURS: &str = "shop.test";
const THEIRS: &str = "bank.test";

/// The sidecar of /billing in bank.test, which lets /shop of shop.test in; and the world of shop.test.
struct TwoDomains {
    ours: Spire,
    theirs: Spire,
    our_world: World,
    their_world: World,
}

impl TwoDomains {
    /// Each has the other's bundle, handed over by an operator.
    fn start(programs: &Path) -> Self {
        let domains = Self::of(Spire::start(programs, OURS), Spire::start(programs, THEIRS));
        domains.ours.server.trust(&domains.theirs.server);
        domains.theirs.server.trust(&domains.ours.server);
        domains
    }

    fn of(ours: Spire, theirs: Spire) -> Self {
        let (our_world, their_world) = (World::of(OURS), World::of(THEIRS));
        Self { ours, theirs, our_world, their_world }
    }

    /// A sidecar in bank.test before an app; its workload federates with those that `more` names.
    fn bank(&self, path: &str, app: &App, more: &[&str]) -> Process {
        let (world, id) = (&self.their_world, self.their_world.id(path));
        register(&self.theirs.server, world, path, more);
        let callers = [self.our_world.id("/shop"), self.our_world.id("/loner")];
        let callers: Vec<&str> = callers.iter().map(String::as_str).collect();
        world
            .sidecar(path)
            .program(&program_of(world, path))
            .on(&self.theirs, path)
            .app(app)
            .resources(&json!({ "identity_policies": [allow("callers", &[&id], &callers)] }))
            .start()
    }

    /// A sidecar in shop.test whose workload calls that one.
    fn caller(&self, path: &str, more: &[&str], bank: &Process) -> Process {
        let world = &self.our_world;
        register(&self.ours.server, world, path, more);
        world
            .sidecar(path)
            .program(&program_of(world, path))
            .on(&self.ours, path)
            .resources(&calls(bank))
            .start()
    }
}

fn register(server: &Server, world: &World, path: &str, more: &[&str]) -> String {
    server.register(path, &selectors_of(&program_of(world, path)), more)
}

fn calls(bank: &Process) -> Value {
    json!({
        "routes": [{
            "id": "bank", "uri": "/*", "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": { bank.address("inbound").to_string(): 1 },
                "tls": { "identity": "svid", "spiffe_ids": [bank.id] },
            },
        }],
    })
}

async fn ask(caller: &Process) -> u16 {
    send(caller.address("outbound"), "GET", "/", &[], "").await.status
}

const WITH_THEM: [&str; 2] = ["-federatesWith", "spiffe://bank.test"];
const WITH_US: [&str; 2] = ["-federatesWith", "spiffe://shop.test"];

#[tokio::test]
async fn a_sidecar_calls_one_of_a_federated_trust_domain_and_others_do_not() {
    let Some(programs) = programs() else { return };
    let domains = TwoDomains::start(&programs);
    let app = App::echo("bank");
    let billing = domains.bank("/billing", &app, &WITH_US);
    let shop = domains.caller("/shop", &WITH_THEM, &billing);
    let answer = send(shop.address("outbound"), "GET", "/", &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let caller = answer.json()["headers"]["x-forwarded-client-cert"].to_string();
    assert!(caller.contains("spiffe://shop.test/shop"), "{caller}");
    let record = shop.record_with("/event", &json!("first"));
    assert_eq!(record["trust_domains"], json!("bank.test shop.test"));

    // Ours does not federate: it knows nobody of bank.test.
    let loner = domains.caller("/loner", &[], &billing);
    assert!((500..600).contains(&ask(&loner).await));

    // Theirs does not federate: it knows nobody of shop.test.
    let closed_app = App::echo("closed");
    let closed = domains.bank("/closed", &closed_app, &[]);
    shop.write_resources(&calls(&closed));
    eventually_async("a refusal by who does not federate", || async {
        (ask(&shop).await >= 500).then_some(())
    })
    .await;
    closed.record_with("/reason", &json!("unknown_trust_domain"));
    assert_eq!(closed_app.requests(), 0);
}

#[tokio::test]
async fn a_federation_that_ends_is_over_on_the_next_connection() {
    let Some(programs) = programs() else { return };
    let domains = TwoDomains::start(&programs);
    let app = App::echo("bank");
    let billing = domains.bank("/billing", &app, &WITH_US);
    let shop = domains.caller("/shop", &WITH_THEM, &billing);
    assert_eq!(ask(&shop).await, 200);
    let ours = domains.our_world.id("");
    domains.theirs.server.ask(&["bundle", "delete", "-mode", "dissociate", "-id", &ours]).good();
    eventually_async("the end of the federation", || async {
        (ask(&shop).await >= 500).then_some(())
    })
    .await;
    // A record of another change of the bundle may stand before it.
    billing.record("the bundle without ours", |record| {
        record["event"] == "bundle_changed" && record["trust_domains"] == "bank.test"
    });
}

#[tokio::test]
async fn another_authority_there_is_learned_here_over_spires_own_bundle_endpoint() {
    let Some(programs) = programs() else { return };
    let ports = [free_port(), free_port()];
    let endpoint = |own: u16, other: &str, port: u16| {
        format!(
            r#"federation {{
        bundle_endpoint {{
            address = "127.0.0.1"
            port = {own}
            refresh_hint = "1m"
            profile "https_spiffe" {{}}
        }}
        federates_with "{other}" {{
            bundle_endpoint_url = "https://127.0.0.1:{port}"
            bundle_endpoint_profile "https_spiffe" {{
                endpoint_spiffe_id = "spiffe://{other}/spire/server"
            }}
        }}
    }}"#
        )
    };
    let start = |domain, more: &str| {
        let server = Server::start_with(&programs, domain, more);
        Spire { agent: Agent::start(&server), server }
    };
    let ours = start(OURS, &endpoint(ports[0], THEIRS, ports[1]));
    let theirs = start(THEIRS, &endpoint(ports[1], OURS, ports[0]));
    // The first bundle comes from an operator; the next ones from the other's endpoint.
    ours.server.trust(&theirs.server);
    theirs.server.trust(&ours.server);
    let domains = TwoDomains::of(ours, theirs);
    let app = App::echo("bank");
    let billing = domains.bank("/billing", &app, &WITH_US);
    let shop = domains.caller("/shop", &WITH_THEM, &billing);
    assert_eq!(ask(&shop).await, 200);

    let events = |process: &Process, event: &str| {
        process.audit().iter().filter(|record| record["event"] == event).count()
    };
    let (old, _) = domains.theirs.server.rotate_authority();
    domains.ours.server.refresh(&domains.theirs.server);
    eventually_async("bank.test's new authority at shop.test", || async {
        assert_eq!(ask(&shop).await, 200);
        (events(&shop, "bundle_changed") > 0).then_some(())
    })
    .await;
    domains.theirs.server.taint(&old);
    eventually_async("an SVID of the new authority", || async {
        assert_eq!(ask(&shop).await, 200);
        (events(&billing, "rotated") > 0).then_some(())
    })
    .await;
    let before = events(&shop, "bundle_changed");
    domains.theirs.server.revoke(&old);
    domains.ours.server.refresh(&domains.theirs.server);
    eventually_async("the end of the old authority at shop.test", || async {
        assert_eq!(ask(&shop).await, 200);
        (events(&shop, "bundle_changed") > before).then_some(())
    })
    .await;
    assert_eq!(ask(&shop).await, 200);
}
