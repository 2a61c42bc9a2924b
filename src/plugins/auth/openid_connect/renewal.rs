//! `Renewals`: requests that come together with tokens that are over get new ones together. A refresh token is often good for once,
//! and a provider that sees one twice takes it for stolen.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::party::Told;
use crate::plugins::auth::provider::Unavailable;
use crate::rt::crypto::digest::{SHA256, digest};

/// New tokens.
pub(super) struct Renewed {
    pub(super) told: Told,
    /// When the access token has to be renewed again.
    pub(super) ends: i64,
}

/// One refresh token's: empty until somebody has asked.
type Slot = Arc<tokio::sync::Mutex<Option<Option<Arc<Renewed>>>>>;

/// What refresh tokens were exchanged for just now, by their SHA-256.
#[derive(Default)]
pub(super) struct Renewals(Mutex<HashMap<[u8; 32], (Instant, Slot)>>);

/// How long a browser may go on sending what it had before.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Refresh tokens at a time; more are each asked for as they come.
const MOST: usize = 10_000;

impl Renewals {
    /// What `fetch` gives for this refresh token, which is run once however many ask. A failure is nobody's but the asker's.
    pub(super) async fn once(
        &self,
        refresh_token: &str,
        fetch: impl Future<Output = Result<Option<Renewed>, Unavailable>> + Send,
    ) -> Result<Option<Arc<Renewed>>, Unavailable> {
        let slot = self.slot(refresh_token);
        let mut known = slot.lock().await;
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let fetched = fetch.await?.map(Arc::new);
        *known = Some(fetched.clone());
        Ok(fetched)
    }

    fn slot(&self, refresh_token: &str) -> Slot {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, refresh_token.as_bytes()).as_ref());
        let now = Instant::now();
        let mut slots = self.0.lock();
        slots.retain(|_, (since, _)| now.duration_since(*since) < KEPT_FOR);
        if slots.len() >= MOST {
            return Slot::default();
        }
        slots.entry(sum).or_insert_with(|| (now, Slot::default())).1.clone()
    }
}
