//! Where a guest's own connections may go. Judged on the address that is really connected to, never on a name.
//!
//! In this order: what a deny entry covers is refused; what an allow entry names as a single address is allowed; the host
//! itself, link-local, multicast, broadcast and reserved addresses are refused; what an allow entry covers is allowed;
//! the rest is as [`Scope`] says. So a broad allow entry never opens the host.

pub use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is allowed where no entry says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// Nothing, names included.
    Nothing,
    /// Public addresses.
    #[default]
    Public,
    /// Public and private ones (RFC 1918, RFC 6598, RFC 4193, RFC 2544).
    Private,
}

/// See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The rest.
    pub scope: Scope,
    /// Allowed.
    pub allow: Vec<IpNet>,
    /// Refused.
    pub deny: Vec<IpNet>,
}

/// What an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Host,
    LinkLocal,
    Multicast,
    Reserved,
    Private,
    Public,
}

impl Policy {
    /// Whether a guest may reach `ip`; `own` tells whether an address is one of the host's interfaces' or a broadcast
    /// address there.
    pub fn allows(&self, ip: IpAddr, own: impl Fn(IpAddr) -> bool) -> bool {
        let ip = unwrap(ip);
        let covers = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if covers(&self.deny) {
            return false;
        }
        if self.allow.iter().any(|net| net.prefix_len() == net.max_prefix_len() && net.addr() == ip) {
            return true;
        }
        match class(ip) {
            Class::Host | Class::LinkLocal | Class::Multicast | Class::Reserved => false,
            Class::Private | Class::Public if own(ip) => false,
            Class::Private => covers(&self.allow) || self.scope == Scope::Private,
            Class::Public => covers(&self.allow) || self.scope != Scope::Nothing,
        }
    }

    /// Whether names may be asked for at all.
    #[must_use]
    pub fn allows_names(&self) -> bool {
        self.scope != Scope::Nothing || !self.allow.is_empty()
    }
}

/// An IPv4 address in IPv6's clothing becomes itself: mapped (RFC 4291) or through a translator (RFC 6052).
fn unwrap(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
            _ => IpAddr::V6(v6),
        },
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn class(ip: IpAddr) -> Class {
    match ip {
        IpAddr::V4(v4) => class_v4(v4),
        IpAddr::V6(v6) => class_v6(v6),
    }
}

fn class_v4(ip: Ipv4Addr) -> Class {
    match ip.octets() {
        // 0.0.0.0 connects to this machine.
        [0 | 127, ..] => Class::Host,
        [169, 254, ..] => Class::LinkLocal,
        [224..=239, ..] => Class::Multicast,
        [240..=255, ..] => Class::Reserved,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [198, 18..=19, ..] => Class::Private,
        _ => Class::Public,
    }
}

fn class_v6(ip: Ipv6Addr) -> Class {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Class::Host,
        // IPv4-compatible (RFC 4291, deprecated) and 6to4 (RFC 7526, too) hide IPv4 addresses.
        [0, 0, 0, 0, 0, 0, ..] | [0x2002, ..] => Class::Reserved,
        // Site-local (RFC 3879) has no meaning any more.
        [0xfec0..=0xfeff, ..] => Class::Reserved,
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xff00..=0xffff, ..] => Class::Multicast,
        [0xfc00..=0xfdff, ..] => Class::Private,
        _ => Class::Public,
    }
}

/// Whether an address is one of the host's interfaces', or the broadcast address of one.
#[must_use]
pub fn is_own(ip: IpAddr) -> bool {
    // Where the list can't be had, everything might be the host's.
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return true };
    interfaces.flat_map(|interface| [interface.address, interface.broadcast]).flatten().any(|address| {
        address.as_sockaddr_in().is_some_and(|v4| IpAddr::V4(v4.ip()) == ip)
            || address.as_sockaddr_in6().is_some_and(|v6| IpAddr::V6(v6.ip()) == ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    const NEVER: &[&str] = &[
        "127.0.0.1",
        "127.255.3.4",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "ff02::1",
        "240.0.0.1",
        "fec0::1",
    ];

    #[test]
    fn the_host_and_what_is_near_it_are_never_reached() {
        let scopes = [Scope::Nothing, Scope::Public, Scope::Private];
        for scope in scopes {
            let policy = Policy { scope, allow: vec![net("0.0.0.0/0"), net("::/0")], deny: Vec::new() };
            for address in NEVER {
                assert!(!policy.allows(ip(address), |_| false), "{address}");
            }
            assert!(!policy.allows(ip("203.0.113.5"), |_| true), "an interface's address");
            assert!(!policy.allows(ip("::ffff:203.0.113.5"), |own| own == ip("203.0.113.5")), "unwrapped first");
        }
        assert!(is_own(ip("127.0.0.1")));
    }

    #[test]
    fn scopes_and_entries() {
        let public = Policy::default();
        assert!(public.allows(ip("8.8.8.8"), |_| false));
        assert!(public.allows(ip("2001:4860:4860::8888"), |_| false));
        for private in ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1"] {
            assert!(!public.allows(ip(private), |_| false), "{private}");
            assert!(Policy { scope: Scope::Private, ..Policy::default() }.allows(ip(private), |_| false), "{private}");
        }
        let nothing = Policy { scope: Scope::Nothing, allow: vec![net("10.0.0.0/8")], deny: vec![net("10.9.0.0/16")] };
        assert!(nothing.allows(ip("10.1.1.1"), |_| false));
        assert!(!nothing.allows(ip("10.9.1.1"), |_| false));
        assert!(!nothing.allows(ip("8.8.8.8"), |_| false));
        let single = Policy { allow: vec![net("127.0.0.1/32")], ..Policy::default() };
        assert!(single.allows(ip("127.0.0.1"), |_| true));
        assert!(single.allows(ip("::ffff:127.0.0.1"), |_| true));
        assert!(!single.allows(ip("127.0.0.2"), |_| false));
        let denied = Policy { deny: vec![net("127.0.0.1/32")], ..single };
        assert!(!denied.allows(ip("127.0.0.1"), |_| false));
    }

    proptest! {
        /// However an IPv4 address is written, the answer is the same.
        #[test]
        fn clothing_makes_no_difference(bits: u32, scope in 0..3) {
            let scope = [Scope::Nothing, Scope::Public, Scope::Private][scope as usize];
            let policy = Policy { scope, allow: vec![net("20.0.0.0/6")], deny: vec![net("21.0.0.0/8")] };
            let v4 = Ipv4Addr::from(bits);
            let own = |ip: IpAddr| ip == IpAddr::V4(Ipv4Addr::new(20, 1, 1, 1));
            let plain = policy.allows(v4.into(), own);
            prop_assert_eq!(plain, policy.allows(v4.to_ipv6_mapped().into(), own));
            let translated = Ipv6Addr::from(u128::from(bits) | 0x64_ff9b << 96);
            prop_assert_eq!(plain, policy.allows(translated.into(), own));
        }
    }
}
