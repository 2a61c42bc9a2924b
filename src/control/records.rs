//! Questions about the collected decision logs: `/apisix/admin/audit/...`. Each is bounded, and reads beside whoever writes.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::ControlPlane;
use super::answer::Answer;
use super::listing::Query;
use crate::audit::{
    Archive, ArchiveError, Archived, Cursor, FILTERS, Filter, Order, Reach, duration,
};
use crate::rt::unix_millis;

/// Records of one answer: what is usual, and the most.
const USUAL_RECORDS: usize = 100;
const MOST_RECORDS: usize = 1000;
/// Records that a question about callers looks at.
const WHO_DID_RECORDS: u64 = 1_000_000;
/// Records of a chain that one answer judges.
const VERIFY_RECORDS: u64 = 20_000;
/// Countersignatures of one answer.
const MOST_COUNTERSIGNATURES: usize = 10_000;
/// Alarms of one answer.
const MOST_ALARMS: usize = 1000;
/// How long a question for what is new may wait, in seconds.
const MOST_WAIT: f64 = 30.0;

/// Is this a question that the decision log notes? One that goes on with an earlier one is not: a poll that waits for records
/// would make them.
pub(super) fn is_question(path: &str, query: &Query) -> bool {
    path.starts_with("/apisix/admin/audit/")
        && query.find("cursor").is_none()
        && query.find("after").is_none()
}

impl ControlPlane {
    pub(super) async fn answer_records(
        &self,
        what: &[&str],
        query: &Query,
    ) -> Result<Answer, Answer> {
        let Some(archive) = self.archive.clone() else {
            let text = "decision logs are not collected here: see the setting control.audit";
            return Err(Answer::error(StatusCode::NOT_FOUND, text));
        };
        match what {
            ["records"] => records(archive, query).await,
            ["tail"] => tail(archive, query).await,
            ["who-did"] => who_did(archive, query).await,
            ["chains"] => {
                only(query, &[])?;
                Ok(Answer::ok(json!({ "chains": archive.chains(), "bytes": archive.bytes() })))
            }
            ["alarms"] => {
                only(query, &[])?;
                let alarms = read(move || archive.alarms(MOST_ALARMS)).await?;
                Ok(Answer::ok(json!({ "alarms": alarms })))
            }
            ["verify"] => {
                only(query, &["chain", "after"])?;
                let (chain, after) = (chain(query)?, number(query, "after")?.unwrap_or(0));
                let report = read(move || archive.verify(chain, after, VERIFY_RECORDS)).await?;
                Ok(Answer::ok(json!(report)))
            }
            ["countersignatures"] => countersignatures(archive, query).await,
            _ => Err(Answer::error(StatusCode::NOT_FOUND, "not found")),
        }
    }
}

async fn records(archive: Archive, query: &Query) -> Result<Answer, Answer> {
    let filter = filter(query, &["limit", "cursor", "order", "lines"])?;
    let cursor = query.find("cursor").map(str::parse::<Cursor>).transpose();
    let cursor = cursor.map_err(Answer::bad)?;
    let order = match query.find("order") {
        None | Some("newest") => Order::Newest,
        Some("oldest") => Order::Oldest,
        Some(other) => {
            return Err(Answer::bad(format!("order: {other:?}; expected newest or oldest")));
        }
    };
    let (reach, lines) = (reach(query)?, lines(query)?);
    let page = read(move || archive.page(&filter, order, cursor, reach)).await?;
    Ok(Answer::ok(json!({
        "records": page.records.iter().map(|one| shown(one, lines)).collect::<Vec<_>>(),
        "cursor": page.cursor.map(|cursor| cursor.to_string()),
        "examined": page.examined,
    })))
}

/// What came behind the record `after`; waits for it, at most `wait` seconds.
async fn tail(archive: Archive, query: &Query) -> Result<Answer, Answer> {
    let filter = filter(query, &["limit", "after", "wait", "lines"])?;
    let (reach, lines) = (reach(query)?, lines(query)?);
    let wait: f64 = match query.find("wait").unwrap_or("0").parse() {
        Ok(wait) if (0.0..=MOST_WAIT).contains(&wait) => wait,
        _ => return Err(Answer::bad(format!("wait: expected 0 to {MOST_WAIT} seconds"))),
    };
    let mut newest = archive.newest();
    let Some(mut after) = number(query, "after")? else {
        // Where it begins: at the end.
        let next = newest.borrow().saturating_sub(1);
        return Ok(Answer::ok(json!({ "records": [], "next": next })));
    };
    let until = tokio::time::Instant::now() + Duration::from_secs_f64(wait);
    loop {
        newest.borrow_and_update();
        let (asked, filter, from) = (archive.clone(), filter.clone(), after);
        let (found, next) = read(move || asked.behind(from, &filter, reach)).await?;
        let is_over = tokio::time::Instant::now() >= until;
        let went_on = next > after;
        after = next;
        if !found.is_empty() || is_over {
            let found: Vec<Value> = found.iter().map(|one| shown(one, lines)).collect();
            return Ok(Answer::ok(json!({ "records": found, "next": after })));
        }
        if !went_on {
            let _ = tokio::time::timeout_at(until, newest.changed()).await;
        }
    }
}

