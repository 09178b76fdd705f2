//! Unpacks the chunks of a snapshot.

use super::pages::{self, CodedPage};
use super::{BadSnapshot, Chunk, Dictionary};
use std::fmt;
use zstd::zstd_safe::{DCtx, get_error_name};

/// What unpacking needs besides a chunk.
pub struct Unpacker {
    context: DCtx<'static>,
    raw: Vec<u8>,
}

impl Unpacker {
    /// # Errors
    /// [`BadSnapshot::Format`] where there is no memory for it.
    pub fn new() -> Result<Self, BadSnapshot> {
        let context = DCtx::try_create().ok_or_else(|| BadSnapshot::format("no memory for zstd"))?;
        Ok(Self { context, raw: Vec::new() })
    }

    /// The pages of a chunk, which is checked first. `dictionary` is that of the warm base which its file names.
    ///
    /// # Errors
    /// [`BadSnapshot`].
    pub fn pages(
        &mut self,
        chunk: &Chunk<'_>,
        dictionary: Option<&Dictionary>,
    ) -> Result<Vec<CodedPage<'_>>, BadSnapshot> {
        let (entry, packed) = chunk.checked()?;
        self.raw.clear();
        self.raw.reserve_exact(entry.raw_len);
        let len = match dictionary {
            Some(dictionary) => {
                self.context.decompress_using_ddict(&mut self.raw, packed, dictionary.decoder().as_ddict())
            }
            None => self.context.decompress(&mut self.raw, packed),
        };
        match len {
            Ok(len) if len == entry.raw_len => {
                pages::decode(&self.raw, entry.range.start, entry.pages, entry.range.end.into())
            }
            Ok(_) => Err(BadSnapshot::format(format!("chunk {}: length uncompressed", entry.index))),
            Err(code) => Err(BadSnapshot::format(format!("chunk {}: {}", entry.index, get_error_name(code)))),
        }
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}
