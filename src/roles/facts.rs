//! What runs in this process and how it is: what `GET /status/process` answers and `wardgate status` shows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::Json;
use axum::routing::get;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use super::data_plane::Configuration;
use super::identities::rfc3339;
use super::places::Places;
use super::process::Shared;
use super::reach::Reach;
use super::settings::Settings;
use crate::audit::OutputReport;
use crate::control::canary::Canaries;
use crate::model::Rejected;
use crate::rt::{Live, unix_seconds};
use crate::snapshot::Keeper;
use crate::sync::file::FileStatus;
use crate::sync::publisher::Publisher;
use crate::sync::subscriber::FeedStatus;
use crate::upstream::{Discovery, Roster};

/// What the parts of a process tell of themselves. Clones share it.
#[derive(Clone, Default)]
pub struct Facts {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    listeners: Vec<(String, String)>,
    feeds: Vec<(String, Source)>,
    planes: Vec<Plane>,
    publisher: Option<Publisher>,
    /// Whether the control plane's store answers, and how canary pushes stand.
    control: Option<(Live<Reach>, Option<Canaries>)>,
    reloads: u64,
    reload: Option<Reload>,
    upgrades: u64,
    upgrade_failed: Option<(i64, String)>,
}

/// A data plane of this process.
#[derive(Clone)]
pub(super) struct Plane {
    pub(super) part: &'static str,
    pub(super) configuration: Live<Configuration>,
    pub(super) keeper: Arc<Mutex<Keeper>>,
    /// Whose upstreams are checked.
    pub(super) roster: Roster,
    /// The registries that it follows.
    pub(super) discovery: Discovery,
    /// Where callers prove who they are, or may.
    pub(super) mesh_ports: Vec<u16>,
}

/// Where configuration comes from.
#[derive(Clone)]
pub(super) enum Source {
    /// A control plane at this address.
    ControlPlane(Places, Live<FeedStatus>),
    /// A file.
    File(PathBuf, Live<FileStatus>),
}

/// How the settings were read the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reload {
    /// Seconds since 1970.
    pub at: i64,
    /// Why nothing was changed; none when the file was good.
    pub error: Option<String>,
    /// The settings that came into force.
    pub applied: Vec<String>,
    /// The settings that differ from those in force: `wardgate upgrade` or a restart puts them into force.
    pub needs_upgrade: Vec<String>,
}

impl Facts {
    pub(super) fn listens(&self, name: &str, address: &impl ToString) {
        let listener = (name.to_owned(), address.to_string());
        let mut inner = self.inner.lock();
        if !inner.listeners.contains(&listener) {
            inner.listeners.push(listener);
        }
    }

    /// What listens where, in one line: `inbound 127.0.0.1:15006, status 127.0.0.1:9090`.
    pub(super) fn listeners(&self) -> String {
        let inner = self.inner.lock();
        let listeners = inner.listeners.iter().map(|(name, address)| format!("{name} {address}"));
        listeners.collect::<Vec<_>>().join(", ")
    }

    pub(super) fn is_fed(&self, part: &str, source: Source) {
        self.inner.lock().feeds.push((part.to_owned(), source));
    }

    pub(super) fn has_plane(&self, plane: Plane) {
        self.inner.lock().planes.push(plane);
    }

    pub(super) fn planes(&self) -> Vec<Plane> {
        self.inner.lock().planes.clone()
    }

    pub(super) fn publishes(&self, publisher: Publisher, control: (Live<Reach>, Option<Canaries>)) {
        let mut inner = self.inner.lock();
        inner.control = Some(control);
        inner.publisher = Some(publisher);
    }

    pub(super) fn reloaded(&self, reload: Reload) {
        let mut inner = self.inner.lock();
        inner.reloads += 1;
        inner.reload = Some(reload);
    }

    /// Notes an upgrade that failed.
    pub fn not_upgraded(&self, why: String) {
        let mut inner = self.inner.lock();
        inner.upgrades += 1;
        inner.upgrade_failed = Some((unix_seconds(), why));
    }
}

/// `GET /status/process`. Reasons and paths are told to callers on the same machine alone: they may quote what was configured.
pub(super) fn router(shared: &Shared, settings: &Settings, roles: &[String]) -> Router {
    let (shared, settings) = (shared.clone(), settings.clone());
    let fixed = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "node": settings.node_name(),
        "roles": roles,
        "trust_domain": settings.trust_domain,
        "workers": settings.worker_count(),
    });
    let answer = move |request: Request| async move {
        let caller = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let is_local = caller.is_some_and(|ConnectInfo(address)| address.ip().is_loopback());
        Json(shared.facts.tell(&shared, &settings, &fixed, is_local))
    };
    Router::new().route("/status/process", get(answer))
}

