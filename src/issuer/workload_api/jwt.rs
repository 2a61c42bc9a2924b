//! The JWT half of the Workload API: tokens for an audience, the keys that verify them, and verification in a caller's stead.

use std::collections::{BTreeMap, HashMap};

use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::Value;
use tonic::Status;

use super::{Sent, Subscription};
use crate::identity::workload_proto::{
    JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};
use crate::identity::{JwtAuthority, MAX_LEEWAY, SpiffeId, TokenRules, Trust, TrustBundles};
use crate::issuer::Error;

/// More audiences are no audience, and longer ones no name of anybody.
const MAX_AUDIENCES: usize = 32;
const MAX_AUDIENCE: usize = 1024;

impl Subscription {
    /// A token for each of the caller's identities, or for the one that it asks for.
    pub(super) async fn tokens(&self, asked: &JwtsvidRequest) -> Result<JwtsvidResponse, Status> {
        let audiences = &asked.audience;
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            return Err(Status::invalid_argument("audience: at least one is expected, none empty"));
        }
        if audiences.len() > MAX_AUDIENCES || audiences.iter().any(|one| one.len() > MAX_AUDIENCE) {
            return Err(Status::invalid_argument(
                "audience: at most 32 of at most 1024 bytes are expected",
            ));
        }
        let wanted: Option<SpiffeId> = match &*asked.spiffe_id {
            "" => None,
            id => Some(id.parse().map_err(|why| {
                Status::invalid_argument(format!("spiffe_id: it is no SPIFFE ID: {why}"))
            })?),
        };
        let mut entries = self.entitled().await?;
        entries.retain(|entry| wanted.as_ref().is_none_or(|id| *id == entry.spiffe_id));
        if entries.is_empty() {
            return Err(Status::permission_denied(
                "no identity issued: that SPIFFE ID is not yours",
            ));
        }
        let mut svids: Vec<Jwtsvid> = Vec::with_capacity(entries.len());
        for entry in entries {
            // Two entries may give one identity, by different selectors.
            if svids.iter().any(|known| known.spiffe_id == entry.spiffe_id.as_str()) {
                continue;
            }
            let issued = self.service.authority.jwt().issue(&entry.spiffe_id, audiences, entry.ttl);
            let issued = issued.map_err(|error| {
                tracing::error!(%error, id = %entry.spiffe_id, "cannot issue a JWT-SVID");
                match error {
                    Error::NoAudience => Status::invalid_argument(error.to_string()),
                    _ => Status::unavailable("the authority cannot issue now"),
                }
            })?;
            tracing::info!(
                id = %issued.id, token = issued.token_id, pid = self.caller.pid(), uid = self.caller.uid,
                "issued a JWT-SVID over the Workload API"
            );
            svids.push(Jwtsvid {
                spiffe_id: issued.id.to_string(),
                svid: issued.text.reveal().to_owned(),
                hint: entry.hint.clone(),
            });
        }
        Ok(JwtsvidResponse { svids })
    }

    /// The keys for tokens that the caller may verify, when they changed.
    pub(super) async fn next_jwt_bundles(&mut self) -> Option<Result<JwtBundlesResponse, Status>> {
        loop {
            let (entries, bundles) = match self.due().await? {
                Ok(due) => due,
                Err(status) => return Some(Err(status)),
            };
            // Other entries and other roots do not change what this stream tells.
            let told = key_sets(&bundles);
            let is_news = self.sent.as_ref().is_none_or(|sent| key_sets(&sent.bundles) != told);
            let message = is_news.then(|| {
                let keys = |keys| JwtAuthority::to_set(keys).to_string().into_bytes();
                let bundles = told.iter().map(|(domain, set)| (domain.clone(), keys(set)));
                JwtBundlesResponse { bundles: bundles.collect::<HashMap<_, _>>() }
            });
            self.sent = Some(Sent { entries, bundles, renew_at: None });
            if let Some(message) = message {
                return Some(Ok(message));
            }
        }
    }

    /// Verifies a token with what the caller may verify with.
    pub(super) async fn validate(
        &self,
        asked: &ValidateJwtsvidRequest,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        if asked.audience.is_empty() {
            return Err(Status::invalid_argument("audience: one is expected"));
        }
        let entries = self.entitled().await?;
        let rules = TokenRules {
            audiences: vec![asked.audience.clone()],
            several_audiences: true,
            leeway: LEEWAY,
            max_lifetime: None,
        };
        let trust = Trust::from(self.service.bundles(&entries));
        let proved = trust.token_verifier().prove(&asked.svid).and_then(|svid| {
            svid.judge(&rules, self.service.authority.clock().now())?;
            Ok(svid)
        });
        match proved {
            Ok(svid) => Ok(ValidateJwtsvidResponse {
                spiffe_id: svid.id.to_string(),
                claims: Some(as_struct(svid.claims)),
            }),
            Err(flaw) => {
                tracing::info!(
                    reason = flaw.code(),
                    pid = self.caller.pid(),
                    "a JWT-SVID is not valid"
                );
                Err(Status::invalid_argument(format!("{flaw}")))
            }
        }
    }
}

/// Clocks of other trust domains' issuers may differ from ours.
const LEEWAY: u8 = 10;
const _: () = assert!(LEEWAY <= MAX_LEEWAY);

/// By the trust domain's SPIFFE ID. A domain without such keys is not in it.
fn key_sets(bundles: &TrustBundles) -> BTreeMap<String, &[JwtAuthority]> {
    bundles
        .iter()
        .filter(|bundle| !bundle.jwt_authorities.is_empty())
        .map(|bundle| (bundle.domain.id().to_string(), &*bundle.jwt_authorities))
        .collect()
}

fn as_struct(claims: serde_json::Map<String, Value>) -> Struct {
    Struct { fields: claims.into_iter().map(|(name, value)| (name, as_value(value))).collect() }
}

fn as_value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        // A Struct knows no other numbers than these.
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Value::String(value) => Kind::StringValue(value),
        Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(as_value).collect() })
        }
        Value::Object(members) => Kind::StructValue(as_struct(members)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests;
