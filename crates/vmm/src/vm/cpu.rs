//! The virtual CPU before its first instruction: 64-bit mode at CPL 3, as [`torpor_abi::trap`] wants it.

use super::Fatal;
use super::memory::Gpa;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_msr_entry, kvm_segment, kvm_xcrs};
use kvm_ioctls::{Kvm, SyncReg, VcpuFd};
use torpor_abi::trap::{
    GDT_BYTES, GDT_OFFSET, IDT_BYTES, IDT_OFFSET, SYSCALL_FLAG_MASK, TSS_BYTES, TSS_OFFSET, selector, trap_va,
};

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;

const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;

const EFER_SCE: u64 = 1 << 0;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;

/// x87, SSE, AVX and the three parts of AVX-512; then without AVX-512; then without AVX.
const XCR0_WISHES: [u64; 3] = [0xe7, 0x7, 0x3];

/// Interrupts enabled; bit 1 is always set.
const BOOT_RFLAGS: u64 = 0x202;

/// What the guest has to be told about its CPU.
#[derive(Debug)]
pub(super) struct Features {
    /// As set.
    pub xcr0: u64,
    /// Frequency of the time stamp counter.
    pub tsc_hz: u64,
}

/// What KVM offers to guests; asked for before the VM exists, since it is a matter of the host.
///
/// # Errors
/// [`Fatal::Kvm`].
pub(super) fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, Fatal> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Fatal::kvm("KVM_GET_SUPPORTED_CPUID"))
}

/// Sets everything but the general registers.
///
/// # Errors
/// [`Fatal::Kvm`] or [`Fatal::Unsupported`].
pub(super) fn set_up(vcpu: &VcpuFd, cpuid: &CpuId, syscall_stub: u64, pml4: Gpa) -> Result<Features, Fatal> {
    vcpu.set_cpuid2(cpuid).map_err(Fatal::kvm("KVM_SET_CPUID2"))?;
    set_system_registers(vcpu, cpuid, &[pml4])?;
    set_msrs(vcpu, syscall_stub)?;
    let xcr0 = set_xcr0(vcpu)?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(Fatal::kvm("KVM_GET_TSC_KHZ"))?;
    Ok(Features { xcr0, tsc_hz: u64::from(tsc_khz) * 1000 })
}

fn set_msrs(vcpu: &VcpuFd, syscall_stub: u64) -> Result<(), Fatal> {
    let star = u64::from(selector::KERNEL_CODE) << 32 | u64::from(selector::USER_DATA - 8) << 48;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        entry(MSR_STAR, star),
        entry(MSR_LSTAR, syscall_stub),
        entry(MSR_SFMASK, SYSCALL_FLAG_MASK),
    ])
    .expect("three entries");
    let set = vcpu.set_msrs(&msrs).map_err(Fatal::kvm("KVM_SET_MSRS"))?;
    if set != msrs.as_slice().len() {
        return Err(Fatal::Unsupported("KVM refuses the MSRs of the syscall instruction"));
    }
    Ok(())
}

/// Puts the virtual CPU back to where [`set_up`] left it: nothing of what ran on it stays.
///
/// # Errors
/// [`Fatal::Kvm`].
pub(super) fn reset(vcpu: &VcpuFd, cpuid: &CpuId, syscall_stub: u64, pml4: Gpa) -> Result<(), Fatal> {
    let mut xsave = kvm_bindings::kvm_xsave::default();
    // Intel SDM 1, 13.4: the legacy region's x87 control word and MXCSR; all components are in their initial state by the
    // header of zeros.
    xsave.region[0] = 0x37f;
    xsave.region[6] = 0x1f80;
    // SAFETY: the state without AMX, which XCR0 never enables, has no more than 4 KiB.
    unsafe { vcpu.set_xsave(&xsave) }.map_err(Fatal::kvm("KVM_SET_XSAVE"))?;
    let debug = kvm_bindings::kvm_debugregs { dr6: 0xffff_0ff0, dr7: 0x400, ..Default::default() };
    vcpu.set_debug_regs(&debug).map_err(Fatal::kvm("KVM_SET_DEBUGREGS"))?;
    vcpu.set_vcpu_events(&kvm_bindings::kvm_vcpu_events::default()).map_err(Fatal::kvm("KVM_SET_VCPU_EVENTS"))?;
    // Another root in between: KVM looks at every table anew that the guest has written.
    set_system_registers(vcpu, cpuid, &[Gpa(0), pml4])?;
    set_msrs(vcpu, syscall_stub)
}

/// Sets the registers for a first instruction, through the shared page.
pub(super) fn set_entry(vcpu: &mut VcpuFd, rip: u64, rsp: u64) {
    let regs = &mut vcpu.sync_regs_mut().regs;
    *regs = kvm_bindings::kvm_regs { rip, rsp, rflags: BOOT_RFLAGS, ..Default::default() };
    vcpu.set_sync_dirty_reg(SyncReg::Register);
    vcpu.set_sync_valid_reg(SyncReg::Register);
    vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
}

/// Sets them once for each root in turn.
fn set_system_registers(vcpu: &VcpuFd, cpuid: &CpuId, roots: &[Gpa]) -> Result<(), Fatal> {
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: selector::USER_CODE,
        type_: 11,
        present: 1,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: selector::USER_DATA, type_: 3, l: 0, db: 1, ..code };
    let mut sregs = vcpu.get_sregs().map_err(Fatal::kvm("KVM_GET_SREGS"))?;
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        base: trap_va(TSS_OFFSET),
        limit: u32::try_from(TSS_BYTES - 1).expect("103"),
        selector: selector::TSS,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    let table = |offset, bytes| kvm_dtable {
        base: trap_va(offset),
        limit: u16::try_from(bytes - 1).expect("a page at most"),
        ..Default::default()
    };
    sregs.gdt = table(GDT_OFFSET, GDT_BYTES);
    sregs.idt = table(IDT_OFFSET, IDT_BYTES);
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    sregs.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE | CR4_OSXSAVE;
    let mut set = |root: &Gpa| {
        sregs.cr3 = root.0;
        vcpu.set_sregs(&sregs)
    };
    let Err(error) = roots.iter().try_for_each(&mut set) else { return Ok(()) };
    // A software KVM takes these bits though it announces neither feature; others insist on what CPUID says.
    let leaf = |function, index| cpuid.as_slice().iter().find(|e| e.function == function && e.index == index);
    if leaf(7, 0).is_none_or(|leaf| leaf.ebx & 1 == 0) {
        return Err(Fatal::Unsupported("the processor or KVM lacks FSGSBASE, which the guest kernel needs"));
    }
    if leaf(1, 0).is_none_or(|leaf| leaf.ecx & 1 << 26 == 0) {
        return Err(Fatal::Unsupported("the processor or KVM lacks XSAVE, which the guest kernel needs"));
    }
    Err(Fatal::kvm("KVM_SET_SREGS")(error))
}

fn set_xcr0(vcpu: &VcpuFd) -> Result<u64, Fatal> {
    // SAFETY: XGETBV needs CR4.OSXSAVE, which every x86-64 Linux with XSAVE sets; without it KVM_SET_SREGS has failed.
    let host = unsafe { core::arch::x86_64::_xgetbv(0) };
    for wish in XCR0_WISHES {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = wish;
        if wish & host == wish && vcpu.set_xcrs(&xcrs).is_ok() {
            return Ok(wish);
        }
    }
    Err(Fatal::Unsupported("KVM refuses to enable SSE state (XCR0)"))
}
