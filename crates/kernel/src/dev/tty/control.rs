//! tty_ioctl(4).

use super::discipline::Termios;
use super::{Change, Tty};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::signal;
use crate::task::{current, pid};
use crate::wait::Events;
use alloc::rc::Rc;
use linux_raw_sys::general::CAP_SYS_ADMIN;
use linux_raw_sys::ioctl as io;

/// Bytes of the kernel's `struct termios`, and of `struct termios2`.
const TERMIOS_BYTES: usize = 36;
const TERMIOS2_BYTES: usize = 44;

/// Speeds of the `CBAUD` codes (termios(3)).
const SPEEDS: [u32; 16] = [0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400];
const HIGH_SPEEDS: [u32; 15] = [
    57_600, 115_200, 230_400, 460_800, 500_000, 576_000, 921_600, 1_000_000, 1_152_000, 1_500_000, 2_000_000,
    2_500_000, 3_000_000, 3_500_000, 4_000_000,
];
const CBAUD: u32 = 0o10_017;
const CBAUDEX: u32 = 0o10_000;

fn speed(cflag: u32, explicit: u32) -> u32 {
    let code = cflag & CBAUD;
    match code & !CBAUDEX {
        0 if code & CBAUDEX != 0 => explicit,
        low if code & CBAUDEX == 0 => SPEEDS[low as usize],
        high => HIGH_SPEEDS[(high - 1) as usize],
    }
}

fn get_termios(tty: &Tty, addr: UserAddr, second: bool) -> Result<()> {
    let t = *tty.discipline.borrow().termios();
    let mut bytes = [0; TERMIOS2_BYTES];
    for (n, flags) in [t.iflag, t.oflag, t.cflag, t.lflag].iter().enumerate() {
        bytes[4 * n..4 * n + 4].copy_from_slice(&flags.to_le_bytes());
    }
    bytes[16] = t.line;
    bytes[17..36].copy_from_slice(&t.cc);
    bytes[36..40].copy_from_slice(&t.ispeed.to_le_bytes());
    bytes[40..44].copy_from_slice(&t.ospeed.to_le_bytes());
    user::write_bytes(addr, &bytes[..if second { TERMIOS2_BYTES } else { TERMIOS_BYTES }])
}

fn set_termios(tty: &Tty, addr: UserAddr, second: bool, flush: bool) -> Result<()> {
    tty.check_background(signal::SIGTTOU, false)?;
    let mut bytes = [0; TERMIOS2_BYTES];
    let old = *tty.discipline.borrow().termios();
    bytes[36..40].copy_from_slice(&old.ispeed.to_le_bytes());
    bytes[40..44].copy_from_slice(&old.ospeed.to_le_bytes());
    user::read_bytes(addr, &mut bytes[..if second { TERMIOS2_BYTES } else { TERMIOS_BYTES }])?;
    let word = |n: usize| u32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]]);
    let mut cc = [0; 19];
    cc.copy_from_slice(&bytes[17..36]);
    let cflag = word(2);
    let new = Termios {
        iflag: word(0),
        oflag: word(1),
        cflag,
        lflag: word(3),
        line: bytes[16],
        cc,
        ispeed: speed(cflag, word(9)),
        ospeed: speed(cflag, word(10)),
    };
    if flush {
        tty.discipline.borrow_mut().flush_input();
    }
    tty.discipline.borrow_mut().set_termios(new);
    let external = old.external() || new.external();
    if external || old.usual_flow_control() != new.usual_flow_control() {
        let usual = new.usual_flow_control();
        tty.control_changed(if usual { Change::UsualFlowControl } else { Change::OtherFlowControl });
    }
    if external {
        tty.control_changed(Change::Settings);
    }
    tty.queue.wake_all(Events::READABLE | Events::WRITABLE);
    Ok(())
}

/// TCFLSH: the argument is TCIFLUSH, TCOFLUSH or TCIOFLUSH. Output is never queued here.
fn flush(tty: &Tty, which: u64) -> Result<()> {
    tty.check_background(signal::SIGTTOU, false)?;
    if which > 2 {
        return Err(Errno::EINVAL);
    }
    if which != 1 {
        tty.discipline.borrow_mut().flush_input();
        tty.control_changed(Change::FlushRead);
        if let Some(line) = tty.line() {
            line.input_taken();
        }
    }
    if which != 0 {
        tty.control_changed(Change::FlushWrite);
    }
    Ok(())
}

