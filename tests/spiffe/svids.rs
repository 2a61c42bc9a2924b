//! Rules 22 to 53 as the runner presents them, judged without a network: the same certificates, and the code of each refusal.

use rustls_pki_types::CertificateDer;
use wardgate::conformance::{CASES, Case, Expectation, Feature, Fixtures};
use wardgate::identity::{Purpose, RevocationLists, RevocationMode, Revocations};

use crate::Judge;

/// The code by which each refusal is recorded. A policy about who is expected refuses what no rule about certificates does.
const CODES: &[(&str, &str)] = &[
    ("1b", "not_a_spiffe_id"),
    ("2a", "not_a_spiffe_id"),
    ("3a", "not_a_spiffe_id"),
    ("4a", "not_a_spiffe_id"),
    ("5a", "not_a_spiffe_id"),
    ("6a", "not_a_spiffe_id"),
    ("6b", "not_a_spiffe_id"),
    ("7a", "not_a_spiffe_id"),
    ("7b", "not_a_spiffe_id"),
    ("8a", "not_a_spiffe_id"),
    ("9a", "not_a_spiffe_id"),
    ("10a", "unknown_authority"),
    ("11a", "not_a_spiffe_id"),
    ("11b", "not_a_spiffe_id"),
    ("12a", "not_a_spiffe_id"),
    ("13a", "not_a_spiffe_id"),
    ("14a", "not_a_spiffe_id"),
    ("14b", "not_a_spiffe_id"),
    ("15a", "not_a_spiffe_id"),
    ("16a", "ok, and not who was expected"),
    ("18a", "not_a_spiffe_id"),
    ("19a", "not_a_spiffe_id"),
    ("20a", "not_a_spiffe_id"),
    ("20b", "not_a_spiffe_id"),
    ("20c", "malformed_certificate"),
    ("21a", "ok, and not who was expected"),
    ("21b", "ok, and not who was expected"),
    ("22a", "no_uri_name"),
    ("22b", "no_uri_name"),
    ("22c", "no_uri_name"),
    ("22d", "no_uri_name"),
    ("22e", "no_certificate"),
    ("23a", "several_uri_names"),
    ("23b", "several_uri_names"),
    ("23c", "several_uri_names"),
    ("23d", "several_uri_names"),
    ("24a", "not_a_spiffe_id"),
    ("26a", "spiffe_id_without_path"),
    ("26b", "not_a_spiffe_id"),
    ("27b", "authority_as_leaf"),
    ("28a", "leaf_signs_certificates"),
    ("29a", "leaf_signs_revocations"),
    ("30a", "authority_as_leaf"),
    ("30b", "authority_as_leaf"),
    ("31a", "no_key_usage"),
    ("32a", "no_digital_signature"),
    ("34a", "wrong_extended_key_usage"),
    ("34b", "wrong_extended_key_usage"),
    ("34c", "wrong_extended_key_usage"),
    ("36a", "unknown_authority"),
    ("36b", "bad_signature"),
    ("36c", "issuer_not_authority"),
    ("36d", "issuer_not_authority"),
    ("36e", "issuer_not_authority"),
    ("36f", "path_length"),
    ("36g", "path_length"),
    ("37a", "expired"),
    ("38a", "not_yet_valid"),
    ("39a", "authority_expired"),
    ("39b", "authority_not_yet_valid"),
    ("39c", "authority_expired"),
    ("42a", "unknown_authority"),
    ("42b", "bad_signature"),
    ("44a", "authority_id_with_path"),
    ("45a", "authority_of_other_domain"),
    ("46a", "name_constraint"),
    ("46b", "name_constraint"),
    ("47a", "critical_extension"),
    ("47b", "critical_extension"),
    ("49a", "too_many_certificates"),
    ("49b", "certificate_too_large"),
    ("49c", "too_many_names"),
    ("51b", "ok, and not who was expected"),
    ("52a", "unknown_trust_domain"),
    ("53a", "unknown_authority"),
    ("53b", "unknown_authority"),
    ("53c", "unknown_authority"),
    ("53d", "unknown_authority"),
    ("111a", "revoked"),
    ("111b", "authority_revoked"),
];

/// The runner's fixtures, in a folder that is gone afterwards.
struct Made {
    fixtures: Fixtures,
    folder: std::path::PathBuf,
}

impl Made {
    fn new() -> Self {
        let name = format!("wardgate-spiffe-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let folder = std::env::temp_dir().join(name);
        Self { fixtures: Fixtures::create(&folder).unwrap(), folder }
    }

    /// Trust as a proxy under test has it, with or without its revocation lists.
    fn judge(&self, needs: Feature) -> Judge {
        let mut revocation = Revocations::default();
        if needs == Feature::Revocation {
            let mut lists =
                RevocationLists { mode: RevocationMode::Hard, ..RevocationLists::default() };
            lists.add(self.fixtures.revocation_lists().unwrap().as_bytes()).unwrap();
            revocation.by_domain.insert(self.fixtures.own.name().clone(), lists);
        }
        Judge::with(self.fixtures.bundles(), revocation)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn expected(case: &Case) -> &'static str {
    let code = CODES.iter().find(|(id, _)| *id == case.id).map(|(_, code)| *code);
    match (case.expects, code) {
        (Expectation::Accepted, None) => "ok",
        (Expectation::Refused, Some(code)) => code,
        (_, found) => panic!("{} expects {:?}, and its code is {found:?}", case.id, case.expects),
    }
}

#[test]
fn every_case_of_the_runner_has_its_verdict_and_its_code_on_both_sides() {
    let made = Made::new();
    for case in CASES {
        let judge = made.judge(case.needs);
        let code = |chain: &[CertificateDer<'_>], purpose| match judge.code_as(chain, purpose) {
            "ok" if case.expects == Expectation::Refused => "ok, and not who was expected",
            code => code,
        };
        if case.is_inbound() {
            let chain = case.client(&made.fixtures).unwrap().chain;
            assert_eq!(code(&chain, Purpose::Client), expected(case), "{} {}", case.id, case.what);
        }
        if case.is_outbound() {
            let chain = case.server(&made.fixtures).unwrap().chain;
            assert_eq!(code(&chain, Purpose::Server), expected(case), "{} {}", case.id, case.what);
        }
    }
}

#[test]
fn what_is_not_who_was_expected_bears_another_id() {
    let made = Made::new();
    for case in CASES {
        let outcome = match case.expects {
            Expectation::Refused => expected(case),
            Expectation::Accepted => continue,
        };
        if outcome.starts_with("ok") {
            let chain = case.server(&made.fixtures).unwrap().chain;
            let peer = made.judge(case.needs).judge(&chain, Purpose::Server).unwrap();
            assert_ne!(peer.id.as_str(), "spiffe://conformance.test/server", "{}", case.id);
        }
    }
}

#[test]
fn fixtures_survive_being_read_again_and_are_never_overwritten() {
    let made = Made::new();
    let again = Fixtures::open(&made.folder).unwrap();
    for case in CASES {
        let chain = case.client(&again).unwrap().chain;
        let judge = made.judge(case.needs);
        let first = case.client(&made.fixtures).unwrap().chain;
        let code = judge.code(&first);
        assert_eq!(judge.code(&chain), code, "{} of fixtures that were read", case.id);
    }
    let error = Fixtures::create(&made.folder).unwrap_err().to_string();
    assert!(error.contains("never overwritten"), "{error}");
    std::fs::write(made.folder.join("authorities/short-root.pem"), "no").unwrap();
    let error = Fixtures::open(&made.folder).unwrap_err().to_string();
    assert!(error.contains("short-root.pem"), "{error}");
}
