//! What went over the two interfaces (/proc/net/dev). There are no packets: each piece that is passed on counts as one, and
//! only its payload.

use super::interfaces::{INTERFACES, LOOPBACK};
use alloc::format;
use alloc::string::String;
use core::cell::Cell;

/// Where something went.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// Within the guest: out of `lo`, and into it.
    Inside = 0,
    /// From outside.
    In = 1,
    /// To the outside.
    Out = 2,
}

crate::global! {
    /// Bytes and pieces by [`Way`].
    static COUNTED: Cell<[(u64, u64); 3]> = Cell::new([(0, 0); 3]);
}

pub(super) fn count(way: Way, bytes: usize) {
    COUNTED.with(|counted| {
        let mut all = counted.get();
        let (total, pieces) = &mut all[way as usize];
        *total += bytes as u64;
        *pieces += 1;
        counted.set(all);
    });
}

/// /proc/net/dev.
#[must_use]
pub fn text() -> String {
    let mut out = String::from(
        "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo \
         frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n",
    );
    let counted = COUNTED.with(Cell::get);
    for interface in &INTERFACES {
        let ways = if interface.index == LOOPBACK { [Way::Inside; 2] } else { [Way::In, Way::Out] };
        let [(in_bytes, in_pieces), (out_bytes, out_pieces)] = ways.map(|way| counted[way as usize]);
        out += &format!(
            "{:>6}: {in_bytes:>7} {in_pieces:>7}    0    0    0     0          0         0 {out_bytes:>8} {out_pieces:>7}    0    0    \
             0     0       0          0\n",
            interface.name
        );
    }
    out
}
