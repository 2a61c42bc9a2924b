//! `Tokens`: verifies JWT-SVIDs with the trust of the moment, and remembers the ones that were good.
//!
//! A signature costs more than all the rest of a request, and a caller shows the same token many times: what a signature has
//! proved is kept under the token's hash until the token ends or the trust changes. Audience and times are judged each time.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::jwt::{MAX_LEEWAY, token_hash};
use super::{Identity, JwtSvid, Refresh, TokenFlaw, TokenRules, Trust};
use crate::rt::{Cached, Clock, Live};

/// Beyond this many, the ones that have ended are forgotten, or else all.
const MAX_KEPT: usize = 1024;

/// The place where a worker has tokens verified.
pub struct Tokens {
    state: Mutex<State>,
    clock: Clock,
    refresh: Refresh,
}

struct State {
    identity: Cached<Identity>,
    /// What the kept tokens were proved with.
    trust: Arc<Trust>,
    proved: HashMap<[u8; 32], Arc<JwtSvid>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("kept", &self.state.lock().proved.len()).finish()
    }
}

impl Tokens {
    /// Verifies with whom `identity` trusts. `refresh` is asked for newer bundles when a key is unknown.
    pub fn new(identity: &Live<Identity>, clock: Clock, refresh: Refresh) -> Self {
        let trust = identity.load().trust.clone();
        let state = State { identity: identity.cached(), trust, proved: HashMap::new() };
        Self { state: Mutex::new(state), clock, refresh }
    }

    /// Whom the token names, if it is genuine, for us, and now. An unknown key has newer bundles fetched once (125).
    ///
    /// # Errors
    /// The rule that it breaks.
    pub async fn verify(&self, token: &str, rules: &TokenRules) -> Result<Arc<JwtSvid>, TokenFlaw> {
        let svid = match self.prove(token) {
            Err(TokenFlaw::UnknownKey { domain }) if self.refresh.ask(&domain).await => {
                self.prove(token)?
            }
            proved => proved?,
        };
        svid.judge(rules, self.clock.now())?;
        Ok(svid)
    }

    fn prove(&self, token: &str) -> Result<Arc<JwtSvid>, TokenFlaw> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let trust = &state.identity.load().trust;
        if !Arc::ptr_eq(trust, &state.trust) {
            state.trust = trust.clone();
            state.proved.clear();
        }
        let hash = token_hash(token);
        let now = self.clock.now();
        match state.proved.get(&hash) {
            Some(known) if known.expires_at.saturating_add(MAX_LEEWAY.into()) > now => {
                return Ok(known.clone());
            }
            Some(_) => drop(state.proved.remove(&hash)),
            None => {}
        }
        let svid = Arc::new(state.trust.token_verifier().prove(token)?);
        if state.proved.len() >= MAX_KEPT {
            state.proved.retain(|_, kept| kept.expires_at > now);
            if state.proved.len() >= MAX_KEPT {
                state.proved.clear();
            }
        }
        state.proved.insert(hash, svid.clone());
        Ok(svid)
    }
}
