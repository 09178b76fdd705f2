//! Socket options (socket(7), tcp(7), ip(7), ipv6(7)) that are plain numbers: a table of those that exist.

use crate::errno::{Errno, Result};
use alloc::collections::BTreeMap;
use core::cell::RefCell;

/// SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE, IPPROTO_IPV6, AF_VSOCK.
#[allow(missing_docs, reason = "the names of setsockopt(2)")]
pub mod level {
    pub const SOCKET: u32 = 1;
    pub const IP: u32 = 0;
    pub const TCP: u32 = 6;
    pub const UDP: u32 = 17;
    pub const UDPLITE: u32 = 136;
    pub const VSOCK: u32 = 40;
    pub const IPV6: u32 = 41;
}

/// Names that the kernel itself looks at.
#[allow(missing_docs, reason = "the names of socket(7)")]
pub mod name {
    pub const REUSEADDR: u32 = 2;
    pub const TYPE: u32 = 3;
    pub const ERROR: u32 = 4;
    pub const SNDBUF: u32 = 7;
    pub const RCVBUF: u32 = 8;
    pub const LINGER: u32 = 13;
    pub const REUSEPORT: u32 = 15;
    pub const PASSCRED: u32 = 16;
    pub const PEERCRED: u32 = 17;
    pub const RCVTIMEO: u32 = 20;
    pub const SNDTIMEO: u32 = 21;
    pub const TIMESTAMP: u32 = 29;
    pub const ACCEPTCONN: u32 = 30;
    pub const SNDBUFFORCE: u32 = 32;
    pub const RCVBUFFORCE: u32 = 33;
    pub const TIMESTAMPNS: u32 = 35;
    pub const MARK: u32 = 36;
    pub const PROTOCOL: u32 = 38;
    pub const DOMAIN: u32 = 39;
    pub const RCVTIMEO_NEW: u32 = 66;
    pub const SNDTIMEO_NEW: u32 = 67;
    pub const V6ONLY: u32 = 26;
    pub const TCP_INFO: u32 = 11;
}

/// Which sockets have an option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    All,
    Unix,
    Inet,
    V6,
    Stream,
}

/// Level, name, default, smallest and largest value, and whom it is for. On the loopback interface, where nothing is
/// lost, delayed or routed, most of them have nothing to act on; their value is kept, as the interface promises.
const NUMBERS: &[(u32, u32, i32, i32, i32, For)] = &[
    (1, 1, 0, 0, 1, For::All),                   // SO_DEBUG
    (1, 2, 0, 0, 1, For::All),                   // SO_REUSEADDR
    (1, 5, 0, 0, 1, For::All),                   // SO_DONTROUTE
    (1, 6, 0, 0, 1, For::All),                   // SO_BROADCAST
    (1, 9, 0, 0, 1, For::All),                   // SO_KEEPALIVE
    (1, 10, 0, 0, 1, For::All),                  // SO_OOBINLINE
    (1, 12, 0, 0, 6, For::All),                  // SO_PRIORITY
    (1, 15, 0, 0, 1, For::All),                  // SO_REUSEPORT
    (1, 16, 0, 0, 1, For::Unix),                 // SO_PASSCRED
    (1, 18, 1, 0, i32::MAX, For::All),           // SO_RCVLOWAT
    (1, 29, 0, 0, 1, For::All),                  // SO_TIMESTAMP
    (1, 35, 0, 0, 1, For::All),                  // SO_TIMESTAMPNS
    (1, 36, 0, i32::MIN, i32::MAX, For::All),    // SO_MARK
    (1, 49, 0, i32::MIN, i32::MAX, For::All),    // SO_INCOMING_CPU
    (0, 1, 0, 0, 255, For::Inet),                // IP_TOS
    (0, 2, 64, 1, 255, For::Inet),               // IP_TTL
    (0, 8, 0, 0, 1, For::Inet),                  // IP_PKTINFO
    (0, 10, 1, 0, 5, For::Inet),                 // IP_MTU_DISCOVER
    (0, 11, 0, 0, 1, For::Inet),                 // IP_RECVERR
    (0, 12, 0, 0, 1, For::Inet),                 // IP_RECVTTL
    (0, 13, 0, 0, 1, For::Inet),                 // IP_RECVTOS
    (0, 15, 0, 0, 1, For::Inet),                 // IP_FREEBIND
    (0, 24, 0, 0, 1, For::Inet),                 // IP_BIND_ADDRESS_NO_PORT
    (0, 33, 1, 1, 255, For::Inet),               // IP_MULTICAST_TTL
    (0, 34, 1, 0, 1, For::Inet),                 // IP_MULTICAST_LOOP
    (41, 16, 64, -1, 255, For::V6),              // IPV6_UNICAST_HOPS
    (41, 18, 1, -1, 255, For::V6),               // IPV6_MULTICAST_HOPS
    (41, 19, 1, 0, 1, For::V6),                  // IPV6_MULTICAST_LOOP
    (41, 23, 1, 0, 5, For::V6),                  // IPV6_MTU_DISCOVER
    (41, 25, 0, 0, 1, For::V6),                  // IPV6_RECVERR
    (41, 26, 0, 0, 1, For::V6),                  // IPV6_V6ONLY
    (41, 49, 0, 0, 1, For::V6),                  // IPV6_RECVPKTINFO
    (41, 51, 0, 0, 1, For::V6),                  // IPV6_RECVHOPLIMIT
    (41, 62, 0, 0, 1, For::V6),                  // IPV6_DONTFRAG
    (41, 66, 0, 0, 1, For::V6),                  // IPV6_RECVTCLASS
    (41, 67, 0, -1, 255, For::V6),               // IPV6_TCLASS
    (40, 0, 262_144, 0, i32::MAX, For::All),     // SO_VM_SOCKETS_BUFFER_SIZE
    (40, 1, 128, 0, i32::MAX, For::All),         // SO_VM_SOCKETS_BUFFER_MIN_SIZE
    (40, 2, 262_144, 0, i32::MAX, For::All),     // SO_VM_SOCKETS_BUFFER_MAX_SIZE
    (136, 10, 0, 0, 65535, For::Inet),           // UDPLITE_SEND_CSCOV
    (136, 11, 0, 0, 65535, For::Inet),           // UDPLITE_RECV_CSCOV
    (6, 1, 0, 0, 1, For::Stream),                // TCP_NODELAY
    (6, 2, 65483, 88, 65483, For::Stream),       // TCP_MAXSEG
    (6, 3, 0, 0, 1, For::Stream),                // TCP_CORK
    (6, 4, 7200, 1, 32767, For::Stream),         // TCP_KEEPIDLE
    (6, 5, 75, 1, 32767, For::Stream),           // TCP_KEEPINTVL
    (6, 6, 9, 1, 127, For::Stream),              // TCP_KEEPCNT
    (6, 7, 6, 1, 127, For::Stream),              // TCP_SYNCNT
    (6, 8, 60, -1, i32::MAX, For::Stream),       // TCP_LINGER2
    (6, 9, 0, 0, i32::MAX, For::Stream),         // TCP_DEFER_ACCEPT
    (6, 10, 0, 0, i32::MAX, For::Stream),        // TCP_WINDOW_CLAMP
    (6, 12, 1, 0, 1, For::Stream),               // TCP_QUICKACK
    (6, 18, 0, 0, i32::MAX, For::Stream),        // TCP_USER_TIMEOUT
    (6, 23, 0, 0, i32::MAX, For::Stream),        // TCP_FASTOPEN
    (6, 25, 0, i32::MIN, i32::MAX, For::Stream), // TCP_NOTSENT_LOWAT
];

