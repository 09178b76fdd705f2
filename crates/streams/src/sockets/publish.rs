//! Published ports: `-p [ADDR:]HOST:GUEST[/tcp|/udp]`, as `docker run` has it.

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use torpor_abi::endpoint::Transport;

/// Connections that wait in the host's kernel until they are handed to the guest.
const BACKLOG: i32 = 1024;

/// A port of the guest and where on the host it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Address on the host; all of them where there is none.
    pub address: Option<IpAddr>,
    /// Port on the host; 0 for any that is free.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(v6)) => write!(f, "[{v6}]:")?,
            Some(v4) => write!(f, "{v4}:")?,
            None => {}
        }
        let transport = if self.transport == Transport::Udp { "udp" } else { "tcp" };
        write!(f, "{}:{}/{transport}", self.host_port, self.guest_port)
    }
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            || format!("{text}: expected [ADDR:]HOST:GUEST[/tcp|/udp], such as 8080:80 or 127.0.0.1:53:53/udp");
        let (ports, transport) = match text.split_once('/') {
            None => (text, Transport::Tcp),
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return Err(invalid()),
        };
        let (rest, guest) = ports.rsplit_once(':').unwrap_or(("", ports));
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
                (Some(bare.parse().map_err(|_| invalid())?), host)
            }
            None => (None, rest),
        };
        let host_port = if host.is_empty() { 0 } else { host.parse().map_err(|_| invalid())? };
        let guest_port = guest.parse().ok().filter(|&port| port != 0).ok_or_else(invalid)?;
        Ok(Self { address, host_port, guest_port, transport })
    }
}

/// A bound socket of the host for a port of the guest.
#[derive(Debug)]
pub struct Bound {
    pub(super) socket: OwnedFd,
    /// Where it is bound.
    pub local: SocketAddr,
    /// As in [`Publish`].
    pub guest_port: u16,
    /// As in [`Publish`].
    pub transport: Transport,
}

impl Publish {
    /// Binds the port: without an address on all of IPv4 and of IPv6, where the host has that.
    ///
    /// # Errors
    /// A text that names the port and what is wrong with it.
    pub fn bind(&self) -> Result<Vec<Bound>, String> {
        let wildcards = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let mut bound: Vec<Bound> = Vec::new();
        for ip in self.address.map_or(wildcards.to_vec(), |ip| vec![ip]) {
            // One free port for both families.
            let port = bound.first().map_or(self.host_port, |first| first.local.port());
            match self.bind_one(SocketAddr::new(ip, port)) {
                Ok(one) => bound.push(one),
                Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if self.address.is_none() && ip.is_ipv6() => {}
                Err(Errno::ADDRINUSE) => {
                    return Err(format!("{self}: port {port} of the host is taken: choose another"));
                }
                Err(Errno::ADDRNOTAVAIL) => return Err(format!("{self}: {ip} is no address of this machine")),
                Err(Errno::ACCESS) => {
                    return Err(format!("{self}: port {port} needs privileges: choose one above 1023"));
                }
                Err(error) => return Err(format!("{self}: {}", std::io::Error::from(error))),
            }
        }
        Ok(bound)
    }

    fn bind_one(&self, address: SocketAddr) -> Result<Bound, Errno> {
        let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let stream = self.transport == Transport::Tcp;
        let kind = if stream { SocketType::STREAM } else { SocketType::DGRAM };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if stream {
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        rustix::net::bind(&socket, &address)?;
        if stream {
            rustix::net::listen(&socket, BACKLOG)?;
        }
        let local = rustix::net::getsockname(&socket)?.try_into()?;
        Ok(Bound { socket, local, guest_port: self.guest_port, transport: self.transport })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_as_docker_takes_them() {
        let parse = |text: &str| text.parse::<Publish>();
        let http = Publish { address: None, host_port: 8080, guest_port: 80, transport: Transport::Tcp };
        assert_eq!(parse("8080:80"), Ok(http.clone()));
        assert_eq!(parse("8080:80/tcp"), Ok(http.clone()));
        assert_eq!(parse("80"), Ok(Publish { host_port: 0, ..http.clone() }));
        let local = Publish { address: Some([127, 0, 0, 1].into()), ..http.clone() };
        assert_eq!(parse("127.0.0.1:8080:80"), Ok(local.clone()));
        assert_eq!(parse("127.0.0.1::80"), Ok(Publish { host_port: 0, ..local }));
        let v6 = Publish { address: Some(Ipv6Addr::LOCALHOST.into()), transport: Transport::Udp, ..http };
        assert_eq!(parse("[::1]:8080:80/udp"), Ok(v6.clone()));
        assert_eq!(v6.to_string(), "[::1]:8080:80/udp");
        for bad in
            ["", ":", "0", "80:", "a:80", "8080:80/sctp", "8080:65536", "70000:80", "1.2.3:1:2", "x:1:2", "1:2:3:4"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_taken_port_is_an_error_that_names_it() {
        let any: Publish = "127.0.0.1:0:80".parse().expect("valid");
        let first = any.bind().expect("a free port");
        let port = first[0].local.port();
        let taken = Publish { host_port: port, ..any };
        let message = taken.bind().expect_err("taken");
        assert!(message.contains(&port.to_string()) && message.contains("taken"), "{message}");
    }
}
