//! The host's side of the handover page ([`torpor_abi::handover`]).

use super::super::Fatal;
use super::super::memory::{Gpa, GuestMemory, OutOfRange};
use super::super::timer::now_ns;
use super::Instance;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::ClockId;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use torpor_abi::handover::{HOST_NAME_BYTES, Handover, command};
use torpor_abi::layout::{HANDOVER_GPA, HANDOVER_LIST_GPA, HANDOVER_LIST_MAX};

const fn at(offset: usize) -> Gpa {
    Gpa(HANDOVER_GPA + offset as u64)
}

/// Writes a command for the guest, with `entries` pairs in the list.
pub(super) fn set_command(memory: &GuestMemory, command: u32, entries: u32) {
    memory.atomic_u32(at(offset_of!(Handover, entries))).store(entries, Ordering::SeqCst);
    memory.atomic_u32(at(offset_of!(Handover, command))).store(command, Ordering::SeqCst);
}

/// Writes pairs into the list; the caller has seen to it that they fit.
pub(super) fn write_list(memory: &GuestMemory, pairs: &[(u64, u64)]) -> Result<(), OutOfRange> {
    assert!(pairs.len() <= HANDOVER_LIST_MAX as usize);
    let bytes: Vec<u8> = pairs.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()]).flatten().collect();
    memory.write(Gpa(HANDOVER_LIST_GPA), &bytes)
}

/// Lets a stopped guest go on over a new link.
pub(super) fn write_relink(memory: &GuestMemory, unsent_bytes: [u32; 3]) {
    for (number, bytes) in unsent_bytes.into_iter().enumerate() {
        memory.atomic_u32(at(offset_of!(Handover, unsent_bytes) + 4 * number)).store(bytes, Ordering::SeqCst);
    }
    set_command(memory, command::RELINK, 0);
}

/// What the guest said when it stopped.
#[derive(Debug)]
pub(super) struct Stopped {
    /// Free memory: first page and number of pages, as far as it lies in memory.
    pub(super) free: Vec<(u32, u32)>,
    /// The kernel's page tables: start and length.
    pub(super) tables: (u64, u64),
    /// See [`Handover::next_deadline_ns`].
    pub(super) next_deadline_ns: Option<u64>,
    /// See [`Handover::drew_random`].
    pub(super) drew_random: bool,
}

/// Reads what the guest said when it stopped. None of it is trusted: what is no whole pages of memory is left out.
pub(super) fn read_stopped(memory: &GuestMemory) -> Result<Stopped, OutOfRange> {
    let word = |offset| memory.read_u64(at(offset));
    let entries = memory.atomic_u32(at(offset_of!(Handover, entries))).load(Ordering::SeqCst).min(HANDOVER_LIST_MAX);
    let mut bytes = vec![0; entries as usize * 16];
    memory.read(Gpa(HANDOVER_LIST_GPA), &mut bytes)?;
    let pages = memory.len_bytes() / 4096;
    let pair = |pair: &[u8; 16]| {
        let (gpa, len) = pair.split_at(8);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let (first, count) = (word(gpa).div_ceil(4096), word(len) / 4096);
        let end = first.checked_add(count)?;
        (end <= pages).then_some((first as u32, count as u32))
    };
    let next = word(offset_of!(Handover, next_deadline_ns))?;
    Ok(Stopped {
        free: bytes.as_chunks::<16>().0.iter().filter_map(pair).collect(),
        tables: (word(offset_of!(Handover, tables_gpa))?, word(offset_of!(Handover, tables_bytes))?),
        next_deadline_ns: (next != u64::MAX).then_some(next),
        drew_random: memory.atomic_u32(at(offset_of!(Handover, drew_random))).load(Ordering::SeqCst) != 0,
    })
}

/// Fills in what RESUME needs; the clocks are those of now, so the vCPU has to run next.
pub(super) fn write_resume(
    memory: &GuestMemory,
    instance: &Instance,
    stopped_at_ns: u64,
    tsc_hz: u64,
    entries: u32,
) -> Result<(), Fatal> {
    let mut seed = [0; 64];
    getrandom(&mut seed, GetRandomFlags::empty()).map_err(Fatal::system("getrandom"))?;
    memory.write(at(offset_of!(Handover, seed)), &seed)?;
    memory.write(at(offset_of!(Handover, uuid)), &instance.uuid.0)?;
    let name = instance.host_name.as_bytes();
    let name = &name[..name.len().min(HOST_NAME_BYTES)];
    memory.write(at(offset_of!(Handover, host_name)), name)?;
    memory.atomic_u32(at(offset_of!(Handover, host_name_len))).store(name.len() as u32, Ordering::SeqCst);
    memory.write_u64(at(offset_of!(Handover, generation)), instance.generation)?;
    memory.write_u64(at(offset_of!(Handover, tsc_hz)), tsc_hz)?;
    let realtime_ns = now_ns(ClockId::Realtime);
    // A host whose clock was set back lets the guest sleep for no time, not for centuries.
    memory.write_u64(at(offset_of!(Handover, slept_ns)), realtime_ns.saturating_sub(stopped_at_ns))?;
    set_command(memory, command::RESUME, entries);
    memory.write_u64(at(offset_of!(Handover, host_realtime_ns)), realtime_ns)?;
    memory.write_u64(at(offset_of!(Handover, host_monotonic_ns)), now_ns(ClockId::Monotonic))?;
    Ok(())
}
