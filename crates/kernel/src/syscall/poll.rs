//! poll(2) and select(2).

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::poll::{self, Polled, deadline_after, deadline_after_ms, remaining_ns};
use crate::fs::fdtable::{FdTable, MAX_DESCRIPTORS};
use crate::fs::file::{OpenFile, OpenFlags};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task;
use crate::task::limits::Resource;
use crate::task::signal::{SignalSet, set_restart, with_mask};
use crate::time::Instant;
use crate::wait::Events;
use alloc::boxed::Box;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_poll as u16, "poll", sys_poll, &[Arg::PollFds, Arg::Size, Arg::Int]),
    Syscall::full(
        linux::__NR_ppoll as u16,
        "ppoll",
        sys_ppoll,
        &[Arg::PollFds, Arg::Size, Arg::Timespec, Arg::SigSet, Arg::Size],
    ),
    Syscall::full(
        linux::__NR_select as u16,
        "select",
        sys_select,
        &[Arg::Int, Arg::FdSet, Arg::FdSet, Arg::FdSet, Arg::Timeval],
    ),
    Syscall::full(
        linux::__NR_pselect6 as u16,
        "pselect6",
        sys_pselect6,
        &[Arg::Int, Arg::FdSet, Arg::FdSet, Arg::FdSet, Arg::Timespec, Arg::Ptr],
    ),
];

/// Reads a signal set of `size` bytes; null is none.
///
/// # Errors
/// EINVAL for a wrong size, EFAULT.
pub(super) fn sigset(addr: UserAddr, size: usize) -> Result<Option<SignalSet>> {
    if addr.is_null() {
        return Ok(None);
    }
    if size != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    Ok(Some(SignalSet(user::read(addr)?)))
}

/// The deadline of a relative `struct timespec`; null is none.
///
/// # Errors
/// EINVAL, EFAULT.
pub(super) fn timespec_deadline(addr: UserAddr) -> Result<Option<Instant>> {
    if addr.is_null() {
        return Ok(None);
    }
    let [sec, nsec] = user::read::<[i64; 2]>(addr)?;
    deadline_after(sec, nsec).map(Some)
}

/// The unit of the second field of a time-out.
#[derive(Clone, Copy)]
enum Unit {
    /// `struct timeval`.
    Microseconds,
    /// `struct timespec`.
    Nanoseconds,
}

/// Stores what is left of a time-out. As in Linux, that it can't be stored (in read-only memory) is no error.
fn store_remaining(addr: UserAddr, deadline: Option<Instant>, unit: Unit) {
    let Some(deadline) = deadline else { return };
    let ns = remaining_ns(deadline);
    let sub = match unit {
        Unit::Microseconds => ns % 1_000_000_000 / 1000,
        Unit::Nanoseconds => ns % 1_000_000_000,
    };
    let _ = user::write(addr, &[ns / 1_000_000_000, sub]);
}

fn sys_poll(args: Args) -> Result<u64> {
    let (fds, count) = (args.addr(0), args.u32(1));
    restartable(fds, count, deadline_after_ms(args.i32(2)))
}

/// After a signal without a handler the call goes on with what is left of its time-out.
fn restartable(fds: UserAddr, count: u32, deadline: Option<Instant>) -> Result<u64> {
    match poll(fds, count, deadline) {
        Err(Errno::ERESTARTNOHAND) => Err(set_restart(Box::new(move || restartable(fds, count, deadline)))),
        result => result,
    }
}

fn sys_ppoll(args: Args) -> Result<u64> {
    let deadline = timespec_deadline(args.addr(2))?;
    let mask = sigset(args.addr(3), args.usize(4))?;
    let result = with_mask(mask, || poll(args.addr(0), args.u32(1), deadline));
    store_remaining(args.addr(2), deadline, Unit::Nanoseconds);
    result
}

