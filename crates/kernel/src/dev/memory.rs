//! null(4), zero(4), full(4) and random(4).

use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile};
use crate::fs::inode::Metadata;
use crate::mm::pages::{Access, Page, PageError, PageSource};
use crate::mm::user::{Dest, Source};
use alloc::rc::Rc;
use alloc::string::String;
use core::any::Any;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    Null,
    Zero,
    Full,
    Random,
}

/// Opens device `1:minor`.
pub(super) fn open(minor: u32) -> Result<Rc<dyn FileOps>> {
    Ok(Rc::new(match minor {
        3 => Device::Null,
        5 => Device::Zero,
        7 => Device::Full,
        8 | 9 => Device::Random,
        _ => return Err(Errno::ENXIO),
    }))
}

impl FileOps for Device {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, _file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        match self {
            Device::Null => Ok(0),
            Device::Zero | Device::Full => dst.put_zeros(dst.remaining()),
            Device::Random => {
                let mut total = 0;
                let mut buffer = [0; 256];
                while dst.remaining() > 0 {
                    let n = buffer.len().min(dst.remaining());
                    crate::random::fill(&mut buffer[..n]);
                    match dst.put(&buffer[..n]) {
                        Ok(n) => total += n,
                        Err(error) if total == 0 => return Err(error),
                        Err(_) => break,
                    }
                }
                Ok(total)
            }
        }
    }

    fn write(&self, _file: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        match self {
            // Random takes what is written as entropy on Linux; the host's seed needs none of it.
            Device::Null | Device::Zero | Device::Random => Ok((src.remaining(), offset)),
            Device::Full => Err(Errno::ENOSPC),
        }
    }

    fn knows_nowait(&self, _file: &OpenFile) -> bool {
        *self != Device::Full
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _file: &OpenFile, _offset: i64, _whence: u32) -> Result<u64> {
        // null_lseek: the position is always 0.
        Ok(0)
    }

    fn pages(&self) -> Option<Rc<dyn PageSource>> {
        (*self == Device::Zero).then(|| Rc::new(Zeros) as Rc<dyn PageSource>)
    }

    fn metadata(&self) -> Metadata {
        // Only ever opened through an inode, whose metadata counts.
        super::device_metadata(0, 0o666)
    }

    fn describe(&self) -> String {
        String::from("device")
    }
}

/// A private mapping of /dev/zero is anonymous memory.
struct Zeros;

impl PageSource for Zeros {
    fn page(&self, _index: u64, _access: Access) -> core::result::Result<Page, PageError> {
        Ok(Page::Hole)
    }
}
