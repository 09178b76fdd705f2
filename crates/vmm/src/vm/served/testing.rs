//! What tests of pages that arrive share.

use super::{Lost, Pager};
use crate::snapshot::metadata::{CpuFeatures, Digest, Machine as Family, Uuid};
use crate::snapshot::pages::{Page, ZEROS};
use crate::snapshot::{Kind, Metadata, Writer};
use crate::vm::memory::{Gpa, GuestMemory};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use torpor_abi::layout::PAGE_BYTES;

/// Of a VM with 64 MiB of guest-physical memory and these page tables.
pub(super) fn family(tables: (u64, u64)) -> Family {
    let zero = Digest([0; 32]);
    Family {
        owner: zero,
        image: zero,
        image_bytes: 0,
        memory_limit_bytes: 16 << 20,
        ram_bytes: 64 << 20,
        kernel_abi: 0,
        resume_entry: 0,
        syscall_stub: 0,
        tables: vec![tables],
        cpu: CpuFeatures { xcr0: 0, words: [0; 7] },
    }
}

/// The file with the writer's pages.
pub(super) fn finished(writer: Writer<'_>, kind: Kind, machine: Family) -> Vec<u8> {
    let metadata = Metadata {
        machine,
        template: None,
        warm_base: None,
        uuid: Uuid::default(),
        generation: 1,
        stopped_at_ns: 0,
        next_deadline_ns: None,
        working_set: None,
        streams: String::new(),
    };
    let mut file = Vec::new();
    writer.finish(kind, &metadata, &[], &mut file).expect("within caps");
    file
}

pub(super) fn memory_file(content: &[u8]) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("test", flags).expect("memfd"));
    file.write_all_at(content, 0).expect("written");
    file
}

pub(super) fn page(memory: &GuestMemory, number: u32) -> Page {
    let mut page = ZEROS;
    memory.read(Gpa(u64::from(number) * PAGE_BYTES), &mut page).expect("in range");
    // Who does not look at it touches the memory all the same.
    std::hint::black_box(page)
}

/// Runs `f` while another thread serves; that one's first failure.
pub(super) fn served(pager: &Pager, f: impl FnOnce()) -> Result<(), Lost> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let tenth = rustix::time::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                let pager_fd = PollFd::from_borrowed_fd(pager.descriptor(), PollFlags::IN);
                if poll(&mut [pager_fd], Some(&tenth)).expect("poll") > 0
                    && let Err(lost) = pager.serve()
                {
                    // So that nobody waits for ever.
                    pager.end().expect("unregistered");
                    return Err(lost);
                }
            }
            Ok(())
        });
        f();
        over.store(true, Ordering::SeqCst);
        serving.join().expect("no panic")
    })
}
