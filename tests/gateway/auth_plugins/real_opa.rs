//! `opa` beside a real Open Policy Agent, where one was built: `WARDGATE_OPA` names the program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::Edge;
use crate::world::{eventually_async, free_port, get};

/// Whoever is of the operators may read orders; whoever asks for tea learns that this is no teapot.
const POLICY: &str = r#"package shop.http

default allow := false

allow if {
	input.request.method == "GET"
	input.request.path == "/orders"
	input.consumer.labels.team == "ops"
}

headers := {"x-user": input.consumer.username} if allow

reason := {"why": "not yours"} if not allow

status_code := 418 if input.request.query.tea
"#;

struct Opa {
    child: Child,
    port: u16,
}

impl Opa {
    /// `None`: there is none, and the reader has been told.
    async fn start() -> Option<Self> {
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("opa/opa");
        let program = std::env::var_os("WARDGATE_OPA").map_or(built, PathBuf::from);
        if !program.exists() {
            eprintln!("SKIPPED: no Open Policy Agent; tests/opa/build builds it");
            return None;
        }
        let folder = crate::etcd_server::new_folder("opa");
        let policy = folder.join("shop.rego");
        std::fs::write(&policy, POLICY).unwrap();
        let port = free_port();
        let child = Command::new(program)
            .args(["run", "--server", "--disable-telemetry", "--addr"])
            .arg(format!("127.0.0.1:{port}"))
            .arg(policy)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let opa = Self { child, port };
        eventually_async("opa answers", || async {
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            tokio::net::TcpStream::connect(address).await.ok()?;
            (get(address, "/health").await.status == 200).then_some(())
        })
        .await;
        Some(opa)
    }
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_opa_decides_by_what_it_is_told() {
    let Some(opa) = Opa::start().await else { return };
    let with = |policy: &str| {
        json!({ "key-auth": {}, "opa": { "host": format!("http://127.0.0.1:{}", opa.port), "policy": policy,
            "with_consumer": true, "send_headers_upstream": ["X-User"], "timeout": 20_000 } })
    };
    let consumer = |name: &str, team: &str| json!({ "username": name, "labels": { "team": team }, "plugins": { "key-auth": { "key": name } } });
    let edge = Edge::new(
        &[("/orders", with("shop/http")), ("/nothing", with("shop/nothing"))],
        &json!({ "consumers": [consumer("ann", "ops"), consumer("bob", "sales")] }),
    );
    let ask = async |method: &str, path: &str, key: &str| {
        edge.ask(method, path, &[("apikey", key), ("x-user", "root")], "").await
    };
    let allowed = ask("GET", "/orders", "ann").await;
    assert_eq!(allowed.seen("x-user").as_deref(), Some("ann"));
    assert_eq!(ask("GET", "/%6frders?a=b", "ann").await.status, 200, "by the path as it is read");
    for (method, path, key, status) in [
        ("GET", "/orders", "bob", 403),
        ("POST", "/orders", "ann", 403),
        ("GET", "/orders?tea", "bob", 418),
    ] {
        let refused = ask(method, path, key).await;
        assert_eq!((refused.status, refused.json()), (status, json!({ "why": "not yours" })));
    }
    assert_eq!(ask("GET", "/nothing", "ann").await.status, 503, "no such policy is no decision");
}
