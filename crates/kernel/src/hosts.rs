//! hosts(5): as container engines do, /etc/hosts names the host itself and localhost, whatever the image was built with.

use crate::errno::Result;
use crate::fs::context::FsContext;
use crate::fs::init;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use torpor_abi::endpoint::network;

const PATH: &str = "/etc/hosts";

/// Gives the guest's own address `name` in /etc/hosts, and no other.
///
/// # Errors
/// As open(2) and write(2).
pub fn write(fs: &Rc<FsContext>, name: &[u8]) -> Result<()> {
    let known = init::read_file(fs, PATH).unwrap_or_default();
    let text = named(&known, name);
    if text == known { Ok(()) } else { init::write_file(fs, PATH, &text) }
}

/// The text with a line for `name` in place of the one that this has added before, and one for localhost if there is none.
fn named(known: &[u8], name: &[u8]) -> Vec<u8> {
    let own = format!("{}\t", network::GUEST_V4);
    let names_localhost =
        |line: &[u8]| !line.starts_with(b"#") && line.split(u8::is_ascii_whitespace).any(|word| word == b"localhost");
    let lines = || known.split_inclusive(|byte| *byte == b'\n');
    let mut text = Vec::new();
    if !lines().any(names_localhost) {
        text.extend_from_slice(b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    for line in lines().filter(|line| !line.starts_with(own.as_bytes())) {
        text.extend_from_slice(line);
    }
    if text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
    for part in [own.as_bytes(), name, b"\n"] {
        text.extend_from_slice(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn the_guest_has_one_name() {
        let first = named(b"", b"one");
        let expected = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n192.0.2.2\tone\n";
        assert_eq!(String::from_utf8_lossy(&first), expected);
        assert_eq!(named(&first, b"one"), first);
        let second = named(b"127.0.0.1 localhost\n192.0.2.2\tone\n10.0.0.1 db", b"two");
        assert_eq!(String::from_utf8_lossy(&second), "127.0.0.1 localhost\n10.0.0.1 db\n192.0.2.2\ttwo\n");
        assert!(named(b"# localhost\n", b"one").starts_with(b"127.0.0.1\tlocalhost\n"));
    }
}
