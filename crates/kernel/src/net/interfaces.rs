//! The two network interfaces, as netdevice(7) and [`super::netlink`] show them. Read-only: there is nothing to configure.

use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use torpor_abi::endpoint::network;

/// IFF_UP, IFF_BROADCAST, IFF_LOOPBACK, IFF_RUNNING, IFF_MULTICAST, IFF_LOWER_UP.
mod flag {
    pub(super) const UP: u32 = 0x1;
    pub(super) const BROADCAST: u32 = 0x2;
    pub(super) const LOOPBACK: u32 = 0x8;
    pub(super) const RUNNING: u32 = 0x40;
    pub(super) const MULTICAST: u32 = 0x1000;
    pub(super) const LOWER_UP: u32 = 0x1_0000;
}

/// An interface.
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: &'static str,
    pub(super) flags: u32,
    pub(super) mtu: u32,
    /// ARPHRD_*.
    pub(super) hardware: u16,
    pub(super) address: [u8; 6],
    pub(super) broadcast: [u8; 6],
    pub(super) v4: (Ipv4Addr, u8),
    pub(super) v6: (Ipv6Addr, u8),
    /// net.core.default_qdisc's queue length.
    pub(super) queue_length: u32,
}

/// Number of `lo`.
pub(super) const LOOPBACK: u32 = 1;
/// Number of `eth0`.
pub(super) const OUTSIDE: u32 = 2;

/// `lo` and `eth0`.
pub(super) const INTERFACES: [Interface; 2] = [
    Interface {
        index: LOOPBACK,
        name: "lo",
        flags: flag::UP | flag::LOOPBACK | flag::RUNNING | flag::LOWER_UP,
        mtu: 65536,
        hardware: 772,
        address: [0; 6],
        broadcast: [0; 6],
        v4: (Ipv4Addr::LOCALHOST, 8),
        v6: (Ipv6Addr::LOCALHOST, 128),
        queue_length: 1000,
    },
    Interface {
        index: OUTSIDE,
        name: "eth0",
        flags: flag::UP | flag::BROADCAST | flag::RUNNING | flag::MULTICAST | flag::LOWER_UP,
        mtu: 1500,
        hardware: 1,
        // Locally administered (IEEE 802).
        address: [2, 0, 0, 0, 0, 2],
        broadcast: [0xff; 6],
        v4: (network::GUEST_V4, network::PREFIX_V4),
        v6: (network::GUEST_V6, network::PREFIX_V6),
        queue_length: 1000,
    },
];

impl Interface {
    fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.v4.1)))
    }

    /// The broadcast address of its IPv4 network, where it has one.
    pub(super) fn broadcast_v4(&self) -> Option<Ipv4Addr> {
        (self.flags & flag::BROADCAST != 0).then(|| self.v4.0 | !self.netmask())
    }

    /// Both addresses and the lengths of their networks.
    pub(super) fn addresses(&self) -> [(IpAddr, u8); 2] {
        [(IpAddr::V4(self.v4.0), self.v4.1), (IpAddr::V6(self.v6.0), self.v6.1)]
    }
}

/// Bytes of `ifr_name`, and of `struct ifreq`.
const NAME_BYTES: usize = 16;
const REQUEST_BYTES: usize = 40;

fn name_bytes(name: &str) -> [u8; NAME_BYTES] {
    let mut out = [0; NAME_BYTES];
    out[..name.len()].copy_from_slice(name.as_bytes());
    out
}

/// `struct sockaddr_in` in the first 16 bytes of a union.
fn socket_address(ip: Ipv4Addr) -> [u8; 24] {
    let mut out = [0; 24];
    out[..2].copy_from_slice(&2u16.to_ne_bytes());
    out[4..8].copy_from_slice(&ip.octets());
    out
}

fn number(value: u32) -> [u8; 24] {
    let mut out = [0; 24];
    out[..4].copy_from_slice(&value.to_ne_bytes());
    out
}

/// ioctl(2) of netdevice(7) on any socket.
///
/// # Errors
/// ENODEV for an unknown interface, EPERM for a change, EOPNOTSUPP for what drivers know, ENOTTY for another request.
pub(super) fn ioctl(request: u32, argument: u64) -> Result<u64> {
    const GIFNAME: u32 = 0x8910;
    const GIFCONF: u32 = 0x8912;
    const GIFINDEX: u32 = 0x8933;
    const ETHTOOL: u32 = 0x8946;
    let at = UserAddr(argument);
    match request {
        GIFCONF => return configuration(at),
        // The requests that set something, up to those of bridges.
        0x890b
        | 0x890c
        | 0x8914
        | 0x8916
        | 0x8918
        | 0x891a
        | 0x891c
        | 0x891e
        | 0x8922..=0x8924
        | 0x8926
        | 0x8930
        | 0x8934
        | 0x8936
        | 0x8937
        | 0x8943 => return Err(Errno::EPERM),
        GIFNAME..=0x8942 | ETHTOOL => {}
        _ => return Err(Errno::ENOTTY),
    }
    let mut bytes = [0; REQUEST_BYTES];
    user::read_bytes(at, &mut bytes)?;
    if request == GIFNAME {
        let index = u32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
        let interface = INTERFACES.iter().find(|i| i.index == index).ok_or(Errno::ENODEV)?;
        bytes[..NAME_BYTES].copy_from_slice(&name_bytes(interface.name));
        user::write_bytes(at, &bytes)?;
        return Ok(0);
    }
    let name = bytes[..NAME_BYTES].split(|b| *b == 0).next().unwrap_or(&[]);
    let interface = INTERFACES.iter().find(|i| i.name.as_bytes() == name).ok_or(Errno::ENODEV)?;
    let union = match request {
        0x8913 => number(interface.flags & 0xffff),
        0x8915 => socket_address(interface.v4.0),
        0x8917 => socket_address(interface.v4.0),
        0x8919 => socket_address(interface.broadcast_v4().unwrap_or(Ipv4Addr::UNSPECIFIED)),
        0x891b => socket_address(interface.netmask()),
        0x891d => number(0),
        0x8921 => number(interface.mtu),
        0x8927 => {
            let mut out = number(u32::from(interface.hardware));
            out[2..8].copy_from_slice(&interface.address);
            out
        }
        GIFINDEX => number(interface.index),
        0x8942 => number(interface.queue_length),
        ETHTOOL => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    };
    bytes[NAME_BYTES..].copy_from_slice(&union);
    user::write_bytes(at, &bytes)?;
    Ok(0)
}

/// SIOCGIFCONF: `struct ifconf` is an int length and a pointer; a null pointer asks for the length.
fn configuration(at: UserAddr) -> Result<u64> {
    let room = usize::try_from(user::read::<i32>(at)?).unwrap_or(0);
    let buffer = UserAddr(user::read::<u64>(at.offset(8))?);
    let mut len = 0;
    for interface in &INTERFACES {
        if !buffer.is_null() {
            if room - len < REQUEST_BYTES {
                break;
            }
            let mut bytes = [0; REQUEST_BYTES];
            bytes[..NAME_BYTES].copy_from_slice(&name_bytes(interface.name));
            bytes[NAME_BYTES..].copy_from_slice(&socket_address(interface.v4.0));
            user::write_bytes(buffer.offset(len as u64), &bytes)?;
        }
        len += REQUEST_BYTES;
    }
    user::write(at, &(len as i32))?;
    Ok(0)
}
