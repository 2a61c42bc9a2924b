//! Whatever is accepted as a SPIFFE ID follows the specification and survives being printed and read again; a pattern made
//! of it means it and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate::identity::{SpiffeId, SpiffePattern, TrustDomain};

fuzz_target!(|text: &str| {
    judge(text);
    // Most of the rules lie behind the scheme, which chance hardly finds.
    judge(&format!("spiffe://{text}"));
});

fn judge(text: &str) {
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert!(id.as_str().len() <= 2048);
        assert!(id.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(id.to_string().parse::<SpiffeId>().as_ref(), Ok(&id));
        assert_eq!(format!("spiffe://{}{}", id.trust_domain_name(), id.path()), id.as_str());
        assert!(id.trust_domain_name().parse::<TrustDomain>().is_ok());
        for segment in id.path().split('/').skip(1) {
            assert!(!matches!(segment, "" | "." | ".."));
        }
        assert!(SpiffePattern::exactly(&id).matches(&id));
    }
    if let Ok(pattern) = text.parse::<SpiffePattern>() {
        assert_eq!(pattern.to_string().parse::<SpiffePattern>().as_ref(), Ok(&pattern));
        if let Some(id) = pattern.exact() {
            assert!(pattern.matches(&id));
        }
    }
}
