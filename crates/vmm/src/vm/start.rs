//! From descriptors to a VM that is ready to run.

use super::io::Gate;
use super::kernel::{self, Loaded};
use super::kick::Kicker;
use super::memory::{Gpa, GuestMemory};
use super::process::{self, ResidentMemory};
use super::served::{Refusal, Resources};
use super::slots::{self, RamSlots};
use super::timer::Timer;
use super::{Fatal, Given, Machine, Serving, Transmit, boot, cpu, tables, traps, vcpu};
use crate::jail::filter::{self, Thread};
use kvm_bindings::{CpuId, KVM_API_VERSION};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};
use std::borrow::Cow;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use torpor_abi::boot::flags;
use torpor_abi::layout::{BOOT_STRINGS_MAX_BYTES, BOOT_TABLES_BYTES, BOOT_TABLES_GPA, PAGE_BYTES, ram_bytes};
use torpor_streams::ledger::Ledger;
use torpor_streams::link::{Message, report};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// RAM that a VM has a slot for from the start: a part of it for what the guest kernel keeps of all RAM (page tables above
/// all, a 64th), and some to begin with.
const fn first_ram_bytes(ram_bytes: u64) -> u64 {
    ram_bytes / 32 + (64 << 20)
}

/// The VM process, from fork to end. `parent` is the broker.
pub fn run(given: Given, parent: Pid) -> ! {
    let link = process::keep_for_ever(&given.link);
    process::report_panics(link);
    let mut keep = vec![given.kvm.as_fd(), given.image.as_fd(), link];
    keep.extend(given.managed.iter().flat_map(crate::serve::Managed::descriptors));
    let built = process::isolate(&keep).map_err(Refusal::from).and_then(|()| {
        if given.managed.is_some() {
            crate::serve::run_for_broker(given, parent)
        }
        let resources = Resources::open(given.kvm)?;
        resources.tie_to_broker(parent, link)?;
        filter::install(Thread::All).map_err(Refusal::Host)?;
        let parts = Parts {
            kvm: resources.kvm,
            image: given.image,
            image_bytes: given.image_bytes,
            link: given.link,
            memory_limit_bytes: given.memory_limit_bytes,
            kernel: given.kernel,
            debug_exits: given.debug_exits,
            statm: resources.statm,
            served: None,
            tty: given.program.flags & flags::TTY != 0,
        };
        let built = build(parts, &given.program)?;
        filter::install(Thread::Vcpu).map_err(Refusal::Host)?;
        Ok((built, resources.io))
    });
    match built {
        Ok((Built { machine, vm, vcpu, .. }, io)) => {
            // Both threads use it until the process ends.
            let machine: &'static Machine = Box::leak(Box::new(machine));
            // The I/O thread waits for nothing else.
            let _ = io.send(machine);
            vcpu::run(machine, &vm, vcpu)
        }
        Err(refusal) => fail(link, &refusal.to_string()),
    }
}

/// Ends a VM process that could not make its VM.
pub(crate) fn fail(link: BorrowedFd<'_>, text: &str) -> ! {
    let mut message = Message::default();
    message.push_report(report::FAILED, 0, text);
    // Nothing else was sent, so there is room; if not, the broker sees the process end.
    let _ = message.send(link);
    process::exit()
}

/// A VM before its first instruction, with what a snapshot of it has to say of the kernel in it.
pub(super) struct Built {
    pub(super) machine: Machine,
    pub(super) vm: VmFd,
    pub(super) vcpu: VcpuFd,
    pub(super) cpuid: CpuId,
    pub(super) features: cpu::Features,
    /// [`torpor_abi::trap::KernelHeader::resume_entry`] and [`torpor_abi::trap::KernelHeader::syscall_stub`].
    pub(super) resume_entry: u64,
    pub(super) syscall_stub: u64,
    /// Boot page tables: start and length of both ranges.
    pub(super) boot_tables: Vec<(u64, u64)>,
}

/// What a VM is put together from besides its memory.
pub(super) struct Parts {
    pub(super) kvm: OwnedFd,
    pub(super) image: File,
    pub(super) image_bytes: u64,
    pub(super) link: OwnedFd,
    pub(super) memory_limit_bytes: u64,
    pub(super) kernel: Cow<'static, [u8]>,
    pub(super) debug_exits: bool,
    pub(super) statm: File,
    pub(super) served: Option<Serving>,
    pub(super) tty: bool,
}

