//! Questions about policies: over the Admin API and on the command line, answered as sidecars decide.

use serde_json::{Value, json};

use crate::world::{App, Ended, World, get, run};

#[tokio::test]
async fn answers_are_what_the_sidecar_then_does() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let app = App::echo("billing");
    let billing = world.sidecar("/billing").app(&app).fed_by(&control).start();
    let me = world.id("/billing");
    let read = json!({
        "selector": { "workloads": [me] }, "action": "allow",
        "rules": [
            { "name": "readers", "from": { "principals": [world.id("/web"), world.id("/jobs/*")] },
              "to": { "methods": ["GET"], "paths": ["/invoices/{id}"] } },
            { "name": "own", "from": { "principals": [world.id("/t/{tenant}/app")] }, "to": { "paths": ["/t/{tenant}/**"] } },
        ],
    });
    let never = json!({
        "selector": { "workloads": [me] }, "action": "deny",
        "rules": [{ "name": "no-night", "from": { "principals": [world.id("/jobs/night")] } }],
    });
    let before = admin.put("/identity_policies/read", &read).await;
    let revision = admin.put("/identity_policies/never", &never).await;
    admin.applied(revision, 1).await;

    let url = format!("http://{}", admin.address);
    let ask = |arguments: &[&str]| -> Ended {
        let place = ["--admin", url.as_str(), "--key", admin.key.as_str()];
        run(arguments.iter().chain(&place))
    };
    let told = ask(&["who-can", "GET", "billing/invoices/7"]).good();
    assert!(told.contains(&world.id("/web")) && told.contains("policy/read:readers"), "{told}");
    assert!(told.contains("except") && told.contains("policy/never:no-night"), "{told}");
    assert!(told.contains("nobody else"), "{told}");
    let told = ask(&["who-can", "GET", "billing/t/acme/x"]).good();
    assert!(told.contains(&world.id("/t/acme/app")), "{told}");
    let answer: Value = serde_json::from_str(
        &ask(&["who-can", "DELETE", "billing/invoices/7", "-o", "json"]).good(),
    )
    .unwrap();
    assert_eq!(answer["grants"], json!([]));

    for (who, method, path) in [
        ("/web", "GET", "/invoices/7"),
        ("/web", "DELETE", "/invoices/7"),
        ("/jobs/day", "GET", "/invoices/7"),
        ("/jobs/night", "GET", "/invoices/7"),
        ("/t/acme/app", "GET", "/t/acme/x"),
        ("/t/acme/app", "GET", "/t/other/x"),
        ("/stranger", "GET", "/invoices/7"),
    ] {
        let status = world.peer(who).send(&billing, method, path, &[], "").await.status;
        let id = world.id(who);
        let ended = ask(&["can-i", method, path, "--as", &id, "--to", "billing"]);
        let expected = if status == 200 { 0 } else { 3 };
        assert_eq!(
            ended.code,
            Some(expected),
            "{who} {method} {path} {status}: {}{}",
            ended.out,
            ended.err
        );
    }

    // The past: before the deny rule, the night's jobs could.
    let night = world.id("/jobs/night");
    let then = before.to_string();
    let ended = ask(&["can-i", "GET", "/invoices/7", "--as", &night, "--to", &me, "--at", &then]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    let ended = ask(&["policy", "diff", "--from", &then, "--against", "live"]);
    assert_eq!(ended.code, Some(4), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains("loses") && ended.out.contains(&night), "{}", ended.out);

    let told = ask(&["what-can", &world.id("/web")]).good();
    assert!(told.contains(&me) && told.contains("GET, /invoices/{id}"), "{told}");

    let ended = ask(&[
        "explain",
        "request",
        "GET",
        "http://billing/invoices/7",
        "--as",
        &world.id("/web"),
        "--to",
        "billing",
    ]);
    assert!(
        ended.out.contains("policy/read:readers") && ended.out.contains("route"),
        "{}{}",
        ended.out,
        ended.err
    );

    let ended = ask(&["policy", "lint"]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);

    // The questions need a key as any other read.
    let refused = get(admin.address, "/apisix/admin/questions/lint").await;
    assert_eq!(refused.status, 401);
}

