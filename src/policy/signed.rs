//! Signed policies: what their author's key has signed holds, whoever can write to the store.
//!
//! Each policy bears a signature over itself, its id, the number of the set that it belongs to, and the ids of the policies of that
//! set that are about the same workloads. So a data plane that sees only its own policies can tell that none of them was changed,
//! that they are of one set, that this set is no older than the one before, and that none beside them was left out.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::Serialize;

use crate::model::{Id, IdentityPolicy, Invalid, PolicySignature};
use crate::rt::crypto::{digest, ecdsa_key, rand, signature};

/// What is signed begins so: a signature for another purpose is none here.
const CONTEXT: &[u8] = b"wardgate identity policy, version 1\n";
/// An Ed25519 key as a SubjectPublicKeyInfo (RFC 8410) is this and 32 bytes.
const ED25519: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// A P-256 key as a SubjectPublicKeyInfo (RFC 5480) is this and the 65 bytes of an uncompressed point.
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The public keys of those who may write policies. None: signatures are not asked for.
#[derive(Clone, Debug, Default)]
pub struct PolicyKeys {
    keys: BTreeMap<String, AuthorKey>,
}

#[derive(Clone, Debug)]
struct AuthorKey {
    algorithm: Algorithm,
    raw: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Ed25519,
    P256,
}

impl PolicyKeys {
    /// Trusts the keys of this PEM text as well (`PUBLIC KEY`: Ed25519 or P-256).
    ///
    /// # Errors
    /// It has no such key.
    pub fn add(&mut self, pem: &[u8]) -> Result<(), Invalid> {
        let mut found = false;
        for spki in SubjectPublicKeyInfoDer::pem_slice_iter(pem) {
            let spki = spki.map_err(|error| Invalid::new(format!("not PEM: {error}")))?;
            let key = AuthorKey::of(&spki)?;
            self.keys.insert(name_of(&spki), key);
            found = true;
        }
        if found { Ok(()) } else { Err(Invalid::new("expected a PEM block PUBLIC KEY")) }
    }

    /// Are signatures not asked for?
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Has one of these keys signed this policy under this id?
    ///
    /// # Errors
    /// It bears no signature, one of another key, or one that is not of this policy.
    pub fn verify<'p>(
        &self,
        id: &Id,
        policy: &'p IdentityPolicy,
    ) -> Result<&'p PolicySignature, Invalid> {
        let Some(signature) = &policy.signature else {
            return Err(Invalid::new(
                "signature: the policy is not signed, and only signed ones count here",
            ));
        };
        let Some(key) = self.keys.get(&signature.key) else {
            return Err(Invalid(format!(
                "signature.key: {:?} is no key that is trusted here",
                signature.key
            )));
        };
        let value = STANDARD
            .decode(&signature.value)
            .map_err(|error| Invalid(format!("signature.value: not base64: {error}")))?;
        let signed = payload(id, policy, signature.number, &signature.beside);
        if key.verifies(&signed, &value) {
            Ok(signature)
        } else {
            Err(Invalid::new("signature.value: it is not the signature of this policy"))
        }
    }
}

impl AuthorKey {
    fn of(spki: &[u8]) -> Result<Self, Invalid> {
        let of = |algorithm, prefix: &[u8], length: usize| {
            let raw = spki.strip_prefix(prefix).filter(|raw| raw.len() == length)?;
            Some(Self { algorithm, raw: raw.to_vec() })
        };
        of(Algorithm::Ed25519, ED25519, 32)
            .or_else(|| of(Algorithm::P256, P256, 65))
            .ok_or_else(|| Invalid::new("expected a public key of Ed25519 or P-256"))
    }

    fn verifies(&self, signed: &[u8], value: &[u8]) -> bool {
        let verified = match self.algorithm {
            Algorithm::Ed25519 => signature::UnparsedPublicKey::new(&signature::ED25519, &self.raw)
                .verify(signed, value),
            Algorithm::P256 => {
                let algorithm = &signature::ECDSA_P256_SHA256_ASN1;
                signature::UnparsedPublicKey::new(algorithm, &self.raw).verify(signed, value)
            }
        };
        verified.is_ok()
    }
}

