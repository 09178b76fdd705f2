//! Credentials (credentials(7)) and capabilities (capabilities(7)).
//!
//! All rules are pure functions from old credentials to new ones.

use crate::errno::{Errno, Result};
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

/// Bypass file read, write, and execute permission checks.
pub const CAP_DAC_OVERRIDE: u32 = linux::CAP_DAC_OVERRIDE;
/// Bypass file read permission checks and directory read and search permission checks.
pub const CAP_DAC_READ_SEARCH: u32 = linux::CAP_DAC_READ_SEARCH;
/// Bypass permission checks for sending signals.
pub const CAP_KILL: u32 = linux::CAP_KILL;
/// Set the system clock.
pub const CAP_SYS_TIME: u32 = linux::CAP_SYS_TIME;

/// Every capability there is.
pub const ALL_CAPABILITIES: u64 = (1 << (linux::CAP_LAST_CAP + 1)) - 1;
/// The largest number of supplementary groups (NGROUPS_MAX).
pub const MAX_GROUPS: usize = 65_536;

/// Root gets no capabilities by executing (SECBIT_NOROOT).
pub const SECBIT_NOROOT: u32 = 1;
/// Changing user ids leaves capabilities alone (SECBIT_NO_SETUID_FIXUP).
pub const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;
/// Permitted capabilities survive giving up root (SECBIT_KEEP_CAPS, PR_SET_KEEPCAPS).
pub const SECBIT_KEEP_CAPS: u32 = 1 << 4;
/// See [`SECBIT_KEEP_CAPS`].
pub const SECBIT_KEEP_CAPS_LOCKED: u32 = 1 << 5;
/// No ambient capabilities can be raised (SECBIT_NO_CAP_AMBIENT_RAISE).
pub const SECBIT_NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
/// All bits, flags and their locks.
pub const SECBITS_ALL: u32 = 0xff;
/// The locks among them.
pub const SECBITS_LOCKS: u32 = 0xaa;

const fn bit(capability: u32) -> u64 {
    1 << capability
}

/// Capabilities that the file system user id carries (capabilities(7), "Effect of user ID changes").
const FILE_SYSTEM_CAPABILITIES: u64 = bit(linux::CAP_CHOWN)
    | bit(linux::CAP_DAC_OVERRIDE)
    | bit(linux::CAP_DAC_READ_SEARCH)
    | bit(linux::CAP_FOWNER)
    | bit(linux::CAP_FSETID)
    | bit(linux::CAP_LINUX_IMMUTABLE)
    | bit(linux::CAP_MAC_OVERRIDE)
    | bit(linux::CAP_MKNOD);

/// Who a thread is. Immutable once shared: a change makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "credentials(7)")]
pub struct Credentials {
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub gid: u32,
    pub egid: u32,
    pub sgid: u32,
    pub fsgid: u32,
    pub groups: Vec<u32>,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
    /// `SECBIT_` flags.
    pub securebits: u32,
}

/// Which ids a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// User ids.
    User,
    /// Group ids.
    Group,
}

impl Credentials {
    /// Root with every capability that Linux has.
    #[must_use]
    pub fn root() -> Self {
        Self {
            uid: 0,
            euid: 0,
            suid: 0,
            fsuid: 0,
            gid: 0,
            egid: 0,
            sgid: 0,
            fsgid: 0,
            groups: Vec::new(),
            effective: ALL_CAPABILITIES,
            permitted: ALL_CAPABILITIES,
            inheritable: 0,
            bounding: ALL_CAPABILITIES,
            ambient: 0,
            securebits: 0,
        }
    }

    /// A user as a login gives it: without capabilities unless it is root.
    #[must_use]
    pub fn user(uid: u32, gid: u32, groups: Vec<u32>) -> Self {
        let capabilities = if uid == 0 { ALL_CAPABILITIES } else { 0 };
        Self {
            uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            gid,
            egid: gid,
            sgid: gid,
            fsgid: gid,
            groups,
            effective: capabilities,
            permitted: capabilities,
            ..Self::root()
        }
    }

    /// Whether the effective set has the capability.
    #[must_use]
    pub const fn has(&self, capability: u32) -> bool {
        self.effective >> capability & 1 == 1
    }

