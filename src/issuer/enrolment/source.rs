//! Identity source: an issuer on another machine. Enrols once, renews with the SVID itself, follows the trust, and begins a
//! restart with what is on disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Enrolled, Following, IssuerClient, issuer_id};
use super::key::new_key;
use super::message::TrustNews;
use super::settings::EnrolSettings;
use super::state::{Kept, StateFile};
use crate::identity::{Identity, IdentitySource, Trust, TrustDomain, renew_after};
use crate::issuer::Error;
use crate::issuer::source::spread;
use crate::mtls::Anchor;
use crate::rt::{Backoff, Clock, Live, Publisher, Tasks, causes};

/// How long to wait when the issuer has said that we get nothing.
const LONG_PAUSE: Duration = Duration::from_secs(30);

/// An identity that an issuer on another machine keeps current. The renewal ends when this is dropped.
#[derive(Debug)]
pub struct EnrolSource {
    live: Live<Identity>,
    _renewal: Tasks,
}

impl EnrolSource {
    /// Begins with the identity of `domain` that is kept in `state`, or enrols.
    ///
    /// # Errors
    /// A setting makes no sense, `state` cannot be used, or no valid identity comes within the time of the settings.
    pub async fn start(
        settings: EnrolSettings,
        domain: TrustDomain,
        state: &Path,
        clock: Clock,
    ) -> Result<Self, Error> {
        settings.check()?;
        let within = Duration::from_secs(settings.first_within_seconds);
        let address = settings.issuer.clone();
        let enrolment = Enrolment {
            client: IssuerClient::new(&settings.issuer, &issuer_id(&domain)),
            domain,
            file: StateFile::new(state.to_owned()),
            settings,
            clock,
        };
        let mut last = None;
        let first = tokio::time::timeout(within, enrolment.first(&mut last)).await;
        let (held, identity) = match first {
            Ok(found) => found?,
            Err(_) => return Err(Error::NotInTime { address, within, source: last.map(Box::new) }),
        };
        let (publisher, live) = Publisher::new(identity);
        let mut renewal = Tasks::new();
        renewal.add(enrolment.follow(held, publisher));
        Ok(Self { live, _renewal: renewal })
    }

    /// The identity that is kept in `state`, if there is one. The issuer is not asked: looking must not use up a token.
    ///
    /// # Errors
    /// It is damaged or over.
    pub fn kept(state: &Path, domain: &TrustDomain, clock: &Clock) -> Result<Option<Self>, Error> {
        let file = StateFile::new(state.to_owned());
        let Some(kept) = file.look(domain)? else { return Ok(None) };
        let trust = kept.enrolled.trust.trust(domain)?;
        let identity = Identity::successor(None, kept.enrolled.svid, trust, clock.now())?;
        Ok(Some(Self { live: Live::fixed(identity), _renewal: Tasks::new() }))
    }
}

impl IdentitySource for EnrolSource {
    fn identity(&self) -> Live<Identity> {
        self.live.clone()
    }
}

/// What every attempt needs.
struct Enrolment {
    settings: EnrolSettings,
    client: IssuerClient,
    domain: TrustDomain,
    file: StateFile,
    clock: Clock,
}

/// What we have from the issuer.
struct Held {
    enrolled: Enrolled,
    /// Where trust began when it was given.
    beginning: String,
    renew_at: Instant,
}

impl Held {
    fn new(enrolled: Enrolled, beginning: String, now: i64) -> Self {
        let renew_at = renew_at(&enrolled, now);
        Self { enrolled, beginning, renew_at }
    }
}

/// At half of the life that the issuer announced, with jitter. An SVID from the disk has lived a part of it already.
fn renew_at(enrolled: &Enrolled, now: i64) -> Instant {
    let left = Duration::from_secs(u64::try_from(enrolled.svid.seconds_left(now)).unwrap_or(0));
    let lived = enrolled.lifetime.saturating_sub(left);
    let after = renew_after(enrolled.lifetime, fastrand::f64()).saturating_sub(lived);
    Instant::now() + after.max(Duration::from_millis(200))
}