fn poll(addr: UserAddr, count: u32, deadline: Option<Instant>) -> Result<u64> {
    /// Bytes of `struct pollfd`: descriptor, events, returned events.
    const POLLFD_BYTES: usize = 8;
    let thread = task::current();
    if u64::from(count) > thread.process.limit(Resource::OpenFiles).min(MAX_DESCRIPTORS as u64) {
        return Err(Errno::EINVAL);
    }
    let count = count as usize;
    let mut bytes = zeroed(count * POLLFD_BYTES)?;
    user::read_bytes(addr, &mut bytes)?;
    let files = thread.files();
    let mut polled = Vec::new();
    polled.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    for entry in bytes.as_chunks::<POLLFD_BYTES>().0 {
        let fd = i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let wanted = Events::from_bits_truncate(u16::from_ne_bytes([entry[4], entry[5]]).into());
        let file = if fd < 0 { None } else { files.opened(fd).ok() };
        let ready = if fd >= 0 && file.is_none() { Events::NVAL } else { Events::empty() };
        polled.push(Polled { file, wanted: wanted | Events::ERR | Events::HUP, ready });
    }
    let ready = poll::wait(&mut polled, deadline).map_err(|_| Errno::ERESTARTNOHAND)?;
    for (index, polled) in polled.iter().enumerate() {
        let at = addr.offset((index * POLLFD_BYTES + 6) as u64);
        user::write(at, &(polled.ready.bits() as u16))?;
    }
    Ok(ready as u64)
}

