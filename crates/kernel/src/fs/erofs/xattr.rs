//! Extended attributes: those of the inode itself and those shared between inodes.
//!
//! ```text
//! after the inode:  name filter u32 | nr_shared u8 | reserved [u8; 7] | shared ids u32... | entries
//! entry:            0 name_len u8 | 1 prefix u8 | 2 value_size u16 | name | value | to 4 bytes
//! ```
//! A shared id is an entry's offset in the shared area in units of 4 bytes.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use super::Erofs;
use super::error::{ErofsError, Result};
use super::image::Fields;
use super::inode::Inode;

const HEADER_BYTES: u64 = 12;
const ENTRY_BYTES: u64 = 4;
const SHARED_ID_BYTES: u64 = 4;
/// XATTR_LIST_MAX of Linux.
const LIST_MAX_BYTES: usize = 65536;

/// An entry: `prefix` and the `name_bytes` at `name_offset_bytes` are its name; the value follows.
struct Entry {
    prefix: u8,
    name_offset_bytes: u64,
    name_bytes: usize,
    value_bytes: usize,
}

impl Entry {
    /// The value's offset, from the start of the image.
    fn value_offset_bytes(&self) -> u64 {
        self.name_offset_bytes + self.name_bytes as u64
    }

    /// The size of the entry with its padding.
    fn size_bytes(&self) -> u64 {
        (ENTRY_BYTES + self.name_bytes as u64 + self.value_bytes as u64).next_multiple_of(ENTRY_BYTES)
    }
}

/// What a prefix number stands for. `None` for the numbers that no version of the format has given
/// out and for Lustre's; Linux hides such attributes as well.
fn prefix(number: u8) -> Option<&'static [u8]> {
    Some(match number {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        _ => return None,
    })
}

impl Erofs {
    /// The value of the attribute with the full name `name` ("user.mime_type"); `None` where the
    /// inode has none of that name. A value has at most 65,535 bytes.
    ///
    /// # Errors
    /// `Corrupt` where the attributes break the format.
    pub fn get_xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = None;
        self.visit_xattrs(inode, |entry| {
            let suffix = prefix(entry.prefix).and_then(|prefix| name.strip_prefix(prefix));
            let Some(suffix) = suffix.filter(|suffix| suffix.len() == entry.name_bytes) else {
                return Ok(ControlFlow::Continue(()));
            };
            if self.xattr_bytes(inode, entry.name_offset_bytes, entry.name_bytes)? != suffix {
                return Ok(ControlFlow::Continue(()));
            }
            let offset_bytes = entry.value_offset_bytes();
            value = Some(self.xattr_bytes(inode, offset_bytes, entry.value_bytes)?);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(value)
    }

    /// The full names of all attributes, each followed by a NUL, as listxattr(2) returns them to a
    /// caller that may see all of them. Empty where there are none.
    ///
    /// # Errors
    /// `Corrupt` where the attributes break the format, `XattrListTooLong` beyond 64 KiB.
    pub fn list_xattrs(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        self.visit_xattrs(inode, |entry| {
            if let Some(prefix) = prefix(entry.prefix) {
                let name = self.xattr_bytes(inode, entry.name_offset_bytes, entry.name_bytes)?;
                if name.contains(&0) {
                    let rule = "the name of an extended attribute contains a NUL";
                    return Err(ErofsError::Corrupt { nid: inode.nid, rule });
                }
                if names.len() + prefix.len() + name.len() + 1 > LIST_MAX_BYTES {
                    return Err(ErofsError::XattrListTooLong(inode.nid));
                }
                names.extend_from_slice(prefix);
                names.extend_from_slice(&name);
                names.push(0);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(names)
    }

    /// Calls `visit` with each attribute, the inode's own first, until it breaks.
    fn visit_xattrs(&self, inode: &Inode, mut visit: impl FnMut(&Entry) -> Result<ControlFlow<()>>) -> Result<()> {
        let corrupt = |rule| ErofsError::Corrupt { nid: inode.nid, rule };
        if inode.xattr_bytes == 0 {
            return Ok(());
        }
        let header: [u8; HEADER_BYTES as usize] = self
            .image
            .read(inode.xattr_offset_bytes)
            .ok_or(corrupt("its extended attributes lie outside the image"))?;
        let nr_shared = u64::from(Fields(&header).u8(4));
        let shared_start = inode.xattr_offset_bytes + HEADER_BYTES;
        let mut at = shared_start + nr_shared * SHARED_ID_BYTES;
        let end = inode.xattr_offset_bytes + inode.xattr_bytes;
        if at > end {
            return Err(corrupt("it has more shared extended attributes than room for them"));
        }
        // Both are multiples of 4, and so is each step, which is at least 4.
        while at < end {
            let entry = self.xattr_entry(inode, at)?;
            at += entry.size_bytes();
            if at > end {
                return Err(corrupt("an extended attribute ends after the inode"));
            }
            if visit(&entry)?.is_break() {
                return Ok(());
            }
        }
        for index in 0..nr_shared {
            let id: [u8; SHARED_ID_BYTES as usize] = self
                .image
                .read(shared_start + index * SHARED_ID_BYTES)
                .ok_or(corrupt("its extended attributes lie outside the image"))?;
            // No overflow: both terms are below 2^45.
            let offset = u64::from(u32::from_le_bytes(id)) * ENTRY_BYTES;
            let entry = self.xattr_entry(inode, self.superblock.xattr_offset_bytes + offset)?;
            if visit(&entry)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The entry at `offset_bytes` of the image.
    fn xattr_entry(&self, inode: &Inode, offset_bytes: u64) -> Result<Entry> {
        let rule = "an extended attribute lies outside the image";
        let bytes: [u8; ENTRY_BYTES as usize] =
            self.image.read(offset_bytes).ok_or(ErofsError::Corrupt { nid: inode.nid, rule })?;
        let fields = Fields(&bytes);
        Ok(Entry {
            prefix: fields.u8(1),
            name_offset_bytes: offset_bytes + ENTRY_BYTES,
            name_bytes: usize::from(fields.u8(0)),
            value_bytes: usize::from(fields.u16(2)),
        })
    }

    /// A name or a value.
    fn xattr_bytes(&self, inode: &Inode, offset_bytes: u64, len_bytes: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len_bytes];
        let rule = "an extended attribute lies outside the image";
        self.image.copy_to(offset_bytes, &mut bytes).ok_or(ErofsError::Corrupt { nid: inode.nid, rule })?;
        Ok(bytes)
    }
}
