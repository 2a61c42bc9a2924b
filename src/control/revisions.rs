//! How far a change has come: `GET /apisix/admin/revisions/<revision>`, or `/revisions/latest`.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::Answer;
use super::listing::Query;
use super::{ControlPlane, Convergence, DataPlaneState};
use crate::model::{Rejected, Revision};
use crate::store;

impl ControlPlane {
    /// Which data planes run a revision, which refused something, and why. With `?wait=applied` once all that are connected have
    /// answered it, or the time is over.
    pub(super) async fn answer_revision(
        &self,
        revision: &str,
        query: &Query,
    ) -> Result<Answer, Answer> {
        let wait = super::api::body::wait(query)?;
        let revision = match revision {
            "latest" => self.latest().await?,
            text => text.parse().map_err(|_| Answer::bad("a revision is a number, or latest"))?,
        };
        let Some(convergence) = &self.convergence else {
            let text = "this control plane feeds no data planes";
            return Err(Answer::error(StatusCode::NOT_FOUND, text));
        };
        if let Some(within) = wait {
            applied_within(&**convergence, revision, within).await;
        }
        Ok(Answer::ok(told(&**convergence, revision)))
    }

    /// The revision that changed a resource last.
    async fn latest(&self) -> Result<Revision, store::Error> {
        let listing = self.store.list(&format!("{}/", self.prefix)).await?;
        Ok(listing.entries.iter().map(|stored| stored.modified).max().unwrap_or(1))
    }

    /// Waits until every connected data plane has acknowledged the write, if the client asked for that. Who acknowledges may
    /// still refuse: the answer says how many do.
    pub(super) async fn await_applied(&self, mut answer: Answer, wait: Option<Duration>) -> Answer {
        let (Some(within), Some(revision), Some(convergence)) =
            (wait, answer.revision, &self.convergence)
        else {
            return answer;
        };
        answer.applied = Some(applied_within(&**convergence, revision, within).await);
        let planes = convergence.data_planes();
        let refusing = planes.iter().filter(|plane| refuses(plane, revision)).count();
        if refusing > 0 {
            answer.headers.push(("x-wardgate-refused", refusing.to_string()));
        }
        answer
    }
}

/// Does the data plane refuse what this revision wrote?
fn refuses(plane: &DataPlaneState, revision: Revision) -> bool {
    plane.rejected.iter().any(|one| one.revision == revision)
}

async fn applied_within(
    convergence: &dyn Convergence,
    revision: Revision,
    within: Duration,
) -> bool {
    let deadline = Instant::now() + within;
    let applied = || {
        let planes = convergence.data_planes();
        planes.iter().all(|plane| !plane.connected || plane.applied >= revision)
    };
    while !applied() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    applied()
}

fn told(convergence: &dyn Convergence, revision: Revision) -> Value {
    let planes = convergence.data_planes();
    let applied = planes.iter().filter(|plane| plane.applied >= revision).count();
    let refusing = planes.iter().filter(|plane| !plane.rejected.is_empty()).count();
    let list: Vec<Value> = planes
        .iter()
        .map(|plane| {
            json!({
                "id": plane.id, "connected": plane.connected, "revision": plane.applied,
                "applied": plane.applied >= revision, "rejected": all(&plane.rejected),
            })
        })
        .collect();
    json!({
        "revision": revision, "total": planes.len(), "applied": applied, "refusing": refusing,
        "data_planes": list, "unreadable": all(&convergence.unreadable()),
    })
}

fn all(rejected: &[Rejected]) -> Value {
    let row = |one: &Rejected| {
        json!({
            "kind": one.kind.name(), "id": one.id.as_str(), "revision": one.revision,
            "reason": one.reason,
        })
    };
    rejected.iter().map(row).collect()
}