/// The numbers that were set.
#[derive(Default)]
pub struct Options(RefCell<BTreeMap<(u32, u32), i32>>);

impl Options {
    /// Default, smallest and largest value of an option; `(inet, v6, stream)` say what the socket is.
    fn entry(level: u32, name: u32, (inet, v6, stream): (bool, bool, bool)) -> Result<(i32, i32, i32)> {
        let (.., default, min, max, whom) =
            NUMBERS.iter().find(|(l, n, ..)| (*l, *n) == (level, name)).ok_or(Errno::ENOPROTOOPT)?;
        let applies = match whom {
            For::All => true,
            For::Unix => !inet,
            For::Inet => inet,
            For::V6 => v6,
            For::Stream => inet && stream,
        };
        match applies {
            true => Ok((*default, *min, *max)),
            false if level == level::SOCKET => Err(Errno::EOPNOTSUPP),
            false => Err(Errno::ENOPROTOOPT),
        }
    }

    /// The value of a numeric option.
    ///
    /// # Errors
    /// ENOPROTOOPT, EOPNOTSUPP for one that sockets of this kind have not.
    pub fn get(&self, level: u32, name: u32, what: (bool, bool, bool)) -> Result<i32> {
        let (default, ..) = Self::entry(level, name, what)?;
        Ok(self.0.borrow().get(&(level, name)).copied().unwrap_or(default))
    }

    /// Whether a switch of this socket is on.
    #[must_use]
    pub fn on(&self, level: u32, name: u32) -> bool {
        self.0.borrow().get(&(level, name)).is_some_and(|v| *v != 0)
    }

    /// Sets a numeric option. Switches take any number for true.
    ///
    /// # Errors
    /// ENOPROTOOPT, EINVAL for a value out of range.
    pub fn set(&self, level: u32, name: u32, what: (bool, bool, bool), value: i32) -> Result<()> {
        let (_, min, max) = Self::entry(level, name, what)?;
        let value = if (min, max) == (0, 1) { i32::from(value != 0) } else { value };
        if value < min || value > max {
            return Err(Errno::EINVAL);
        }
        let mut numbers = self.0.borrow_mut();
        if level == level::SOCKET && matches!(name, name::TIMESTAMP | name::TIMESTAMPNS) {
            // Time comes in one unit; to ask for none of the one is to ask for none.
            numbers.retain(|(l, n), _| *l != level || !matches!(*n, name::TIMESTAMP | name::TIMESTAMPNS));
        }
        numbers.insert((level, name), value);
        Ok(())
    }

    /// What an accepted socket inherits from its listener.
    pub fn inherit(&self, listener: &Options) {
        *self.0.borrow_mut() = listener.0.borrow().clone();
    }
}
