//! The boot information ([`torpor_abi::boot`]).

use super::memory::{Gpa, GuestMemory, OutOfRange, bytes_of};
use crate::error::Failure;
use torpor_abi::boot::{BootInfo, MAGIC, READY_PORTS_MAX, Span, VERSION};
use torpor_abi::layout::{
    BOOT_INFO_GPA, BOOT_STRINGS_GPA, BOOT_STRINGS_MAX_BYTES, BOOT_STRINGS_ROOM_BYTES, STRING_MAX_BYTES,
};

/// What the broker says about the program; the rest of [`BootInfo`] is the VM process's to know.
#[derive(Debug, Default, Clone)]
pub struct Program {
    /// Of [`torpor_abi::boot::flags`].
    pub flags: u32,
    /// Rows and columns of the terminal.
    pub terminal_size: (u16, u16),
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// `K=V`.
    pub envp: Vec<Vec<u8>>,
    /// Empty for `/`.
    pub workdir: Vec<u8>,
    /// Empty for root.
    pub user: Vec<u8>,
    /// Host name and instance name.
    pub hostname: String,
    /// The instance's.
    pub uuid: [u8; 16],
    /// As in [`BootInfo`].
    pub ready_ports: [u16; READY_PORTS_MAX],
    /// What the guest's random numbers begin with in place of fresh ones, for a VM that never goes on past a snapshot: the
    /// restore of that brings fresh ones.
    pub seed: Option<[u8; 32]>,
}

/// What the VM process adds.
#[derive(Debug)]
pub struct Machine {
    /// See [`BootInfo`].
    pub ram_bytes: u64,
    /// See [`BootInfo`].
    pub memory_limit_bytes: u64,
    /// See [`BootInfo`].
    pub image_bytes: u64,
    /// See [`BootInfo`].
    pub kernel_end_gpa: u64,
    /// See [`BootInfo`].
    pub pml4_gpa: u64,
    /// See [`BootInfo`].
    pub xcr0: u64,
    /// See [`BootInfo`].
    pub tsc_hz: u64,
    /// See [`BootInfo`].
    pub seed: [u8; 64],
    /// Where there is RAM for [`BOOT_STRINGS_MAX_BYTES`] that the kernel does not use before it has read the strings.
    pub far_strings_gpa: u64,
}

/// The strings, one behind the other.
struct Strings {
    bytes: Vec<u8>,
}

impl Strings {
    fn span(&mut self, parts: &[&[u8]], terminated: bool) -> Span {
        let start = self.bytes.len();
        for part in parts {
            self.bytes.extend_from_slice(part);
            if terminated {
                self.bytes.push(0);
            }
        }
        // `check_size` bounds the sum; what does not fit is never encoded.
        let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Span { offset: word(start), len: word(self.bytes.len() - start) }
    }
}

/// Refuses what execve(2) would, before anything is started.
///
/// # Errors
/// A [`Failure`] that says by how much.
pub fn check_size(program: &Program) -> Result<(), Failure> {
    const POINTER_BYTES: usize = 8;
    const REMEDY: &str = "pass large data through standard input or the image";
    let (room, longest) = (BOOT_STRINGS_MAX_BYTES as usize, STRING_MAX_BYTES as usize - 1);
    for (what, list) in [("an argument", &program.argv), ("a variable of the environment", &program.envp)] {
        if let Some(string) = list.iter().find(|s| s.len() > longest) {
            let len = string.len();
            return Err(Failure::new(format!("{what} has {len} bytes, of {longest} that one may have: {REMEDY}")));
        }
    }
    let strings = |list: &[Vec<u8>]| list.iter().map(|s| s.len() + 1 + POINTER_BYTES).sum::<usize>();
    let all = strings(&program.argv)
        + strings(&program.envp)
        + program.workdir.len()
        + program.user.len()
        + program.hostname.len();
    if all > room {
        return Err(Failure::new(format!(
            "arguments and environment take {all} bytes, with {POINTER_BYTES} for each, of {room} that there are: {REMEDY}"
        )));
    }
    Ok(())
}

