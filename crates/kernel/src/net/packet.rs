//! What an IP packet carries beside its bytes (ip(7), ipv6(7)): where it was sent to, its hop limit and traffic class.

use super::address::InetAddress;
use super::control::{Passed, Writer};
use super::options::{Options, level};
use super::socket::Socket;
use alloc::vec::Vec;
use core::net::IpAddr;

/// Names of options: what a receiver wants to be told.
mod wanted {
    pub(super) const PKTINFO: u32 = 8;
    pub(super) const TTL: u32 = 12;
    pub(super) const TOS: u32 = 13;
    pub(super) const PKTINFO_V6: u32 = 49;
    pub(super) const HOPLIMIT: u32 = 51;
    pub(super) const TCLASS: u32 = 66;
}

/// Types of the control messages that tell it, or set it for one message; some are names of options, too.
pub(super) mod told {
    pub(in crate::net) const TOS: u32 = 1;
    pub(in crate::net) const TTL: u32 = 2;
    pub(in crate::net) const PKTINFO: u32 = 8;
    pub(in crate::net) const UNICAST_HOPS: u32 = 16;
    pub(in crate::net) const PKTINFO_V6: u32 = 50;
    pub(in crate::net) const HOPLIMIT: u32 = 52;
    pub(in crate::net) const TCLASS: u32 = 67;
}

/// Hop limit of packets that nobody chose one for (net.ipv4.ip_default_ttl).
const DEFAULT_HOPS: u8 = 64;

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it was sent to.
    to: IpAddr,
    /// Number of the interface that it came by.
    interface: u32,
    hops: u8,
    class: u8,
}

impl Packet {
    /// One that `socket` sends to an address of this machine.
    pub(super) fn sent(socket: &Socket, to: InetAddress, passed: &Passed) -> Self {
        let to = to.ip.to_canonical();
        let option = |v4: u32, v6: u32| {
            let (level, name) = if to.is_ipv4() { (level::IP, v4) } else { (level::IPV6, v6) };
            socket.options.get(level, name, socket.what()).ok().and_then(|value| u8::try_from(value).ok())
        };
        Self {
            to,
            interface: super::interfaces::LOOPBACK,
            hops: passed.hops.or_else(|| option(told::TTL, told::UNICAST_HOPS)).unwrap_or(DEFAULT_HOPS),
            class: passed.class.or_else(|| option(told::TOS, told::TCLASS)).unwrap_or(0),
        }
    }

    /// One from outside to `to`.
    pub(super) fn from_outside(to: IpAddr) -> Self {
        let interface = super::interfaces::OUTSIDE;
        Self { to: to.to_canonical(), interface, hops: DEFAULT_HOPS, class: 0 }
    }

    /// Tells a socket what it asked for.
    pub fn tell(&self, v6: bool, options: &Options, writer: &mut Writer) {
        let wants = |name: u32| options.on(if v6 { level::IPV6 } else { level::IP }, name);
        let number = |value: u8| i32::from(value).to_ne_bytes();
        if v6 && wants(wanted::PKTINFO_V6) {
            let to = match self.to {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let info = [&to.octets()[..], &self.interface.to_ne_bytes()].concat();
            writer.message(level::IPV6, told::PKTINFO_V6, &info);
        }
        match self.to {
            IpAddr::V6(_) => {
                if wants(wanted::HOPLIMIT) {
                    writer.message(level::IPV6, told::HOPLIMIT, &number(self.hops));
                }
                if wants(wanted::TCLASS) {
                    writer.message(level::IPV6, told::TCLASS, &number(self.class));
                }
            }
            IpAddr::V4(to) => {
                let wants = |name: u32| options.on(level::IP, name);
                if wants(wanted::PKTINFO) {
                    let to = to.octets();
                    let info: Vec<u8> = [self.interface.to_ne_bytes(), to, to].concat();
                    writer.message(level::IP, told::PKTINFO, &info);
                }
                if wants(wanted::TTL) {
                    writer.message(level::IP, told::TTL, &number(self.hops));
                }
                if wants(wanted::TOS) {
                    writer.message(level::IP, told::TOS, &[self.class]);
                }
            }
        }
    }
}
