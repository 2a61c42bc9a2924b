//! Networks of rules: sorted ranges, so that a long list costs no more than a short one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// Networks and single addresses. IPv4 addresses that are mapped into IPv6 are IPv4 addresses.
#[derive(Debug, Default)]
pub(super) struct Networks {
    texts: Box<[Box<str>]>,
    /// First and last addresses, ascending; no range touches another.
    v4: Box<[(Ipv4Addr, Ipv4Addr)]>,
    v6: Box<[(Ipv6Addr, Ipv6Addr)]>,
}

impl Networks {
    pub(super) fn of(nets: &[IpNet]) -> Self {
        let texts = nets.iter().map(|net| match net.prefix_len() == net.max_prefix_len() {
            true => net.addr().to_string().into(),
            false => net.to_string().into(),
        });
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        // Sorted, and without what lies in another.
        for net in IpNet::aggregate(&nets.to_vec()) {
            match net {
                IpNet::V4(net) => v4.push((net.network(), net.broadcast())),
                IpNet::V6(net) => v6.push((net.network(), net.broadcast())),
            }
        }
        v4.sort_unstable();
        v6.sort_unstable();
        Self { texts: texts.collect(), v4: v4.into(), v6: v6.into() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Does one of them hold this address?
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => within(&self.v4, address),
            IpAddr::V6(address) => within(&self.v6, address),
        }
    }

    pub(super) fn texts(&self) -> &[Box<str>] {
        &self.texts
    }
}

fn within<A: Ord + Copy>(ranges: &[(A, A)], address: A) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= address);
    behind.checked_sub(1).is_some_and(|at| address <= ranges[at].1)
}

/// Reads a network or an address.
pub(super) fn parse(text: &str) -> Result<IpNet, String> {
    let shown = text.escape_debug();
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => text.parse::<IpNet>().map_err(|_| {
            format!("\"{shown}\" is neither an address nor a network, as 10.0.0.0/8 or fd00::/8")
        })?,
    };
    if net.addr() != net.network() {
        return Err(format!(
            "\"{shown}\" has bits behind its prefix: write the network, {}, or the address, {}",
            net.trunc(),
            net.addr()
        ));
    }
    // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
    let IpNet::V6(wide) = net else { return Ok(net) };
    match (wide.addr().to_canonical(), wide.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(bits)) => {
            Ipv4Net::new(address, bits).map(IpNet::V4).map_err(|error| error.to_string())
        }
        _ => Ok(net),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        Networks::of(&texts.iter().map(|text| parse(text).unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn an_address_is_looked_up_in_all_networks() {
        let found =
            networks(&["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "11.0.0.0/8"]);
        for (address, held) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.255.255.255", true),
            ("12.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:192.0.2.7", true),
            ("2001:db8:1::1", true),
            ("2001:db9::", false),
            ("::1", false),
        ] {
            assert_eq!(found.contain(address.parse().unwrap()), held, "{address}");
        }
        assert!(networks(&["::ffff:10.0.0.0/104"]).contain("10.9.9.9".parse().unwrap()));
        assert!(networks(&["0.0.0.0/0"]).contain("::ffff:1.2.3.4".parse().unwrap()));
        assert!(!networks(&["::/0"]).contain("1.2.3.4".parse().unwrap()));
        assert!(!Networks::default().contain("1.2.3.4".parse().unwrap()));
        assert_eq!(*found.texts()[2], *"192.0.2.7");
    }

    #[test]
    fn what_is_no_network_is_refused_and_says_what_to_write() {
        for (bad, expected) in [
            ("10.0.0.0/33", "neither an address nor a network"),
            ("10.0.0/8", "neither"),
            ("", "neither"),
            ("fe80::1%eth0", "neither"),
            ("10.1.2.3/8", "write the network, 10.0.0.0/8, or the address, 10.1.2.3"),
        ] {
            assert!(parse(bad).unwrap_err().contains(expected), "{bad}");
        }
    }
}
