//! Linux and the guest kernel behind one interface: system calls by number.

use linux_raw_sys::general as linux;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use tempfile::TempDir;
use torpor_kernel::event;
use torpor_kernel::fs::context::FsContext;
use torpor_kernel::fs::mount::{self, Description};
use torpor_kernel::fs::overlay::{Limits, Lower, Tree};
use torpor_kernel::fs::special;
use torpor_kernel::mm::addr::{Gpa, PAGE_BYTES};
use torpor_kernel::mm::pages::{Access, Page, PageError};
use torpor_kernel::syscall::table::{Args, GROUPS};
use torpor_kernel::task;
use torpor_kernel::task::creds::Credentials;
use torpor_kernel::task::thread::Thread;

/// The result of a system call, or its error number.
pub(crate) type Outcome = Result<u64, i32>;

/// Who runs system calls. Pointers in `args` are addresses in this process.
pub(crate) trait Side {
    /// Which of the runner's descriptors are meant.
    const INDEX: usize;

    fn call(&mut self, number: u32, args: [u64; 6]) -> Outcome;
}

/// Runs `f` on a thread of its own, which has a working directory and (for the guest) a kernel of its own.
pub(crate) fn in_own_thread<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let run = move || {
        // SAFETY: plain system calls without pointers.
        let done = unsafe { libc::unshare(libc::CLONE_FS) };
        assert_eq!(done, 0, "a thread may have a working directory of its own");
        // SAFETY: as above. Both sides start with the same mask.
        unsafe { libc::umask(0o022) };
        f()
    };
    match std::thread::Builder::new().stack_size(8 << 20).spawn(run).expect("a thread starts").join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Linux, in a directory on a tmpfs.
pub(crate) struct Native {
    directory: TempDir,
}

impl Native {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm");
        let path = CString::new(directory.path().as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: a NUL-terminated string that lives for the calls.
        unsafe {
            assert_eq!(libc::chmod(path.as_ptr(), 0o755), 0);
            assert_eq!(libc::chdir(path.as_ptr()), 0, "the directory was just made");
        }
        Self { directory }
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }
}

impl Side for Native {
    const INDEX: usize = 0;

    fn call(&mut self, number: u32, args: [u64; 6]) -> Outcome {
        let [a, b, c, d, e, f] = args;
        // SAFETY: the operations pass addresses of buffers that live for the call, with their lengths.
        let result = unsafe { libc::syscall(i64::from(number), a, b, c, d, e, f) };
        if result == -1 {
            return Err(std::io::Error::last_os_error().raw_os_error().expect("an error number"));
        }
        Ok(result.cast_unsigned())
    }
}

/// The guest kernel of this thread.
pub(crate) struct Guest {
    thread: Rc<Thread>,
    /// The image, which mappings find at guest-physical address 0.
    image: &'static [u8],
}

impl Guest {
    /// A guest whose root is an image of `source`.
    pub(crate) fn over(source: &Path) -> Self {
        let image = image_of(source);
        // SAFETY: the image is never freed.
        let lower = unsafe { Lower::open(image.as_ptr(), image.len(), Gpa(0)) }.expect("a good image");
        let limits = Limits { pages: 1 << 16, metadata_bytes: 64 << 20 };
        let description = Description { fs_type: "overlay", source: Box::from(*b"overlay"), options: String::new() };
        let root = mount::mount_root(Tree::over(lower, limits).expect("a root"), description).expect("a mount");
        let thread = task::testing::enter();
        special::set_fifo_opener(event::pipe::open_inode);
        let _ = thread.set_fs(Some(FsContext::new(root)));
        // SAFETY: no arguments.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        if uid != 0 {
            let root = Credentials::root();
            let ids =
                Credentials { uid, euid: uid, suid: uid, fsuid: uid, gid, egid: gid, sgid: gid, fsgid: gid, ..root };
            thread.set_creds(Credentials { effective: 0, permitted: 0, ..ids });
        }
        Self { thread, image }
    }
}

impl Guest {
    /// Compares what a mapping of an open file shows with what pread(2) reads.
    pub(crate) fn check_mapping(&mut self, fd: i32) -> Result<(), String> {
        let Ok(file) = self.thread.files().get(fd) else { return Ok(()) };
        let Some(pages) = file.ops.pages().filter(|_| file.flags.get().readable()) else { return Ok(()) };
        let count = file.metadata().size.div_ceil(PAGE_BYTES);
        for index in 0..count {
            let mut read = vec![0; PAGE_BYTES as usize];
            let args = [fd as u64, read.as_mut_ptr() as u64, PAGE_BYTES, index * PAGE_BYTES, 0, 0];
            self.call(linux::__NR_pread64, args).map_err(|error| format!("pread gives error {error}"))?;
            let run = pages.image_run(index, 1);
            let mut mapped = vec![0; PAGE_BYTES as usize];
            match pages.page(index, Access::Read) {
                Ok(Page::Frame(frame)) => frame.read(0, &mut mapped),
                Ok(Page::Image(Gpa(at))) if run == Some((Gpa(at), 1)) => {
                    mapped.copy_from_slice(&self.image[at as usize..][..PAGE_BYTES as usize]);
                }
                Ok(Page::Image(at)) => return Err(format!("page {index} is at {at:?} and in the run {run:?}")),
                Ok(Page::Hole) => {}
                Err(error) => return Err(format!("page {index} gives {error:?}")),
            }
            if mapped != read {
                return Err(format!("page {index} of {count} is mapped and read differently"));
            }
        }
        match pages.page(count, Access::Read) {
            Err(PageError::BeyondEnd) => Ok(()),
            _ => Err(format!("there is a page {count} beyond the end")),
        }
    }
}

fn image_of(source: &Path) -> &'static [u8] {
    let output = tempfile::NamedTempFile::new().expect("a temporary file");
    let path: PathBuf = output.path().into();
    let made = Command::new("mkfs.erofs").arg("--quiet").arg("-x1").arg(&path).arg(source).output();
    let made = made.expect("mkfs.erofs runs (it is in the package erofs-utils)");
    assert!(made.status.success(), "mkfs.erofs: {made:?}");
    Vec::leak(std::fs::read(&path).expect("the image"))
}

impl Side for Guest {
    const INDEX: usize = 1;

    fn call(&mut self, number: u32, args: [u64; 6]) -> Outcome {
        let call = GROUPS.iter().flat_map(|group| group.iter()).find(|call| u32::from(call.number) == number);
        let call = call.unwrap_or_else(|| panic!("system call {number} is in the table"));
        (call.handler)(Args(args)).map_err(|error| error.0)
    }
}

/// `AT_FDCWD` as an argument.
pub(crate) const CWD: u64 = linux::AT_FDCWD as i64 as u64;
