//! GDT, IDT and TSS, as [`torpor_abi::trap`] describes them.

use super::memory::{Gpa, GuestMemory, OutOfRange};
use torpor_abi::layout::TRAP_GPA;
use torpor_abi::shared::EVENT_VECTOR;
use torpor_abi::trap::{
    GDT_BYTES, GDT_OFFSET, IDT_OFFSET, KernelHeader, TSS_BYTES, TSS_OFFSET, ist, selector, stack_top_va, trap_va,
};

/// Flat 64-bit code, ring 0: present, code, readable, accessed, long mode.
const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
/// Flat data, ring 0.
const KERNEL_DATA: u64 = 0x00cf_9300_0000_ffff;
/// The same for ring 3.
const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
/// See above.
const USER_DATA: u64 = 0x00cf_f300_0000_ffff;
/// Present, 64-bit TSS, busy: what loading TR leaves behind.
const BUSY_TSS: u64 = 0x8b;
/// Present, 64-bit interrupt gate.
const INTERRUPT_GATE: u64 = 0x8e;
const BREAKPOINT: u8 = 3;

/// A gate's two words.
const fn gate(handler: u64, ist: u8, dpl: u64) -> [u64; 2] {
    let low = (handler & 0xffff)
        | (selector::KERNEL_CODE as u64) << 16
        | (ist as u64) << 32
        | (INTERRUPT_GATE | dpl << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

const fn ist_of(vector: u8) -> u8 {
    match vector {
        1 => ist::DEBUG,
        BREAKPOINT => ist::BREAKPOINT,
        8 => ist::DOUBLE_FAULT,
        14 => ist::PAGE_FAULT,
        EVENT_VECTOR => ist::EVENT,
        _ => 0,
    }
}

/// Writes the tables.
///
/// # Errors
/// [`OutOfRange`], which the layout rules out.
pub(super) fn write(memory: &GuestMemory, header: &KernelHeader) -> Result<(), OutOfRange> {
    let trap = |offset| Gpa(TRAP_GPA + offset);
    let tss_va = trap_va(TSS_OFFSET);
    let mut gdt = [0; (GDT_BYTES / 8) as usize];
    let mut set = |selector: u16, value| gdt[usize::from(selector >> 3)] = value;
    set(selector::KERNEL_CODE, KERNEL_CODE);
    set(selector::KERNEL_DATA, KERNEL_DATA);
    set(selector::USER_DATA, USER_DATA);
    set(selector::USER_CODE, USER_CODE);
    set(selector::TSS, (TSS_BYTES - 1) | (tss_va & 0xff_ffff) << 16 | BUSY_TSS << 40 | (tss_va >> 24 & 0xff) << 56);
    set(selector::TSS + 8, tss_va >> 32);
    for (index, value) in gdt.into_iter().enumerate() {
        memory.write_u64(trap(GDT_OFFSET + index as u64 * 8), value)?;
    }

    // Intel SDM 3A, figure 8-11: RSP0 at 4, IST 1 to 7 from 36 on, I/O map base at 102.
    memory.write_u64(trap(TSS_OFFSET + 4), stack_top_va(0))?;
    for number in ist::EVENT..=ist::DOUBLE_FAULT {
        memory.write_u64(trap(TSS_OFFSET + 28 + u64::from(number) * 8), stack_top_va(number))?;
    }
    let beyond_limit = u16::try_from(TSS_BYTES).expect("104");
    memory.write(trap(TSS_OFFSET + 102), &beyond_limit.to_le_bytes())?;

    let mut idt = Vec::with_capacity(256 * 16);
    for vector in 0..=255_u8 {
        let handler = match vector {
            0..=31 => header.exception_stubs[usize::from(vector)],
            EVENT_VECTOR => header.event_stub,
            _ => header.spurious_stub,
        };
        let dpl = if vector == BREAKPOINT { 3 } else { 0 };
        for word in gate(handler, ist_of(vector), dpl) {
            idt.extend_from_slice(&word.to_le_bytes());
        }
    }
    memory.write(trap(IDT_OFFSET), &idt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_hold_address_stack_and_privilege() {
        let [low, high] = gate(0x7ff0_1234_5678, ist::BREAKPOINT, 3);
        assert_eq!(low & 0xffff | low >> 48 << 16 | high << 32, 0x7ff0_1234_5678);
        assert_eq!(low >> 16 & 0xffff, 0x10);
        assert_eq!(low >> 32 & 7, 4);
        assert_eq!(low >> 40 & 0xff, 0xee);
        assert_eq!(gate(0, 0, 0)[0] >> 40 & 0xff, 0x8e);
    }
}
