//! Names of hosts as clients write them.

use std::fmt;
use std::sync::Arc;

/// The longest name (RFC 1035, 2.3.4) in text.
const NAME_MAX_BYTES: usize = 253;

/// A name in lower case, without port and final dot; an address as it was written, in its brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Arc<str>);

/// A text that names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadHost;

impl Host {
    /// From a Host header, an authority or a server name: with or without port, which is dropped.
    ///
    /// # Errors
    /// [`BadHost`] where it is none: empty, too long, with bytes that no name has, or a port that is no number.
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        let (name, port) = if text.starts_with('[') {
            let end = text.find(']').ok_or(BadHost)?;
            text.split_at(end + 1)
        } else {
            text.split_at(text.find(':').unwrap_or(text.len()))
        };
        if let Some(port) = port.strip_prefix(':') {
            if !port.bytes().all(|byte| byte.is_ascii_digit()) || port.len() > 5 {
                return Err(BadHost);
            }
        } else if !port.is_empty() {
            return Err(BadHost);
        }
        if let Some(address) = name.strip_prefix('[') {
            let address = address.strip_suffix(']').ok_or(BadHost)?;
            let address: std::net::Ipv6Addr = address.parse().map_err(|_| BadHost)?;
            return Ok(Self(format!("[{address}]").into()));
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(fits) {
            return Err(BadHost);
        }
        if name.split('.').any(|label| label.is_empty() || label.len() > 63) {
            return Err(BadHost);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// What stands for a port of the proxy that one group has alone, where clients name no host: `:PORT`, which no client
    /// can name.
    #[must_use]
    pub fn of_port(port: u16) -> Self {
        Self(format!(":{port}").into())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is what a group calls itself: this name, or `*.` before what lies behind its first label.
    #[must_use]
    pub fn is_named_by(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.');
        match name.strip_prefix("*.") {
            Some(suffix) => self.parent().is_some_and(|parent| parent.eq_ignore_ascii_case(suffix)),
            None => self.as_str().eq_ignore_ascii_case(name),
        }
    }

    /// What lies behind its first label: `b.c` of `a.b.c`.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, rest)| rest)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_brought_to_one_form() {
        for text in ["App.Example", "app.example:8080", "APP.EXAMPLE.", "app.example.:80", "app.example:"] {
            assert_eq!(Host::parse(text).expect("a name").as_str(), "app.example", "{text}");
        }
        assert_eq!(Host::parse("[::0001]:80").expect("an address").as_str(), "[::1]");
        assert_eq!(Host::parse("127.0.0.1:80").expect("an address").as_str(), "127.0.0.1");
        let long = format!("{}.example", "a".repeat(64));
        let longer = format!("{}a", "a.".repeat(127));
        let bad = [
            "",
            ":80",
            ".",
            "a..b",
            "a b",
            "a\tb",
            "a/b",
            "a:b",
            "a:123456",
            "a@b",
            "[::1",
            "[::1]x",
            "[zz]",
            "ä.example",
        ];
        for text in bad.iter().copied().chain([long.as_str(), longer.as_str()]) {
            assert_eq!(Host::parse(text), Err(BadHost), "{text}");
        }
    }
}