async fn who_did(archive: Archive, query: &Query) -> Result<Answer, Answer> {
    let mut filter = filter(query, &["service", "since"])?;
    let service = query.find("service");
    let Some(service) = service.filter(|service| !service.is_empty()) else {
        let text = "service: missing; expected the SPIFFE ID of a workload, or the end of its path";
        return Err(Answer::bad(text));
    };
    filter.dst = Some(service.to_owned());
    if let Some(since) = query.find("since") {
        if duration(since).is_none() {
            return Err(Answer::bad(format!("since: {since:?}; expected a time as 30m, 1h, 7d")));
        }
        filter.set("from", since, unix_millis()).map_err(Answer::bad)?;
    }
    let answer = read(move || archive.who_did(&filter, WHO_DID_RECORDS)).await?;
    Ok(Answer::ok(json!(answer)))
}

async fn countersignatures(archive: Archive, query: &Query) -> Result<Answer, Answer> {
    only(query, &["chain", "after", "limit"])?;
    let (chain, after) = (chain(query)?, number(query, "after")?.unwrap_or(0));
    let limit = number(query, "limit")?.and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.unwrap_or(MOST_COUNTERSIGNATURES).min(MOST_COUNTERSIGNATURES);
    let found = read(move || {
        let made = archive.countersignatures(chain, after, limit)?;
        let mut certificates = serde_json::Map::new();
        for one in &made {
            let sha256 = &one.certificate_sha256;
            if !certificates.contains_key(sha256)
                && let Some(chain) = archive.certificates(sha256)
            {
                certificates.insert(sha256.clone(), json!(chain));
            }
        }
        Ok(json!({ "countersignatures": made, "certificates": certificates }))
    });
    Ok(Answer::ok(found.await?))
}

fn shown(one: &Archived, as_line: bool) -> Value {
    let Archived { number, chain, origin, node, line } = one;
    let mut shown = json!({ "number": number, "chain": chain, "origin": origin, "node": node });
    match serde_json::from_str::<Value>(line) {
        Ok(record) if !as_line => shown["record"] = record,
        _ => shown["line"] = json!(line),
    }
    shown
}

fn filter(query: &Query, others: &[&str]) -> Result<Filter, Answer> {
    let mut filter = Filter::default();
    let now = unix_millis();
    for (name, value) in query.pairs() {
        if name == "api_key" || others.contains(&name) {
            continue;
        }
        filter.set(name, value, now).map_err(Answer::bad)?;
    }
    Ok(filter)
}

/// No other parameters than these.
fn only(query: &Query, known: &[&str]) -> Result<(), Answer> {
    let stranger = query.pairs().find(|(name, _)| *name != "api_key" && !known.contains(name));
    match stranger {
        None => Ok(()),
        Some((name, _)) if FILTERS.contains(&name) => {
            Err(Answer::bad(format!("{name}: there is nothing to filter here")))
        }
        Some((name, _)) => Err(Answer::bad(format!("{name}: no parameter of this question"))),
    }
}

fn number(query: &Query, name: &str) -> Result<Option<u64>, Answer> {
    let Some(text) = query.find(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Answer::bad(format!("{name}: {text:?}; expected a number")))
}

fn chain(query: &Query) -> Result<u32, Answer> {
    let chain = number(query, "chain")?.and_then(|chain| u32::try_from(chain).ok());
    chain.ok_or_else(|| Answer::bad("chain: missing; expected a number of /audit/chains"))
}

fn reach(query: &Query) -> Result<Reach, Answer> {
    let records = match number(query, "limit")? {
        None => USUAL_RECORDS,
        Some(limit) => match usize::try_from(limit) {
            Ok(limit @ 1..=MOST_RECORDS) => limit,
            _ => return Err(Answer::bad(format!("limit: {limit}; expected 1 to {MOST_RECORDS}"))),
        },
    };
    Ok(Reach { records, ..Reach::default() })
}

fn lines(query: &Query) -> Result<bool, Answer> {
    match query.find("lines") {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(Answer::bad(format!("lines: {other:?}; expected true or false"))),
    }
}

/// Reads the archive where reading may wait.
async fn read<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, Answer> {
    let unavailable = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "the archive did not answer");
        Answer::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(ArchiveError::Question(why))) => Err(Answer::error(StatusCode::NOT_FOUND, why)),
        Ok(Err(error)) => Err(unavailable(&error)),
        Err(error) => Err(unavailable(&error)),
    }
}