#[test]
fn a_request_is_explained_by_the_declared_routes_and_along_the_one_that_is_supposed() {
    let folder = crate::etcd_server::new_folder("supposed");
    let file = folder.join("all.yaml");
    let text = json!({
        "services": [{ "id": "s", "hosts": ["billing"], "upstream": { "nodes": { "127.0.0.1:9": 1 } } }],
        "routes": [
            { "id": "7", "uri": "/invoices/*", "service_id": "s", "workload_selector": { "listener": "inbound" } },
            { "id": "8", "uri": "/admin/*", "methods": ["PUT"], "service_id": "s", "workload_selector": { "listener": "inbound" },
              "plugins": { "request-id": {} } },
            { "id": "9", "uri": "/*", "upstream": { "nodes": { "127.0.0.1:9": 1 } } },
        ],
        "identity_policies": [
            { "id": "p", "action": "allow", "selector": { "routes": ["7"] }, "rules": [{ "from": { "principals": ["spiffe://shop/web"] } }] },
        ],
    });
    std::fs::write(&file, text.to_string()).unwrap();
    let ask = |path: &str, more: &[&str]| {
        let line = [
            "explain",
            "request",
            "GET",
            path,
            "--as",
            "spiffe://shop/web",
            "--to",
            "spiffe://shop/billing",
        ];
        let ended = run(line.iter().chain(&["-f", file.to_str().unwrap()]).chain(more));
        (ended.code, ended.out + &ended.err)
    };
    let invoice = "http://billing/invoices/7";
    let (code, told) = ask(invoice, &[]);
    assert!(code == Some(0) && told.contains("2 route     7\n"), "{told}");
    assert!(told.contains("allow  policy/p:1") && told.contains("127.0.0.1:9"), "{told}");
    assert_eq!(ask(invoice, &["--route", "7"]), (code, told));
    // Along a route that the router would not choose: its plugins, and what policy says to it.
    let (code, told) = ask(invoice, &["--route", "8"]);
    assert!(
        code == Some(3) && told.contains("2 route     8\n") && told.contains("request-id"),
        "{told}"
    );
    assert!(told.contains("the router sends this request to route 7"), "{told}");
    assert!(told.contains("would be refused by policy"), "{told}");
    for (route, expected) in
        [("9", "route 9 serves another door"), ("10", "there is no route \"10\"")]
    {
        let (code, told) = ask(invoice, &["--route", route]);
        assert!(code == Some(3) && told.contains(expected), "{told}");
    }
    // A sidecar's own route is a supposition, and is said to be one.
    let other = "http://billing/other";
    let (_, told) = ask(other, &[]);
    assert!(told.contains("no declared route matches; with `sidecar.app`"), "{told}");
    let (code, told) = ask(other, &["--route", "none"]);
    assert!(code == Some(3) && told.contains("no route matches: 404"), "{told}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn files_answer_as_well_and_the_exit_code_tells() {
    let folder = crate::etcd_server::new_folder("questions");
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let old = file(
        "old.yaml",
        "id: p\nselector: { workloads: ['spiffe://shop/billing'] }\naction: allow\nrules:\n- from: { principals: ['spiffe://shop/web'] }\n  to: { methods: [GET] }\n",
    );
    let new = file(
        "new.yaml",
        "id: p\nselector: { workloads: ['spiffe://shop/billing'] }\naction: allow\nrules:\n- from: { principals: ['spiffe://shop/web', 'spiffe://shop/jobs/*'] }\n  to: { methods: [GET] }\n",
    );
    let told = run(["who-can", "GET", "billing/x", "-f", &old]).good();
    assert!(told.starts_with("IDENTITY") && told.contains("spiffe://shop/web"), "{told}");
    let told = run(["policy", "diff", &old, &new]);
    assert_eq!(told.code, Some(4), "{}", told.err);
    assert!(told.out.contains("+ gains: spiffe://shop/jobs/*"), "{}", told.out);
    assert!(told.out.contains("refused, then allowed by policy/p:1"), "{}", told.out);
    assert_eq!(run(["policy", "diff", &old, &old]).code, Some(0));
    assert_eq!(run(["policy", "lint", "-f", &old]).code, Some(0));
    let bad = file("bad.yaml", "id: p\naction: allow\nrules:\n- to: { methods: [get] }\n");
    let told = run(["policy", "lint", "-f", &bad]);
    assert_eq!(told.code, Some(1));
    assert!(told.out.contains("WG1001"), "{}", told.out);
    let unknown = run(["who-can", "GET", "nowhere/x", "-f", &old]);
    assert!(unknown.code == Some(1) && unknown.err.contains("/nowhere"), "{}", unknown.err);
    let _ = std::fs::remove_dir_all(&folder);
}