fn zeroed(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

fn sys_select(args: Args) -> Result<u64> {
    let deadline = match args.addr(4) {
        UserAddr::NULL => None,
        addr => {
            let [sec, usec] = user::read::<[i64; 2]>(addr)?;
            // Microseconds may be a second or more: they are carried.
            let sec = sec.checked_add(usec / 1_000_000).ok_or(Errno::EINVAL)?;
            Some(deadline_after(sec, usec % 1_000_000 * 1000)?)
        }
    };
    let result = select(args, deadline);
    store_remaining(args.addr(4), deadline, Unit::Microseconds);
    result
}

fn sys_pselect6(args: Args) -> Result<u64> {
    let mask = match args.addr(5) {
        UserAddr::NULL => None,
        addr => {
            let [set, size] = user::read::<[u64; 2]>(addr)?;
            sigset(UserAddr(set), size as usize)?
        }
    };
    let deadline = timespec_deadline(args.addr(4))?;
    let result = with_mask(mask, || select(args, deadline));
    store_remaining(args.addr(4), deadline, Unit::Nanoseconds);
    result
}

/// An O_PATH descriptor can't be polled.
fn is_path(file: &OpenFile) -> bool {
    file.flags.get().contains(OpenFlags::PATH)
}

/// The three sets of select(2): which events put a descriptor in the result.
const SETS: [Events; 3] = [
    Events::IN.union(Events::RDNORM).union(Events::RDBAND).union(Events::HUP).union(Events::ERR).union(Events::NVAL),
    Events::OUT.union(Events::WRNORM).union(Events::WRBAND).union(Events::ERR).union(Events::NVAL),
    Events::PRI.union(Events::NVAL),
];

fn select(args: Args, deadline: Option<Instant>) -> Result<u64> {
    let count = usize::try_from(args.i32(0)).map_err(|_| Errno::EINVAL)?;
    let files = task::current().files();
    let count = count.min(table_size(&files));
    let set_bytes = count.div_ceil(64) * 8;
    let mut sets: [Vec<u8>; 3] = [zeroed(set_bytes)?, zeroed(set_bytes)?, zeroed(set_bytes)?];
    for (n, set) in sets.iter_mut().enumerate() {
        if !args.addr(n + 1).is_null() {
            user::read_bytes(args.addr(n + 1), set)?;
        }
    }
    let mut polled = Vec::new();
    let mut fds = Vec::new();
    for fd in 0..count {
        let mut wanted = Events::empty();
        for (set, events) in sets.iter().zip(SETS) {
            if has(set, fd) {
                wanted |= events;
            }
        }
        if !wanted.is_empty() {
            let file = files.get(fd as i32)?;
            let (file, ready) = if is_path(&file) { (None, Events::NVAL) } else { (Some(file), Events::empty()) };
            polled.push(Polled { file, wanted, ready });
            fds.push(fd);
        }
    }
    poll::wait(&mut polled, deadline).map_err(|_| Errno::ERESTARTNOHAND)?;
    let mut found = 0;
    for (n, (set, events)) in sets.iter_mut().zip(SETS).enumerate() {
        let mut result = zeroed(set_bytes)?;
        for (fd, polled) in fds.iter().zip(&polled) {
            if has(set, *fd) && polled.ready.intersects(events) {
                result[fd / 8] |= 1 << (fd % 8);
                found += 1;
            }
        }
        if !args.addr(n + 1).is_null() {
            user::write_bytes(args.addr(n + 1), &result)?;
        }
    }
    Ok(found)
}

fn has(set: &[u8], fd: usize) -> bool {
    set[fd / 8] >> (fd % 8) & 1 == 1
}

/// As in Linux bits beyond the size to which the table has grown are not looked at (and not cleared).
fn table_size(files: &FdTable) -> usize {
    let highest = files.open().last().map_or(0, |fd| *fd as usize);
    (highest + 1).next_power_of_two().clamp(64, MAX_DESCRIPTORS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::eventfd::eventfd;
    use crate::fs::file::OpenFlags;
    use proptest::prelude::*;

    /// Words of the sets that tests pass: more than the calls look at.
    const WORDS: usize = 8;

    fn call(nfds: i32, sets: [u64; 3]) -> Result<u64> {
        // A zero time-out.
        let timeout = [0i64; 2];
        select(
            Args([nfds as u32 as u64, sets[0], sets[1], sets[2], (&raw const timeout) as u64, 0]),
            Some(crate::time::now()),
        )
    }

    proptest! {
        /// Descriptor n is a counter of 1 (readable and writable) if bit n of `full` is set, of 0 (writable) if bit n of
        /// `empty` is, and not open otherwise.
        #[test]
        fn select_reports_what_is_ready(
            nfds in prop_oneof![-2..140i32, Just(i32::MAX), Just(i32::MIN), Just(1 << 20)],
            full in any::<u64>(),
            empty in any::<u64>(),
            wanted in any::<[[u64; WORDS]; 3]>(),
            only_open in any::<bool>(),
            null in 0..8usize,
        ) {
            let thread = crate::task::testing::enter();
            let files = thread.files();
            let open = full | empty;
            for fd in 0..64 {
                if open >> fd & 1 == 1 {
                    let count = (full >> fd & 1) as u32;
                    files.insert(eventfd(count, false, OpenFlags::empty()), false, fd, 64).expect("room");
                }
            }
            let mut sets = wanted;
            if only_open {
                sets.iter_mut().for_each(|set| set[0] &= open);
            }
            let before = sets;
            let address = |n: usize| if null >> n & 1 == 1 { 0 } else { (&raw const sets[n]) as u64 };
            let result = call(nfds, [address(0), address(1), address(2)]);
            // The table has at most 64 entries, so all else is not looked at.
            let looked_at = if nfds >= 64 { u64::MAX } else { (1u64 << nfds.max(0)) - 1 };
            let asked: [u64; 3] = core::array::from_fn(|n| if address(n) == 0 { 0 } else { before[n][0] & looked_at });
            if nfds < 0 {
                prop_assert_eq!(result, Err(Errno::EINVAL));
                prop_assert_eq!(sets, before);
                return Ok(());
            }
            if (asked[0] | asked[1] | asked[2]) & !open != 0 {
                prop_assert_eq!(result, Err(Errno::EBADF));
                prop_assert_eq!(sets, before);
                return Ok(());
            }
            let expected = [asked[0] & full, asked[1], 0];
            prop_assert_eq!(result, Ok(expected.iter().map(|set| u64::from(set.count_ones())).sum()));
            for n in 0..3 {
                if address(n) == 0 || nfds == 0 {
                    prop_assert_eq!(sets[n], before[n]);
                } else {
                    prop_assert_eq!(sets[n][0], expected[n]);
                    prop_assert_eq!(&sets[n][1..], &before[n][1..]);
                }
            }
        }
    }

    #[test]
    fn bad_addresses() {
        let _thread = crate::task::testing::enter();
        assert_eq!(call(1, [8, 0, 0]), Err(Errno::EFAULT));
        assert_eq!(poll(UserAddr(8), 1, Some(crate::time::now())), Err(Errno::EFAULT));
        assert_eq!(poll(UserAddr(8), u32::MAX, None), Err(Errno::EINVAL));
        assert_eq!(poll(UserAddr::NULL, 0, Some(crate::time::now())), Ok(0));
    }
}