    /// Whether the group counts as one's own for file permissions.
    #[must_use]
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups.contains(&gid)
    }

    /// Whether the flag is set.
    #[must_use]
    pub const fn secure(&self, flag: u32) -> bool {
        self.securebits & flag != 0
    }

    /// Real, effective and saved id.
    #[must_use]
    pub const fn ids(&self, kind: Kind) -> [u32; 3] {
        match kind {
            Kind::User => [self.uid, self.euid, self.suid],
            Kind::Group => [self.gid, self.egid, self.sgid],
        }
    }

    fn may_set(&self, kind: Kind) -> bool {
        self.has(match kind {
            Kind::User => linux::CAP_SETUID,
            Kind::Group => linux::CAP_SETGID,
        })
    }

    /// With other ids; the file system id follows the effective one, capabilities follow user ids.
    fn with_ids(&self, kind: Kind, [real, effective, saved]: [u32; 3]) -> Self {
        let mut new = self.clone();
        match kind {
            Kind::User => {
                (new.uid, new.euid, new.suid, new.fsuid) = (real, effective, saved, effective);
                new.fix_capabilities(self);
            }
            Kind::Group => (new.gid, new.egid, new.sgid, new.fsgid) = (real, effective, saved, effective),
        }
        new
    }

    /// capabilities(7), "Effect of user ID changes on capabilities".
    fn fix_capabilities(&mut self, old: &Self) {
        if self.secure(SECBIT_NO_SETUID_FIXUP) {
            return;
        }
        if old.ids(Kind::User).contains(&0) && !self.ids(Kind::User).contains(&0) {
            if !self.secure(SECBIT_KEEP_CAPS) {
                self.permitted = 0;
                self.effective = 0;
            }
            self.ambient = 0;
        }
        if old.euid == 0 && self.euid != 0 {
            self.effective = 0;
        } else if old.euid != 0 && self.euid == 0 {
            self.effective = self.permitted;
        }
    }

    /// setuid(2), setgid(2).
    ///
    /// # Errors
    /// EPERM.
    pub fn set_id(&self, kind: Kind, id: u32) -> Result<Self> {
        let [real, _, saved] = self.ids(kind);
        if self.may_set(kind) {
            Ok(self.with_ids(kind, [id; 3]))
        } else if id == real || id == saved {
            Ok(self.with_ids(kind, [real, id, saved]))
        } else {
            Err(Errno::EPERM)
        }
    }

    /// setreuid(2), setregid(2); `None` leaves an id alone.
    ///
    /// # Errors
    /// EPERM.
    pub fn set_real_effective(&self, kind: Kind, real: Option<u32>, effective: Option<u32>) -> Result<Self> {
        let [old_real, old_effective, old_saved] = self.ids(kind);
        let allowed = self.may_set(kind)
            || real.is_none_or(|id| [old_real, old_effective].contains(&id))
                && effective.is_none_or(|id| [old_real, old_effective, old_saved].contains(&id));
        if !allowed {
            return Err(Errno::EPERM);
        }
        let new_effective = effective.unwrap_or(old_effective);
        let saves = real.is_some() || effective.is_some_and(|id| id != old_real);
        let saved = if saves { new_effective } else { old_saved };
        Ok(self.with_ids(kind, [real.unwrap_or(old_real), new_effective, saved]))
    }

    /// setresuid(2), setresgid(2); `None` leaves an id alone.
    ///
    /// # Errors
    /// EPERM.
    pub fn set_all_ids(&self, kind: Kind, wanted: [Option<u32>; 3]) -> Result<Self> {
        let old = self.ids(kind);
        if !self.may_set(kind) && wanted.iter().flatten().any(|id| !old.contains(id)) {
            return Err(Errno::EPERM);
        }
        Ok(self.with_ids(kind, [0, 1, 2].map(|i| wanted[i].unwrap_or(old[i]))))
    }

    /// setfsuid(2), setfsgid(2); `None` if it is not allowed.
    #[must_use]
    pub fn set_file_system_id(&self, kind: Kind, id: u32) -> Option<Self> {
        let current = if kind == Kind::User { self.fsuid } else { self.fsgid };
        if !self.may_set(kind) && id != current && !self.ids(kind).contains(&id) {
            return None;
        }
        let mut new = self.clone();
        if kind == Kind::Group {
            new.fsgid = id;
            return Some(new);
        }
        new.fsuid = id;
        if !self.secure(SECBIT_NO_SETUID_FIXUP) {
            if self.fsuid == 0 && id != 0 {
                new.effective &= !FILE_SYSTEM_CAPABILITIES;
            } else if self.fsuid != 0 && id == 0 {
                new.effective |= self.permitted & FILE_SYSTEM_CAPABILITIES;
            }
        }
        Some(new)
    }

    /// capset(2).
    ///
    /// # Errors
    /// EPERM.
    pub fn set_capabilities(&self, effective: u64, permitted: u64, inheritable: u64) -> Result<Self> {
        let [effective, permitted, inheritable] = [effective, permitted, inheritable].map(|c| c & ALL_CAPABILITIES);
        let grows = |new: u64, bound: u64| new & !bound != 0;
        if !self.has(linux::CAP_SETPCAP) && grows(inheritable, self.inheritable | self.permitted)
            || grows(inheritable, self.inheritable | self.bounding)
            || grows(permitted, self.permitted)
            || grows(effective, permitted)
        {
            return Err(Errno::EPERM);
        }
        Ok(Self { effective, permitted, inheritable, ambient: self.ambient & permitted & inheritable, ..self.clone() })
    }

    /// Whether memory images must not be readable by who runs the program any more, and PR_SET_PDEATHSIG is forgotten.
    #[must_use]
    pub fn differs_for_dump(&self, old: &Self) -> bool {
        self.euid != old.euid
            || self.egid != old.egid
            || self.fsuid != old.fsuid
            || self.fsgid != old.fsgid
            || self.permitted & !old.permitted != 0
    }

    /// What execve(2) makes of the credentials, and whether the program has to be careful (AT_SECURE).
    ///
    /// # Errors
    /// EPERM if the file's capabilities can't all be had and the program does not know of capabilities.
    pub fn after_exec(&self, file: &FilePrivileges, no_new_privs: bool) -> Result<(Self, bool)> {
        let mut new = self.clone();
        if !no_new_privs {
            new.euid = file.uid.unwrap_or(new.euid);
            new.egid = file.gid.unwrap_or(new.egid);
        }
        let of_file = file.capabilities.filter(|_| !no_new_privs);
        let mut has = of_file.unwrap_or_default();
        let mut effective = has.effective;
        let is_root = new.euid == 0 || new.uid == 0;
        // A set-user-ID-root file that has capabilities gives an ordinary user just these.
        let only_file = of_file.is_some() && new.uid != 0 && new.euid == 0;
        if !self.secure(SECBIT_NOROOT) && is_root && !only_file {
            has = FileCapabilities { permitted: ALL_CAPABILITIES, inheritable: ALL_CAPABILITIES, effective: false };
            effective = new.euid == 0;
        }
        let set_id = new.euid != self.euid || new.egid != self.egid;
        let ambient = if of_file.is_some() || set_id { 0 } else { self.ambient };
        new.permitted = has.permitted & self.bounding | has.inheritable & self.inheritable;
        if of_file.is_some_and(|caps| caps.effective) && has.permitted & !new.permitted != 0 {
            return Err(Errno::EPERM);
        }
        new.permitted |= ambient;
        new.ambient = ambient;
        new.effective = if effective { new.permitted } else { ambient };
        (new.suid, new.fsuid, new.sgid, new.fsgid) = (new.euid, new.euid, new.egid, new.egid);
        new.securebits &= !SECBIT_KEEP_CAPS;
        let gained = new.uid != 0 && (effective && new.permitted != 0 || new.permitted & !ambient != 0);
        let secure = new.euid != new.uid || new.egid != new.gid || gained;
        Ok((new, secure))
    }
}

