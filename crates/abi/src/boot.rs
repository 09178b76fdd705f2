//! Boot information: what the VM process tells the kernel before the first instruction.

/// First word of [`BootInfo`]: "TORPORBI".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TORPORBI");
/// Changes whenever anything in this crate changes its layout or meaning.
pub const VERSION: u32 = 6;

/// How many ports [`BootInfo::ready_ports`] can name.
pub const READY_PORTS_MAX: usize = 16;

/// A byte string at [`BootInfo::strings_gpa`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    /// From there on.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

/// At [`crate::layout::BOOT_INFO_GPA`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// [`flags`].
    pub flags: u32,
    /// Guest-physical RAM, from 0.
    pub ram_bytes: u64,
    /// What the guest's programs may use.
    pub memory_limit_bytes: u64,
    /// Length of the EROFS image at [`crate::layout::IMAGE_GPA`].
    pub image_bytes: u64,
    /// First guest-physical byte behind the loaded kernel image, its bss and those boot page tables of a large VM that
    /// found no room in [`crate::layout::BOOT_TABLES_GPA`]. A whole page.
    pub kernel_end_gpa: u64,
    /// Root of the boot page tables.
    pub pml4_gpa: u64,
    /// Guest-physical address of the strings: [`crate::layout::BOOT_STRINGS_GPA`], or in RAM above all that is in use before
    /// the kernel has read them and given the pages back.
    pub strings_gpa: u64,
    /// Their length in all.
    pub strings_bytes: u64,
    /// XCR0 as set for the vCPU.
    pub xcr0: u64,
    /// Frequency of the guest's TSC.
    pub tsc_hz: u64,
    /// Fresh random bytes.
    pub seed: [u8; 64],
    /// The instance's uuid, as bytes.
    pub uuid: [u8; 16],
    /// Generation of the instance's state; 0 where it was never snapshotted.
    pub generation: u64,
    /// Terminal size, where [`flags::TTY`] is set.
    pub rows: u16,
    /// See `rows`.
    pub cols: u16,
    /// Number of arguments in `argv`.
    pub argc: u32,
    /// Number of variables in `envp`.
    pub envc: u32,
    /// Numeric user and group to run the program as, unless `user` is not empty.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// Where [`flags::TEMPLATE`] is set: the ports of which one has to be listened at before the program is ready; zeros
    /// behind the last. With none it is any port.
    pub ready_ports: [u16; READY_PORTS_MAX],
    /// NUL-terminated arguments, one after the other.
    pub argv: Span,
    /// NUL-terminated `K=V` strings, one after the other.
    pub envp: Span,
    /// Working directory; empty for `/`.
    pub workdir: Span,
    /// `NAME`, `NAME:GROUP`, `UID` or `UID:GID` to be looked up in the guest's /etc/passwd and /etc/group; empty for root.
    pub user: Span,
    /// Host name and instance name.
    pub hostname: Span,
}

/// Bits of [`BootInfo::flags`].
pub mod flags {
    /// Standard input, output and error are a terminal of the given size.
    pub const TTY: u32 = 1 << 0;
    /// Standard input is connected (otherwise it reads as end of file).
    pub const STDIN: u32 = 1 << 1;
    /// Trace system calls: lines go to stream [`crate::frame::stream::TRACE`].
    pub const TRACE: u32 = 1 << 2;
    /// Do not rewrite system call sites.
    pub const NO_REWRITE: u32 = 1 << 3;
    /// Stop once, when the program is ready to be made a template (see [`crate::handover::reason::READY`]).
    pub const TEMPLATE: u32 = 1 << 4;
}
