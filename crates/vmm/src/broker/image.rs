//! The image file, checked as far as can be without reading it: the rest is the guest's business.

use crate::error::Failure;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use torpor_abi::layout::IMAGE_MAX_BYTES;

/// Offset of the superblock (EROFS_SUPER_OFFSET) and its first word (EROFS_SUPER_MAGIC_V1), little endian.
const SUPERBLOCK: u64 = 1024;
const MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
/// Offsets in the superblock: checksum, compatible features, binary logarithm of the block size, number of blocks.
const CHECKSUM: usize = 4;
const FEATURES: usize = 8;
const BLOCK_BITS: usize = 12;
const BLOCKS: usize = 36;
/// In the features: there is a checksum over the superblock and what follows it in its block.
const FEATURE_CHECKSUM: u32 = 1;
/// Size of the superblock's fixed part.
const SUPERBLOCK_BYTES: usize = 128;

/// Opens an image; returns it with its size.
///
/// # Errors
/// A [`Failure`] that names the file and what is wrong with it.
pub(super) fn open(path: &Path) -> Result<(File, u64), Failure> {
    let fail = |what: &str| Failure::new(format!("image {}: {what}", path.display()));
    // Without O_NONBLOCK a named pipe would block the open.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let descriptor =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| fail(&std::io::Error::from(error).to_string()))?;
    let file = File::from(descriptor);
    let metadata = file.metadata().map_err(|error| fail(&error.to_string()))?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        return Err(fail(if kind.is_dir() {
            "is a directory; pack it with mkfs.erofs"
        } else if kind.is_block_device() {
            "is a block device; a regular file is wanted"
        } else {
            "is not a regular file"
        }));
    }
    let bytes = metadata.len();
    if bytes == 0 {
        return Err(fail("is empty"));
    }
    let mut superblock = [0; SUPERBLOCK_BYTES];
    match file.read_exact_at(&mut superblock, SUPERBLOCK) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(fail(&format!("is truncated or no EROFS image: it has {bytes} bytes")));
        }
        Err(error) => return Err(fail(&error.to_string())),
    }
    if superblock[..4] != MAGIC {
        return Err(fail("is no EROFS image (there is no EROFS magic at offset 1024)"));
    }
    let word = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().expect("four bytes"));
    let blocks = word(BLOCKS);
    let block_bits = superblock[BLOCK_BITS];
    if !(9..=16).contains(&block_bits) {
        return Err(fail(&format!("is damaged: its superblock names blocks of 2^{block_bits} bytes")));
    }
    // Before anything that it says is believed.
    if word(FEATURES) & FEATURE_CHECKSUM != 0 {
        match checksum(&file, block_bits) {
            Ok(computed) if computed == word(CHECKSUM) => {}
            Ok(_) => return Err(fail("is damaged: the checksum of its superblock is wrong")),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(fail(&format!("is truncated: it has {bytes} bytes")));
            }
            Err(error) => return Err(fail(&error.to_string())),
        }
    }
    let wanted = u64::from(blocks) << block_bits;
    if wanted > bytes {
        return Err(fail(&format!("is truncated: it has {bytes} of {wanted} bytes")));
    }
    if bytes > IMAGE_MAX_BYTES {
        return Err(fail(&format!("is too large: {bytes} bytes; at most {IMAGE_MAX_BYTES} can be mapped")));
    }
    Ok((file, bytes))
}

/// CRC-32C without its final inversion, over the rest of the superblock's block, the checksum itself taken as zero.
fn checksum(file: &File, block_bits: u8) -> std::io::Result<u32> {
    let block = 1_u64 << block_bits;
    let mut rest = vec![0; usize::try_from(block - SUPERBLOCK % block).expect("at most 64 KiB")];
    file.read_exact_at(&mut rest, SUPERBLOCK)?;
    rest[CHECKSUM..CHECKSUM + 4].fill(0);
    Ok(!crc32c::crc32c(&rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, content: &[u8]) -> Result<u64, String> {
        let path = std::env::temp_dir().join(format!("torpor-image-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("write");
        let result = open(&path).map(|(_, bytes)| bytes).map_err(|failure| failure.message);
        std::fs::remove_file(&path).expect("remove");
        result
    }

    fn image(blocks: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[1024..1028].copy_from_slice(&MAGIC);
        bytes[1024 + BLOCK_BITS] = 12;
        bytes[1024 + BLOCKS..1024 + BLOCKS + 4].copy_from_slice(&blocks.to_le_bytes());
        bytes
    }

    #[test]
    fn images_are_told_from_other_files() {
        assert_eq!(check("good", &image(2, 8192)), Ok(8192));
        for (name, content, part) in [
            ("empty", vec![], "is empty"),
            ("short", vec![0; 1100], "truncated or no EROFS"),
            ("other", vec![7; 8192], "no EROFS image"),
            ("cut", image(3, 8192), "is truncated"),
        ] {
            let message = check(name, &content).expect_err("not an image");
            assert!(message.contains(part), "{name}: {message}");
        }
        assert!(open(Path::new("/")).expect_err("a directory").message.contains("directory"));
        assert!(open(Path::new("/dev/null")).expect_err("a device").message.contains("regular"));
        assert!(open(Path::new("/nonexistent")).expect_err("missing").message.contains("/nonexistent"));
    }
}
