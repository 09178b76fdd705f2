//! Pseudoterminals (pty(7), pts(4)): a terminal whose line is a file, the master.

use super::{Change, Line, Tty, TtyFile, WindowSize};
use crate::errno::{Errno, Result};
use crate::fs::caller::Caller;
use crate::fs::device::make;
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::{FileType, Metadata};
use crate::fs::mount::{self, Mount};
use crate::fs::open::{self, How};
use crate::fs::path::Resolve;
use crate::mm::addr::UserAddr;
use crate::mm::user::{self, Dest, Source};
use crate::task::sched::{Sleep, wait_until};
use crate::task::{creds::Credentials, current};
use crate::wait::{Events, WaitQueue};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};
use linux_raw_sys::ioctl as io;

/// kernel.pty.max.
const MAX_PTYS: u32 = 4096;
/// What a program may write before somebody reads at the master.
const OUTPUT_BYTES: usize = 16 << 10;

crate::global! {
    static PTYS: RefCell<BTreeMap<u32, Weak<Pty>>> = RefCell::new(BTreeMap::new());
}

/// A pair of master and slave.
pub struct Pty {
    number: u32,
    tty: Rc<Tty>,
    /// From the slave to the master.
    output: RefCell<VecDeque<u8>>,
    /// Woken when the master may be read or written.
    queue: Rc<WaitQueue>,
    /// Woken when there is room in `output`.
    room: Rc<WaitQueue>,
    locked: Cell<bool>,
    packet_mode: Cell<bool>,
    packet: Cell<u8>,
    slaves: Cell<usize>,
    slave_was_open: Cell<bool>,
    /// Owner, group and mode of the slave's inode.
    owner: Cell<(u32, u32, u32)>,
}

/// Numbers of the pseudoterminals that exist, for /dev/pts, with owner, group and mode of each.
#[must_use]
pub fn list() -> Vec<(u32, (u32, u32, u32))> {
    PTYS.with(|p| p.borrow().iter().filter_map(|(n, pty)| Some((*n, pty.upgrade()?.owner.get()))).collect())
}

/// Changes owner, group or mode of a slave; `None` if there is no such pair.
pub fn set_owner(number: u32, uid: Option<u32>, gid: Option<u32>, mode: Option<u32>) -> Option<()> {
    let pty = PTYS.with(|p| p.borrow().get(&number).and_then(Weak::upgrade))?;
    let (old_uid, old_gid, old_mode) = pty.owner.get();
    pty.owner.set((uid.unwrap_or(old_uid), gid.unwrap_or(old_gid), mode.unwrap_or(old_mode)));
    Some(())
}

impl Drop for Pty {
    fn drop(&mut self) {
        PTYS.with(|p| p.borrow_mut().remove(&self.number));
    }
}

/// The line of the slave, without keeping the master alive.
struct SlaveLine(Weak<Pty>);

impl Line for SlaveLine {
    fn transmit(&self, bytes: &[u8]) {
        if let Some(pty) = self.0.upgrade() {
            pty.output.borrow_mut().extend(bytes);
            pty.queue.wake(Events::READABLE);
        }
    }

    fn room(&self) -> usize {
        self.0.upgrade().map_or(0, |pty| OUTPUT_BYTES.saturating_sub(pty.output.borrow().len()))
    }

    fn room_queues(&self) -> Vec<Rc<WaitQueue>> {
        self.0.upgrade().map(|pty| Rc::clone(&pty.room)).into_iter().collect()
    }

    fn input_taken(&self) {
        if let Some(pty) = self.0.upgrade() {
            pty.queue.wake(Events::WRITABLE);
        }
    }

    fn control_changed(&self, change: Change) {
        let Some(pty) = self.0.upgrade() else { return };
        if change == Change::FlushWrite {
            pty.output.borrow_mut().clear();
            pty.room.wake_all(Events::WRITABLE);
        }
        if pty.packet_mode.get() {
            let bit = match change {
                Change::FlushRead => 1,
                Change::FlushWrite => 2,
                Change::Stop => 4,
                Change::Start => 8,
                Change::UsualFlowControl => 32,
                Change::OtherFlowControl => 16,
                Change::Settings => 64,
            };
            // What undoes something else takes its place.
            let opposite = match change {
                Change::Stop => 8,
                Change::Start => 4,
                Change::UsualFlowControl => 16,
                Change::OtherFlowControl => 32,
                _ => 0,
            };
            pty.packet.set(pty.packet.get() & !opposite | bit);
            pty.queue.wake(Events::PRI | Events::READABLE);
        }
    }
}