/// Writes both parts where the guest kernel reads them. The program has passed [`check_size`].
///
/// # Errors
/// [`OutOfRange`] in a memory that has no room for a kernel either.
pub(super) fn write(memory: &GuestMemory, program: &Program, machine: &Machine) -> Result<(), OutOfRange> {
    let (info, strings) = encode(program, machine);
    memory.write(Gpa(info.strings_gpa), &strings)?;
    memory.write(Gpa(BOOT_INFO_GPA), bytes_of(&info))
}

fn encode(program: &Program, machine: &Machine) -> (BootInfo, Vec<u8>) {
    let mut strings = Strings { bytes: Vec::new() };
    let argv: Vec<&[u8]> = program.argv.iter().map(Vec::as_slice).collect();
    let envp: Vec<&[u8]> = program.envp.iter().map(Vec::as_slice).collect();
    let mut info = BootInfo {
        magic: MAGIC,
        version: VERSION,
        flags: program.flags,
        ram_bytes: machine.ram_bytes,
        memory_limit_bytes: machine.memory_limit_bytes,
        image_bytes: machine.image_bytes,
        kernel_end_gpa: machine.kernel_end_gpa,
        pml4_gpa: machine.pml4_gpa,
        strings_gpa: BOOT_STRINGS_GPA,
        strings_bytes: 0,
        xcr0: machine.xcr0,
        tsc_hz: machine.tsc_hz,
        seed: machine.seed,
        uuid: program.uuid,
        generation: 0,
        rows: program.terminal_size.0,
        cols: program.terminal_size.1,
        argc: u32::try_from(argv.len()).expect("bounded by check_size"),
        envc: u32::try_from(envp.len()).expect("bounded by check_size"),
        uid: 0,
        gid: 0,
        reserved: 0,
        ready_ports: program.ready_ports,
        argv: strings.span(&argv, true),
        envp: strings.span(&envp, true),
        workdir: strings.span(&[&program.workdir], false),
        user: strings.span(&[&program.user], false),
        hostname: strings.span(&[program.hostname.as_bytes()], false),
    };
    info.strings_bytes = strings.bytes.len() as u64;
    if info.strings_bytes > BOOT_STRINGS_ROOM_BYTES {
        info.strings_gpa = machine.far_strings_gpa;
    }
    (info, strings.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            ram_bytes: 1,
            memory_limit_bytes: 2,
            image_bytes: 3,
            kernel_end_gpa: 4,
            pml4_gpa: 5,
            xcr0: 7,
            tsc_hz: 8,
            seed: [9; 64],
            far_strings_gpa: 10,
        }
    }

    #[test]
    fn strings_lie_where_the_spans_say() {
        let program = Program {
            argv: vec![b"sh".into(), b"-c".into(), vec![]],
            envp: vec![b"A=1".into()],
            workdir: b"/tmp".into(),
            hostname: "h".into(),
            ..Program::default()
        };
        check_size(&program).expect("small");
        let (info, strings) = encode(&program, &machine());
        let text = |span: Span| &strings[span.offset as usize..][..span.len as usize];
        assert_eq!(text(info.argv), b"sh\0-c\0\0");
        assert_eq!(text(info.envp), b"A=1\0");
        assert_eq!(text(info.workdir), b"/tmp");
        assert_eq!(text(info.user), b"");
        assert_eq!(text(info.hostname), b"h");
        assert_eq!((info.strings_gpa, info.strings_bytes), (BOOT_STRINGS_GPA, strings.len() as u64));
    }

    #[test]
    fn the_largest_that_passes_fits() {
        // With NUL and pointer 16 of these are 2 MiB.
        let mut program = Program { argv: vec![vec![b'x'; (128 << 10) - 9]; 16], ..Program::default() };
        check_size(&program).expect("just fits");
        let (info, strings) = encode(&program, &machine());
        assert_eq!((info.strings_gpa, info.strings_bytes), (10, strings.len() as u64));
        assert!(info.strings_bytes <= BOOT_STRINGS_MAX_BYTES);
        program.hostname = "h".into();
        assert!(check_size(&program).is_err_and(|error| error.message.contains("2097153 bytes")));
    }

    #[test]
    fn one_string_has_a_limit_of_its_own() {
        let program = |len| Program { envp: vec![vec![b'x'; len]], ..Program::default() };
        check_size(&program((128 << 10) - 1)).expect("just fits");
        assert!(check_size(&program(128 << 10)).is_err_and(|error| error.message.contains("131072 bytes")));
    }
}
