//! Packets with descriptors over a Unix socket.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::c_int;

use super::{adopt_fd, check, Errno, Result};

/// What [`receive_packet`] took.
pub struct Received {
    /// Bytes written to the buffer.
    pub length: usize,
    /// The descriptors, all close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The packet or its list of descriptors did not fit.
    pub cut: bool,
}

/// Room for a control message with up to `count` descriptors, aligned as cmsghdr wants.
fn control_buffer(count: usize) -> Vec<u64> {
    let size = u32::try_from(count.saturating_mul(4)).unwrap_or(u32::MAX);
    // SAFETY: CMSG_SPACE only computes.
    let bytes = unsafe { libc::CMSG_SPACE(size) };
    vec![0; (bytes as usize).div_ceil(8)]
}

/// Takes one packet without waiting. A length of 0 is the end of file.
pub fn receive_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    most_fds: usize,
) -> Result<Received> {
    let mut control = control_buffer(most_fds);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() * 8;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: `header` names `buffer` and `control` with their lengths.
    let length = check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled `control` with well-formed messages and set msg_controllen; the macros stay in it.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS
            {
                let length = (*message)
                    .cmsg_len
                    .saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = std::slice::from_raw_parts(libc::CMSG_DATA(message), length);
                let numbers = data.chunks_exact(4).filter_map(|one| one.first_chunk());
                fds.extend(numbers.map(|one| adopt_fd(c_int::from_ne_bytes(*one))));
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    let cut = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Received {
        length: length.unsigned_abs(),
        fds,
        cut,
    })
}

/// Sends one packet, with a descriptor if there is one, without waiting and without SIGPIPE.
pub fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut control = control_buffer(1);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if let Some(fd) = fd {
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` has room for one header and one descriptor, and is zeroed.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(4) as usize;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(4) as usize;
            let number = fd.as_raw_fd().to_ne_bytes();
            std::ptr::copy_nonoverlapping(number.as_ptr(), libc::CMSG_DATA(message), 4);
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    loop {
        // SAFETY: `header` names `bytes` and `control`, which live until the call returns.
        match check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) }) {
            Err(Errno(libc::EINTR)) => {}
            result => return result.map(drop),
        }
    }
}