/// A new pair, whose terminal has no line yet.
fn allocate(size: WindowSize, owner_uid: u32, locked: bool) -> Result<Rc<Pty>> {
    PTYS.with(|ptys| {
        let number = (0..MAX_PTYS).find(|n| !ptys.borrow().contains_key(n)).ok_or(Errno::ENOSPC)?;
        let pty = Rc::new(Pty {
            number,
            tty: Tty::new(make(136, number), size),
            output: RefCell::default(),
            queue: WaitQueue::new(),
            room: WaitQueue::new(),
            locked: Cell::new(locked),
            packet_mode: Cell::new(false),
            packet: Cell::new(0),
            slaves: Cell::new(0),
            slave_was_open: Cell::new(false),
            owner: Cell::new((owner_uid, 5, 0o620)),
        });
        ptys.borrow_mut().insert(number, Rc::downgrade(&pty));
        Ok(pty)
    })
}

/// Opens /dev/ptmx: a new pair; this is its master.
///
/// # Errors
/// ENOSPC when there are too many.
pub fn open_master() -> Result<Rc<dyn FileOps>> {
    let creds: Rc<Credentials> = current().creds();
    let pty = allocate([0; 4], creds.fsuid, true)?;
    pty.tty.set_line(Rc::new(SlaveLine(Rc::downgrade(&pty))));
    Ok(Rc::new(Master(pty)))
}

/// A terminal in /dev/pts without a master in the guest, whose line the caller sets; it exists as long as the result.
///
/// # Errors
/// ENOSPC when there are too many.
pub fn open_hosted(size: WindowSize, owner_uid: u32) -> Result<Rc<Pty>> {
    allocate(size, owner_uid, false)
}

impl Pty {
    /// The slave.
    #[must_use]
    pub fn tty(&self) -> &Rc<Tty> {
        &self.tty
    }

    /// The slave's name below /dev/pts.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
}

/// Opens /dev/pts/N.
///
/// # Errors
/// ENXIO if there is no such pair, EIO while it is locked (unlockpt(3)).
pub fn open_slave(number: u32, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
    let pty = PTYS.with(|p| p.borrow().get(&number).and_then(Weak::upgrade)).ok_or(Errno::ENXIO)?;
    if pty.locked.get() {
        return Err(Errno::EIO);
    }
    pty.tty.opened(flags.contains(OpenFlags::NOCTTY))?;
    pty.slaves.set(pty.slaves.get() + 1);
    pty.slave_was_open.set(true);
    Ok(Rc::new(Slave { file: TtyFile(Rc::clone(&pty.tty)), pty: Rc::downgrade(&pty) }))
}

/// Opens a slave by its name in /dev/pts, wherever that is for the caller, so that it can be asked for the name (ttyname(3)).
fn open_peer(number: u32, flags: OpenFlags) -> Result<Rc<OpenFile>> {
    let is_devpts = |mount: &Rc<Mount>| {
        mount.description.fs_type == "devpts" && mount.top().inode.metadata().file_type == FileType::Directory
    };
    let mount = mount::all().into_iter().find(is_devpts).ok_or(Errno::ENXIO)?;
    let caller = Caller { creds: Rc::new(Credentials::root()), ..Caller::current() };
    let how = How { flags: flags | OpenFlags::NOCTTY, mode: 0, resolve: Resolve::empty() };
    open::open(&caller, mount.top(), format!("{number}").as_bytes(), how)
}

struct Slave {
    file: TtyFile,
    pty: Weak<Pty>,
}

impl Drop for Slave {
    fn drop(&mut self) {
        if let Some(pty) = self.pty.upgrade() {
            pty.slaves.set(pty.slaves.get() - 1);
            if pty.slaves.get() == 0 {
                pty.queue.wake_all(Events::READABLE | Events::HUP);
            }
        }
    }
}

impl FileOps for Slave {
    fn as_any(&self) -> &dyn Any {
        &self.file
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, offset: u64) -> Result<usize> {
        self.file.read(file, dst, offset)
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        self.file.write(file, src, offset)
    }

    fn poll(&self, file: &OpenFile) -> Events {
        self.file.poll(file)
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        self.file.wait_queue()
    }

    fn ioctl(&self, file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        self.file.ioctl(file, request, argument)
    }

    fn metadata(&self) -> Metadata {
        self.file.metadata()
    }

