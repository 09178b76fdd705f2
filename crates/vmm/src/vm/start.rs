//! From descriptors to a VM that is ready to run.

use super::kernel::{self, Loaded};
use super::kick::Kicker;
use super::memory::{Gpa, GuestMemory, Hva, ImageMapping};
use super::process::{self, ResidentMemory};
use super::timer::Timer;
use super::{End, Fatal, Given, Machine, Transmit, boot, cpu, io, tables, traps, vcpu};
use kvm_bindings::{KVM_API_VERSION, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::sync::Mutex;
use torpor_abi::boot::flags;
use torpor_abi::layout::{BOOT_INFO_GPA, IMAGE_GPA, ram_bytes};
use torpor_streams::ledger::Ledger;
use torpor_streams::link::{Message, report};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const RAM_SLOT: u32 = 0;
const IMAGE_SLOT: u32 = 1;

/// The VM process, from fork to end. `parent` is the broker.
pub fn run(given: Given, parent: Pid) -> ! {
    let link = process::keep_for_ever(&given.link);
    process::report_panics(link);
    let isolated = process::isolate(parent, &[given.kvm.as_fd(), given.image.as_fd(), link]);
    match isolated.and_then(|()| build(given)) {
        Ok((machine, vm, vcpu)) => {
            // Both threads use it until the process ends.
            let machine: &'static Machine = Box::leak(Box::new(machine));
            if let Err(error) = std::thread::Builder::new().name("io".into()).spawn(move || io::run(machine)) {
                machine.finish(End::Failed(format!("starting a thread: {error}")));
            }
            vcpu::run(machine, &vm, vcpu)
        }
        Err(fatal) => {
            let mut message = Message::default();
            message.push_report(report::FAILED, 0, &fatal.to_string());
            // Nothing else was sent, so there is room; if not, the broker sees the process end.
            let _ = message.send(link);
            process::exit()
        }
    }
}

fn build(given: Given) -> Result<(Machine, VmFd, VcpuFd), Fatal> {
    // SAFETY: a descriptor of /dev/kvm that is ours, handed over here.
    let kvm = unsafe { Kvm::from_raw_fd(given.kvm.into_raw_fd()) };
    check_kvm(&kvm)?;
    let cpuid = cpu::supported_cpuid(&kvm)?;
    let vm = kvm.create_vm().map_err(Fatal::kvm("KVM_CREATE_VM"))?;
    let ram_bytes = ram_bytes(given.memory_limit_bytes);
    let memory = GuestMemory::new(ram_bytes).map_err(Fatal::system("reserving the guest's memory"))?;
    let image_bytes = map_image(&vm, &given.image, given.image_bytes)?;
    // SAFETY: the memory goes into the machine, which is never dropped; the VM goes with the process.
    unsafe { add_slot(&vm, RAM_SLOT, 0, Gpa(0), memory.base(), memory.len_bytes()) }?;
    let mut vcpu = vm.create_vcpu(0).map_err(Fatal::kvm("KVM_CREATE_VCPU"))?;

    let Loaded { header, end } = kernel::load(&given.kernel, &memory)?;
    let tables = tables::write(&memory, end, image_bytes)?;
    traps::write(&memory, &header)?;
    let features = cpu::set_up(&vcpu, &cpuid, &header, tables.pml4)?;
    let mut seed = [0; 64];
    getrandom(&mut seed, GetRandomFlags::empty()).map_err(Fatal::system("getrandom"))?;
    let about = boot::Machine {
        ram_bytes,
        memory_limit_bytes: given.memory_limit_bytes,
        image_bytes: given.image_bytes,
        kernel_end_gpa: tables.kernel_end.0,
        pml4_gpa: tables.pml4.0,
        xcr0: features.xcr0,
        tsc_hz: features.tsc_hz,
        seed,
    };
    memory.write(Gpa(BOOT_INFO_GPA), &boot::encode(&given.program, &about))?;
    cpu::set_boot_registers(&mut vcpu, &header);

    let notify = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Fatal::system("eventfd"))?;
    let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
    // SAFETY: the page is mapped as long as the vCPU's owner lives, which never returns.
    let kicker = unsafe { Kicker::new(immediate_exit) }.map_err(Fatal::system("sigaction"))?;
    let timer = Timer::new(&memory).map_err(Fatal::system("timerfd_create"))?;
    let machine = Machine {
        memory,
        link: given.link,
        transmit: Mutex::new(Transmit::default()),
        ledger: Mutex::new(Ledger::new(given.program.flags & flags::TTY != 0)),
        timer,
        kicker,
        notify,
        resident: ResidentMemory::new(given.memory_limit_bytes)?,
        image: given.image,
        image_bytes: given.image_bytes,
        debug_exits: given.debug_exits,
        kernel: given.kernel,
    };
    Ok((machine, vm, vcpu))
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

/// Maps the image and gives it to the guest; returns the size of the mapping.
fn map_image(vm: &VmFd, image: &File, image_bytes: u64) -> Result<u64, Fatal> {
    let mapping = ManuallyDrop::new(ImageMapping::new(image, image_bytes).map_err(Fatal::system("mapping the image"))?);
    // SAFETY: the mapping is never dropped.
    unsafe { add_slot(vm, IMAGE_SLOT, KVM_MEM_READONLY, Gpa(IMAGE_GPA), mapping.base(), mapping.len_bytes()) }?;
    Ok(mapping.len_bytes())
}

/// # Safety
/// `[hva, hva + len)` stays mapped as long as the VM lives.
unsafe fn add_slot(vm: &VmFd, slot: u32, flags: u32, gpa: Gpa, hva: Hva, len: u64) -> Result<(), Fatal> {
    let region =
        kvm_userspace_memory_region { slot, flags, guest_phys_addr: gpa.0, memory_size: len, userspace_addr: hva.0 };
    // SAFETY: the caller's promise.
    unsafe { vm.set_user_memory_region(region) }.map_err(Fatal::kvm("KVM_SET_USER_MEMORY_REGION"))
}
