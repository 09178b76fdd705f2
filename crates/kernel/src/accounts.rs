//! `--user` as docker takes it: NAME, UID, NAME:GROUP, UID:GID, looked up in the image's /etc/passwd and /etc/group.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Who the first program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory; `/` where it is not known.
    pub home: Vec<u8>,
}

fn fields(line: &[u8]) -> Vec<&[u8]> {
    line.split(|b| *b == b':').collect()
}

/// An id; all ones is none, as for setuid(2).
fn number(text: &[u8]) -> Option<u32> {
    core::str::from_utf8(text).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

/// Finds `spec` in the texts of passwd(5) and group(5); empty is root. A number need not be listed.
///
/// # Errors
/// A sentence that names the user or group that is not there.
pub fn resolve(spec: &[u8], passwd: &[u8], group: &[u8]) -> Result<Account, String> {
    let mut parts = spec.splitn(2, |b| *b == b':');
    let (user, wanted_group) = (parts.next().unwrap_or(&[]), parts.next().filter(|g| !g.is_empty()));
    let user = if user.is_empty() { &b"0"[..] } else { user };
    // name:password:UID:GID:comment:directory:shell
    let entries: Vec<_> = passwd.split(|b| *b == b'\n').map(fields).filter(|f| f.len() >= 6).collect();
    let entry = entries.iter().find(|f| f[0] == user).or_else(|| {
        let uid = number(user)?;
        entries.iter().find(|f| number(f[2]) == Some(uid))
    });
    let uid = match entry.and_then(|f| number(f[2])).or_else(|| number(user)) {
        Some(uid) => uid,
        None => {
            return Err(format!(
                "unable to find user {}: no matching entries in passwd file",
                String::from_utf8_lossy(user)
            ));
        }
    };
    let mut account = Account {
        uid,
        gid: entry.and_then(|f| number(f[3])).unwrap_or(0),
        groups: Vec::new(),
        home: entry.map_or_else(|| b"/".to_vec(), |f| f[5].to_vec()),
    };
    // name:password:GID:members
    let groups: Vec<_> = group.split(|b| *b == b'\n').map(fields).filter(|f| f.len() >= 4).collect();
    if let Some(wanted) = wanted_group {
        let listed = groups.iter().find(|f| f[0] == wanted).and_then(|f| number(f[2]));
        account.gid = match listed.or_else(|| number(wanted)) {
            Some(gid) => gid,
            None => {
                return Err(format!(
                    "unable to find group {}: no matching entries in group file",
                    String::from_utf8_lossy(wanted)
                ));
            }
        };
    } else if let Some(entry) = entry {
        let member = |f: &&Vec<&[u8]>| f[3].split(|b| *b == b',').any(|name| name == entry[0]);
        account.groups = groups.iter().filter(member).filter_map(|f| number(f[2])).collect();
    }
    Ok(account)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www:/var/www:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nwww-data:x:33:\nssl:x:101:www-data,other\n";

    #[test]
    fn as_docker_does() {
        let find = |spec: &str| resolve(spec.as_bytes(), PASSWD, GROUP);
        assert_eq!(find("").map(|a| (a.uid, a.home)), Ok((0, b"/root".to_vec())));
        let www = find("www-data").expect("listed");
        assert_eq!((www.uid, www.gid, &www.groups[..], &www.home[..]), (33, 33, &[101][..], &b"/var/www"[..]));
        assert_eq!(find("33").map(|a| a.gid), Ok(33));
        assert_eq!(find("1000:ssl").map(|a| (a.uid, a.gid)), Ok((1000, 101)));
        assert_eq!(find("1000:7").map(|a| (a.uid, a.gid, a.home)), Ok((1000, 7, b"/".to_vec())));
        assert!(find("4294967295").is_err() && find("0:4294967295").is_err());
        assert!(find("nobody").is_err_and(|text| text.contains("nobody")));
        assert!(find("root:none").is_err_and(|text| text.contains("none")));
        assert_eq!(resolve(b"", b"", b"").map(|a| a.home), Ok(b"/".to_vec()));
    }
}
