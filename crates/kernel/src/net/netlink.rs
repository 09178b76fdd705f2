//! NETLINK_ROUTE (rtnetlink(7)), as far as it can be read: links, addresses and routes. So getifaddrs(3), getaddrinfo(3)
//! and `ip addr` find what there is. Changes get EPERM.

use super::address::Address;
use super::interfaces::{INTERFACES, Interface};
use super::queue::Message;
use super::socket::Socket;
use crate::errno::{Errno, Result};
use crate::wait::Events;
use alloc::vec::Vec;
use core::net::IpAddr;
use torpor_abi::endpoint::network;

const HEADER_BYTES: usize = 16;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// What one message of an answer holds at most; readers bring 8 KiB.
const ANSWER_BYTES: usize = 4096;

/// A request's header.
#[derive(Clone, Copy)]
struct Request<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    header: &'a [u8],
    body: &'a [u8],
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

/// Messages of an answer, one after the other.
struct Answer {
    sequence: u32,
    port: u32,
    datagrams: Vec<Vec<u8>>,
}

impl Answer {
    fn push(&mut self, kind: u16, flags: u16, body: &[u8]) {
        let len = HEADER_BYTES + body.len();
        let mut out = Vec::with_capacity(len.next_multiple_of(4));
        out.extend((len as u32).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(self.sequence.to_ne_bytes());
        out.extend(self.port.to_ne_bytes());
        out.extend(body);
        out.resize(len.next_multiple_of(4), 0);
        match self.datagrams.last_mut() {
            Some(last) if last.len() + out.len() <= ANSWER_BYTES && kind != NLMSG_DONE => last.extend(out),
            _ => self.datagrams.push(out),
        }
    }

    fn error(&mut self, request: &Request<'_>, errno: i32) {
        let mut body = (-errno).to_ne_bytes().to_vec();
        body.extend(request.header);
        self.push(NLMSG_ERROR, 0, &body);
    }
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(((4 + value.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn text(out: &mut Vec<u8>, kind: u16, value: &str) {
    attribute(out, kind, &[value.as_bytes(), &[0]].concat());
}

/// `struct ifinfomsg` with the attributes that `ip link` shows.
fn link(interface: &Interface) -> Vec<u8> {
    let mut out = alloc::vec![0, 0];
    out.extend(interface.hardware.to_ne_bytes());
    out.extend(interface.index.to_ne_bytes());
    out.extend(interface.flags.to_ne_bytes());
    out.extend([0; 4]);
    text(&mut out, 3, interface.name);
    attribute(&mut out, 13, &interface.queue_length.to_ne_bytes());
    // IFLA_OPERSTATE: 0 is unknown, as lo has it, 6 is up.
    attribute(&mut out, 16, &[if interface.index == 1 { 0 } else { 6 }]);
    attribute(&mut out, 4, &interface.mtu.to_ne_bytes());
    text(&mut out, 6, if interface.index == 1 { "noqueue" } else { "mq" });
    attribute(&mut out, 1, &interface.address);
    attribute(&mut out, 2, &interface.broadcast);
    // IFLA_STATS64: nothing is counted, as there are no packets.
    attribute(&mut out, 23, &[0; 192]);
    out
}

/// `struct ifaddrmsg` with its attributes.
fn address(interface: &Interface, ip: IpAddr, prefix: u8) -> Vec<u8> {
    // RT_SCOPE_HOST 254, RT_SCOPE_UNIVERSE 0; IFA_F_PERMANENT 0x80.
    let scope = if interface.index == 1 { 254 } else { 0 };
    let family = if ip.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut out = alloc::vec![family, prefix, 0x80, scope];
    out.extend(interface.index.to_ne_bytes());
    match ip {
        IpAddr::V4(v4) => {
            attribute(&mut out, 1, &v4.octets());
            attribute(&mut out, 2, &v4.octets());
            if let Some(broadcast) = interface.broadcast_v4() {
                attribute(&mut out, 4, &broadcast.octets());
            }
            text(&mut out, 3, interface.name);
        }
        IpAddr::V6(v6) => attribute(&mut out, 1, &v6.octets()),
    }
    attribute(&mut out, 8, &0x80u32.to_ne_bytes());
    // IFA_CACHEINFO: valid for ever.
    let mut cache = [0; 16];
    cache[..8].fill(0xff);
    attribute(&mut out, 6, &cache);
    out
}

/// `struct rtmsg` and attributes of the way to everywhere else (`gateway`), or to the network of eth0.
fn route(v6: bool, gateway: bool) -> Vec<u8> {
    let family = if v6 { AF_INET6 } else { AF_INET };
    let prefix = match (gateway, v6) {
        (true, _) => 0,
        (false, false) => network::PREFIX_V4,
        (false, true) => network::PREFIX_V6,
    };
    // RT_TABLE_MAIN 254; RTPROT_BOOT 3 or RTPROT_KERNEL 2; RT_SCOPE_LINK 253; RTN_UNICAST 1.
    let scope = if gateway || v6 { 0 } else { 253 };
    let mut out = alloc::vec![family, prefix, 0, 0, 254, if gateway { 3 } else { 2 }, scope, 1, 0, 0, 0, 0];
    attribute(&mut out, 15, &254u32.to_ne_bytes());
    let octets = |v4: core::net::Ipv4Addr, six: core::net::Ipv6Addr| {
        if v6 { six.octets().to_vec() } else { v4.octets().to_vec() }
    };
    if gateway {
        attribute(&mut out, 5, &octets(network::GATEWAY_V4, network::GATEWAY_V6));
    } else {
        let mask = |bytes: Vec<u8>| -> Vec<u8> {
            bytes.iter().enumerate().map(|(n, b)| if n < usize::from(prefix) / 8 { *b } else { 0 }).collect()
        };
        attribute(&mut out, 1, &mask(octets(network::GUEST_V4, network::GUEST_V6)));
        if !v6 {
            attribute(&mut out, 7, &network::GUEST_V4.octets());
        }
    }
    attribute(&mut out, 4, &2u32.to_ne_bytes());
    out
}

fn answer_request(request: &Request<'_>, answer: &mut Answer) {
    let dump = request.flags & NLM_F_DUMP != 0;
    let multi = if dump { NLM_F_MULTI } else { 0 };
    let family = request.body.first().copied().unwrap_or(0);
    match request.kind {
        0 | NLMSG_NOOP | NLMSG_DONE | NLMSG_ERROR => return,
        RTM_GETLINK => {
            // One link is asked for by index or by name (IFLA_IFNAME, the first attribute).
            let index = word(request.body, 4);
            let name = (half(request.body, 18) == 3).then(|| request.body.get(20..)).flatten();
            let name = name.and_then(|bytes| bytes.split(|b| *b == 0).next());
            let mut found = false;
            for interface in &INTERFACES {
                if dump || interface.index == index || name == Some(interface.name.as_bytes()) {
                    answer.push(RTM_NEWLINK, multi, &link(interface));
                    found = true;
                }
            }
            if !found {
                return answer.error(request, Errno::ENODEV.0);
            }
        }
        RTM_GETADDR if dump => {
            for wanted in [AF_INET, AF_INET6] {
                for interface in &INTERFACES {
                    for (ip, prefix) in interface.addresses() {
                        let is = if ip.is_ipv4() { AF_INET } else { AF_INET6 };
                        if is == wanted && (family == 0 || family == wanted) {
                            answer.push(RTM_NEWADDR, multi, &address(interface, ip, prefix));
                        }
                    }
                }
            }
        }
        RTM_GETROUTE if dump => {
            for v6 in [false, true] {
                if family == 0 || (family == AF_INET6) == v6 {
                    answer.push(RTM_NEWROUTE, multi, &route(v6, true));
                    answer.push(RTM_NEWROUTE, multi, &route(v6, false));
                }
            }
        }
        // Changes: RTM_NEW* and RTM_DEL* are the first two of each four.
        kind if kind >= RTM_NEWLINK && kind % 4 < 2 => return answer.error(request, Errno::EPERM.0),
        _ => return answer.error(request, Errno::EOPNOTSUPP.0),
    }
    if dump {
        answer.push(NLMSG_DONE, multi, &0i32.to_ne_bytes());
    } else if request.flags & NLM_F_ACK != 0 {
        answer.error(request, 0);
    }
}

/// The datagrams that answer one of a program.
fn answer(mut bytes: &[u8], port: u32) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let len = word(bytes, 0) as usize;
        if len < HEADER_BYTES || len > bytes.len() {
            break;
        }
        let (header, body) = bytes[..len].split_at(HEADER_BYTES);
        let request =
            Request { kind: half(header, 4), flags: half(header, 6), sequence: word(header, 8), header, body };
        let mut answer = Answer { sequence: request.sequence, port, datagrams: Vec::new() };
        answer_request(&request, &mut answer);
        datagrams.append(&mut answer.datagrams);
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    datagrams
}

/// Sends a datagram of requests; the answers are there at once.
///
/// # Errors
/// ENOBUFS when nobody reads the answers.
pub(super) fn send(socket: &Socket, bytes: &[u8]) -> Result<usize> {
    let Address::Netlink(port) = socket.local_address() else { return Err(Errno::EINVAL) };
    for datagram in answer(bytes, port) {
        if socket.incoming.room_bytes() < datagram.len() {
            return Err(Errno::ENOBUFS);
        }
        socket.incoming.push(Message::new(datagram, Some(Address::Netlink(0)), Vec::new(), None));
    }
    socket.queue.wake(Events::READABLE);
    Ok(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut out = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(7u32.to_ne_bytes());
        out.extend(0u32.to_ne_bytes());
        out.extend(body);
        out
    }

    /// Kinds of an answer's messages, whose lengths must fit.
    fn kinds(datagrams: &[Vec<u8>]) -> Vec<u16> {
        let mut kinds = Vec::new();
        for datagram in datagrams {
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                assert_eq!((word(rest, 8), word(rest, 12)), (7, 99));
                kinds.push(half(rest, 4));
                rest = &rest[(word(rest, 0) as usize).next_multiple_of(4)..];
            }
        }
        kinds
    }

    #[test]
    fn dumps_end_with_done_and_changes_are_refused() {
        let dump = |kind, family| kinds(&answer(&request(kind, 0x301, &[family, 0, 0, 0]), 99));
        assert_eq!(dump(RTM_GETLINK, 0), [RTM_NEWLINK, RTM_NEWLINK, NLMSG_DONE]);
        assert_eq!(dump(RTM_GETADDR, 0), [RTM_NEWADDR, RTM_NEWADDR, RTM_NEWADDR, RTM_NEWADDR, NLMSG_DONE]);
        assert_eq!(dump(RTM_GETADDR, AF_INET), [RTM_NEWADDR, RTM_NEWADDR, NLMSG_DONE]);
        assert_eq!(dump(RTM_GETROUTE, AF_INET6), [RTM_NEWROUTE, RTM_NEWROUTE, NLMSG_DONE]);
        let refused = answer(&request(RTM_NEWADDR, 0x5, &[0; 8]), 99);
        assert_eq!((half(&refused[0], 4), word(&refused[0], 16).cast_signed()), (NLMSG_ERROR, -1));
    }

    proptest! {
        #[test]
        fn hostile_requests_are_answered_or_dropped(
            kind in 0_u16..40, flags: u16, body in proptest::collection::vec(any::<u8>(), 0..60), cut in 0_usize..80,
        ) {
            let mut bytes = [request(kind, flags, &body), body.clone()].concat();
            let _ = answer(&bytes, 1);
            bytes.truncate(cut);
            let _ = answer(&bytes, 1);
            let _ = answer(&body, 1);
        }
    }
}