/// What a program file gives to who executes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilePrivileges {
    /// Owner of a set-user-ID file.
    pub uid: Option<u32>,
    /// Group of a set-group-ID file.
    pub gid: Option<u32>,
    /// Its capabilities.
    pub capabilities: Option<FileCapabilities>,
}

/// The extended attribute `security.capability`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileCapabilities {
    /// Gained, if the bounding set allows.
    pub permitted: u64,
    /// Gained, if they are inheritable.
    pub inheritable: u64,
    /// Whether what is gained is effective at once.
    pub effective: bool,
}

impl FileCapabilities {
    /// Reads the attribute (`struct vfs_cap_data` of revision 2, `vfs_ns_cap_data` of revision 3 with root as its owner);
    /// `None` for anything else.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = value.get(4 * at..4 * at + 4)?;
            Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?)))
        };
        let magic = word(0)?;
        let known = match magic >> 24 {
            2 => value.len() == 20,
            3 => value.len() == 24 && word(5)? == 0,
            _ => false,
        };
        known.then_some(())?;
        Some(Self {
            permitted: (word(1)? | word(3)? << 32) & ALL_CAPABILITIES,
            inheritable: (word(2)? | word(4)? << 32) & ALL_CAPABILITIES,
            effective: magic & 1 == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn nobody() -> Credentials {
        Credentials::user(1000, 1000, vec![])
    }

    #[test]
    fn giving_up_root_gives_up_capabilities() {
        let new = Credentials::root().set_id(Kind::User, 1000).expect("root may");
        assert_eq!((new.ids(Kind::User), new.fsuid, new.permitted, new.effective), ([1000; 3], 1000, 0, 0));
        assert_eq!(new.set_id(Kind::User, 0), Err(Errno::EPERM));
        let for_now = Credentials::root().set_all_ids(Kind::User, [None, Some(5), None]).expect("root may");
        assert_eq!((for_now.effective, for_now.permitted), (0, ALL_CAPABILITIES));
        let back = for_now.set_id(Kind::User, 0).expect("the saved id");
        assert_eq!(back.effective, ALL_CAPABILITIES);
        let mut keeps = Credentials::root();
        keeps.securebits = SECBIT_KEEP_CAPS;
        let new = keeps.set_id(Kind::User, 7).expect("root may");
        assert_eq!((new.permitted, new.effective), (ALL_CAPABILITIES, 0));
    }

    #[test]
    fn what_a_user_may_become() {
        let user = Credentials { suid: 0, ..nobody() };
        assert_eq!(user.set_id(Kind::User, 0).map(|c| c.ids(Kind::User)), Ok([1000, 0, 0]));
        assert_eq!(user.set_real_effective(Kind::User, Some(0), None), Err(Errno::EPERM));
        let swapped = user.set_real_effective(Kind::User, None, Some(0)).expect("the saved id");
        assert_eq!(swapped.ids(Kind::User), [1000, 0, 0]);
        assert_eq!(nobody().set_all_ids(Kind::Group, [None, None, Some(3)]), Err(Errno::EPERM));
        assert_eq!(nobody().set_file_system_id(Kind::User, 3), None);
        let root = Credentials::root().set_file_system_id(Kind::User, 3).expect("root may");
        assert!(!root.has(CAP_DAC_OVERRIDE) && root.has(linux::CAP_SETUID));
    }

    #[test]
    fn capabilities_only_shrink() {
        let user = nobody();
        assert_eq!(user.set_capabilities(1, 1, 0), Err(Errno::EPERM));
        let some = Credentials::root().set_capabilities(1, 3, 2).expect("root may");
        assert_eq!((some.effective, some.permitted, some.inheritable), (1, 3, 2));
        assert_eq!(some.set_capabilities(4, 3, 0), Err(Errno::EPERM));
        assert_eq!(some.set_capabilities(2, 3, 0).map(|c| c.effective), Ok(2));
    }

    #[test]
    fn executing() {
        let plain = FilePrivileges::default();
        let (root, secure) = Credentials::root().after_exec(&plain, false).expect("no capabilities asked for");
        assert_eq!((root.effective, secure), (ALL_CAPABILITIES, false));
        let (user, secure) = nobody().after_exec(&plain, false).expect("no capabilities asked for");
        assert_eq!((user.effective, secure), (0, false));
        let su = FilePrivileges { uid: Some(0), ..plain };
        let (as_root, secure) = nobody().after_exec(&su, false).expect("no capabilities asked for");
        assert_eq!((as_root.ids(Kind::User), as_root.effective, secure), ([1000, 0, 0], ALL_CAPABILITIES, true));
        let (still, secure) = nobody().after_exec(&su, true).expect("no capabilities asked for");
        assert_eq!((still.euid, still.effective, secure), (1000, 0, false));
    }

    #[test]
    fn capabilities_of_files() {
        let caps = |effective| FilePrivileges {
            capabilities: Some(FileCapabilities { permitted: 0x2000, inheritable: 0, effective }),
            ..FilePrivileges::default()
        };
        let (new, secure) = nobody().after_exec(&caps(true), false).expect("in the bounding set");
        assert_eq!((new.permitted, new.effective, secure), (0x2000, 0x2000, true));
        let bounded = Credentials { bounding: 0, ..nobody() };
        assert_eq!(bounded.after_exec(&caps(true), false), Err(Errno::EPERM));
        assert_eq!(bounded.after_exec(&caps(false), false).map(|(c, _)| c.permitted), Ok(0));
        let ambient = Credentials { ambient: 1, permitted: 1, inheritable: 1, ..nobody() };
        let (new, _) = ambient.after_exec(&FilePrivileges::default(), false).expect("nothing asked for");
        assert_eq!((new.ambient, new.effective), (1, 1));
        let (new, _) = ambient.after_exec(&caps(false), false).expect("not effective");
        assert_eq!((new.ambient, new.effective, new.permitted), (0, 0, 0x2000));

        let mut value = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
        value.resize(20, 0);
        let parsed = FileCapabilities { permitted: 0x2000, inheritable: 0, effective: true };
        assert_eq!(FileCapabilities::parse(&value), Some(parsed));
        assert_eq!(FileCapabilities::parse(&value[..12]), None);
        assert_eq!(FileCapabilities::parse(&[]), None);
    }
}
