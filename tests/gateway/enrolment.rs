//! Identities for workloads on other machines: enrolled by a join token or a Kubernetes token, renewed by themselves.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};

use wardgate::identity::Svid;

use crate::world::{App, Ended, Part, Process, World, allow, eventually_async, run};

/// An issuer on the world's own authority that listens for enrolments.
fn issuer<'w>(world: &'w World, more: &Value) -> Part<'w> {
    let mut issuer = json!({
        "socket": world.folder.join("workload.sock"),
        "authority": world.authority(),
        "listen": "127.0.0.1:0",
    });
    issuer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.part("issuer", "/wardgate/issuer").without("identity").set("issuer", &issuer)
}

fn join(arguments: &[&str]) -> Ended {
    run(["identity", "join"].iter().chain(arguments))
}

/// A new token for this path, in a file.
fn token(world: &World, path: &str, more: &[&str]) -> PathBuf {
    let authority = world.authority();
    let id = world.id(path);
    let mut arguments = vec!["--new-token", "--dir", authority.to_str().unwrap(), "--id", &id];
    arguments.extend(more);
    let made = join(&arguments).good();
    let file = world.folder.join(format!("token{}", path.replace('/', "-")));
    std::fs::write(&file, made).unwrap();
    file
}

trait Enrolling {
    /// With its identity from an issuer elsewhere.
    fn enrolling(self, world: &World, issuer: &Process, proof: &Value) -> Self;
}

impl Enrolling for Part<'_> {
    fn enrolling(self, world: &World, issuer: &Process, proof: &Value) -> Self {
        let mut source = json!({
            "source": "enrol",
            "issuer": issuer.address("enrolment").to_string(),
            "bundle": world.authority().join("root.pem"),
            "first_within_seconds": 20,
        });
        source.as_object_mut().unwrap().extend(proof.as_object().unwrap().clone());
        self.set("identity", &source)
    }
}

fn billing<'w>(world: &'w World, app: &App) -> Part<'w> {
    let policy = allow("p", &[&world.id("/billing")], &[&world.id("/shop")]);
    world.sidecar("/billing").app(app).resources(&json!({ "identity_policies": [policy] }))
}

fn by_token(file: &Path) -> Value {
    json!({ "token_file": file })
}

#[tokio::test]
async fn the_hash_of_the_program_can_be_part_of_a_local_attestation() {
    let world = World::new();
    let binary = std::fs::read(env!("CARGO_BIN_EXE_wardgate")).unwrap();
    let digest = hex::encode(ring::digest::digest(&ring::digest::SHA256, &binary));
    let uid = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    let entry = |sha256: &str| {
        let selectors = [uid.clone(), format!("unix:sha256:{sha256}")];
        json!({ "entries": [{ "spiffe_id": world.id("/billing"), "selectors": selectors }] })
    };
    let source = json!({
        "source": "workload_api",
        "socket": format!("unix:{}", world.folder.join("workload.sock").display()),
        "first_within_seconds": 20,
    });
    let app = App::echo("app");
    let billing = billing(&world, &app).set("identity", &source);
    let mut first = issuer(&world, &entry(&digest)).start();
    let sidecar = billing.start();
    assert_eq!(world.peer("/shop").get(&sidecar, "/").await.status, 200);
    drop(sidecar);
    first.end();
    let _other = issuer(&world, &entry(&"ab".repeat(32))).start();
    let refused = billing.set("identity.first_within_seconds", &json!(1)).fails();
    assert!(refused.err.contains("no valid identity"), "{}", refused.err);
}

#[tokio::test]
async fn a_sidecar_enrols_with_a_join_token_and_a_restart_needs_none() {
    let world = World::new();
    let issuer = issuer(&world, &json!({})).start();
    let app = App::echo("app");
    let file = token(&world, "/billing", &[]);
    let part = billing(&world, &app).enrolling(&world, &issuer, &by_token(&file));
    let mut first = part.start();
    let shop = world.peer("/shop");
    assert_eq!(shop.get(&first, "/").await.status, 200);
    let given = issuer.record_with("/event", &json!("enrolled"));
    assert_eq!(given["type"], "issuer");
    assert_eq!(given["spiffe_id"], json!(world.id("/billing")));
    assert_eq!(given["proof"], "join_token");
    let kept = part.state.join("enrolled-sidecar.json");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    // `check` looks, and uses nothing up.
    let checked = run(["check", "-c", first.settings_file.to_str().unwrap()]);
    assert!(checked.out.contains(&world.id("/billing")), "{} {}", checked.out, checked.err);

    first.end();
    std::fs::remove_file(&file).unwrap();
    let second = part.start();
    assert_eq!(shop.get(&second, "/").await.status, 200);
    let enrolled = |record: &Value| record["event"] == "enrolled";
    assert_eq!(issuer.audit().iter().filter(|record| enrolled(record)).count(), 1);
}

