//! Device numbers (makedev(3)) and those of file systems without a device.

use core::cell::Cell;

/// Major number in the encoding of `st_dev` and `st_rdev`.
#[must_use]
pub const fn major(dev: u64) -> u32 {
    (dev >> 8 & 0xfff | dev >> 32 & 0xffff_f000) as u32
}

/// Minor number.
#[must_use]
pub const fn minor(dev: u64) -> u32 {
    (dev & 0xff | dev >> 12 & 0xffff_ff00) as u32
}

/// A device number from its parts.
#[must_use]
pub const fn make(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (major & 0xfff) << 8 | (major & 0xffff_f000) << 32 | minor & 0xff | (minor & 0xffff_ff00) << 12
}

crate::global! {
    static NEXT_ANONYMOUS_MINOR: Cell<u32> = Cell::new(1);
}

/// A number for a file system without a device: major 0, and a minor that was not given out before.
#[must_use]
pub fn anonymous() -> u64 {
    NEXT_ANONYMOUS_MINOR.with(|next| {
        let minor = next.get();
        next.set(minor.wrapping_add(1).max(1));
        make(0, minor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_encoding() {
        for (ma, mi) in [(0, 0), (1, 3), (0xfff, 0xff), (0x1000, 0x100), (0xffff_ffff, 0xffff_ffff), (259, 70000)] {
            assert_eq!((major(make(ma, mi)), minor(make(ma, mi))), (ma, mi));
        }
        assert_eq!(make(8, 1), 0x801);
    }
}
