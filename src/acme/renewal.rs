//! `Renewal`: sees to it that there is a certificate for each set of names, and a newer one in time.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{Account, ExternalAccountKey, NewAccount};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::mpsc;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::folder::{Folder, KeptAccount, Pair, Shown, Turn, short_hash};
use super::order::{self, Answering};
use super::reports::Failed;
use super::settings::Plan;
use super::transport::Transport;
use super::{AcmeSettings, Error, Report, Reports};
use crate::model::Redacted;
use crate::mtls::{Challenges, PublicCertificate};
use crate::observe::{Counter, MetricKind, Registry};
use crate::rt::{Backoff, Clock, causes};

/// A certificate that an authority has given, newly or before the last restart.
#[derive(Debug)]
pub struct Obtained {
    /// Its id among the `ssls`: `acme.` and a name of its own.
    pub id: String,
    /// Its names.
    pub domains: Vec<String>,
    /// The chain as PEM, leaf first.
    pub chain: String,
    /// The private key as PEM.
    pub key: Redacted<String>,
}

/// Obtains and renews certificates.
pub struct Renewal {
    settings: AcmeSettings,
    plan: Plan,
    folder: Folder,
    transport: Transport,
    external: Option<Zeroizing<Vec<u8>>>,
    challenges: Challenges,
    reports: Reports,
    clock: Clock,
    issued: Arc<Counter>,
    failed: Arc<Counter>,
    account: Option<Account>,
}

/// How often is looked at what is due: by the wall clock, which may be set and may have slept.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest pause between two orders that fail.
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);

/// One certificate that is wanted.
struct Wanted {
    id: String,
    domains: Vec<String>,
    held: Option<Pair>,
    not_after: Option<i64>,
    due: i64,
    /// How much before its time it is renewed, so that a fleet does not ask at once.
    spread: f64,
    backoff: Backoff,
}

impl Renewal {
    /// Checks the settings, reads the files that they name, and opens the folder, `folder` where the settings name none.
    /// `doors` are those for plain HTTP and for TLS.
    ///
    /// # Errors
    /// A setting makes no sense, or a file cannot be used; the error names it.
    pub fn new(
        settings: &AcmeSettings,
        folder: &Path,
        doors: (bool, bool),
        (challenges, reports): (Challenges, Reports),
        registry: &Registry,
        clock: Clock,
    ) -> Result<Self, Error> {
        let plan = settings.plan(doors.0, doors.1)?;
        let authorities = match &settings.ca {
            None => None,
            Some(path) => Some(authorities(path)?),
        };
        let external = settings.external_account.as_ref().map(|one| external_key(&one.key_file));
        let metric = "wardgate_acme_orders_total";
        registry.describe(metric, MetricKind::Counter, "Certificates ordered by ACME, by outcome.");
        let counter = |outcome| registry.counter(metric, &[("outcome", outcome)]);
        Ok(Self {
            folder: Folder::open(
                settings.folder.as_deref().unwrap_or(folder),
                &settings.directory,
            )?,
            settings: settings.clone(),
            plan,
            transport: Transport::trusting(authorities),
            external: external.transpose()?,
            challenges,
            reports,
            clock,
            issued: counter("issued"),
            failed: counter("failed"),
            account: None,
        })
    }

    /// Runs for ever. What was kept comes first, then whatever is obtained.
    pub async fn run(mut self, out: mpsc::Sender<Obtained>) {
        let (folder, challenges) = (self.folder.clone(), self.challenges.clone());
        let is_shared = self.is_shared();
        let answers = async {
            if is_shared {
                answer_for_others(&folder, &challenges).await;
            }
        };
        tokio::join!(answers, self.renew(out));
    }

    /// Do others have the same folder?
    fn is_shared(&self) -> bool {
        self.settings.folder.is_some()
    }