    fn describe(&self) -> String {
        self.file.describe()
    }
}

struct Master(Rc<Pty>);

impl Drop for Master {
    fn drop(&mut self) {
        self.0.tty.hang_up();
    }
}

impl Master {
    /// All slaves are closed, and there was one.
    fn hung_up(&self) -> bool {
        self.0.slave_was_open.get() && self.0.slaves.get() == 0
    }

    fn try_read(&self, dst: &mut Dest<'_>) -> Result<Option<usize>> {
        let pty = &self.0;
        if pty.packet_mode.get() && pty.packet.get() != 0 {
            return dst.put(&[pty.packet.replace(0)]).map(Some);
        }
        let mut output = pty.output.borrow_mut();
        if output.is_empty() {
            return if self.hung_up() { Err(Errno::EIO) } else { Ok(None) };
        }
        let mut total = 0;
        if pty.packet_mode.get() {
            total = dst.put(&[0])?;
        }
        let n = output.len().min(dst.remaining());
        let bytes: Vec<u8> = output.drain(..n).collect();
        drop(output);
        total += dst.put(&bytes)?;
        pty.room.wake_all(Events::WRITABLE);
        Ok(Some(total))
    }
}

impl FileOps for Master {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        match self.try_read(dst)? {
            Some(n) => Ok(n),
            None if file.nonblocking() => Err(Errno::EAGAIN),
            None => wait_until(&[&self.0.queue], None, Sleep::Interruptible, || self.try_read(dst).transpose())?,
        }
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>, _offset: u64) -> Result<(usize, u64)> {
        let tty = &self.0.tty;
        let mut written = 0;
        while src.remaining() > 0 {
            let room = tty.input_room();
            if room == 0 {
                let waited = if file.nonblocking() {
                    Err(Errno::EAGAIN)
                } else {
                    let free = || (tty.input_room() > 0).then_some(());
                    wait_until(&[&self.0.queue], None, Sleep::Interruptible, free).map_err(Errno::from)
                };
                match waited {
                    Ok(()) => continue,
                    Err(error) if written == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            let mut chunk = vec![0; room.min(src.remaining()).min(1024)];
            let n = match src.take(&mut chunk) {
                Ok(n) => n,
                Err(error) if written == 0 => return Err(error),
                Err(_) => break,
            };
            tty.receive(&chunk[..n]);
            written += n;
        }
        Ok((written, 0))
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        let mut ready = Events::empty();
        if !self.0.output.borrow().is_empty() {
            ready |= Events::READABLE;
        }
        if self.0.packet_mode.get() && self.0.packet.get() != 0 {
            ready |= Events::READABLE | Events::PRI;
        }
        if self.hung_up() {
            ready |= Events::HUP;
        }
        if self.0.tty.input_room() > 0 {
            ready |= Events::WRITABLE;
        }
        ready
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.0.queue))
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        let (pty, addr) = (&self.0, UserAddr(argument));
        match request {
            io::TIOCGPTN => user::write(addr, &pty.number)?,
            io::TIOCSPTLCK => pty.locked.set(user::read::<i32>(addr)? != 0),
            io::TIOCGPTLCK => user::write(addr, &i32::from(pty.locked.get()))?,
            io::TIOCPKT => {
                pty.packet.set(0);
                pty.packet_mode.set(user::read::<i32>(addr)? != 0);
            }
            io::TIOCGPKT => user::write(addr, &i32::from(pty.packet_mode.get()))?,
            io::TIOCGPTPEER => {
                let flags = OpenFlags::from_bits_truncate(argument as u32);
                let limit = current().process.limit(crate::task::limits::Resource::OpenFiles) as usize;
                let file = open_peer(pty.number, flags)?;
                return Ok(current().files().insert(file, flags.contains(OpenFlags::CLOEXEC), 0, limit)? as u64);
            }
            io::TIOCSIG => {
                let number = u32::try_from(argument).ok().and_then(crate::task::signal::Signal::new);
                pty.tty.signal_foreground(number.ok_or(Errno::EINVAL)?);
            }
            io::FIONREAD => user::write(addr, &(pty.output.borrow().len() as i32))?,
            _ => return super::control::ioctl(&pty.tty, request, argument),
        }
        Ok(0)
    }

    fn metadata(&self) -> Metadata {
        crate::dev::device_metadata(make(5, 2), 0o666)
    }

    fn describe(&self) -> String {
        String::from("/dev/ptmx")
    }
}
