//! How far a change has come: `GET /apisix/admin/revisions/<revision>`, or `/revisions/latest`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::Answer;
use super::listing::Query;
use super::{ControlPlane, Convergence, DataPlaneState};
use crate::model::{Rejected, Revision};
use crate::sync::fleet::Presence;

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

    /// The revision that changed something last, as the index has seen it: nothing is read for that.
    async fn latest(&self) -> Result<Revision, Answer> {
        let written = self.written.load(Ordering::Acquire);
        let text = "the store was not read yet, or its changes do not arrive";
        let behind = |_| Answer::error(StatusCode::SERVICE_UNAVAILABLE, text);
        self.index.reaches(written).await.map_err(behind)?;
        Ok(self.index.latest().max(written).max(1))
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
        let here = planes.iter().filter(|plane| refuses(plane, revision)).count();
        let elsewhere = convergence.elsewhere();
        let refusing = count(here) + sum(&elsewhere, |other| other.refuses(revision));
        if refusing > 0 {
            answer.headers.push(("x-wardgate-refused", refusing.to_string()));
        }
        if let Some(record) = self.canaries.as_ref().and_then(|known| known.load().record.clone()) {
            // Why it may not be everywhere yet.
            let phase = serde_json::to_value(record.phase).unwrap_or_default();
            answer
                .headers
                .push(("x-wardgate-canary", phase.as_str().unwrap_or_default().to_owned()));
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
        let all_of = |other: &Presence| other.has_applied(revision) >= other.data_planes;
        planes.iter().all(|plane| !plane.connected || plane.has(revision))
            && convergence.elsewhere().iter().all(all_of)
    };
    while !applied() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    applied()
}

fn told(convergence: &dyn Convergence, revision: Revision) -> Value {
    let planes = convergence.data_planes();
    let elsewhere = convergence.elsewhere();
    let total = count(planes.len()) + sum(&elsewhere, |other| other.data_planes);
    let applied = planes.iter().filter(|plane| plane.has(revision)).count();
    let applied = count(applied) + sum(&elsewhere, |other| other.has_applied(revision));
    let refusing = planes.iter().filter(|plane| !plane.rejected.is_empty()).count();
    let refusing = count(refusing) + sum(&elsewhere, |other| other.refusing);
    let list: Vec<Value> = planes
        .iter()
        .map(|plane| {
            json!({
                "id": plane.id, "connected": plane.connected, "revision": plane.applied,
                "applied": plane.has(revision), "rejected": all(&plane.rejected),
            })
        })
        .collect();
    let mut told = json!({
        "revision": revision, "total": total, "applied": applied, "refusing": refusing,
        "data_planes": list, "unreadable": all(&convergence.unreadable()),
    });
    if !elsewhere.is_empty() {
        let row = |other: &Presence| {
            json!({
                "node": other.node, "revision": other.revision, "total": other.data_planes,
                "applied": other.has_applied(revision), "refusing": other.refusing,
            })
        };
        told["elsewhere"] = elsewhere.iter().map(row).collect();
    }
    told
}

fn count(many: usize) -> u64 {
    u64::try_from(many).unwrap_or(u64::MAX)
}

fn sum(elsewhere: &[Presence], of: impl Fn(&Presence) -> u64) -> u64 {
    elsewhere.iter().map(of).sum()
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
