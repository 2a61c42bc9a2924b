//! A process is replaced by a new one, and nobody notices: not on kept connections, not on new ones, over mTLS or plain, over
//! HTTP/1.1 or HTTP/2; the decision log goes on, and whatever has one owner changes hands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::load::{Place, Seen, http1, http2};
use crate::mesh::{Door, Mesh};
use crate::world::{App, PATIENCE, Process, World, eventually, get, run};

fn place(mesh: &Mesh, door: Door) -> Place {
    let address = mesh.address(door);
    match door {
        Door::Ingress | Door::Outbound => Place::Plain(address),
        Door::Inbound => {
            let (id, peer) = (mesh.billing.id.clone(), Arc::new(mesh.world.peer("/shop")));
            Place::Mesh { address, id, peer }
        }
    }
}

/// Asks for an upgrade; the new process' number, once it has taken over.
fn upgraded(process: &Process, before: usize) -> u32 {
    process.signal(Signal::USR2);
    eventually(&format!("{} is replaced", process.name), || {
        let lines = process.lines();
        let mut found = lines.iter().filter_map(|line| line.strip_suffix(" has taken over"));
        found.nth(before).map(|line| line.trim_start_matches("process ").parse().unwrap())
    })
}

fn said_so(process: &Process, text: &str, times: usize) {
    eventually(&format!("{} says {text:?} {times} times", process.name), || {
        let lines = process.lines();
        let cut = lines.iter().find(|line| line.starts_with(&format!("{text}; ")));
        assert_eq!(cut, None, "{}", process.said());
        (lines.iter().filter(|line| *line == text).count() >= times).then_some(())
    });
}

