//! What can be wrong with an image, or with a question asked of it.

use core::fmt;

use crate::errno::Errno;

/// Why the image, or one inode of it, cannot be used. The text names the input, the rule it broke and,
/// where there is one, the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErofsError {
    /// There is no EROFS superblock in the image.
    NotErofs,
    /// The block size is not 4096 bytes; the value is its base-two logarithm.
    BlockSize(u8),
    /// Bits of `feature_incompat` that this reader does not know how to honour.
    UnsupportedFeatures(u32),
    /// The superblock's CRC32-C does not match its content.
    Checksum {
        /// The checksum in the superblock.
        stored: u32,
        /// The checksum of what is there.
        computed: u32,
    },
    /// The image is shorter than its superblock says.
    Truncated {
        /// Length of the image.
        image_bytes: u64,
        /// Length that the superblock states.
        expected_bytes: u64,
    },
    /// The superblock breaks the rule named here.
    CorruptSuperblock(&'static str),
    /// The inode `nid` breaks the rule named here.
    Corrupt {
        /// Number of the inode.
        nid: u64,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The inode `nid` uses the part of the format named here, which this reader does not have.
    Unsupported {
        /// Number of the inode.
        nid: u64,
        /// What it uses.
        what: &'static str,
    },
    /// A directory was needed and inode `nid` is none.
    NotDirectory(u64),
    /// A symbolic link was needed and inode `nid` is none.
    NotSymlink(u64),
    /// The names of the extended attributes of inode `nid` exceed the 64 KiB of listxattr(2).
    XattrListTooLong(u64),
}

/// Shorthand of this reader.
pub type Result<T> = core::result::Result<T, ErofsError>;

/// Names of the bits of `feature_incompat`, as dump.erofs(1) prints them. Two bits have two meanings
/// each, which only a reader that implements them could tell apart.
const INCOMPAT_NAMES: [&str; 9] = [
    "0padding",
    "compr_cfgs/big_pcluster",
    "chunked_file",
    "device_table/compr_head2",
    "ztailpacking",
    "fragments/dedupe",
    "xattr_prefixes",
    "48bit",
    "metabox",
];

impl ErofsError {
    /// The error number by which Linux reports this to a program.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotErofs | Self::BlockSize(_) | Self::NotSymlink(_) => Errno::EINVAL,
            Self::UnsupportedFeatures(_) | Self::Unsupported { .. } => Errno::EOPNOTSUPP,
            Self::Checksum { .. } | Self::Truncated { .. } | Self::CorruptSuperblock(_) | Self::Corrupt { .. } => {
                Errno::EUCLEAN
            }
            Self::NotDirectory(_) => Errno::ENOTDIR,
            Self::XattrListTooLong(_) => Errno::E2BIG,
        }
    }
}

impl From<ErofsError> for Errno {
    fn from(error: ErofsError) -> Self {
        error.errno()
    }
}

impl fmt::Display for ErofsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotErofs => f.write_str("no EROFS image: there is no superblock at byte 1024"),
            Self::BlockSize(bits) => {
                write!(f, "EROFS block size of 2^{bits} bytes is not supported: make the image with 4096-byte blocks")
            }
            Self::UnsupportedFeatures(bits) => {
                f.write_str("EROFS image needs features that are not supported: ")?;
                let mut separator = "";
                for bit in (0..u32::BITS).filter(|bit| bits >> bit & 1 != 0) {
                    f.write_str(separator)?;
                    match INCOMPAT_NAMES.get(bit as usize) {
                        Some(name) => f.write_str(name)?,
                        None => write!(f, "bit {bit}")?,
                    }
                    separator = ", ";
                }
                f.write_str("; make it uncompressed and on a single device")
            }
            Self::Checksum { stored, computed } => write!(
                f,
                "EROFS superblock is damaged: checksum {stored:#010x} is stored, {computed:#010x} is computed"
            ),
            Self::Truncated { image_bytes, expected_bytes } => {
                write!(f, "EROFS image is truncated: {image_bytes} bytes of {expected_bytes} are there")
            }
            Self::CorruptSuperblock(rule) => write!(f, "EROFS superblock is damaged: {rule}"),
            Self::Corrupt { nid, rule } => write!(f, "EROFS inode {nid} is damaged: {rule}"),
            Self::Unsupported { nid, what } => {
                write!(f, "EROFS inode {nid} is not supported: it uses {what}")
            }
            Self::NotDirectory(nid) => write!(f, "EROFS inode {nid} is not a directory"),
            Self::NotSymlink(nid) => write!(f, "EROFS inode {nid} is not a symbolic link"),
            Self::XattrListTooLong(nid) => {
                write!(f, "EROFS inode {nid} has more than 64 KiB of extended attribute names")
            }
        }
    }
}

impl core::error::Error for ErofsError {}

#[cfg(test)]
mod tests {
    use super::ErofsError;

    #[test]
    fn unknown_features_are_named() {
        let text = alloc::format!("{}", ErofsError::UnsupportedFeatures(1 << 4 | 1 << 31));
        assert!(text.contains("ztailpacking, bit 31;"), "{text}");
    }
}
