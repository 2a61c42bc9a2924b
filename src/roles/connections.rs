//! `GET /connections` on the status port: who is connected to whom, and until when.

use std::sync::Arc;

use axum::Router;
use axum::response::Json;
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::mtls::{Begun, Lapse, Opening, Proof, Proofs};

/// Connections that one answer tells of, and places that are looked at under one lock.
const MOST: usize = 1000;
const BATCH: usize = 256;

/// The live connections of a process' data planes.
#[derive(Clone, Default)]
pub(super) struct Connections {
    workers: Arc<Mutex<Vec<Arc<Proofs>>>>,
}

impl Connections {
    /// Those of further workers.
    pub(super) fn add(&self, proofs: impl IntoIterator<Item = Arc<Proofs>>) {
        self.workers.lock().extend(proofs);
    }

    pub(super) fn router(&self) -> Router {
        let connections = self.clone();
        Router::new().route("/connections", get(move || async move { Json(connections.list()) }))
    }

    fn list(&self) -> Value {
        let workers = self.workers.lock().clone();
        let mut listed = Vec::new();
        for proofs in &workers {
            let mut from = Some(0);
            while let Some(at) = from.filter(|_| listed.len() < MOST) {
                let (some, next) = proofs.some(at, BATCH);
                from = next;
                listed.extend(some.iter().take(MOST - listed.len()).map(|proof| row(proof)));
            }
        }
        let live = |opening| workers.iter().map(|proofs| proofs.live(opening)).sum::<usize>();
        let accepted = live(Opening::Accepted(crate::model::Listeners::Inbound));
        let originated = live(Opening::Originated);
        json!({
            "accepted": accepted,
            "originated": originated,
            "complete": listed.len() == accepted + originated,
            "connections": listed,
        })
    }
}

fn row(proof: &Proof) -> Value {
    let Begun { number, opening, local, remote, peer, expected, lax, own, since, old_at } =
        &proof.begun;
    let door = match opening {
        Opening::Accepted(door) => Some(door),
        Opening::Originated => None,
    };
    json!({
        "conn_id": number,
        "side": opening.name(),
        "door": door,
        "local": local,
        "remote": remote,
        "peer": peer.as_ref().map(|peer| json!({
            "spiffe_id": peer.id.as_str(), "serial": peer.serial, "not_after": peer.not_after,
        })),
        "expected": expected.as_ref().map(|expected| expected.text()),
        "own": own.as_ref().map(|(id, end)| json!({ "spiffe_id": id.as_str(), "not_after": end })),
        "let_in_by_mode": lax,
        "since": since,
        "too_old_at": old_at,
        "ends_at": proof.begun.ends().map(|(end, _)| end),
        "ends_because": proof.begun.ends().map(|(_, lapse)| lapse.code()),
        "lapse": proof.lapse().map(Lapse::code),
    })
}
