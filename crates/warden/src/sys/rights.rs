//! System calls about what a process may do: ids, capabilities, filters.

use libc::{c_int, c_ulong};

use super::{check, Errno, Result};

/// Drops all supplementary groups.
pub fn clear_groups() -> Result<()> {
    // SAFETY: a count of 0 reads nothing from the pointer.
    check(unsafe { libc::setgroups(0, std::ptr::null()) }).map(drop)
}

/// setresgid(2) with the same id three times.
pub fn set_gid(gid: u32) -> Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::setresgid(gid, gid, gid) }).map(drop)
}

/// setresuid(2) with the same id three times.
pub fn set_uid(uid: u32) -> Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

/// Sets the effective, permitted and inheritable capabilities of the calling process.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let low = |set: u64| (set & 0xFFFF_FFFF) as u32;
    let high = |set: u64| (set >> 32) as u32;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let data: [u32; 6] = [
        low(effective),
        low(permitted),
        low(inheritable),
        high(effective),
        high(permitted),
        high(inheritable),
    ];
    // SAFETY: version 3 reads a header of 8 bytes and two records of three u32 each.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The permitted capabilities of the calling process.
pub fn permitted_capabilities() -> Result<u64> {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header: [u32; 2] = [VERSION_3, 0];
    let mut data = [0u32; 6];
    // SAFETY: version 3 writes two records of three u32 each.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) })?;
    let [_, low, _, _, high, _] = data;
    Ok(u64::from(low) | u64::from(high) << 32)
}

/// Installs a classic BPF program as system call filter. `program` is whole instructions of 8 bytes.
pub fn install_filter(program: &[u8]) -> Result<()> {
    let filter: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .filter_map(|chunk| <[u8; 8]>::try_from(chunk).ok())
        .map(|[a, b, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| Errno(libc::EINVAL))?;
    let program = libc::sock_fprog {
        len,
        filter: filter.as_ptr().cast_mut(),
    };
    let flags: c_ulong = 0;
    // SAFETY: `program` names `len` instructions; the kernel copies and verifies them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })
    .map(drop)
}
