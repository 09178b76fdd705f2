//! The end of a kernel that has found itself wrong: a text with registers and a backtrace, then [`crate::host::exit`].

use super::regs::UserRegs;
use core::fmt::Write;
use torpor_abi::layout::{KERNEL_BASE, KERNEL_END, KERNEL_MAX_BYTES, STACKS_BASE};

/// Where the text is put together: no allocation, the heap may be what broke.
struct Text {
    bytes: [u8; torpor_abi::shared::PANIC_TEXT_BYTES],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.len() - self.len;
        let mut n = text.len().min(room);
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        self.bytes[self.len..self.len + n].copy_from_slice(&text.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

fn in_kernel_stack(address: u64) -> bool {
    let image = KERNEL_BASE..KERNEL_BASE + KERNEL_MAX_BYTES;
    address.is_multiple_of(8) && (image.contains(&address) || (STACKS_BASE..KERNEL_END).contains(&address))
}

/// Follows frame pointers (the kernel is built with them) and writes `  #n 0xADDRESS` lines; the VM process adds names.
fn backtrace(text: &mut Text, rip: Option<u64>, mut frame: u64, stack: u64) {
    let mut n = 0;
    let mut line = |address: u64| {
        let _ = writeln!(text, "  #{n} {address:#x}");
        n += 1;
    };
    if let Some(rip) = rip {
        line(rip);
    }
    // Only within the stack that is in use, so that no guard page is touched.
    let end = (stack & !0x7fff) + 0x10000;
    for _ in 0..24 {
        if !in_kernel_stack(frame) || frame < stack || frame + 16 > end {
            break;
        }
        // SAFETY: within the kernel stack in use, aligned.
        let (next, address) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        if !(KERNEL_BASE..KERNEL_BASE + KERNEL_MAX_BYTES).contains(&address) {
            break;
        }
        line(address);
        if next <= frame {
            break;
        }
        frame = next;
    }
}

fn die(text: &Text) -> ! {
    let text = core::str::from_utf8(&text.bytes[..text.len]).unwrap_or("guest kernel panic");
    crate::host::exit(torpor_abi::shared::exit::PANIC, 0, text)
}

/// The panic handler's work.
pub fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut text = Text { bytes: [0; _], len: 0 };
    let _ = writeln!(text, "{}", info.message());
    if let Some(location) = info.location() {
        let _ = writeln!(text, "  at {location}");
    }
    let (rbx, frame, stack, r12): (u64, u64, u64, u64);
    let (r13, r14, r15): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        core::arch::asm!(
            "mov {}, rbx", "mov {}, rbp", "mov {}, rsp", "mov {}, r12", "mov {}, r13", "mov {}, r14", "mov {}, r15",
            out(reg) rbx, out(reg) frame, out(reg) stack, out(reg) r12, out(reg) r13, out(reg) r14, out(reg) r15,
            options(nomem, nostack)
        );
    }
    // The others hold what was needed to come here.
    let _ = writeln!(text, "  rsp {stack:x} rbp {frame:x} rbx {rbx:x} r12 {r12:x} r13 {r13:x} r14 {r14:x} r15 {r15:x}");
    if let Some(thread) = crate::task::try_current() {
        let regs = thread.state.regs();
        let _ = writeln!(
            text,
            "  thread {}, its program at {:x}, system call {}",
            thread.tid(),
            regs.rip,
            regs.orig_rax.cast_signed()
        );
    }
    backtrace(&mut text, None, frame, stack);
    die(&text)
}

/// An exception in kernel code.
#[unsafe(no_mangle)]
extern "C" fn kernel_exception(regs: &UserRegs, vector: u64, error: u64) -> ! {
    let mut text = Text { bytes: [0; _], len: 0 };
    // SAFETY: a static that only the page fault stub writes.
    let address = unsafe { core::ptr::read_volatile(&raw const super::entry::page_fault_address) };
    let _ = writeln!(text, "exception {vector} (error {error:#x}, address {address:#x}) in the kernel");
    registers(&mut text, regs);
    backtrace(&mut text, Some(regs.rip), regs.rbp, regs.rsp);
    die(&text)
}

/// General registers, three lines.
fn registers(text: &mut Text, r: &UserRegs) {
    let _ = write!(
        text,
        "  rip {:x} rsp {:x} flags {:x} rax {:x} rbx {:x} rcx {:x} rdx {:x}\n  rsi {:x} rdi {:x} rbp {:x} r8 {:x} r9 {:x} r10 {:x}\n  r11 {:x} r12 {:x} r13 {:x} r14 {:x} r15 {:x}\n",
        r.rip,
        r.rsp,
        r.rflags,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15
    );
}
