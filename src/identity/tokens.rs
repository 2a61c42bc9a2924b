//! `Tokens`: verifies JWT-SVIDs with the trust of the moment, and remembers the ones that were good.
//!
//! A signature costs more than all the rest of a request, and a caller shows the same token many times: what a signature has
//! proved is kept under the token's hash until the token ends or the trust changes. Audience and times are judged each time.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::jwt::{MAX_LEEWAY, hash_text, token_hash};
use super::{Identity, JwtSvid, Refresh, TokenFlaw, TokenRules, Trust};
use crate::rt::{Cached, Clock, Live};

/// Beyond this many, the ones that have ended are forgotten, or else all.
const MAX_KEPT: usize = 1024;

/// A token that was refused, by what may be told of it.
#[derive(Clone, Debug)]
pub struct RefusedToken {
    /// The rule that it breaks.
    pub flaw: TokenFlaw,
    /// The start of its SHA-256, lower-case hexadecimal.
    pub hash: String,
    /// What it says, when its signature was good.
    pub svid: Option<Arc<JwtSvid>>,
}

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
    pub async fn verify(
        &self,
        token: &str,
        rules: &TokenRules,
    ) -> Result<Arc<JwtSvid>, RefusedToken> {
        let mut proved = self.prove(token);
        if let Err(TokenFlaw::UnknownKey { domain }) = &proved
            && self.refresh.ask(domain).await
        {
            proved = self.prove(token);
        }
        let refused = |flaw, svid| RefusedToken { flaw, hash: hash_text(&token_hash(token)), svid };
        let svid = proved.map_err(|flaw| refused(flaw, None))?;
        match svid.judge(rules, self.clock.now()) {
            Ok(()) => Ok(svid),
            Err(flaw) => Err(refused(flaw, Some(svid))),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::token_forge::TokenWorld;
    use crate::rt::Tasks;

    const WEB: &str = "spiffe://a.test/web";

    fn rules() -> TokenRules {
        TokenRules {
            audiences: vec!["us".into()],
            several_audiences: false,
            leeway: 0,
            max_lifetime: None,
        }
    }

    #[tokio::test]
    async fn a_good_token_is_remembered_until_it_ends_or_the_trust_changes() {
        let world = TokenWorld::new("a.test");
        let clock = Clock::fixed(Clock::system().now() + 1);
        let tokens = world.tokens_with(clock.clone(), Refresh::default());
        let token = world.token(WEB, &["us"]);
        let first = tokens.verify(&token, &rules()).await.unwrap();
        let again = tokens.verify(&token, &rules()).await.unwrap();
        assert!(Arc::ptr_eq(&first, &again), "its signature is not checked twice");

        // What was proved is who it is, and nothing about whom it is for.
        let others = TokenRules { audiences: vec!["others".into()], ..rules() };
        let refused = tokens.verify(&token, &others).await.unwrap_err();
        assert_eq!(refused.flaw, TokenFlaw::OtherAudience);
        assert_eq!(refused.hash, first.hash);
        assert_eq!(refused.svid.unwrap().id.as_str(), WEB, "its signature was good");

        // A key that is gone takes the remembered tokens along.
        world.publish(&["other"]);
        let refused = tokens.verify(&token, &rules()).await.unwrap_err();
        assert_eq!(refused.flaw.code(), "token_unknown_key");
        assert!(refused.svid.is_none());
        world.publish(&["k"]);
        assert!(tokens.verify(&token, &rules()).await.is_ok());

        clock.advance(400);
        assert_eq!(tokens.verify(&token, &rules()).await.unwrap_err().flaw, TokenFlaw::Expired);
    }

    #[tokio::test]
    async fn rule_125_an_unknown_key_has_the_bundles_fetched_once() {
        let world = Arc::new(TokenWorld::new("a.test"));
        world.publish(&["old"]);
        let (refresh, mut source) = Refresh::new();
        let (mut tasks, newer) = (Tasks::new(), world.clone());
        tasks.add(async move {
            source.asked().await;
            newer.publish(&["old", "k"]);
            source.served();
            std::future::pending::<()>().await;
        });
        let tokens = world.tokens_with(Clock::system(), refresh);
        let token = world.token(WEB, &["us"]);
        assert!(tokens.verify(&token, &rules()).await.is_ok());
        // Somebody else's unknown key: nobody looks again so soon.
        world.publish(&["old"]);
        let refused = tokens.verify(&token, &rules()).await.unwrap_err();
        assert_eq!(refused.flaw.code(), "token_unknown_key");
    }
}
