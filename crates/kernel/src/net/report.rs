//! What /proc/net lists of sockets (proc(5)): those that some process has open, and connections that wait to be accepted.

use super::address::{Address, InetAddress, UnixName};
use super::options::level;
use super::socket::{Kind, Socket, SocketFile, State};
use crate::task::pid;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::IpAddr;

/// Lines of the IPv4 lists are filled up to these lengths.
const TCP_WIDTH: usize = 149;
const UDP_WIDTH: usize = 127;
/// `__SO_ACCEPTCON`.
const LISTENING: u32 = 1 << 16;

struct Listed {
    socket: Rc<Socket>,
    /// Inode number; 0 while the socket waits to be accepted.
    ino: u64,
}

/// All sockets behind descriptors, each once, and behind each listener those that nobody has accepted yet.
fn sockets() -> Vec<Listed> {
    let mut sockets: Vec<Rc<Socket>> = Vec::new();
    for thread in pid::processes().iter().flat_map(|process| process.threads()) {
        let Some(files) = thread.try_files() else { continue };
        for fd in files.open() {
            let Ok(file) = files.get(fd) else { continue };
            sockets.extend(file.ops.as_any().downcast_ref::<SocketFile>().map(|socket| Rc::clone(&socket.0)));
        }
    }
    sockets.sort_by_key(|socket| socket.ino());
    sockets.dedup_by_key(|socket| socket.ino());
    let mut listed = Vec::new();
    for socket in sockets {
        let waiting = match &*socket.state.borrow() {
            State::Listening(listener) => listener.pending.iter().cloned().collect(),
            _ => Vec::new(),
        };
        listed.push(Listed { ino: socket.ino(), socket });
        listed.extend(waiting.into_iter().map(|socket| Listed { socket, ino: 0 }));
    }
    listed
}

/// The address in words as they lie in memory, and the port.
fn hexadecimal(address: InetAddress) -> String {
    let words = |bytes: &[u8]| -> String {
        let word = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        bytes.chunks_exact(4).map(|four| format!("{:08X}", word(four))).collect()
    };
    let ip = match address.ip {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    format!("{ip}:{:04X}", address.port)
}

/// The columns that TCP and UDP share.
fn columns(listed: &Listed, state: u8) -> String {
    let socket = &listed.socket;
    let v6 = socket.is_v6();
    let remote = socket.remote_inet().unwrap_or(InetAddress::any(v6)).in_family(v6);
    let local = socket.local_inet().in_family(v6);
    let unread = match &*socket.state.borrow() {
        State::Listening(listener) => listener.pending.len(),
        _ => socket.incoming.readable_bytes(),
    };
    format!(
        "{} {} {state:02X} {:08X}:{unread:08X} 00:00000000 00000000 {:>5} {:>8} {}",
        hexadecimal(local),
        hexadecimal(remote),
        0,
        socket.uid(),
        0,
        listed.ino
    )
}

fn pad(line: &str, width: usize) -> String {
    format!("{line:<width$}\n")
}

/// /proc/net/tcp, or /proc/net/tcp6: listeners and connections.
#[must_use]
pub fn tcp(v6: bool) -> String {
    let head = if v6 {
        "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n".into()
    } else {
        pad(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
            TCP_WIDTH,
        )
    };
    let is_listed = |Listed { socket, .. }: &&Listed| {
        let open = socket.is_listening() || socket.is_connected();
        socket.is_inet() && socket.kind == Kind::Stream && socket.is_v6() == v6 && open
    };
    let mut out: String = head;
    for (number, listed) in sockets().iter().filter(is_listed).enumerate() {
        let columns = columns(listed, listed.socket.tcp_state());
        let line = format!("{number:>4}: {columns} 1 0000000000000000 100 0 0 10 0");
        out += &if v6 { format!("{line}\n") } else { pad(&line, TCP_WIDTH) };
    }
    out
}

/// /proc/net/udp, or /proc/net/udp6: sockets with a port.
#[must_use]
pub fn udp(v6: bool) -> String {
    const ESTABLISHED: u8 = 1;
    const CLOSED: u8 = 7;
    let head = if v6 {
        "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n".into()
    } else {
        pad(
            "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops",
            UDP_WIDTH,
        )
    };
    let is_listed = |Listed { socket, .. }: &&Listed| {
        let bound = socket.local_inet().port != 0;
        socket.is_inet() && socket.protocol == level::UDP && socket.is_v6() == v6 && bound
    };
    let mut out: String = head;
    for listed in sockets().iter().filter(is_listed) {
        let socket = &listed.socket;
        let state = if socket.remote_inet().is_some() { ESTABLISHED } else { CLOSED };
        // The number is that of a slot of a hash table.
        let line = format!("{:>5}: {} 2 0000000000000000 0", socket.local_inet().port % 1024, columns(listed, state));
        out += &if v6 { format!("{line}\n") } else { pad(&line, UDP_WIDTH) };
    }
    out
}

/// /proc/net/unix.
#[must_use]
pub fn unix() -> String {
    const UNCONNECTED: u8 = 1;
    const CONNECTING: u8 = 2;
    const CONNECTED: u8 = 3;
    let mut out = String::from("Num       RefCount Protocol Flags    Type St Inode Path\n");
    for Listed { socket, ino } in sockets().iter().filter(|listed| listed.socket.is_unix()) {
        let flags = if socket.is_listening() { LISTENING } else { 0 };
        let state = match socket.is_connected() {
            true if *ino == 0 => CONNECTING,
            true => CONNECTED,
            false => UNCONNECTED,
        };
        let _ = write!(
            out,
            "0000000000000000: {:08X} {:08X} {flags:08X} {:04X} {state:02X} {:>5}",
            if socket.is_connected() { 3 } else { 2 },
            0,
            socket.kind as u32,
            ino
        );
        match socket.local_address() {
            Address::Unix(UnixName::Path(path)) => {
                let _ = write!(out, " {}", String::from_utf8_lossy(&path));
            }
            Address::Unix(UnixName::Abstract(name)) => {
                // NULs are shown as the first one is.
                let name: Vec<u8> = name.iter().map(|byte| if *byte == 0 { b'@' } else { *byte }).collect();
                let _ = write!(out, " @{}", String::from_utf8_lossy(&name));
            }
            _ => {}
        }
        out.push('\n');
    }
    out
}
