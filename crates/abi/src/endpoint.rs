//! Ends of a stream that is a connection: what [`crate::frame::kind::OPEN`] names, and what stands before each datagram.
//!
//! ```text
//! offset 0  u16 family: 4, 6, or 40 for vsock
//!        2  u16 reserved, zero
//!        4  u32 port
//!        8  16 bytes: address in network order, IPv4 in the first four, rest zero; vsock: u32 CID, rest zero
//! ```

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of an encoded endpoint.
pub const ENDPOINT_BYTES: usize = 24;

const V4: u16 = 4;
const V6: u16 = 6;
const VSOCK: u16 = 40;

/// What a stream carries; the argument of OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Bytes.
    Tcp = 1,
    /// Datagrams: each DATA frame is one, behind the encoded endpoint of its peer.
    Udp = 2,
    /// Bytes between guest and host (vsock(7)).
    Vsock = 3,
}

impl Transport {
    /// From an OPEN frame's argument.
    #[must_use]
    pub const fn from_argument(argument: u32) -> Option<Self> {
        match argument {
            1 => Some(Self::Tcp),
            2 => Some(Self::Udp),
            3 => Some(Self::Vsock),
            _ => None,
        }
    }
}

/// One end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP or UDP.
    Inet(SocketAddr),
    /// vsock.
    Vsock {
        /// Context: 2 is the host.
        cid: u32,
        /// Port.
        port: u32,
    },
}

/// Bytes that are no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEndpoint;

impl Endpoint {
    /// As it stands in a payload.
    #[must_use]
    pub fn encode(&self) -> [u8; ENDPOINT_BYTES] {
        let mut out = [0; ENDPOINT_BYTES];
        let (family, port) = match self {
            Self::Inet(SocketAddr::V4(v4)) => {
                out[8..12].copy_from_slice(&v4.ip().octets());
                (V4, u32::from(v4.port()))
            }
            Self::Inet(SocketAddr::V6(v6)) => {
                out[8..24].copy_from_slice(&v6.ip().octets());
                (V6, u32::from(v6.port()))
            }
            Self::Vsock { cid, port } => {
                out[8..12].copy_from_slice(&cid.to_le_bytes());
                (VSOCK, *port)
            }
        };
        out[0..2].copy_from_slice(&family.to_le_bytes());
        out[4..8].copy_from_slice(&port.to_le_bytes());
        out
    }

    /// # Errors
    /// [`BadEndpoint`] for an unknown family, a port beyond 65535 or bytes that should be zero.
    pub fn decode(bytes: &[u8; ENDPOINT_BYTES]) -> Result<Self, BadEndpoint> {
        let family = u16::from_le_bytes([bytes[0], bytes[1]]);
        let port = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let inet = |ip: IpAddr| Ok(Self::Inet(SocketAddr::new(ip, u16::try_from(port).map_err(|_| BadEndpoint)?)));
        let short = [bytes[8], bytes[9], bytes[10], bytes[11]];
        if bytes[2..4] != [0; 2] || (family != V6 && bytes[12..24] != [0; 12]) {
            return Err(BadEndpoint);
        }
        match family {
            V4 => inet(Ipv4Addr::from(short).into()),
            V6 => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&bytes[8..24]);
                inet(Ipv6Addr::from(ip).into())
            }
            VSOCK => Ok(Self::Vsock { cid: u32::from_le_bytes(short), port }),
            _ => Err(BadEndpoint),
        }
    }

    /// The first endpoint of a payload.
    ///
    /// # Errors
    /// [`BadEndpoint`], also where there are too few bytes.
    pub fn first_of(payload: &[u8]) -> Result<Self, BadEndpoint> {
        Self::decode(payload.first_chunk().ok_or(BadEndpoint)?)
    }
}

/// The guest's own network as it sees it: one interface, `eth0`. No packets travel on it, so the addresses are only
/// names; they come from ranges that are nobody's (RFC 5737, RFC 4193), so that they hide nothing.
pub mod network {
    use super::{Ipv4Addr, Ipv6Addr};

    /// The guest's address, in a network of 24 bits.
    pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    /// The gateway: stands for the host's 127.0.0.1, which the egress policy refuses unless told otherwise.
    pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    /// Where the host answers name queries (UDP port 53).
    pub const NAMES_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
    /// Network bits of the addresses above.
    pub const PREFIX_V4: u8 = 24;
    /// The guest's address, in a network of 64 bits.
    pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd54, 0x6f72, 0x706f, 0, 0, 0, 0, 2);
    /// As [`GATEWAY_V4`], for ::1.
    pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd54, 0x6f72, 0x706f, 0, 0, 0, 0, 1);
    /// Network bits of the addresses above.
    pub const PREFIX_V6: u8 = 64;
    /// The host, for vsock.
    pub const HOST_CID: u32 = 2;
    /// The guest, for vsock.
    pub const GUEST_CID: u32 = 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_survive_coding() {
        for endpoint in [
            Endpoint::Inet(SocketAddr::new([192, 0, 2, 7].into(), 65535)),
            Endpoint::Inet(SocketAddr::new(network::GUEST_V6.into(), 80)),
            Endpoint::Vsock { cid: 2, port: u32::MAX },
        ] {
            assert_eq!(Endpoint::decode(&endpoint.encode()), Ok(endpoint));
        }
        let mut bad = Endpoint::Inet(SocketAddr::new([1, 2, 3, 4].into(), 5)).encode();
        bad[6] = 1;
        assert_eq!(Endpoint::decode(&bad), Err(BadEndpoint));
        assert_eq!(Endpoint::decode(&[0; ENDPOINT_BYTES]), Err(BadEndpoint));
        assert_eq!(Endpoint::first_of(&[4, 0]), Err(BadEndpoint));
    }
}
