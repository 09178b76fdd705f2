//! How a program holds its VM awake: the counter behind /uk/libukp/scale_to_zero_disable. While it is not zero the VM is
//! not put into standby for being silent; it can still be suspended.
//!
//! The proxy is told when the counter leaves zero or comes back to it, and again by every new link. What it asks for
//! before it has heard is refused at the idle point, so that the program's write is what counts.

use crate::errno::{Errno, Result};
use crate::host::stream;
use alloc::format;
use alloc::string::String;
use core::cell::Cell;
use torpor_abi::frame::{kind, stream as numbers};

crate::global! {
    static HOLDS: Cell<u64> = Cell::new(0);
}

/// Whether the VM is to stay awake.
pub(super) fn is_held() -> bool {
    HOLDS.with(Cell::get) != 0
}

/// The link has a new other end.
pub(super) fn reattached() {
    if is_held() {
        tell();
    }
}

/// The counter as programs read it.
pub(super) fn text() -> String {
    format!("={}", HOLDS.with(Cell::get))
}

/// What a program writes: `+`, `-`, `+N`, `-N` or `=N`.
///
/// # Errors
/// EINVAL for another text, ERANGE where the result is no number of 64 bits.
pub(super) fn write(bytes: &[u8]) -> Result<()> {
    let before = HOLDS.with(Cell::get);
    let after = changed(before, bytes.trim_ascii())?;
    HOLDS.with(|holds| holds.set(after));
    if (before == 0) != (after == 0) {
        tell();
    }
    Ok(())
}

fn tell() {
    stream::send_soon(numbers::CONTROL, kind::HELD, u32::from(is_held()), &[]);
}

fn changed(count: u64, text: &[u8]) -> Result<u64> {
    let (&sign, digits) = text.split_first().ok_or(Errno::EINVAL)?;
    let number = match digits {
        [] if sign != b'=' => 1,
        [] => return Err(Errno::EINVAL),
        digits if digits.iter().all(u8::is_ascii_digit) => {
            let text = core::str::from_utf8(digits).map_err(|_| Errno::EINVAL)?;
            text.parse::<u64>().map_err(|_| Errno::ERANGE)?
        }
        _ => return Err(Errno::EINVAL),
    };
    match sign {
        b'=' => Ok(number),
        b'+' => count.checked_add(number).ok_or(Errno::ERANGE),
        b'-' => count.checked_sub(number).ok_or(Errno::ERANGE),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_counts_within_64_bits() {
        let max = u64::MAX;
        for (before, text, after) in [
            (0, "+", Ok(1)),
            (1, "-", Ok(0)),
            (0, "-", Err(Errno::ERANGE)),
            (7, "=0", Ok(0)),
            (7, "=18446744073709551615", Ok(max)),
            (7, "=18446744073709551616", Err(Errno::ERANGE)),
            (max, "+", Err(Errno::ERANGE)),
            (max, "+0", Ok(max)),
            (5, "+37", Ok(42)),
            (42, "-37", Ok(5)),
            (5, "-6", Err(Errno::ERANGE)),
            (0, "=", Err(Errno::EINVAL)),
            (0, "", Err(Errno::EINVAL)),
            (0, "1", Err(Errno::EINVAL)),
            (0, "++", Err(Errno::EINVAL)),
            (0, "=-1", Err(Errno::EINVAL)),
            (0, "+ 1", Err(Errno::EINVAL)),
            (0, "+0x1", Err(Errno::EINVAL)),
        ] {
            assert_eq!(changed(before, text.as_bytes()), after, "{before} {text}");
        }
    }
}