/// A key's name in signatures: the first 16 digits of the SHA-256 of its SubjectPublicKeyInfo.
fn name_of(spki: &[u8]) -> String {
    hex::encode(&digest::digest(&digest::SHA256, spki).as_ref()[..8])
}

/// What of a policy is signed.
#[derive(Serialize)]
struct Signed<'p> {
    id: &'p Id,
    number: u64,
    beside: &'p [Id],
    policy: &'p IdentityPolicy,
}

/// JSON without blanks, the fields in the order of the schema, defaults filled in; without what the server adds.
fn payload(id: &Id, policy: &IdentityPolicy, number: u64, beside: &[Id]) -> Vec<u8> {
    let policy = IdentityPolicy {
        id: None,
        signature: None,
        create_time: None,
        update_time: None,
        ..policy.clone()
    };
    let mut bytes = CONTEXT.to_vec();
    let signed = Signed { id, number, beside, policy: &policy };
    serde_json::to_writer(&mut bytes, &signed).expect("a policy is JSON, and a vector takes all");
    bytes
}

/// The private key of an author of policies.
pub struct PolicySigner {
    key: PrivateKey,
    name: String,
}

enum PrivateKey {
    Ed25519(signature::Ed25519KeyPair),
    P256(signature::EcdsaKeyPair),
}

impl std::fmt::Debug for PolicySigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicySigner").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PolicySigner {
    /// The key of this PEM text (`PRIVATE KEY`, PKCS#8: Ed25519 or P-256).
    ///
    /// # Errors
    /// It has no such key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Invalid> {
        use signature::KeyPair as _;
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|_| Invalid::new("expected a PEM block PRIVATE KEY (PKCS#8)"))?;
        let pkcs8 = pkcs8.secret_pkcs8_der();
        // OpenSSL writes Ed25519 keys without their public half.
        let (key, spki) =
            if let Ok(key) = signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8) {
                let spki = [ED25519, key.public_key().as_ref()].concat();
                (PrivateKey::Ed25519(key), spki)
            } else {
                let key = ecdsa_key(&signature::ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)
                    .map_err(|_| Invalid::new("expected a private key of Ed25519 or P-256"))?;
                let spki = [P256, key.public_key().as_ref()].concat();
                (PrivateKey::P256(key), spki)
            };
        Ok(Self { key, name: name_of(&spki) })
    }

    /// The key's name in signatures.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Signs a whole set. `number` must be higher than that of any set before it.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn sign(&self, set: &mut BTreeMap<Id, IdentityPolicy>, number: u64) -> Result<(), Invalid> {
        let mut about: BTreeMap<Vec<String>, Vec<Id>> = BTreeMap::new();
        for (id, policy) in &*set {
            about.entry(workloads(policy)).or_default().push(id.clone());
        }
        for (id, policy) in set {
            let beside = about.get(&workloads(policy)).cloned().unwrap_or_default();
            let value = self.value(&payload(id, policy, number, &beside))?;
            let (key, value) = (self.name.clone(), STANDARD.encode(value));
            policy.signature = Some(PolicySignature { number, beside, key, value });
        }
        Ok(())
    }

    fn value(&self, payload: &[u8]) -> Result<Vec<u8>, Invalid> {
        match &self.key {
            PrivateKey::Ed25519(key) => Ok(key.sign(payload).as_ref().to_vec()),
            PrivateKey::P256(key) => {
                let signed = key.sign(&rand::SystemRandom::new(), payload);
                let signed =
                    signed.map_err(|_| Invalid::new("the system has no random numbers"))?;
                Ok(signed.as_ref().to_vec())
            }
        }
    }
}

/// Whom a policy is about, in one spelling.
fn workloads(policy: &IdentityPolicy) -> Vec<String> {
    let named: BTreeSet<&String> = policy.selector.workloads.iter().collect();
    named.into_iter().cloned().collect()
}

/// The policies that a data plane is told of, and those that it enforces.
#[derive(Clone, Debug, Default)]
pub struct SignedSet<'p> {
    /// What is declared, as far as it can be read.
    pub declared: BTreeMap<&'p Id, &'p IdentityPolicy>,
    /// The last set that was taken.
    pub in_force: BTreeMap<&'p Id, &'p IdentityPolicy>,
}

