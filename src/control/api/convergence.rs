//! How far the data planes are with what was written.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::ControlPlane;
use super::super::answer::Answer;
use crate::model::Revision;

impl ControlPlane {
    /// `GET /apisix/admin/revisions/<revision>`: which data planes run it, which refused something, and why.
    pub(super) fn convergence(&self, revision: Revision) -> Answer {
        let Some(convergence) = &self.convergence else {
            return Answer::error(StatusCode::NOT_FOUND, "this control plane feeds no data planes");
        };
        let planes = convergence.data_planes();
        let applied = planes.iter().filter(|plane| plane.applied >= revision).count();
        let list: Vec<Value> = planes
            .iter()
            .map(|plane| {
                let rejected: Vec<Value> = plane
                    .rejected
                    .iter()
                    .map(|one| {
                        json!({
                            "kind": one.kind.name(), "id": one.id.as_str(),
                            "revision": one.revision, "reason": one.reason,
                        })
                    })
                    .collect();
                json!({
                    "id": plane.id, "connected": plane.connected, "revision": plane.applied,
                    "applied": plane.applied >= revision, "rejected": rejected,
                })
            })
            .collect();
        Answer::ok(json!({
            "revision": revision, "total": planes.len(), "applied": applied, "data_planes": list,
        }))
    }

    /// Waits until every connected data plane has acknowledged the write, if the client asked for that.
    pub(super) async fn await_applied(&self, mut answer: Answer, wait: Option<Duration>) -> Answer {
        let (Some(within), Some(revision), Some(convergence)) =
            (wait, answer.revision, &self.convergence)
        else {
            return answer;
        };
        let deadline = Instant::now() + within;
        let applied = || {
            let planes = convergence.data_planes();
            planes.iter().all(|plane| !plane.connected || plane.applied >= revision)
        };
        while !applied() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        answer.applied = Some(applied());
        answer
    }
}
