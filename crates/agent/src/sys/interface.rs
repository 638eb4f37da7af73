//! Network interfaces (netdevice(7)).

use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{check, own, Errno, Result};

/// Brings the loopback interface up.
pub fn loopback_up() -> Result<()> {
    let mut request = request(b"lo")?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    ask(&socket()?, libc::SIOCSIFFLAGS, &request)
}

/// Gives a card an address, brings it up, and sends by it what is for nobody else.
pub fn interface_up(name: &[u8], address: u32, prefix: u32, gateway: u32) -> Result<()> {
    let socket = socket()?;
    let mut request = request(name)?;
    let mask = u32::MAX
        .checked_shl(32_u32.saturating_sub(prefix))
        .unwrap_or(0);
    request.ifr_ifru.ifru_addr = socket_address(address);
    ask(&socket, libc::SIOCSIFADDR, &request)?;
    request.ifr_ifru.ifru_addr = socket_address(mask);
    ask(&socket, libc::SIOCSIFNETMASK, &request)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    ask(&socket, libc::SIOCSIFFLAGS, &request)?;
    // SAFETY: zero is a valid rtentry: no device named, no metric.
    let mut route: libc::rtentry = unsafe { zeroed() };
    route.rt_dst = socket_address(0);
    route.rt_genmask = socket_address(0);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: `route` is a live rtentry.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) }).map(drop)
}

fn socket() -> Result<OwnedFd> {
    // SAFETY: no pointers.
    own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
}

fn request(name: &[u8]) -> Result<libc::ifreq> {
    // SAFETY: zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // The last byte stays the NUL that ends the name.
    if name.len() >= request.ifr_name.len() {
        return Err(Errno(libc::EINVAL));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    Ok(request)
}

fn ask(socket: &OwnedFd, what: libc::Ioctl, request: &libc::ifreq) -> Result<()> {
    // SAFETY: `request` is a live ifreq with a name and what `what` sets.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what, request) }).map(drop)
}

/// An address of IPv4 as these calls take it: `struct sockaddr_in`, whose address begins two bytes into the data.
fn socket_address(address: u32) -> libc::sockaddr {
    // SAFETY: zero is a valid sockaddr.
    let mut out: libc::sockaddr = unsafe { zeroed() };
    out.sa_family = libc::AF_INET as libc::sa_family_t;
    for (place, byte) in out.sa_data[2..6].iter_mut().zip(address.to_be_bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    out
}