fn verify(log: &Path) -> String {
    run(["audit", "verify", log.to_str().unwrap()]).good()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_kept_and_new_connections_survive_upgrades_of_each_process() {
    let app = App::echo("app");
    let mut mesh = Mesh::before(&format!("http://{}", app.address));
    let seen = Arc::<Seen>::default();
    let mut clients = Vec::new();
    for door in [Door::Ingress, Door::Inbound, Door::Outbound] {
        for _ in 0..2 {
            let place = place(&mesh, door);
            clients.push(wardgate::rt::spawn(http1(place.clone(), true, None, seen.clone())));
            clients.push(wardgate::rt::spawn(http1(place.clone(), false, None, seen.clone())));
            clients.push(wardgate::rt::spawn(http2(place, None, seen.clone())));
        }
    }
    seen.more(100).await;
    // Each once, and once more: the second new process is the child of one that is gone by then.
    for round in 0..2 {
        for process in [&mesh.billing, &mesh.shop, &mesh.ingress] {
            let pid = upgraded(process, round);
            assert_ne!(pid, process.pid());
            seen.more(100).await;
        }
        for process in [&mesh.billing, &mesh.shop, &mesh.ingress] {
            said_so(process, "drained", round + 1);
        }
    }
    seen.more(100).await;
    seen.that_is_enough();
    for client in clients {
        client.await.unwrap();
    }
    let lost = seen.lost();
    assert!(lost.is_empty(), "of {}: {lost:#?}", seen.answered());

    // Whoever started the first process ends the last one by it.
    for process in [&mut mesh.ingress, &mut mesh.shop, &mut mesh.billing] {
        process.ask_to_end();
        assert!(process.wait().success(), "{}", process.said());
        assert!(process.lines().iter().any(|line| line == "stopped"), "{}", process.said());
        verify(&process.audit_file());
        // Decisions of the drain were written by the process that took over; each process began once.
        let records = process.audit();
        assert_eq!(records.iter().filter(|record| record["event"] == "start").count(), 3);
        let lost = |record: &&Value| record["type"] == "loss";
        assert_eq!(records.iter().filter(lost).count(), 0);
    }
    // A decision a request: the log has lost none.
    let decisions = |process: &Process| {
        process.audit().iter().filter(|record| record["type"] == "decision").count()
    };
    assert_eq!(decisions(&mesh.billing), app.requests());
    let of_before = |record: &Value| record["of_boot_id"].is_string();
    assert!(mesh.billing.audit().iter().any(of_before), "those of the drain are among them");
}

/// A program that starts as ours does and does something else when it is to take over.
fn broken(world: &World, script: &str) -> PathBuf {
    let path = world.folder.join("wardgate");
    std::fs::copy(env!("CARGO_BIN_EXE_wardgate"), &path).unwrap();
    let other = world.folder.join("other");
    std::fs::write(&other, script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&other, executable).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_that_cannot_take_over_changes_nothing() {
    let world = World::new();
    let app = App::echo("app");
    let program = broken(&world, "#!/bin/sh\nexit 7\n");
    let mut ingress = world
        .ingress()
        .program(&program)
        .set("status", &json!("127.0.0.1:0"))
        .set("upgrade_seconds", &json!(2))
        .resources(&json!({ "routes": [{
            "id": "r", "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } },
        }] }))
        .start();
    let door = ingress.address("ingress");
    let good = std::fs::read_to_string(&ingress.settings_file).unwrap();
    // Settings that contradict themselves: the new process says why.
    std::fs::write(&ingress.settings_file, good.replace("\"ingress\": {", "\"ingres\": {"))
        .unwrap();
    ingress.signal(Signal::USR2);
    let line = ingress.logs("not replaced, this process goes on");
    assert!(line.contains("cannot take over") && line.contains("ingres"), "{line}");
    assert_eq!(get(door, "/").await.status, 200);
    std::fs::write(&ingress.settings_file, &good).unwrap();

    // Another program that just ends, one that never gets ready, and none at all.
    let other = world.folder.join("other");
    std::fs::rename(&other, &program).unwrap();
    ingress.signal(Signal::USR2);
    ingress.logs("exit status: 7");
    assert_eq!(get(door, "/").await.status, 200);
    std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    ingress.signal(Signal::USR2);
    ingress.logs("was not ready within 2s");
    assert_eq!(get(door, "/").await.status, 200);
    std::fs::remove_file(&program).unwrap();
    ingress.signal(Signal::USR2);
    ingress.logs("cannot start");
    assert_eq!(get(door, "/").await.status, 200);
    assert_eq!(get(ingress.address("status"), "/status/ready").await.status, 200);

    // And then one that works: what lies in the program's place now.
    std::fs::copy(env!("CARGO_BIN_EXE_wardgate"), &program).unwrap();
    upgraded(&ingress, 0);
    assert_eq!(get(door, "/").await.status, 200);
    assert!(ingress.end().success(), "{}", ingress.said());
    verify(&ingress.audit_file());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_hands_over_its_store_its_admin_api_and_its_feed() {
    let world = World::new();
    let app = App::echo("app");
    let mut control = world.control().start();
    let ingress = world.ingress().fed_by(&control).start();
    let admin = control.admin();
    let route = json!({ "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } });
    admin.put("/routes/0", &route).await;
    // Writes go on all the while; each that was answered is there afterwards.
    let seen = Arc::<Seen>::default();
    let writes = {
        let (admin, route, seen) = (admin.clone(), route.clone(), seen.clone());
        wardgate::rt::spawn(async move {
            let mut number = 0;
            while !seen.is_enough() {
                number += 1;
                let mut route = route.clone();
                route["uri"] = json!(format!("/r{number}"));
                let answer = admin.ask("PUT", &format!("/routes/r{number}"), Some(&route)).await;
                let outcome = if answer.status == 201 { Ok(200) } else { Err(answer.text()) };
                seen.note("a write", None, outcome);
            }
            number
        })
    };
    seen.more(20).await;
    for round in 0..2 {
        upgraded(&control, round);
        seen.more(20).await;
        said_so(&control, "drained", round + 1);
    }
    seen.that_is_enough();
    let written = writes.await.unwrap();
    assert_eq!(seen.lost(), Vec::<String>::new());
    let listed = admin.get("/routes").await;
    assert_eq!(listed["total"], json!(written + 1), "with the first one");
    let revision = admin.put("/routes/last", &route).await;
    admin.applied(revision, 1).await;
    assert_eq!(get(ingress.address("ingress"), &format!("/r{written}")).await.status, 200);
    assert!(control.end().success(), "{}", control.said());
    verify(&control.audit_file());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_process_that_was_started_first_is_killed_the_others_end_too() {
    let world = World::new();
    let app = App::echo("app");
    let mut ingress = world
        .ingress()
        .resources(&json!({ "routes": [{
            "id": "r", "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } },
        }] }))
        .start();
    let pid = upgraded(&ingress, 0);
    said_so(&ingress, "drained", 1);
    let pid = {
        let second = upgraded(&ingress, 1);
        assert_ne!(pid, second);
        said_so(&ingress, "drained", 2);
        second
    };
    let door = ingress.address("ingress");
    assert_eq!(get(door, "/").await.status, 200);
    ingress.kill();
    eventually("the last process ends", || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        state.map_or(true, |state| state.contains(") Z ")).then_some(())
    });
    // The doors are free again for a new start.
    let again = world
        .ingress()
        .set("ingress", &json!({ "http": door.to_string(), "https": null }))
        .resources(&json!({ "routes": [] }))
        .start();
    assert_eq!(get(again.address("ingress"), "/").await.status, 404);
}

/// Starts a part as a service manager does: with a socket for each name, and told where to say how it goes.
fn managed(
    world: &World,
    part: &crate::world::Part<'_>,
    socket: std::net::TcpListener,
    names: &str,
    notify: Option<&Path>,
) -> Process {
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_wardgate"), "run", "-c"]);
    command.arg(part.settings_file()).env("LISTEN_FDNAMES", names).env("WARDGATE_LOG", "info");
    command.stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(socket)));
    if let Some(path) = notify {
        command.env("NOTIFY_SOCKET", path);
    }
    let process = Process::launch(&part.name, command, &world.folder);
    process.wait_ready();
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_opens_the_door_hears_how_it_goes_and_follows_the_new_process() {
    let world = World::new();
    let app = App::echo("app");
    let route = json!({ "routes": [{
        "id": "r", "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } },
    }] });
    let part = world.ingress().resources(&route);
    let door = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = door.local_addr().unwrap();
    // Who comes before the start waits in the door's queue.
    let early = wardgate::rt::spawn(async move { get(address, "/").await.status });
    let place = world.folder.join("notify");
    let ears = std::os::unix::net::UnixDatagram::bind(&place).unwrap();
    ears.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = |what: &str| loop {
        let mut buffer = [0; 4096];
        let length = ears.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.lines().any(|line| line.starts_with(what)) {
            return text;
        }
    };
    let mut ingress = managed(&world, &part, door, "http", Some(&place));
    heard("READY=1");
    // As at any start: whoever is served before the configuration is there finds no route.
    assert!([200, 404].contains(&early.await.unwrap()));
    assert_eq!(get(address, "/").await.status, 200);
    assert_eq!(ingress.address("ingress"), address, "what systemd opened counts");

    ingress.signal(Signal::HUP);
    assert!(heard("RELOADING=1").contains("MONOTONIC_USEC="));
    heard("READY=1");

    let pid = upgraded(&ingress, 0);
    assert_eq!(heard("MAINPID="), format!("MAINPID={pid}"));
    // It is followed by its number, so that the old process goes.
    assert!(ingress.wait_alone().success(), "{}", ingress.said());
    assert_eq!(get(address, "/").await.status, 200);
    let successor = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(successor, Signal::TERM).unwrap();
    heard("STOPPING=1");
    eventually("the new process ends", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });

    // Sockets that no setting names are closed, and named.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let part = part.named("other").set("ingress", &json!({ "http": "127.0.0.1:0", "https": null }));
    let ingress = managed(&world, &part.resources(&route), other, "metrics", None);
    assert!(ingress.logs("is not used").contains("metrics"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_hands_over_its_socket_and_its_callers() {
    let world = World::new();
    let socket = world.folder.join("workload.sock");
    let mut issuer = world
        .part("issuer", "/wardgate/issuer")
        .without("identity")
        .set("status", &json!("127.0.0.1:0"))
        .set(
            "issuer",
            &json!({
                "socket": socket,
                "authority": world.authority(),
                "entries": [{
                    "spiffe_id": world.id("/billing"),
                    "selectors": [format!("unix:uid:{}", rustix::process::getuid().as_raw())],
                }],
            }),
        )
        .start();
    let app = App::echo("app");
    let sidecar = |name: &str| {
        world
            .sidecar("/billing")
            .named(name)
            .app(&app)
            .set("identity", &json!({ "source": "workload_api", "socket": format!("unix:{}", socket.display()) }))
            .resources(&json!({ "identity_policies": [
                crate::world::allow("p", &[&world.id("/billing")], &[&world.id("/shop")]),
            ] }))
            .start()
    };
    let before = sidecar("before");
    upgraded(&issuer, 0);
    said_so(&issuer, "drained", 1);
    assert!(socket.exists(), "the old process leaves it to the new one");
    let after = sidecar("after");
    for billing in [&before, &after] {
        assert_eq!(world.peer("/shop").get(billing, "/").await.status, 200);
    }
    assert!(issuer.end().success(), "{}", issuer.said());
    assert!(!socket.exists());
    verify(&issuer.audit_file());
}
