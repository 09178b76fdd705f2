//! /proc/net: what network tools read.

use crate::fs::generated::{Attributes, Listing, TextFile, ino_of};
use crate::fs::inode::{FileType, Inode};
use crate::net::{report, traffic};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

/// The directory's content.
pub(super) struct Net {
    pub(super) attributes: Attributes,
}

/// Makes a file's text.
type Make = fn() -> String;

const FILES: &[(&str, Make)] = &[
    ("dev", traffic::text),
    ("if_inet6", || "00000000000000000000000000000001 01 80 10 80       lo\n".into()),
    ("route", || "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n".into()),
    ("tcp", || report::tcp(false)),
    ("tcp6", || report::tcp(true)),
    ("udp", || report::udp(false)),
    ("udp6", || report::udp(true)),
    ("unix", report::unix),
];

impl Listing for Net {
    fn names(&self) -> Vec<(Vec<u8>, FileType)> {
        FILES.iter().map(|(name, _)| (name.as_bytes().to_vec(), FileType::Regular)).collect()
    }

    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>> {
        let (name, text) = FILES.iter().find(|(n, _)| n.as_bytes() == name)?;
        let attributes =
            Attributes { ino: ino_of(self.attributes.ino, name.as_bytes()), mode: 0o444, ..self.attributes };
        Some(Rc::new(TextFile { attributes, read: Rc::new(|| Ok(text().into_bytes())), write: None }))
    }
}
