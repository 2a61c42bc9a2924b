//! `Networks`: a set of addresses and networks that answers in time that does not grow with its size.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Invalid;

/// Addresses and networks, of both families.
/// ```
/// # use wardgate::pipeline::Networks;
/// let networks = Networks::parse(["10.0.0.0/8", "::1"]).unwrap();
/// assert!(networks.contains("10.1.2.3".parse().unwrap()));
/// assert!(!networks.contains("::2".parse().unwrap()));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Networks {
    /// By prefix length: how many bits are compared, and what they may be.
    v4: Vec<(u8, HashSet<u32, foldhash::fast::RandomState>)>,
    v6: Vec<(u8, HashSet<u128, foldhash::fast::RandomState>)>,
}

impl Networks {
    /// Reads addresses and networks.
    ///
    /// # Errors
    /// An entry is neither; the sentence quotes it.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        let mut networks = Self::default();
        for text in texts {
            networks.add(parse_network(text)?);
        }
        Ok(networks)
    }

    fn add(&mut self, network: IpNet) {
        match network {
            IpNet::V4(network) => {
                let (length, bits) = (network.prefix_len(), network.network().to_bits());
                slot(&mut self.v4, length).insert(bits);
            }
            IpNet::V6(network) => {
                let (length, bits) = (network.prefix_len(), network.network().to_bits());
                slot(&mut self.v6, length).insert(bits);
            }
        }
    }

    /// Is the address one of them, or in one of them? An IPv4 address in IPv6 clothes counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.iter().any(|(length, known)| {
                known.contains(
                    &(address.to_bits()
                        & u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0)),
                )
            }),
            IpAddr::V6(address) => self.v6.iter().any(|(length, known)| {
                known.contains(
                    &(address.to_bits()
                        & u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0)),
                )
            }),
        }
    }

    /// Has nothing been given?
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

fn slot<T>(
    lengths: &mut Vec<(u8, HashSet<T, foldhash::fast::RandomState>)>,
    length: u8,
) -> &mut HashSet<T, foldhash::fast::RandomState> {
    let at = lengths.iter().position(|(known, _)| *known == length).unwrap_or_else(|| {
        lengths.push((length, HashSet::default()));
        lengths.len() - 1
    });
    &mut lengths[at].1
}

fn parse_network(text: &str) -> Result<IpNet, Invalid> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address.to_canonical())),
        Err(_) => text.parse::<IpNet>().ok(),
    };
    network.ok_or_else(|| Invalid::new(format!("'{text}' is no IP address and no CIDR network")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_its_network_whatever_its_clothes() {
        let networks = Networks::parse([
            "127.0.0.1",
            "10.1.0.0/16",
            "192.168.7.9/24",
            "fd00::/8",
            "2001:db8::1",
            "::ffff:172.16.0.1",
        ])
        .unwrap();
        for (address, within) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.2", false),
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("192.168.7.1", true),
            ("fd12::1", true),
            ("fe80::1", false),
            ("2001:db8::1", true),
            ("172.16.0.1", true),
        ] {
            assert_eq!(networks.contains(address.parse().unwrap()), within, "{address}");
        }
        let everyone = Networks::parse(["0.0.0.0/0", "::/0"]).unwrap();
        assert!(everyone.contains("1.2.3.4".parse().unwrap()));
        assert!(everyone.contains("2::".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "10.0.0", "host", "::/129"] {
            assert!(Networks::parse([bad]).is_err(), "{bad}");
        }
    }
}
