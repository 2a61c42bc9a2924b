//! Retention: the oldest segments go whole, when there is too much or they are too old. It is told in our own log.

use redb::{ReadableTable, WriteTransaction};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::archive::Inner;
use super::error::ArchiveError;
use super::tables::{
    Alarm, CHAINS, COUNTERSIGNATURES, ChainFacts, FINDINGS, Names, SEGMENTS, Segment, TOLD,
};
use crate::audit::record::{time_text, unix_millis};
use crate::observe::CollectionRecord;

impl Inner {
    /// Drops what need not be kept any more; how many records that were. Blocks.
    pub(super) fn retire(&self, now: u64) -> Result<u64, ArchiveError> {
        let mut retired = 0;
        while let Some((number, segment)) = self.is_due(now) {
            self.drop_segment(number, &segment, now)?;
            let records = segment.end - segment.first;
            retired += records;
            let (first, last) = (time_text(segment.earliest), time_text(segment.latest));
            tracing::info!(
                records,
                first,
                last,
                "the oldest records were deleted from the archive"
            );
            if let Some(metrics) = &self.metrics {
                metrics.retired.add(records);
            }
            if let Some(lane) = &self.lane {
                let _ = lane.collection(&CollectionRecord {
                    event: "retired",
                    code: None,
                    origin: None,
                    node: None,
                    seqs: None,
                    records: Some(records),
                    detail: Some(&format!("from {first} to {last}")),
                });
            }
        }
        self.show_bytes();
        Ok(retired)
    }

    fn is_due(&self, now: u64) -> Option<(u32, Segment)> {
        let state = self.state.lock();
        let (number, segment) = state.segments.first_key_value()?;
        let bytes: u64 = state.segments.values().map(|segment| segment.bytes).sum();
        let is_too_much = bytes > self.settings.retain_bytes && state.segments.len() > 1;
        let kept_since = self.settings.retain_millis().map(|kept| now.saturating_sub(kept));
        let is_too_old =
            kept_since.is_some_and(|since| segment.latest < since) && segment.end > segment.first;
        (is_too_much || is_too_old).then_some((*number, *segment))
    }

    /// Moves the certificates that are still valid from a segment that goes into the newest one: a later seal may name them
    /// without showing them again. What has expired signs no seal any more.
    fn carry_certificates(
        &self,
        transaction: &WriteTransaction,
        from: u32,
        now: u64,
    ) -> Result<(), ArchiveError> {
        let newest = self.state.lock().segments.last_key_value().map(|(number, _)| *number);
        let Some(newest) = newest.filter(|newest| *newest != from) else { return Ok(()) };
        let (old, new) = (Names::of(from), Names::of(newest));
        let going = transaction.open_table(old.certificates()).map_err(|e| self.failed(e))?;
        let mut staying = transaction.open_table(new.certificates()).map_err(|e| self.failed(e))?;
        for row in going.iter().map_err(|e| self.failed(e))? {
            let (sha256, chain) = row.map_err(|e| self.failed(e))?;
            if is_valid(chain.value(), now) {
                staying.insert(sha256.value(), chain.value()).map_err(|e| self.failed(e))?;
            }
        }
        Ok(())
    }

    fn drop_segment(&self, number: u32, segment: &Segment, now: u64) -> Result<(), ArchiveError> {
        let names = Names::of(number);
        let mut transaction = self.database.begin_write().map_err(|e| self.failed(e))?;
        transaction.set_quick_repair(true);
        let mut changed: Vec<ChainFacts> = Vec::new();
        let mut gone = Vec::new();
        {
            let places = transaction.open_table(names.places()).map_err(|e| self.failed(e))?;
            let mut signed =
                transaction.open_table(COUNTERSIGNATURES).map_err(|e| self.failed(e))?;
            let mut chains = transaction.open_table(CHAINS).map_err(|e| self.failed(e))?;
            let all: Vec<ChainFacts> = self.state.lock().chains.values().cloned().collect();
            for mut facts in all {
                let chain = facts.chain;
                let mine = places.range((chain, 0)..=(chain, u64::MAX));
                let last = mine.map_err(|e| self.failed(e))?.next_back();
                let Some(last) = last.transpose().map_err(|e| self.failed(e))? else { continue };
                let (_, last) = last.0.value();
                let newest = facts.countersigned;
                signed
                    .retain_in((chain, 0)..=(chain, last), |(_, seq), _| seq == newest)
                    .map_err(|e| self.failed(e))?;
                facts.kept_from = last + 1;
                if facts.kept_from > facts.head_seq {
                    signed.remove((chain, newest)).map_err(|e| self.failed(e))?;
                    chains.remove(chain).map_err(|e| self.failed(e))?;
                    gone.push(chain);
                } else {
                    let json = self.json(&facts)?;
                    chains.insert(chain, &*json).map_err(|e| self.failed(e))?;
                    changed.push(facts);
                }
            }
            let mut segments = transaction.open_table(SEGMENTS).map_err(|e| self.failed(e))?;
            segments.remove(number).map_err(|e| self.failed(e))?;
        }
        transaction.delete_table(names.records()).map_err(|e| self.failed(e))?;
        transaction.delete_table(names.index()).map_err(|e| self.failed(e))?;
        transaction.delete_table(names.places()).map_err(|e| self.failed(e))?;
        self.carry_certificates(&transaction, number, now)?;
        transaction.delete_table(names.certificates()).map_err(|e| self.failed(e))?;
        self.drop_findings(&transaction, now.min(segment.latest))?;
        transaction.commit().map_err(|e| self.failed(e))?;
        let mut state = self.state.lock();
        state.segments.remove(&number);
        for facts in changed {
            state.chains.insert(facts.chain, facts);
        }
        for chain in gone {
            if let Some(facts) = state.chains.remove(&chain)
                && let Some(chains) = state.of_origin.get_mut(&(facts.origin, facts.node))
            {
                chains.retain(|known| *known != chain);
            }
        }
        state.of_origin.retain(|_, chains| !chains.is_empty());
        Ok(())
    }

    /// Findings go with the records of their time.
    fn drop_findings(
        &self,
        transaction: &WriteTransaction,
        before: u64,
    ) -> Result<(), ArchiveError> {
        let mut findings = transaction.open_table(FINDINGS).map_err(|e| self.failed(e))?;
        let mut told = transaction.open_table(TOLD).map_err(|e| self.failed(e))?;
        loop {
            let first = {
                let first = findings.first().map_err(|e| self.failed(e))?;
                first.map(|(number, json)| {
                    (number.value(), serde_json::from_slice::<Alarm>(json.value()).ok())
                })
            };
            let Some((number, alarm)) = first else { return Ok(()) };
            if let Some(alarm) = &alarm {
                if unix_millis(&alarm.time).is_none_or(|time| time >= before) {
                    return Ok(());
                }
                told.remove(&*alarm.about()).map_err(|e| self.failed(e))?;
            }
            findings.remove(number).map_err(|e| self.failed(e))?;
        }
    }
}

/// Is the leaf of this chain (JSON, base64 of DER) valid still? `now` is in milliseconds since 1970.
fn is_valid(chain: &[u8], now: u64) -> bool {
    use base64::Engine;
    let leaf = || {
        let texts: Vec<String> = serde_json::from_slice(chain).ok()?;
        let der = base64::engine::general_purpose::STANDARD.decode(texts.first()?).ok()?;
        let (_, leaf) = X509Certificate::from_der(&der).ok()?;
        u64::try_from(leaf.validity().not_after.timestamp()).ok()
    };
    leaf().is_some_and(|seconds| seconds.saturating_mul(1000) > now)
}
