//! LDAP, as auth plugins use it: a name and a password tried by binding, an entry searched by one attribute. Our own few messages of
//! RFC 4511: what a directory sends is bounded and never a panic, and values go into a search as they are, so that there is no filter
//! text that somebody could break out of.

mod dn;
mod error;
mod link;
mod message;
mod server;

pub use dn::escaped as dn_escaped;
pub use error::Error as LdapError;
pub use server::{
    Access as LdapAccess, Found as LdapFound, Search as LdapSearch, Server as LdapServer,
    Tls as LdapTls,
};
