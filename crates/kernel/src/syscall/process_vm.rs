//! process_vm_readv(2) and process_vm_writev(2).

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::space::{AddressSpace, Respect};
use crate::mm::user::{self, Dest, Segment, Source};
use crate::task::{inspection, pid};
use alloc::rc::Rc;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

const ARGS: &[Arg] = &[Arg::Pid, Arg::Ptr, Arg::Size, Arg::Ptr, Arg::Size, Arg::Hex];

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_process_vm_readv as u16, "process_vm_readv", sys_readv, ARGS),
    Syscall::full(linux::__NR_process_vm_writev as u16, "process_vm_writev", sys_writev, ARGS),
];

/// Bytes that are copied at a time, through the kernel's stack.
const CHUNK_BYTES: usize = 2048;

struct Call {
    space: Rc<AddressSpace>,
    local: Vec<Segment>,
    remote: Vec<Segment>,
}

fn prepare(args: Args) -> Result<Call> {
    if args.u64(5) != 0 {
        return Err(Errno::EINVAL);
    }
    let local = user::read_segments(args.addr(1), args.usize(2))?;
    let remote = user::read_segments(args.addr(3), args.usize(4))?;
    let pid = u32::try_from(args.i32(0)).map_err(|_| Errno::ESRCH)?;
    let target = pid::process(pid).or_else(|| pid::thread(pid).map(|thread| Rc::clone(&thread.process)));
    let target = target.ok_or(Errno::ESRCH)?;
    // One that has ended has no threads, and no memory either.
    inspection::check(&*target.any_thread().ok_or(Errno::ESRCH)?)?;
    let space = target.try_space().ok_or(Errno::ESRCH)?;
    Ok(Call { space, local, remote })
}

/// Calls `copy` with each piece of the remote side; it gives how many bytes it copied. A short copy ends the call.
fn each_chunk(remote: &[Segment], mut copy: impl FnMut(u64, usize) -> Result<usize>) -> Result<u64> {
    let mut total = 0;
    for segment in remote {
        let mut done = 0;
        while done < segment.len {
            let len = (segment.len - done).min(CHUNK_BYTES);
            match copy(segment.addr.0.wrapping_add(done as u64), len) {
                Ok(copied) => {
                    total += copied as u64;
                    done += copied;
                    if copied < len {
                        return Ok(total);
                    }
                }
                Err(error) if total == 0 => return Err(error),
                Err(_) => return Ok(total),
            }
        }
    }
    Ok(total)
}

/// Bytes that came through before an access failed.
fn partial(result: core::result::Result<(), usize>, len: usize) -> Result<usize> {
    match result {
        Ok(()) => Ok(len),
        Err(0) => Err(Errno::EFAULT),
        Err(copied) => Ok(copied),
    }
}

fn sys_readv(args: Args) -> Result<u64> {
    let call = prepare(args)?;
    let mut local = Dest::user(&call.local);
    each_chunk(&call.remote, |address, len| {
        let mut chunk = [0; CHUNK_BYTES];
        let len = len.min(local.remaining());
        let len = partial(call.space.read_memory(address, &mut chunk[..len], Respect::Protection), len)?;
        local.put(&chunk[..len])
    })
}

fn sys_writev(args: Args) -> Result<u64> {
    let call = prepare(args)?;
    let mut local = Source::user(&call.local);
    each_chunk(&call.remote, |address, len| {
        let mut chunk = [0; CHUNK_BYTES];
        let len = local.take(&mut chunk[..len])?;
        partial(call.space.write_memory(address, &chunk[..len], Respect::Protection), len)
    })
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::call;
    use super::*;
    use crate::mm::addr::UserAddr;
    use crate::mm::space::{AreaFlags, Backing, Layout, MapRequest, MemoryLimits, Placement, Prot};

    #[test]
    fn copies_between_spaces_and_stops_at_holes() {
        let thread = crate::task::testing::enter();
        let space = AddressSpace::new(Layout::randomised([1, 2], 8 << 20)).expect("enough memory");
        thread.process.set_space(Some(Rc::clone(&space)));
        let request = MapRequest {
            placement: Placement::Fixed(0x10_0000),
            bytes: 4096,
            prot: Prot::READ | Prot::WRITE,
            flags: AreaFlags::empty(),
            backing: Backing::Anonymous,
            populate: false,
        };
        space.map(request, &MemoryLimits::DEFAULT).expect("mapped");
        let text = *b"across";
        // Local memory is this process's own when hosted; the remote side is the space.
        let local = [text.as_ptr() as u64, 6];
        let remote = [0x10_0ffcu64, 6];
        let pid = u64::from(thread.process.pid());
        let run = |nr: u32, local: &[u64; 2], remote: &[u64; 2]| {
            call(u64::from(nr), [pid, local.as_ptr() as u64, 1, remote.as_ptr() as u64, 1, 0])
        };
        assert_eq!(run(linux::__NR_process_vm_writev, &local, &remote), Ok(4), "up to the end of the mapping");
        let mut back = [0u8; 4];
        space.read(UserAddr(0x10_0ffc), &mut back).expect("readable");
        assert_eq!(&back, b"acro");
        let mut into = [0u8; 6];
        let local = [into.as_mut_ptr() as u64, 6];
        assert_eq!(run(linux::__NR_process_vm_readv, &local, &remote), Ok(4));
        assert_eq!(run(linux::__NR_process_vm_readv, &local, &[0x20_0000, 6]), Err(Errno::EFAULT));
        assert_eq!(call(u64::from(linux::__NR_process_vm_readv), [pid, 0, 0, 0, 0, 1]), Err(Errno::EINVAL));
        assert_eq!(call(u64::from(linux::__NR_process_vm_readv), [4_000_000, 0, 0, 0, 0, 0]), Err(Errno::ESRCH));
    }
}