impl SignedSet<'_> {
    /// Why the declared set may not come into force, by policy; nothing when it may.
    pub fn flaws(&self, keys: &PolicyKeys) -> BTreeMap<Id, String> {
        let mut flaws = BTreeMap::new();
        let mut signed: BTreeMap<&Id, &PolicySignature> = BTreeMap::new();
        for (id, policy) in &self.declared {
            match keys.verify(id, policy) {
                Ok(signature) => drop(signed.insert(id, signature)),
                Err(Invalid(why)) => drop(flaws.insert((*id).clone(), why)),
            }
        }
        let of_force = self.in_force.values().filter_map(|policy| policy.signature.as_ref());
        let in_force = of_force.map(|signature| signature.number).max().unwrap_or_default();
        let declared = signed.values().map(|signature| signature.number).max().unwrap_or_default();
        let newest = declared.max(in_force);
        for (id, signature) in &signed {
            if let Some(why) = self.misfit(id, signature, newest, in_force) {
                flaws.insert((*id).clone(), why);
            }
        }
        if newest == in_force {
            for id in self.in_force.keys().filter(|id| !self.declared.contains_key(*id)) {
                let why = format!(
                    "it was deleted, and no signed set newer than number {in_force} is without it"
                );
                flaws.insert((*id).clone(), why);
            }
        }
        flaws
    }

    /// What is wrong about a policy that is well signed.
    fn misfit(
        &self,
        id: &Id,
        signature: &PolicySignature,
        newest: u64,
        in_force: u64,
    ) -> Option<String> {
        let number = signature.number;
        if number < newest {
            return Some(format!(
                "signature.number: it belongs to set {number}, and set {newest} is here: an older one is played back, or the newer one is not whole"
            ));
        }
        let missing = signature.beside.iter().find(|other| !self.declared.contains_key(other));
        if let Some(missing) = missing {
            return Some(format!(
                "signature.beside: the policy [{missing}] of set {number} is about the same workloads, and is not here"
            ));
        }
        let same = |before: &&IdentityPolicy| {
            let now = self.declared.get(id)?;
            let bytes = |policy: &IdentityPolicy| payload(id, policy, number, &signature.beside);
            Some(bytes(before) == bytes(now))
        };
        let is_same = self.in_force.get(id).and_then(same).unwrap_or(false);
        (number == in_force && !is_same).then(|| {
            format!("signature.number: set {number} is in force already, and says something else")
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Set = BTreeMap<Id, IdentityPolicy>;

    fn id(text: &str) -> Id {
        Id::parse(text).unwrap()
    }

    /// Policies for `workload` that allow `principal`.
    fn set(policies: &[(&str, &str, &str)]) -> Set {
        let policy = |workload: &str, principal: &str| {
            let value = json!({
                "action": "allow", "selector": {"workloads": [workload]},
                "rules": [{"from": {"principals": [principal]}}],
            });
            serde_json::from_value(value).unwrap()
        };
        let of = policies.iter().map(|(name, workload, who)| (id(name), policy(workload, who)));
        of.collect()
    }

    fn author(algorithm: &'static rcgen::SignatureAlgorithm) -> (PolicySigner, PolicyKeys) {
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let mut keys = PolicyKeys::default();
        keys.add(pair.public_key_pem().as_bytes()).unwrap();
        (PolicySigner::from_pem(pair.serialize_pem().as_bytes()).unwrap(), keys)
    }

    fn flaws(keys: &PolicyKeys, declared: &Set, in_force: &Set) -> Vec<(String, String)> {
        let set =
            SignedSet { declared: declared.iter().collect(), in_force: in_force.iter().collect() };
        set.flaws(keys).into_iter().map(|(id, why)| (id.to_string(), why)).collect()
    }

    const CART: &str = "spiffe://shop/cart";
    const WEB: &str = "spiffe://shop/web";

    #[test]
    fn what_the_author_signed_holds_with_either_algorithm() {
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256] {
            let (signer, keys) = author(algorithm);
            let mut signed = set(&[("a", CART, WEB), ("b", CART, WEB), ("c", WEB, CART)]);
            signer.sign(&mut signed, 7).unwrap();
            let beside = |name: &str| signed[&id(name)].signature.as_ref().unwrap().beside.clone();
            assert_eq!((beside("a"), beside("c")), (vec![id("a"), id("b")], vec![id("c")]));
            // As the store gives it back.
            let mut back = signed.clone();
            for (id, policy) in &mut back {
                policy.id = Some(id.clone());
                policy.create_time = Some(1);
                let text = serde_json::to_string(policy).unwrap();
                *policy = serde_json::from_str(&text).unwrap();
            }
            assert_eq!(flaws(&keys, &back, &Set::new()), []);
            assert_eq!(flaws(&keys, &back, &signed), []);
            // A data plane sees those that are about its workload.
            back.remove(&id("c"));
            assert_eq!(flaws(&keys, &back, &Set::new()), []);
        }
    }

    #[test]
    fn what_nobody_signed_or_somebody_else_is_refused() {
        let (signer, keys) = author(&rcgen::PKCS_ED25519);
        let mut signed = set(&[("a", CART, WEB)]);
        assert!(flaws(&keys, &signed, &Set::new())[0].1.contains("not signed"));
        author(&rcgen::PKCS_ED25519).0.sign(&mut signed, 1).unwrap();
        assert!(flaws(&keys, &signed, &Set::new())[0].1.contains("no key that is trusted"));
        signer.sign(&mut signed, 1).unwrap();
        assert_eq!(flaws(&keys, &signed, &Set::new()), []);

        let mut changed = signed.clone();
        changed.get_mut(&id("a")).unwrap().rules[0].from.as_mut().unwrap().principals[0] =
            CART.into();
        let mut renumbered = signed.clone();
        renumbered.get_mut(&id("a")).unwrap().signature.as_mut().unwrap().number = 2;
        let moved = Set::from_iter([(id("z"), signed[&id("a")].clone())]);
        for forged in [changed, renumbered, moved] {
            let found = flaws(&keys, &forged, &Set::new());
            assert!(found[0].1.contains("not the signature of this policy"), "{found:?}");
        }
    }

    #[test]
    fn an_older_set_a_part_of_a_set_and_a_bare_deletion_are_refused() {
        let (signer, keys) = author(&rcgen::PKCS_ED25519);
        let mut first = set(&[("a", CART, WEB), ("b", CART, WEB)]);
        signer.sign(&mut first, 1).unwrap();
        let mut second = set(&[("a", CART, CART), ("b", CART, WEB)]);
        signer.sign(&mut second, 2).unwrap();
        assert_eq!(flaws(&keys, &second, &first), []);

        let replayed = flaws(&keys, &first, &second);
        assert_eq!(replayed.len(), 2);
        assert!(replayed[0].1.contains("set 1, and set 2 is here"), "{replayed:?}");

        let mut half = first.clone();
        half.insert(id("a"), second[&id("a")].clone());
        let found = flaws(&keys, &half, &first);
        assert!(found.len() == 1 && found[0].0 == "b", "{found:?}");

        let mut left_out = second.clone();
        left_out.remove(&id("b"));
        let found = flaws(&keys, &left_out, &first);
        assert!(found[0].1.contains("[b] of set 2"), "{found:?}");
        let found = flaws(&keys, &left_out, &second);
        assert!(found.iter().any(|(id, why)| id == "b" && why.contains("deleted")), "{found:?}");
        assert!(flaws(&keys, &Set::new(), &second).iter().all(|(_, why)| why.contains("deleted")));

        let mut again = set(&[("a", CART, WEB), ("b", CART, WEB)]);
        signer.sign(&mut again, 2).unwrap();
        let found = flaws(&keys, &again, &second);
        assert!(found[0].1.contains("says something else"), "{found:?}");

        // A newer set that is without it takes it away.
        let mut third = set(&[("a", CART, WEB)]);
        signer.sign(&mut third, 3).unwrap();
        assert_eq!(flaws(&keys, &third, &second), []);
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let error = PolicyKeys::default().add(other.public_key_pem().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("Ed25519 or P-256"), "{error}");
        assert!(PolicySigner::from_pem(other.serialize_pem().as_bytes()).is_err());
        assert!(PolicyKeys::default().add(b"no key").is_err());
    }
}