#[tokio::test]
async fn a_used_token_gives_nothing_to_another_machine_and_says_so_in_the_log() {
    let world = World::new();
    let issuer = issuer(&world, &json!({})).start();
    let app = App::echo("app");
    let file = token(&world, "/billing", &[]);
    let _first = billing(&world, &app).enrolling(&world, &issuer, &by_token(&file)).start();
    let thief = billing(&world, &app)
        .named("thief")
        .enrolling(&world, &issuer, &by_token(&file))
        .set("identity.first_within_seconds", &json!(1))
        .fails();
    assert!(thief.err.contains("the proof is not valid"), "{}", thief.err);
    let refused = issuer.record_with("/reason", &json!("token_used"));
    assert_eq!(refused["event"], "refused");
    assert_eq!(refused["spiffe_id"], json!(world.id("/billing")));
}

#[tokio::test]
async fn an_svid_renews_itself_under_traffic_and_over_a_restart_of_the_issuer() {
    let world = World::new();
    let part = issuer(&world, &json!({}));
    let mut first = part.start();
    let app = App::echo("app");
    let file = token(&world, "/billing", &["--svid-ttl", "6"]);
    let billing = billing(&world, &app).enrolling(&world, &first, &by_token(&file)).start();
    let shop = world.peer("/shop");
    let rotations = || billing.audit().iter().filter(|record| record["event"] == "rotated").count();
    eventually_async("a renewal", || async {
        assert_eq!(shop.get(&billing, "/").await.status, 200);
        (rotations() >= 2).then_some(())
    })
    .await;
    assert!(first.audit().iter().any(|record| record["event"] == "renewed"));
    // It comes back where it was, and goes on with whom it knew.
    let address = first.address("enrolment").to_string();
    first.kill();
    let before = rotations();
    let _second = part.set("issuer.listen", &json!(address)).start();
    eventually_async("a renewal by the issuer that came back", || async {
        assert_eq!(shop.get(&billing, "/").await.status, 200);
        (rotations() >= before + 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_revoked_token_takes_the_identity_away() {
    let world = World::new();
    let issuer = issuer(&world, &json!({})).start();
    let app = App::echo("app");
    let file = token(&world, "/billing", &[]);
    let billing = billing(&world, &app).enrolling(&world, &issuer, &by_token(&file)).start();
    let shop = world.peer("/shop");
    assert_eq!(shop.get(&billing, "/").await.status, 200);
    let authority = world.authority();
    let dir = authority.to_str().unwrap();
    let list = join(&["--list", "--dir", dir]).good();
    assert!(list.contains(&world.id("/billing")) && list.contains("used"), "{list}");
    let id = list.split_whitespace().next().unwrap();
    join(&["--revoke", id, "--dir", dir]).good();
    billing.record_with("/event", &json!("withdrawn"));
    let refused = issuer.record_with("/reason", &json!("token_revoked"));
    assert_eq!(refused["spiffe_id"], json!(world.id("/billing")));
    assert_ne!(join(&["--revoke", id, "--dir", dir]).code, Some(0));
}

#[tokio::test]
async fn an_entry_of_the_admin_api_gives_and_takes_an_identity_from_far_away() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let issuer = issuer(&world, &json!({})).fed_by(&control).start();
    let authority = world.authority();
    let made = join(&["--new-token", "--dir", authority.to_str().unwrap()]).good();
    let file = world.folder.join("token");
    std::fs::write(&file, &made).unwrap();
    let id = made.trim().split('_').nth(1).unwrap().to_owned();
    let entry = json!({
        "spiffe_id": world.id("/billing"), "selectors": [format!("join_token:{id}")],
    });
    let revision = admin.put("/workloads/billing", &entry).await;
    admin.applied(revision, 1).await;
    let app = App::echo("app");
    let billing = billing(&world, &app).enrolling(&world, &issuer, &by_token(&file)).start();
    assert_eq!(world.peer("/shop").get(&billing, "/").await.status, 200);
    admin.delete("/workloads/billing").await;
    billing.record_with("/event", &json!("withdrawn"));
    issuer.record_with("/reason", &json!("not_registered"));
}

#[test]
fn files_are_enrolled_and_renewed_from_the_command_line() {
    let world = World::new();
    let issuer = issuer(&world, &json!({})).start();
    let address = issuer.address("enrolment").to_string();
    let (file, out) =
        (token(&world, "/batch", &["--dns", "batch.local"]), world.folder.join("out"));
    let root = world.authority().join("root.pem");
    let (file, root) = (file.to_str().unwrap(), root.to_str().unwrap());
    let to = out.to_str().unwrap();
    let enrol = ["--issuer", &address, "--token-file", file, "--bundle", root, "--out", to];
    let said = join(&enrol).good();
    assert!(said.contains(&world.id("/batch")), "{said}");
    let svid = || {
        let read = |name: &str| std::fs::read(out.join(name)).unwrap();
        Svid::from_pem(&read("svid.pem"), &read("key.pem")).unwrap()
    };
    let first = svid();
    assert_eq!(first.id.to_string(), world.id("/batch"));
    for name in ["key.pem", "ticket"] {
        let mode = std::fs::metadata(out.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let mut names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["bundle.pem", "key.pem", "svid.pem", "ticket"]);
    run([
        "identity",
        "inspect",
        &format!("{to}/svid.pem"),
        "--bundle",
        &format!("{to}/bundle.pem"),
    ])
    .good();

    run(["identity", "renew", "--dir", to, "--issuer", &address]).good();
    let second = svid();
    assert_ne!(second.serial, first.serial);
    assert_ne!(second.key.secret_der(), first.key.secret_der());
    run(["identity", "renew", "--dir", to, "--issuer", &address]).good();

    let again = join(&enrol);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("the proof is not valid"), "{}", again.err);
    let issued = world.files("/web");
    let never = run(["identity", "renew", "--dir", issued.to_str().unwrap(), "--issuer", &address]);
    assert!(never.err.contains("only what `wardgate identity join"), "{}", never.err);
}

#[test]
fn the_issuer_is_known_by_the_fingerprint_that_init_prints_and_by_no_other() {
    let world = World::new();
    let issuer = issuer(&world, &json!({})).start();
    let address = issuer.address("enrolment").to_string();
    let root = world.authority().join("root.pem");
    let shown = run(["identity", "inspect", root.to_str().unwrap()]).good();
    let line = shown.lines().find_map(|line| line.strip_prefix("SHA-256")).unwrap();
    let (good, bad) = (line.trim().to_owned(), "ab".repeat(32));
    let (file, out) = (token(&world, "/batch", &[]), world.folder.join("out"));
    let id = world.id("/batch");
    let with = |sha256: &str| {
        let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
        join(&[
            "--issuer",
            &address,
            "--token-file",
            file,
            "--bundle-sha256",
            sha256,
            "--id",
            &id,
            "--out",
            out,
        ])
    };
    let refused = with(&bad);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("no trust bundle"), "{}", refused.err);
    with(&good).good();
}

#[test]
fn what_is_asked_for_wrongly_is_said_with_what_was_expected() {
    let world = World::new();
    let authority = world.authority();
    let dir = authority.to_str().unwrap();
    let empty = world.folder.join("empty");
    for (arguments, says) in [
        (
            vec!["--new-token", "--dir", dir, "--id", "spiffe://elsewhere.test/a"],
            "not in trust domain",
        ),
        (vec!["--new-token", "--dir", dir, "--id", "spiffe://shop.test"], "no path"),
        (vec!["--new-token", "--dir", empty.to_str().unwrap()], "wardgate identity init"),
        (vec!["--revoke", "../x", "--dir", dir], "no token's ID"),
        (vec!["--dir", dir], "--new-token"),
        (vec!["--issuer", "127.0.0.1:1"], "--out"),
        (vec!["--issuer", "127.0.0.1:1", "--out", "x"], "--token-file"),
    ] {
        let ended = join(&arguments);
        assert_ne!(ended.code, Some(0));
        assert!(ended.err.contains(says), "{arguments:?}: {}", ended.err);
    }
    let refused = issuer(
        &world,
        &json!({ "listen": null, "kubernetes": [{ "audience": "a", "api_server": "https://h" }] }),
    )
    .fails();
    assert!(refused.err.contains("issuer.kubernetes"), "{}", refused.err);
    let refused =
        issuer(&world, &json!({ "kubernetes": [{ "audience": "a", "api_server": "h" }] })).fails();
    assert!(refused.err.contains("api_server"), "{}", refused.err);
}

/// A Kubernetes API server that knows one pod by its token.
struct ApiServer {
    address: SocketAddr,
    status: Arc<Mutex<Option<Value>>>,
    asked: Arc<Mutex<Vec<Value>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

type Script = (Arc<Mutex<Option<Value>>>, Arc<Mutex<Vec<Value>>>);

async fn review(
    State((status, asked)): State<Script>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let ours =
        headers.get("authorization").is_some_and(|value| value == "Bearer issuers-own-token");
    let question: Value = serde_json::from_str(&body).unwrap_or_default();
    asked.lock().unwrap().push(question.clone());
    match &*status.lock().unwrap() {
        Some(_) if !ours => StatusCode::UNAUTHORIZED.into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(good) => {
            let is_pod = question["spec"]["token"] == "pods-token";
            let refused = json!({ "authenticated": false, "error": "invalid bearer token" });
            let status = if is_pod { good.clone() } else { refused };
            (StatusCode::CREATED, json!({ "status": status }).to_string()).into_response()
        }
    }
}

impl ApiServer {
    async fn start() -> Self {
        let (status, asked) = (Arc::new(Mutex::new(None)), Arc::default());
        let app = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .with_state((status.clone(), Arc::clone(&asked)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        wardgate::rt::spawn(async move {
            tokio::select! {
                served = async { axum::serve(listener, app).await } => served.unwrap(),
                _ = stopped => {}
            }
        });
        Self { address, status, asked, stop: Some(stop) }
    }

    fn vouches_for(&self, namespace: &str, account: &str, audience: &str) {
        *self.status.lock().unwrap() = Some(json!({
            "authenticated": true,
            "user": {
                "username": format!("system:serviceaccount:{namespace}:{account}"),
                "uid": "0b6e3a1e-0000-4000-8000-000000000001",
                "extra": { "authentication.kubernetes.io/pod-name": ["billing-0"] },
            },
            "audiences": [audience],
        }));
    }

    fn settings(&self, world: &World) -> Value {
        let token = world.folder.join("issuers-token");
        std::fs::write(&token, "issuers-own-token\n").unwrap();
        json!([{
            "audience": "wardgate",
            "api_server": format!("http://{}", self.address),
            "token_file": token,
            "id_template": "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}",
        }])
    }
}

fn by_pod(world: &World, token: &str) -> Value {
    let file = world.folder.join("pods-token");
    std::fs::write(&file, token).unwrap();
    json!({ "kubernetes_token_file": file })
}

// The API server of this test answers while the test waits for processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_enrols_with_its_projected_token_and_is_its_service_account() {
    let world = World::new();
    let server = ApiServer::start().await;
    server.vouches_for("shop", "billing", "wardgate");
    let kubernetes = server.settings(&world);
    let issuer = issuer(&world, &json!({ "kubernetes": kubernetes })).start();
    let app = App::echo("app");
    let id = world.id("/ns/shop/sa/billing");
    let policy = allow("p", &[&id], &[&world.id("/shop")]);
    let mut sidecar = world
        .sidecar("/ns/shop/sa/billing")
        .app(&app)
        .resources(&json!({ "identity_policies": [policy] }))
        .enrolling(&world, &issuer, &by_pod(&world, "pods-token\n"))
        .start();
    assert_eq!(world.peer("/shop").get(&sidecar, "/").await.status, 200);
    let given = issuer.record_with("/event", &json!("enrolled"));
    assert_eq!((&given["spiffe_id"], &given["proof"]), (&json!(id), &json!("kubernetes")));
    let asked = server.asked.lock().unwrap()[0].clone();
    assert_eq!(asked["spec"], json!({ "token": "pods-token", "audiences": ["wardgate"] }));
    let log = std::fs::read_to_string(issuer.audit_file()).unwrap() + &issuer.errors();
    assert!(!log.contains("pods-token") && !log.contains("issuers-own-token"), "a token in a log");
    sidecar.kill();
}

// The API server of this test answers while the test waits for processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_for_whom_nobody_vouches_gets_no_identity() {
    let world = World::new();
    let mut server = ApiServer::start().await;
    let kubernetes = server.settings(&world);
    let issuer = issuer(&world, &json!({ "kubernetes": kubernetes })).start();
    let app = App::echo("app");
    let fails = |name: &str, token: &str| {
        let part = billing(&world, &app).named(name);
        let part = part.enrolling(&world, &issuer, &by_pod(&world, token));
        part.set("identity.first_within_seconds", &json!(1)).fails()
    };
    // It does not answer as it should: nobody is let in, and nobody is blamed.
    let ended = fails("broken", "pods-token");
    assert!(ended.err.contains("cannot be checked now"), "{}", ended.err);
    issuer.record_with("/reason", &json!("token_not_checkable"));

    server.vouches_for("shop", "billing", "wardgate");
    let ended = fails("forged", "forged-token");
    assert!(ended.err.contains("the proof is not valid"), "{}", ended.err);
    issuer.record_with("/reason", &json!("token_not_authenticated"));

    server.vouches_for("shop", "billing", "https://kubernetes.default.svc");
    fails("audience", "pods-token");
    issuer.record_with("/reason", &json!("token_audience"));

    drop(server.stop.take());
    let ended = fails("down", "pods-token");
    assert!(ended.err.contains("cannot be checked now"), "{}", ended.err);
}
