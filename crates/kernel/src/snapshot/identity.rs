//! Who the instance is, as its programs see it: /run/torpor/instance.

use crate::errno::Result;
use crate::fs::context::FsContext;
use crate::fs::init;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;

/// Uuid, name and generation.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The instance's uuid.
    pub uuid: &'a [u8; 16],
    /// Its name, which is its host's.
    pub name: &'a [u8],
    /// Of its state; 0 where it was never snapshotted.
    pub generation: u64,
}

impl Identity<'_> {
    fn json(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let u = self.uuid;
        let uuid = [&u[0..4], &u[4..6], &u[6..8], &u[8..10], &u[10..16]].map(hex).join("-");
        let mut name = String::new();
        for c in String::from_utf8_lossy(self.name).chars() {
            match c {
                '"' | '\\' => name.extend(['\\', c]),
                c if c < ' ' => name.push_str(&format!("\\u{:04x}", c as u32)),
                c => name.push(c),
            }
        }
        format!("{{\"uuid\":\"{uuid}\",\"name\":\"{name}\",\"generation\":{}}}\n", self.generation)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// As open(2) and write(2).
    pub fn write(&self, fs: &Rc<FsContext>) -> Result<()> {
        init::write_file(fs, "/run/torpor/instance", self.json().as_bytes())
    }
}