/// TIOCSCTTY: argument 1 lets root steal it from another session.
fn set_controlling(tty: &Rc<Tty>, argument: u64) -> Result<()> {
    let process = &current().process;
    let group = process.group();
    let session = group.session();
    if session.is_leader(process) && tty.session.get() == session.sid() {
        return Ok(());
    }
    if !session.is_leader(process) || session.terminal().is_some() {
        return Err(Errno::EPERM);
    }
    if tty.session.get() != 0 {
        if argument != 1 || !current().creds().has(CAP_SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        if let Some(other) = pid::session(tty.session.get()) {
            other.set_terminal(None);
        }
    }
    tty.take_control();
    Ok(())
}

/// TIOCNOTTY.
fn give_up(tty: &Tty) -> Result<()> {
    if !tty.controls_current() {
        return Err(Errno::ENOTTY);
    }
    let process = &current().process;
    let group = process.group();
    if group.session().is_leader(process) {
        group.session().release_terminal();
    }
    Ok(())
}

fn set_foreground(tty: &Tty, pgid: i32) -> Result<()> {
    if !tty.controls_current() {
        return Err(Errno::ENOTTY);
    }
    tty.check_background(signal::SIGTTOU, false)?;
    let pgid = u32::try_from(pgid).map_err(|_| Errno::EINVAL)?;
    let group = pid::group(pgid).ok_or(Errno::ESRCH)?;
    if group.session().sid() != tty.session.get() {
        return Err(Errno::EPERM);
    }
    tty.foreground.set(pgid);
    Ok(())
}

/// A terminal's ioctl.
///
/// # Errors
/// As tty_ioctl(4) says; ENOTTY for what it does not know.
pub(super) fn ioctl(tty: &Rc<Tty>, request: u32, argument: u64) -> Result<u64> {
    let addr = UserAddr(argument);
    if tty.hung_up.get() {
        return Err(if request == io::TIOCSPGRP { Errno::ENOTTY } else { Errno::EIO });
    }
    match request {
        io::TCGETS => get_termios(tty, addr, false)?,
        io::TCGETS2 => get_termios(tty, addr, true)?,
        // Output is never queued here, so draining it (TCSETSW) is done already.
        io::TCSETS | io::TCSETSW => set_termios(tty, addr, false, false)?,
        io::TCSETSF => set_termios(tty, addr, false, true)?,
        io::TCSETS2 | io::TCSETSW2 => set_termios(tty, addr, true, false)?,
        io::TCSETSF2 => set_termios(tty, addr, true, true)?,
        io::TIOCGWINSZ => {
            let [rows, columns, x, y] = tty.size.get().map(u64::from);
            user::write(addr, &(rows | columns << 16 | x << 32 | y << 48))?;
        }
        io::TIOCSWINSZ => {
            let packed = user::read::<u64>(addr)?;
            tty.set_size([0, 16, 32, 48].map(|shift| (packed >> shift) as u16));
        }
        io::TIOCGPGRP => {
            if !tty.controls_current() {
                return Err(Errno::ENOTTY);
            }
            user::write(addr, &tty.foreground.get())?;
        }
        io::TIOCSPGRP => set_foreground(tty, user::read::<i32>(addr)?)?,
        io::TIOCGSID => {
            if !tty.controls_current() {
                return Err(Errno::ENOTTY);
            }
            user::write(addr, &tty.session.get())?;
        }
        io::TIOCSCTTY => set_controlling(tty, argument)?,
        io::TIOCNOTTY => give_up(tty)?,
        io::FIONREAD => user::write(addr, &(tty.discipline.borrow().available() as i32))?,
        io::TIOCOUTQ => user::write(addr, &0i32)?,
        io::TCFLSH => flush(tty, argument)?,
        io::TCXONC => match argument {
            0 | 1 => {
                tty.discipline.borrow_mut().set_stopped(argument == 0);
                tty.control_changed(if argument == 0 { Change::Stop } else { Change::Start });
                tty.queue.wake(Events::WRITABLE);
            }
            2 | 3 => {}
            _ => return Err(Errno::EINVAL),
        },
        // There is no line on which a break could be sent.
        io::TCSBRK | io::TCSBRKP | io::TIOCSBRK | io::TIOCCBRK => {}
        io::TIOCEXCL => tty.exclusive.set(true),
        io::TIOCNXCL => tty.exclusive.set(false),
        io::TIOCGEXCL => user::write(addr, &i32::from(tty.exclusive.get()))?,
        io::TIOCSTI => return Err(Errno::EIO),
        io::TIOCGETD => user::write(addr, &i32::from(tty.discipline.borrow().termios().line))?,
        io::TIOCSETD => {
            if user::read::<i32>(addr)? != 0 {
                return Err(Errno::EINVAL);
            }
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}
