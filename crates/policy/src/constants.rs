//! The names that conditions of a policy may use.

/// The value of a constant; its lower 32 bits, which is what is compared.
pub fn find(name: &str) -> Option<u32> {
    CONSTANTS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| *value)
}

macro_rules! constants {
    ($($name:ident)*) => {
        &[$((stringify!($name), libc::$name as u32)),*]
    };
}

const CONSTANTS: &[(&str, u32)] = constants! {
    F_GETFL F_SETFL F_SETFD F_DUPFD_CLOEXEC
    PROT_EXEC
    PR_SET_DUMPABLE PR_SET_NO_NEW_PRIVS PR_CAPBSET_READ PR_GET_SECUREBITS PR_GET_NO_NEW_PRIVS PR_CAP_AMBIENT
    PR_SET_NAME PR_SET_TIMERSLACK PR_MCE_KILL
    SECCOMP_SET_MODE_FILTER SECCOMP_GET_ACTION_AVAIL
    CLONE_THREAD CLONE_FS
    CLONE_NEWUSER CLONE_NEWNS CLONE_NEWPID CLONE_NEWNET CLONE_NEWIPC CLONE_NEWUTS CLONE_NEWCGROUP
    TIOCSTI TIOCLINUX
    AF_UNIX AF_INET AF_INET6 AF_NETLINK
};