impl Enrolment {
    /// Tries until there is an identity, or until trying again cannot help.
    async fn first(&self, last: &mut Option<Error>) -> Result<(Held, Identity), Error> {
        let mut backoff = pauses();
        loop {
            match self.once().await {
                Ok(found) => return Ok(found),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(error = causes(&error), "waiting for an identity");
                    *last = Some(error);
                }
            }
            backoff.wait().await;
        }
    }

    async fn once(&self) -> Result<(Held, Identity), Error> {
        let (enrolled, beginning) = match self.kept().await? {
            Some(kept) => kept,
            None => self.enrolled().await?,
        };
        let identity = self.identity(None, &enrolled)?;
        self.file.save(&beginning, &enrolled)?;
        Ok((Held::new(enrolled, beginning, self.clock.now()), identity))
    }

    /// What is on disk, as far as it can be used.
    async fn kept(&self) -> Result<Option<(Enrolled, String)>, Error> {
        let Some(Kept { beginning: began, enrolled }) = self.file.load(&self.domain)? else {
            return Ok(None);
        };
        if enrolled.svid.seconds_left(self.clock.now()) <= 0 {
            return Ok(None);
        }
        let beginning = self.settings.beginning(&self.domain).await?;
        if began == beginning.sha256 {
            tracing::info!(id = %enrolled.svid.id, serial = %enrolled.svid.serial, "beginning with the identity on disk");
            return Ok(Some((enrolled, began)));
        }
        // The operator changed where trust begins: what was trusted by the old beginning counts no more.
        tracing::warn!("the bundle of the settings is another than before: renewing by it");
        match self.renewed(&beginning.anchor, &enrolled).await {
            Ok(enrolled) => Ok(Some((enrolled, beginning.sha256))),
            // Another authority may not know the SVID any more.
            Err(error) => {
                tracing::warn!(
                    error = causes(&error),
                    "the identity on disk is not renewed; enrolling anew"
                );
                Ok(None)
            }
        }
    }

    /// Enrols by the proof of the settings. The key is on disk before the issuer sees it: the answer may get lost, and a join
    /// token is good for one key.
    async fn enrolled(&self) -> Result<(Enrolled, String), Error> {
        let beginning = self.settings.beginning(&self.domain).await?;
        let proof = self.settings.proof().await?;
        let (key, wanted) = (self.file.asking()?, self.settings.wanted()?);
        let enrolled = self.client.enrol(&beginning.anchor, &proof, &key, wanted.as_ref()).await?;
        tracing::info!(id = %enrolled.svid.id, serial = %enrolled.svid.serial, "enrolled with the issuer");
        Ok((enrolled, beginning.sha256))
    }

    /// Renews by the SVID, and shows the proof again where that can be done.
    async fn renewed(&self, anchor: &Anchor, current: &Enrolled) -> Result<Enrolled, Error> {
        let proof = match self.settings.is_proof_lasting() {
            true => Some(self.settings.proof().await?),
            false => None,
        };
        let key = new_key()?;
        self.client.renew(anchor, &current.svid, &current.ticket, proof.as_ref(), &key).await
    }

    fn identity(
        &self,
        previous: Option<&Identity>,
        enrolled: &Enrolled,
    ) -> Result<Identity, Error> {
        if let Some(wanted) = self.settings.wanted()?
            && wanted != enrolled.svid.id
        {
            let (found, expected) = (enrolled.svid.id.to_string(), wanted.to_string());
            return Err(crate::identity::Error::OtherId { found, expected }.into());
        }
        let trust = enrolled.trust.trust(&self.domain)?;
        let svid = enrolled.svid.clone();
        Ok(Identity::successor(previous, svid, trust, self.clock.now())?)
    }

    /// How the issuer is known now: by what it told us, which it keeps current.
    fn anchor(&self, held: &Held) -> Result<Anchor, Error> {
        let trust: Trust = held.enrolled.trust.trust(&self.domain)?;
        Ok(Anchor::Trust(Arc::new(trust)))
    }

    /// Renews in time and follows the trust, for ever.
    async fn follow(self, mut held: Held, publisher: Publisher<Identity>) {
        let (mut renewing, mut opening) = (renewals(), pauses());
        let mut open_at = Instant::now();
        let mut following: Option<Following> = None;
        loop {
            let news = async {
                match &mut following {
                    Some(following) => following.next().await,
                    None => {
                        tokio::time::sleep_until(open_at).await;
                        Ok(None)
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(held.renew_at) => {
                    match self.next(&mut held, &publisher).await {
                        Ok(()) => {
                            renewing.reset();
                            // The stream lives as long as the SVID that opened it.
                            (following, open_at) = (None, Instant::now());
                        }
                        Err(error) => {
                            let denied = self.lost(&error, &publisher);
                            let pause = if denied { LONG_PAUSE } else { renewing.next() };
                            held.renew_at = Instant::now() + pause;
                        }
                    }
                }
                news = news => match news {
                    Ok(Some(news)) => {
                        opening.reset();
                        self.take(news, &mut held, &publisher);
                    }
                    Ok(None) if following.is_some() => {
                        following = None;
                        open_at = Instant::now() + opening.next();
                    }
                    Ok(None) => match self.open(&held).await {
                        Ok(opened) => following = Some(opened),
                        Err(error) => {
                            let denied = self.lost(&error, &publisher);
                            open_at = Instant::now() + if denied { LONG_PAUSE } else { opening.next() };
                        }
                    },
                    Err(error) => {
                        following = None;
                        let denied = self.lost(&error, &publisher);
                        open_at = Instant::now() + if denied { LONG_PAUSE } else { opening.next() };
                    }
                },
            }
        }
    }

    async fn open(&self, held: &Held) -> Result<Following, Error> {
        let anchor = self.anchor(held)?;
        self.client.watch(&anchor, &held.enrolled.svid, &held.enrolled.ticket).await
    }

    /// The next SVID: by the current one while it lives; by the proof of the settings when it is over, and when it is not taken
    /// any more and the proof can be shown again.
    async fn next(&self, held: &mut Held, publisher: &Publisher<Identity>) -> Result<(), Error> {
        let is_over = held.enrolled.svid.seconds_left(self.clock.now()) <= 0;
        let renewed = match is_over {
            true => None,
            false => Some(self.renewed(&self.anchor(held)?, &held.enrolled).await),
        };
        let (enrolled, beginning) = match renewed {
            Some(Ok(enrolled)) => (enrolled, held.beginning.clone()),
            Some(Err(error @ Error::IssuerDenied { .. })) => return Err(error),
            Some(Err(error)) if !self.settings.is_proof_lasting() => return Err(error),
            // The SVID is over, or may be revoked: who can still prove itself begins anew.
            _ => self.enrolled().await?,
        };
        let current = publisher.live().load();
        let identity = self.identity(Some(&current), &enrolled)?;
        // What is on disk serves a restart only: a full disk takes nothing away from who is running.
        if let Err(error) = self.file.save(&beginning, &enrolled) {
            tracing::error!(error = causes(&error), "the renewed identity is only in memory");
        }
        tracing::info!(id = %identity.id(), serial = %identity.svid.serial, "identity renewed by the issuer");
        *held = Held::new(enrolled, beginning, self.clock.now());
        publisher.set(identity);
        Ok(())
    }

    fn take(&self, mut news: TrustNews, held: &mut Held, publisher: &Publisher<Identity>) {
        if news.renew_soon {
            // A fleet does not renew at once.
            let soon = Instant::now() + spread(held.enrolled.lifetime);
            held.renew_at = held.renew_at.min(soon);
        }
        news.renew_soon = false;
        let current = publisher.live().load();
        if news == held.enrolled.trust && !current.is_withdrawn() {
            return;
        }
        let before = std::mem::replace(&mut held.enrolled.trust, news);
        match self.identity(Some(&current), &held.enrolled) {
            Ok(identity) => {
                if let Err(error) = self.file.save(&held.beginning, &held.enrolled) {
                    tracing::error!(error = causes(&error), "the new bundles are only in memory");
                }
                publisher.set(identity);
            }
            Err(error) => {
                held.enrolled.trust = before;
                tracing::error!(
                    error = causes(&error),
                    "the issuer's bundles refused; keeping those in use"
                );
            }
        }
    }

    /// Did the issuer take the identity away? That is a statement about us; everything else is not.
    fn lost(&self, error: &Error, publisher: &Publisher<Identity>) -> bool {
        let denied = matches!(error, Error::IssuerDenied { .. });
        let current = publisher.live().load();
        let error = causes(error);
        if denied && !current.is_withdrawn() {
            tracing::error!(error, id = %current.id(), "the issuer withdrew our identity");
            publisher.set(current.withdrawn());
        } else {
            tracing::warn!(error, "the issuer gives nothing new; trying again");
        }
        denied
    }
}

fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(10))
}

fn renewals() -> Backoff {
    Backoff::new(Duration::from_millis(500), Duration::from_secs(30))
}

/// Trying again gives the same answer.
fn is_final(error: &Error) -> bool {
    matches!(error, Error::EnrolSetting { .. } | Error::KeyReadable { .. } | Error::Write { .. })
}
