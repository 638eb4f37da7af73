//! Who owns what: the translation of user and group ids between host and guest.
//!
//! As an ordinary user the server lives in a user namespace in which only the caller exists: every other host id looks
//! like nobody's, and no id but its own can be given to a file. So ids are translated here and never on the host.

use virtiofsd::soft_idmap::cmdline::IdMap;

/// The overflow id of the kernel ("nobody"): what ids without a mapping look like.
pub const NOBODY: u32 = 65534;

/// How host ids are shown to the guest, and whose the guest's files are on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Every host id is shown as root's; whatever the guest makes is the server's own.
    SquashRoot,
    /// The server's own id is shown as `uid`/`gid`, every other as nobody's; whatever the guest makes is the server's own.
    Caller {
        /// User id of the caller in the guest.
        uid: u32,
        /// Group id of the caller in the guest.
        gid: u32,
    },
    /// No translation: the server is root and acts with the id of whoever asks.
    Host,
}

impl Ids {
    /// Parses `squash-root`, `caller:UID:GID` or `host`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "squash-root" => return Some(Ids::SquashRoot),
            "host" => return Some(Ids::Host),
            _ => {}
        }
        let (uid, gid) = text.strip_prefix("caller:")?.split_once(':')?;
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        (uid != u32::MAX && gid != u32::MAX).then_some(Ids::Caller { uid, gid })
    }

    /// Whether ids pass unchanged and the server may act as somebody else.
    #[must_use]
    pub fn is_host(self) -> bool {
        self == Ids::Host
    }

    /// The guest's view of a host owner, for a server that runs as `own` (user, group).
    #[must_use]
    pub fn to_guest(self, host: (u32, u32), own: (u32, u32)) -> (u32, u32) {
        match self {
            Ids::Host => host,
            Ids::SquashRoot => (0, 0),
            Ids::Caller { uid, gid } => (
                if host.0 == own.0 { uid } else { NOBODY },
                if host.1 == own.1 { gid } else { NOBODY },
            ),
        }
    }

    /// The same for users as a table of the virtiofsd library; `own` is the server's effective user id.
    #[must_use]
    pub fn user_map(self, own: u32) -> Vec<IdMap> {
        match self {
            Ids::Caller { uid, .. } => caller_map(own, uid),
            other => other.plain_map(own),
        }
    }

    /// The same for groups; `own` is the server's effective group id.
    #[must_use]
    pub fn group_map(self, own: u32) -> Vec<IdMap> {
        match self {
            Ids::Caller { gid, .. } => caller_map(own, gid),
            other => other.plain_map(own),
        }
    }

    fn plain_map(self, own: u32) -> Vec<IdMap> {
        if self.is_host() {
            return Vec::new();
        }
        vec![squash_host(0, u32::MAX, 0), squash_guest(own)]
    }
}

fn caller_map(own: u32, shown: u32) -> Vec<IdMap> {
    let mut map = vec![squash_guest(own), squash_host(own, 1, shown)];
    if own > 0 {
        map.push(squash_host(0, own, NOBODY));
    }
    if own < u32::MAX - 1 {
        map.push(squash_host(own + 1, u32::MAX - own - 1, NOBODY));
    }
    map
}

fn squash_guest(to_host: u32) -> IdMap {
    IdMap::SquashGuest {
        from_guest: 0,
        to_host,
        count: u32::MAX,
    }
}

fn squash_host(from_host: u32, count: u32, to_guest: u32) -> IdMap {
    IdMap::SquashHost {
        from_host,
        to_guest,
        count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtiofsd::soft_idmap::{GuestUid, HostUid, Id, IdMap as RuntimeMap};

    fn runtime(map: Vec<IdMap>) -> RuntimeMap<GuestUid, HostUid> {
        RuntimeMap::try_from(map).unwrap()
    }

    #[test]
    fn ids_are_parsed() {
        assert_eq!(Ids::parse("squash-root"), Some(Ids::SquashRoot));
        assert_eq!(
            Ids::parse("caller:1000:100"),
            Some(Ids::Caller {
                uid: 1000,
                gid: 100
            })
        );
        assert_eq!(Ids::parse("host"), Some(Ids::Host));
        for wrong in [
            "caller",
            "caller:1",
            "caller:-1:0",
            "caller:4294967295:0",
            "root",
            "",
        ] {
            assert_eq!(Ids::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_library_and_the_own_translation_agree() {
        for ids in [
            Ids::SquashRoot,
            Ids::Host,
            Ids::Caller {
                uid: 1000,
                gid: 1000,
            },
        ] {
            for own in [0, 1000, 65534, u32::MAX - 1] {
                let map = runtime(ids.user_map(own));
                for host in [0, 1, 999, 1000, 1001, 65533, 65534, 65535, u32::MAX - 1] {
                    let shown = map.map_host(HostUid::from(host)).unwrap().into_inner();
                    assert_eq!(
                        shown,
                        ids.to_guest((host, 0), (own, 0)).0,
                        "{ids:?} {own} {host}"
                    );
                }
            }
        }
    }

    #[test]
    fn whoever_writes_in_the_guest_is_the_server_on_the_host() {
        for ids in [
            Ids::SquashRoot,
            Ids::Caller {
                uid: 1000,
                gid: 1000,
            },
        ] {
            let map = runtime(ids.user_map(1000));
            for guest in [0, 1, 1000, 65534] {
                assert_eq!(
                    map.map_guest(GuestUid::from(guest)).unwrap().into_inner(),
                    1000
                );
            }
        }
    }
}
