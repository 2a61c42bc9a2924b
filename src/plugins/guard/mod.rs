//! What may pass.

use crate::pipeline::Entry;

mod acl;
mod client_control;
mod consumer_restriction;
mod cors;
mod csrf;
mod ip_restriction;
mod oas_validator;
mod openapi;
mod parameter;
mod plain_json;
mod referer_restriction;
mod request_validation;
mod ua_restriction;
mod uri_blocker;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<acl::Acl>(),
    Entry::of::<consumer_restriction::ConsumerRestriction>(),
    Entry::of::<client_control::ClientControl>(),
    Entry::of::<cors::Cors>().metadata::<cors::Metadata>(),
    Entry::of::<csrf::Csrf>(),
    Entry::of::<ip_restriction::IpRestriction>(),
    Entry::of::<oas_validator::OasValidator>().metadata::<oas_validator::Metadata>(),
    Entry::of::<referer_restriction::RefererRestriction>(),
    Entry::of::<request_validation::RequestValidation>(),
    Entry::of::<ua_restriction::UaRestriction>(),
    Entry::of::<uri_blocker::UriBlocker>(),
];
