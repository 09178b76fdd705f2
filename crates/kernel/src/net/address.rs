//! Socket addresses (unix(7), ip(7), ipv6(7)).

use crate::errno::{Errno, Result};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use linux_raw_sys::net::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, AF_VSOCK};

/// Bytes of `sun_path`.
const UNIX_PATH_BYTES: usize = 108;
/// The longest address that is taken (`struct sockaddr_storage`).
pub const MAX_ADDRESS_BYTES: usize = 128;

/// The name of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnixName {
    /// None.
    Unnamed,
    /// A path in the file system.
    Path(Vec<u8>),
    /// A name without a file.
    Abstract(Vec<u8>),
}

/// Address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InetAddress {
    /// The address; of the family that the socket has.
    pub ip: IpAddr,
    /// The port, 0 for none yet.
    pub port: u16,
}

impl InetAddress {
    /// No address and no port, of a family.
    #[must_use]
    pub const fn any(v6: bool) -> Self {
        let ip = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Self { ip, port: 0 }
    }

    /// The same in the form of a family: IPv4 in an IPv6 socket is mapped (RFC 4291, 2.5.5.2), and back.
    #[must_use]
    pub fn in_family(self, v6: bool) -> Self {
        let ip = match (self.ip, v6) {
            (IpAddr::V4(ip), true) => IpAddr::V6(ip.to_ipv6_mapped()),
            (IpAddr::V6(ip), false) => ip.to_ipv4_mapped().map_or(self.ip, IpAddr::V4),
            _ => self.ip,
        };
        Self { ip, port: self.port }
    }

    /// With IPv4-mapped IPv6 unwrapped: for comparing.
    #[must_use]
    pub fn canonical(self) -> Self {
        Self { ip: self.ip.to_canonical(), port: self.port }
    }
}

/// Context and port of vsock(7); `u32::MAX` in either is "any".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockAddress {
    /// Context: 2 is the host.
    pub cid: u32,
    /// Port.
    pub port: u32,
}

/// An address of any family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// AF_UNSPEC: dissolves an association.
    Unspecified,
    /// AF_UNIX.
    Unix(UnixName),
    /// AF_INET or AF_INET6.
    Inet(InetAddress),
    /// AF_VSOCK.
    Vsock(VsockAddress),
    /// AF_NETLINK: the port number; 0 is the kernel.
    Netlink(u32),
}

impl Address {
    /// From `struct sockaddr` as a program gave it.
    ///
    /// # Errors
    /// EINVAL for a length that no such address has, EAFNOSUPPORT for another family.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let family = bytes.get(..2).map(|b| u16::from_ne_bytes([b[0], b[1]])).ok_or(Errno::EINVAL)?;
        match u32::from(family) {
            0 => Ok(Address::Unspecified),
            AF_UNIX => {
                let path = &bytes[2..];
                if path.len() > UNIX_PATH_BYTES {
                    return Err(Errno::EINVAL);
                }
                Ok(Address::Unix(match path.first() {
                    None => UnixName::Unnamed,
                    Some(0) => UnixName::Abstract(path[1..].to_vec()),
                    Some(_) => UnixName::Path(path.split(|b| *b == 0).next().unwrap_or(path).to_vec()),
                }))
            }
            AF_INET => {
                let b = bytes.get(..16).ok_or(Errno::EINVAL)?;
                let ip = IpAddr::V4(Ipv4Addr::new(b[4], b[5], b[6], b[7]));
                Ok(Address::Inet(InetAddress { ip, port: u16::from_be_bytes([b[2], b[3]]) }))
            }
            AF_INET6 => {
                let b = bytes.get(..24).ok_or(Errno::EINVAL)?;
                let mut ip = [0; 16];
                ip.copy_from_slice(&b[8..24]);
                Ok(Address::Inet(InetAddress { ip: ip.into(), port: u16::from_be_bytes([b[2], b[3]]) }))
            }
            AF_NETLINK => {
                let b = bytes.get(..12).ok_or(Errno::EINVAL)?;
                Ok(Address::Netlink(u32::from_ne_bytes([b[4], b[5], b[6], b[7]])))
            }
            AF_VSOCK => {
                let b = bytes.get(..16).ok_or(Errno::EINVAL)?;
                let word = |at: usize| u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
                Ok(Address::Vsock(VsockAddress { port: word(4), cid: word(8) }))
            }
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// As `struct sockaddr`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Address::Unspecified => out.extend(0u16.to_ne_bytes()),
            Address::Unix(name) => {
                out.extend((AF_UNIX as u16).to_ne_bytes());
                match name {
                    UnixName::Unnamed => {}
                    UnixName::Path(path) => {
                        out.extend(path);
                        out.push(0);
                    }
                    UnixName::Abstract(name) => {
                        out.push(0);
                        out.extend(name);
                    }
                }
            }
            Address::Inet(InetAddress { ip: IpAddr::V4(ip), port }) => {
                out.extend((AF_INET as u16).to_ne_bytes());
                out.extend(port.to_be_bytes());
                out.extend(ip.octets());
                out.extend([0; 8]);
            }
            Address::Inet(InetAddress { ip: IpAddr::V6(ip), port }) => {
                out.extend((AF_INET6 as u16).to_ne_bytes());
                out.extend(port.to_be_bytes());
                out.extend([0; 4]);
                out.extend(ip.octets());
                out.extend([0; 4]);
            }
            Address::Netlink(port) => {
                out.extend((AF_NETLINK as u16).to_ne_bytes());
                out.extend([0; 2]);
                out.extend(port.to_ne_bytes());
                out.extend([0; 4]);
            }
            Address::Vsock(VsockAddress { cid, port }) => {
                out.extend((AF_VSOCK as u16).to_ne_bytes());
                out.extend([0; 2]);
                out.extend(port.to_ne_bytes());
                out.extend(cid.to_ne_bytes());
                out.extend([0; 4]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_coding() {
        for address in [
            Address::Unix(UnixName::Path(b"/run/x.sock".to_vec())),
            Address::Unix(UnixName::Abstract(b"a\0b".to_vec())),
            Address::Unix(UnixName::Unnamed),
            Address::Inet(InetAddress { ip: [127, 0, 0, 1].into(), port: 80 }),
            Address::Inet(InetAddress { ip: IpAddr::V6(Ipv6Addr::LOCALHOST), port: 8080 }),
            Address::Vsock(VsockAddress { cid: 2, port: 1 << 20 }),
            Address::Netlink(1),
        ] {
            assert_eq!(Address::decode(&address.encode()), Ok(address));
        }
        assert_eq!(Address::decode(&[2, 0, 1]), Err(Errno::EINVAL));
        assert_eq!(Address::decode(&[99, 0]), Err(Errno::EAFNOSUPPORT));
    }
}
