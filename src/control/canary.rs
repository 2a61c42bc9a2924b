//! Canary pushes over the Admin API: how one stands, and a person's word. `/apisix/admin/canary[/confirm|/abort|/retry]`

use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ControlPlane;
use super::access::Principal;
use super::answer::Answer;
use super::listing::Query;
use crate::model::Revision;
use crate::rt::Live;
use crate::store::{Expect, Stored};
use crate::sync::canary::{Figures, Phase, Record, state_key};

/// The header of a write that skips the canary; the argument `canary` says the same.
const HEADER: &str = "x-wardgate-canary";
/// How long a canary push's next state is asked for when others change it at the same time.
const ATTEMPTS: usize = 5;

/// What is known of canary pushes, where there are any.
pub type Canaries = Live<Figures>;

/// Does the write say that it skips the canary?
pub(super) fn skips(headers: &HeaderMap, query: &Query) -> Result<bool, Answer> {
    let header = headers.get(HEADER).map(|value| value.to_str().unwrap_or_default());
    match query.find("canary").or(header) {
        None => Ok(false),
        Some("skip") => Ok(true),
        Some(_) => Err(Answer::bad("invalid argument canary: should be skip")),
    }
}

/// A word about a certain candidate.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Word {
    /// The candidate that is meant; whichever it is, when not given.
    revision: Option<Revision>,
}

impl ControlPlane {
    /// Is this a write that goes past canaries, where there are any?
    pub(super) fn goes_past(&self, headers: &HeaderMap, query: &Query) -> bool {
        self.canaries.is_some() && matches!(skips(headers, query), Ok(true))
    }

    /// `/apisix/admin/canary/...`
    pub(super) async fn answer_canary(
        &self,
        method: &Method,
        segments: &[&str],
        body: Option<Value>,
        principal: &Principal,
    ) -> Result<Answer, Answer> {
        let Some(canaries) = &self.canaries else {
            let text = "pushes have no canaries here: see the setting control.canary";
            return Err(Answer::error(StatusCode::NOT_FOUND, text));
        };
        match (method, segments) {
            (&Method::GET, []) => Ok(Answer::ok(canaries.load().shown())),
            (&Method::POST, [verb @ ("confirm" | "abort" | "retry")]) => {
                let word = body.map_or_else(|| Ok(Word::default()), serde_json::from_value);
                let word = word.map_err(|error| Answer::bad(error.to_string()))?;
                self.say(verb, &word, &principal.name).await
            }
            _ => Err(Answer::error(StatusCode::NOT_FOUND, "not found")),
        }
    }

    async fn say(&self, verb: &str, word: &Word, who: &str) -> Result<Answer, Answer> {
        let place = state_key(&self.prefix);
        for _ in 0..ATTEMPTS {
            let stored = self.store.get(&place).await?;
            let conflict = |text: String| Answer::error(StatusCode::CONFLICT, text);
            let Some(Stored { value, modified, .. }) = stored else {
                return Err(conflict("nothing was tried yet".into()));
            };
            let record = Record::deserialize(&value).map_err(|error| {
                Answer::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            })?;
            if word.revision.is_some_and(|revision| revision != record.candidate) {
                let text = format!("revision {} is tried or stopped, no other", record.candidate);
                return Err(conflict(text));
            }
            let now = self.clock.now();
            let next = match (verb, record.phase) {
                (_, Phase::Passed) => Err("no canary push is under way or stopped"),
                ("confirm", _) => Ok(record.pass(now, "confirmed")),
                ("abort", Phase::Trying) => Ok(record.stop(now, "aborted")),
                ("abort", Phase::Stopped) => Err("it is stopped already"),
                (_, Phase::Stopped) => Ok(record.retry(now, "to be tried once more")),
                (_, Phase::Trying) => Err("it is being tried"),
            };
            let next =
                Record { by: Some(who.to_owned()), ..next.map_err(|text| conflict(text.into()))? };
            let written =
                self.store.put(&place, &json!(next), Expect::Revision(modified), None).await;
            match written {
                Err(crate::store::Error::Conflict) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    tracing::warn!(
                        verb,
                        who,
                        candidate = record.candidate,
                        "a word about a canary push"
                    );
                    return Ok(Answer::ok(json!(next)));
                }
            }
        }
        Err(crate::store::Error::Conflict.into())
    }
}