    async fn renew(&mut self, out: mpsc::Sender<Obtained>) {
        let now = self.clock.now();
        let first = Duration::from_secs(self.settings.retry_seconds);
        let plan = self.plan.certificates.iter();
        let mut wanted: Vec<Wanted> = plan
            .map(|domains| Wanted {
                id: format!("acme.{}", short_hash(&domains.join(" "))),
                domains: domains.clone(),
                held: None,
                not_after: None,
                due: now,
                spread: fastrand::f64(),
                backoff: Backoff::new(first, LONGEST_PAUSE.max(first)),
            })
            .collect();
        let mut is_first = true;
        loop {
            for one in &mut wanted {
                // Another ingress of the folder may have renewed it.
                if (is_first || self.is_shared()) && self.take_kept(one) {
                    self.hand_on(one, &out).await;
                }
                if one.due <= self.clock.now() {
                    self.order(one, &out).await;
                }
                self.report(one, None);
            }
            is_first = false;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Tells the status port how it stands; what is known of a failure stays until the next order.
    fn report(&self, one: &Wanted, failed: Option<Failed>) {
        self.reports.replace(&one.id, |before| Report {
            domains: one.domains.clone(),
            not_after: one.not_after,
            due: one.due,
            failed: failed.or_else(|| before.and_then(|before| before.failed)),
        });
    }

    /// Takes what lies in the folder where that is new and can be used.
    fn take_kept(&self, one: &mut Wanted) -> bool {
        let kept = self.folder.pair(&one.domains).unwrap_or_else(|error| {
            tracing::error!("{}", causes(&error));
            None
        });
        let Some(pair) = kept.filter(|kept| one.held.as_ref() != Some(kept)) else { return false };
        match life(&pair, &one.domains) {
            Ok((_, not_after)) if not_after <= self.clock.now() => false,
            Ok(life) => {
                one.take(pair, life);
                true
            }
            Err(error) => {
                let domains = one.domains.join(" ");
                tracing::error!(domains, "the kept certificate is not used: {}", causes(&error));
                false
            }
        }
    }

    async fn hand_on(&self, one: &Wanted, out: &mpsc::Sender<Obtained>) {
        let Some(pair) = &one.held else { return };
        let obtained = Obtained {
            id: one.id.clone(),
            domains: one.domains.clone(),
            chain: pair.chain.clone(),
            key: Redacted::new(pair.key.to_string()),
        };
        // Whoever took these is gone only with the process.
        let _ = out.send(obtained).await;
    }

    async fn order(&mut self, one: &mut Wanted, out: &mpsc::Sender<Obtained>) {
        let domains = one.domains.join(" ");
        match self.ordered(one).await {
            Ok(()) => {
                self.issued.increment();
                one.backoff.reset();
                let not_after = one.not_after.unwrap_or_default();
                tracing::info!(domains, not_after, "the authority has given a certificate");
                self.reports.replace(&one.id, |_| Report::default());
                self.hand_on(one, out).await;
            }
            Err(error) => {
                self.failed.increment();
                let pause = one.backoff.next().as_secs().max(1);
                one.due = self.clock.now() + i64::try_from(pause).unwrap_or(i64::MAX / 2);
                let problem = error.problem().map(|problem| problem.kind.as_str());
                tracing::warn!(
                    domains,
                    problem,
                    next_try_seconds = pause,
                    "no certificate by ACME: {}",
                    causes(&error)
                );
                self.report(one, Some(Failed::from(&error)));
            }
        }
    }

    async fn ordered(&mut self, one: &mut Wanted) -> Result<(), Error> {
        let _turn = self.turn().await?;
        // While we waited for our turn, somebody may have done it.
        if self.is_shared() && self.take_kept(one) && one.due > self.clock.now() {
            return Ok(());
        }
        let mut obtained = self.obtain(&one.domains).await;
        let is_unknown = |error: &Error| {
            let problem = error.problem();
            problem.is_some_and(|problem| problem.kind.ends_with(":accountDoesNotExist"))
        };
        if obtained.as_ref().is_err_and(is_unknown) {
            tracing::warn!("the authority does not know our account; a new one is made");
            self.account = None;
            self.folder.forget_account();
            obtained = self.obtain(&one.domains).await;
        }
        let pair = obtained?;
        let life = life(&pair, &one.domains)?;
        if let Err(error) = self.folder.keep_pair(&one.domains, &pair) {
            // It serves as long as the process lives.
            tracing::error!("the certificate cannot be kept: {}", causes(&error));
        }
        one.take(pair, life);
        Ok(())
    }

    async fn turn(&self) -> Result<Option<Turn>, Error> {
        if !self.is_shared() {
            return Ok(None);
        }
        loop {
            if let Some(turn) = self.folder.turn()? {
                return Ok(Some(turn));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn obtain(&mut self, domains: &[String]) -> Result<Pair, Error> {
        let account = self.account().await?;
        let answering = Answering {
            kinds: &self.plan.challenges,
            challenges: &self.challenges,
            others: self.is_shared().then_some((&self.folder, LOOK_EVERY * 2)),
        };
        order::obtain(&account, domains, &answering).await
    }

    /// Our account with the authority: the one of before, or a new one.
    async fn account(&mut self) -> Result<Account, Error> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let contacts: Vec<&str> = self.settings.contacts.iter().map(String::as_str).collect();
        let builder = || Account::builder_with_http(Box::new(self.transport.clone()));
        let account = match self.folder.account()? {
            Some(kept) => {
                let is_same = kept.contacts == self.settings.contacts;
                let account = builder().from_credentials(kept.credentials).await?;
                if !is_same {
                    account.update_contacts(&contacts).await?;
                    if let Some(kept) = self.folder.account()? {
                        let contacts = self.settings.contacts.clone();
                        self.folder.keep_account(&KeptAccount { contacts, ..kept })?;
                    }
                }
                account
            }
            None => {
                let external = self.settings.external_account.as_ref().zip(self.external.as_ref());
                let external = external
                    .map(|(settings, key)| ExternalAccountKey::new(settings.key_id.clone(), key));
                let new = NewAccount {
                    contact: &contacts,
                    terms_of_service_agreed: self.settings.agree_to_terms,
                    only_return_existing: false,
                };
                let directory = self.settings.directory.clone();
                let (account, credentials) =
                    builder().create(&new, directory, external.as_ref()).await?;
                let contacts = self.settings.contacts.clone();
                self.folder.keep_account(&KeptAccount { contacts, credentials })?;
                tracing::info!(account = account.id(), "the authority has made us an account");
                account
            }
        };
        self.account = Some(account.clone());
        Ok(account)
    }
}

impl Wanted {
    fn take(&mut self, pair: Pair, (not_before, not_after): (i64, i64)) {
        self.held = Some(pair);
        self.not_after = Some(not_after);
        self.due = due(not_before, not_after, self.spread);
    }
}

/// When a third of its life is left, up to a fifteenth of its life earlier.
fn due(not_before: i64, not_after: i64, spread: f64) -> i64 {
    let life = (not_after - not_before).max(0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "seconds")]
    let earlier = (life as f64 * spread.clamp(0.0, 1.0) / 15.0) as i64;
    not_after - life / 3 - earlier
}

/// From when to when it holds, if it can be served for these names at all.
fn life(pair: &Pair, domains: &[String]) -> Result<(i64, i64), Error> {
    let made = PublicCertificate::from_pem(domains, pair.chain.as_bytes(), pair.key.as_bytes())
        .map_err(Error::Unusable)?;
    let leaf = CertificateDer::from_pem_slice(pair.chain.as_bytes()).ok();
    let parsed = leaf.as_ref().and_then(|leaf| X509Certificate::from_der(leaf).ok());
    let begin = parsed.map_or(made.not_after(), |(_, leaf)| leaf.validity().not_before.timestamp());
    Ok((begin, made.not_after()))
}

/// Gives the answers that any ingress of the folder wants given, for ever.
async fn answer_for_others(folder: &Folder, challenges: &Challenges) {
    let mut given: HashSet<Shown> = HashSet::new();
    loop {
        let wanted: HashSet<Shown> = folder.shown().into_iter().collect();
        if wanted != given {
            for shown in given.difference(&wanted) {
                order::withdraw(challenges, shown);
            }
            for shown in &wanted {
                if let Err(error) = order::offer(challenges, shown) {
                    tracing::warn!("{}", causes(&error));
                }
            }
            given = wanted;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let text = std::fs::read(path).map_err(file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(file(std::io::Error::other("there is no PEM certificate in it"))),
        Err(error) => Err(file(std::io::Error::other(error))),
    }
}

/// Authorities hand it out in base64url; some in base64, or padded.
fn external_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(file)?;
    let text = text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_");
    let text = Zeroizing::new(text);
    match URL_SAFE_NO_PAD.decode(text.as_bytes()) {
        Ok(key) if !key.is_empty() => Ok(Zeroizing::new(key)),
        _ => Err(file(std::io::Error::other("expected a key in base64url"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_life_is_left() {
        assert_eq!(due(0, 900, 0.0), 600);
        assert_eq!(due(0, 900, 1.0), 540);
        assert_eq!(due(1000, 1900, 0.5), 1570);
        assert_eq!(due(900, 0, 0.5), 0, "whatever a broken authority writes");
    }
}