impl Facts {
    fn tell(&self, shared: &Shared, settings: &Settings, fixed: &Value, is_local: bool) -> Value {
        let waiting = shared.readiness.waiting_for();
        let identities = shared.identities.status();
        let inner = self.inner.lock();
        let mut told = fixed.clone();
        told["state"] = match &*waiting {
            [] => json!("ready"),
            some if some.iter().any(|gate| gate.starts_with("draining")) => json!("draining"),
            _ => json!("not_ready"),
        };
        told["waiting_for"] = json!(waiting);
        told["uptime_seconds"] = json!(shared.readiness.uptime());
        told["listeners"] = inner
            .listeners
            .iter()
            .map(|(name, address)| json!({ "name": name, "address": address }))
            .collect();
        told["configuration"] =
            inner.planes.iter().map(|plane| configuration(plane, is_local)).collect();
        told["feeds"] =
            inner.feeds.iter().map(|(part, source)| feed(part, source, is_local)).collect();
        told["identities"] = identities["identities"].clone();
        told["public_certificates"] = identities["public_certificates"].clone();
        if let Some(publisher) = &inner.publisher {
            told["data_planes"] = data_planes(publisher, is_local);
        }
        if let Some((reach, canaries)) = &inner.control {
            told["store"] = match &reach.load().lost {
                None => json!({ "reachable": true }),
                Some((since, error)) => json!({
                    "reachable": false, "since": rfc3339(*since),
                    "error": is_local.then_some(error),
                }),
            };
            if let Some(canaries) = canaries {
                told["canary"] = canaries.load().shown();
            }
        }
        told["decision_log"] = json!({
            "file": is_local.then(|| settings.audit_file()),
            "written": shared.audit.written(),
            "lost": shared.audit.lost(),
            "is_writing": shared.audit.is_writing(),
            "outputs": outputs(shared, is_local),
        });
        told["settings"] = json!({ "reads": inner.reloads, "last": inner.reload });
        told["upgrade"] = json!({
            "failed": inner.upgrades,
            "last_failure": inner.upgrade_failed.as_ref().filter(|_| is_local).map(|(at, why)| {
                json!({ "at": rfc3339(*at), "error": why })
            }),
        });
        told
    }
}

fn outputs(shared: &Shared, is_local: bool) -> Vec<Value> {
    let row = |mut report: OutputReport| {
        report.error = report.error.filter(|_| is_local);
        json!(report)
    };
    shared.outputs.reports().into_iter().map(row).collect()
}

fn refused(rejected: &[Rejected], is_local: bool) -> Value {
    let row = |one: &Rejected| {
        json!({
            "kind": one.kind.name(), "id": one.id.as_str(), "revision": one.revision,
            "reason": is_local.then_some(&one.reason),
        })
    };
    rejected.iter().map(row).collect()
}

fn configuration(plane: &Plane, is_local: bool) -> Value {
    let now = plane.configuration.load();
    json!({
        "part": plane.part,
        "revision": now.revision,
        "resources": now.resources,
        "applied_at": now.applied_at.map(rfc3339),
        "refused": refused(&now.refused, is_local),
        "identity_modes": identity_modes(plane),
    })
}

/// How strictly each door asks for identity.
fn identity_modes(plane: &Plane) -> Value {
    let modes = plane.keeper.lock().current().modes.clone();
    let row = |port: &u16| json!({ "port": port, "mode": modes.at(*port) });
    plane.mesh_ports.iter().map(row).collect()
}

fn feed(part: &str, source: &Source, is_local: bool) -> Value {
    match source {
        Source::File(path, status) => {
            let status = status.load();
            json!({
                "part": part,
                "file": is_local.then_some(path),
                "good": status.error.is_none(),
                "since": rfc3339(status.read_at),
                "error": status.error.as_ref().filter(|_| is_local),
                "left_out": status.left_out,
            })
        }
        Source::ControlPlane(places, status) => {
            let status = status.load();
            json!({
                "part": part,
                "control_plane": places.told(),
                "connected": status.is_connected,
                "since": rfc3339(status.since),
                "revision": status.revision,
                "error": status.error.as_ref().filter(|_| is_local),
                "save_error": status.save_error.as_ref().filter(|_| is_local),
                "heard_at": rfc3339(status.heard_at),
                "held_off": status.held_off.as_ref().map(|held_off| json!({
                    "revision": held_off.revision,
                    "deaths": held_off.deaths,
                    "in_force": held_off.in_force,
                })),
            })
        }
    }
}

fn data_planes(publisher: &Publisher, is_local: bool) -> Value {
    let convergence = publisher.convergence();
    let rows: Vec<Value> = convergence
        .data_planes
        .iter()
        .map(|plane| {
            json!({
                "spiffe_id": &*plane.spiffe_id,
                "node": plane.node,
                "version": plane.version,
                "connected_since": rfc3339(plane.connected_since),
                "applied": plane.applied,
                "refused": refused(&plane.rejected, is_local),
            })
        })
        .collect();
    json!({ "revision": convergence.revision, "connected": rows })
}