/// A VM that boots `program`.
pub(super) fn build(parts: Parts, program: &boot::Program) -> Result<Built, Fatal> {
    let ram_bytes = ram_bytes(parts.memory_limit_bytes);
    let memory = GuestMemory::new(ram_bytes).map_err(Fatal::system("reserving the guest's memory"))?;
    let Loaded { header, end } = kernel::load(&parts.kernel, &memory)?;
    let image_bytes = parts.image_bytes.next_multiple_of(PAGE_BYTES);
    let tables = tables::write(&memory, end, image_bytes)?;
    traps::write(&memory, &header)?;
    let mut seed = [0; 64];
    match program.seed {
        Some(given) => seed[..given.len()].copy_from_slice(&given),
        None => _ = getrandom(&mut seed, GetRandomFlags::empty()).map_err(Fatal::system("getrandom"))?,
    }
    let mut about = boot::Machine {
        ram_bytes,
        memory_limit_bytes: parts.memory_limit_bytes,
        image_bytes: parts.image_bytes,
        kernel_end_gpa: tables.kernel_end.0,
        pml4_gpa: tables.pml4.0,
        xcr0: 0,
        tsc_hz: 0,
        seed,
        far_strings_gpa: first_ram_bytes(ram_bytes).min(ram_bytes) - BOOT_STRINGS_MAX_BYTES,
    };
    let mut built = assemble(parts, memory, header.resume_entry, header.syscall_stub)?;
    about.xcr0 = built.features.xcr0;
    about.tsc_hz = built.features.tsc_hz;
    boot::write(&built.machine.memory, program, &about)?;
    cpu::set_entry(&mut built.vcpu, header.entry, header.boot_stack_top);
    built.boot_tables.push((end.0, tables.kernel_end.0 - end.0));
    built.boot_tables.retain(|(_, len)| *len > 0);
    Ok(built)
}

/// A VM over memory that holds a kernel and its boot page tables.
pub(super) fn assemble(
    parts: Parts,
    memory: GuestMemory,
    resume_entry: u64,
    syscall_stub: u64,
) -> Result<Built, Fatal> {
    // SAFETY: a descriptor of /dev/kvm that is ours, handed over here.
    let kvm = unsafe { Kvm::from_raw_fd(parts.kvm.into_raw_fd()) };
    check_kvm(&kvm)?;
    let cpuid = cpu::supported_cpuid(&kvm)?;
    let vm = kvm.create_vm().map_err(Fatal::kvm("KVM_CREATE_VM"))?;
    let image_mapping = slots::map_image(&vm, &parts.image, parts.image_bytes)?;
    let ram_bytes = memory.len_bytes();
    // What is restored into a VM may lie anywhere.
    let first_bytes = if parts.served.is_some() { ram_bytes } else { first_ram_bytes(ram_bytes) };
    // SAFETY: the memory goes into the machine, which is never dropped; the VM goes with the process.
    let ram_slots = unsafe { RamSlots::new(&vm, &memory, first_bytes) }?;
    let mut vcpu = vm.create_vcpu(0).map_err(Fatal::kvm("KVM_CREATE_VCPU"))?;
    let features = cpu::set_up(&vcpu, &cpuid, syscall_stub, Gpa(BOOT_TABLES_GPA))?;

    let notify = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Fatal::system("eventfd"))?;
    let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
    // SAFETY: the page is mapped as long as the vCPU's owner lives, which never returns.
    let kicker = unsafe { Kicker::new(immediate_exit) }.map_err(Fatal::system("sigaction"))?;
    let timer = Timer::new(&memory).map_err(Fatal::system("timerfd_create"))?;
    let machine = Machine {
        memory,
        ram_slots,
        link: parts.link,
        transmit: Mutex::new(Transmit::default()),
        ledger: Mutex::new(Ledger::new(parts.tty)),
        timer,
        kicker,
        notify,
        resident: ResidentMemory::new(parts.statm, parts.memory_limit_bytes),
        raised: AtomicU64::new(0),
        image: parts.image,
        image_bytes: parts.image_bytes,
        image_mapping,
        debug_exits: parts.debug_exits,
        kernel: parts.kernel,
        inbox: Mutex::default(),
        signals: AtomicU64::new(0),
        gate: Gate::default(),
        served: parts.served,
    };
    let boot_tables = vec![(BOOT_TABLES_GPA, BOOT_TABLES_BYTES)];
    Ok(Built { machine, vm, vcpu, cpuid, features, resume_entry, syscall_stub, boot_tables })
}

fn check_kvm(kvm: &Kvm) -> Result<(), Fatal> {
    if kvm.get_api_version().cast_unsigned() != KVM_API_VERSION {
        return Err(Fatal::Unsupported("/dev/kvm speaks another version of KVM's interface"));
    }
    for (capability, missing) in [
        (Cap::UserMemory, "KVM lacks KVM_CAP_USER_MEMORY"),
        (Cap::ReadonlyMem, "KVM lacks KVM_CAP_READONLY_MEM"),
        (Cap::SyncRegs, "KVM lacks KVM_CAP_SYNC_REGS"),
        (Cap::ImmediateExit, "KVM lacks KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::Ioeventfd, "KVM lacks KVM_CAP_IOEVENTFD"),
        (Cap::Xcrs, "KVM lacks KVM_CAP_XCRS"),
        (Cap::GetTscKhz, "KVM lacks KVM_CAP_GET_TSC_KHZ"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(Fatal::Unsupported(missing));
        }
    }
    Ok(())
}
