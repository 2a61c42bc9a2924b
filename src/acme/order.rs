//! One order, from its names to the certificate.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeHandle, ChallengeType, Identifier, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use zeroize::Zeroizing;

use super::folder::{Folder, Pair, Showing, Shown};
use super::{ChallengeKind, Error, Problem};
use crate::mtls::Challenges;

/// How the authority is shown that names are ours.
pub(super) struct Answering<'a> {
    pub(super) kinds: &'a [ChallengeKind],
    pub(super) challenges: &'a Challenges,
    /// Where others that answer for us look, and how long it takes them.
    pub(super) others: Option<(&'a Folder, Duration)>,
}

/// How often the authority is asked whether it has finished, and how long.
const POLLS: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));

/// Obtains a certificate for these names.
pub(super) async fn obtain(
    account: &Account,
    domains: &[String],
    answering: &Answering<'_>,
) -> Result<Pair, Error> {
    let names: Vec<Identifier> = domains.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&names)).await?;
    // What is offered stays until the authority has looked.
    let offers = answer(&mut order, answering).await?;
    if order.state().status == OrderStatus::Pending {
        match order.poll_ready(&POLLS).await {
            Ok(OrderStatus::Ready) => {}
            Ok(status) => return Err(why_not(&mut order, format!("{status:?}"), None).await),
            Err(instant_acme::Error::Api(problem)) => {
                let problem = Problem::from(&problem);
                return Err(why_not(&mut order, "invalid".into(), Some(problem)).await);
            }
            Err(error) => return Err(error.into()),
        }
    }
    drop(offers);
    let key = KeyPair::generate().map_err(Error::Request)?;
    let mut params = CertificateParams::new(domains).map_err(Error::Request)?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(Error::Request)?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&POLLS).await?;
    Ok(Pair { chain, key: Zeroizing::new(key.serialize_pem()) })
}

/// Offers an answer for each name that the authority has still to see, and tells it to look.
async fn answer(order: &mut Order, answering: &Answering<'_>) -> Result<Vec<Offer>, Error> {
    let mut offers = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let domain = authorization.identifier().to_string();
        match authorization.status {
            // The authority remembers it from an earlier order.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => return Err(Error::Order { status: format!("{other:?} for {domain}") }),
        }
        let offered = |kind: &ChallengeKind| {
            authorization.challenges.iter().any(|one| one.r#type == type_of(*kind))
        };
        let kind = answering.kinds.iter().copied().find(offered);
        let handle = kind.and_then(|kind| Some((kind, authorization.challenge(type_of(kind))?)));
        let Some((kind, mut handle)) = handle else {
            let wanted: Vec<&str> = answering.kinds.iter().map(|kind| kind.name()).collect();
            return Err(Error::NoChallenge { domain, wanted: wanted.join(", ") });
        };
        offers.push(Offer::make(answering, kind, &domain, &handle)?);
        if let Some((_, wait)) = answering.others {
            tokio::time::sleep(wait).await;
        }
        handle.set_ready().await?;
    }
    Ok(offers)
}

const fn type_of(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// What an authority found at the first name of an order that it did not believe to be ours.
async fn why_not(order: &mut Order, status: String, problem: Option<Problem>) -> Error {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let domain = authorization.identifier().to_string();
        for challenge in &authorization.challenges {
            let kind = [ChallengeKind::Http01, ChallengeKind::TlsAlpn01];
            let kind = kind.into_iter().find(|kind| type_of(*kind) == challenge.r#type);
            if let (Some(error), Some(kind)) = (&challenge.error, kind) {
                let problem = Problem::from(error);
                return Error::NotValidated { domain, challenge: kind.name(), problem };
            }
        }
    }
    match problem {
        Some(problem) => Error::Refused(problem),
        None => Error::Order { status },
    }
}

/// An answer that is given as long as this lives.
struct Offer {
    challenges: Challenges,
    shown: Shown,
    _others: Option<Showing>,
}

impl Offer {
    fn make(
        answering: &Answering<'_>,
        kind: ChallengeKind,
        domain: &str,
        challenge: &ChallengeHandle<'_>,
    ) -> Result<Self, Error> {
        let answer = challenge.key_authorization();
        let shown = match kind {
            ChallengeKind::Http01 => Shown::Http {
                token: challenge.token.clone(),
                key_authorization: answer.as_str().to_owned(),
            },
            ChallengeKind::TlsAlpn01 => {
                let mut digest = [0; 32];
                digest.copy_from_slice(answer.digest().as_ref());
                Shown::Tls { domain: domain.to_owned(), digest }
            }
        };
        offer(answering.challenges, &shown)?;
        let others = answering.others.map(|(folder, _)| folder.show(&shown)).transpose()?;
        Ok(Self { challenges: answering.challenges.clone(), shown, _others: others })
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        withdraw(&self.challenges, &self.shown);
    }
}

pub(super) fn offer(challenges: &Challenges, shown: &Shown) -> Result<(), Error> {
    match shown {
        Shown::Http { token, key_authorization } => {
            challenges.offer_http(token, key_authorization);
            Ok(())
        }
        Shown::Tls { domain, digest } => {
            challenges.offer_tls(domain, digest).map_err(Error::Unusable)
        }
    }
}

pub(super) fn withdraw(challenges: &Challenges, shown: &Shown) {
    match shown {
        Shown::Http { token, .. } => challenges.withdraw_http(token),
        Shown::Tls { domain, .. } => challenges.withdraw_tls(domain),
    }
}
