//! For tests only (feature `hostile`): a device process that has been taken over and tries what its jail is to prevent.
//!
//! The attack runs where a guest's would: after the process is ready and has put its filter on. It ends with status 0 when it
//! got what it wanted and with [`REFUSED`] when the kernel said no; a filter kills it. Without the jail's part that
//! stands in its way each of these works, and the tests show that, too.

use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::process::exit;
use std::ptr::{null, null_mut};

use crate::options::{Options, OptionsError};

/// Which attack.
pub(crate) const ATTACK: &str = "--attack";
/// What it is aimed at: a path, a port, a process.
pub(crate) const TARGET: &str = "--target";
/// Leaves the filter from inside out.
pub(crate) const BARE: &str = "--bare";
/// Leaves Landlock out.
pub(crate) const UNLIMITED: &str = "--no-landlock";
/// Leaves out what makes an end with a sentence of memory that is taken away.
pub(crate) const NO_BUS_HANDLER: &str = "--no-bus-handler";

/// Exit status of an attack that the kernel refused.
const REFUSED: i32 = 10;
/// Exit status of an attack that does not exist.
const UNKNOWN: i32 = 11;

/// Whether the filter from inside is to be left out.
pub(crate) fn is_bare(options: &Options) -> bool {
    options.has(BARE)
}

/// Whether Landlock is to be left out.
pub(crate) fn is_unlimited(options: &Options) -> bool {
    options.has(UNLIMITED)
}

/// Takes back what the start has set up, if the command line says so.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn give_up(options: &Options) -> io::Result<()> {
    if !options.has(NO_BUS_HANDLER) {
        return Ok(());
    }
    // SAFETY: the default action is valid for every signal.
    if unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Runs the attack that the command line names, if it names one, and ends the process.
pub(crate) fn run(options: &Options) -> Result<(), OptionsError> {
    let text = |text: &str| CString::new(text).ok();
    let Some(attack) = options.optional(ATTACK, text)? else {
        return Ok(());
    };
    let target = options.optional(TARGET, text)?.unwrap_or_default();
    exit(match attack.to_bytes() {
        b"nothing" => 0,
        b"open" => status(open(&target, libc::O_RDONLY)),
        b"rewrite" => status(open(&target, libc::O_RDWR)),
        b"write" => status(fill(&target)),
        b"connect" => status(connect(number(&target))),
        b"connect-unix" => status(connect_unix(&target)),
        b"raw-socket" => {
            // SAFETY: no pointers.
            status(
                unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) }.into(),
            )
        }
        // SAFETY: no pointers; the signal goes to another process.
        b"signal" => status(unsafe { libc::kill(number(&target), libc::SIGKILL) }.into()),
        // SAFETY: attaches to another process; nothing of this one is touched.
        b"ptrace" => status(unsafe {
            libc::ptrace(
                libc::PTRACE_SEIZE,
                number(&target),
                null::<u8>(),
                null::<u8>(),
            )
        }),
        b"exec" => status(exec(&target)),
        b"grow" => status(grow(&target)),
        b"allocate" => status(allocate(&target)),
        b"fork" => status(fork()),
        b"mount" => status(mount()),
        b"unshare" => {
            // SAFETY: no pointers.
            status(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())
        }
        b"code" => status(map_code()),
        b"keyctl" => raw(libc::SYS_keyctl, [0, -3, 1, 0, 0]),
        b"io-uring" => {
            let mut parameters = [0_u64; 15];
            raw(
                libc::SYS_io_uring_setup,
                [4, parameters.as_mut_ptr() as i64, 0, 0, 0],
            )
        }
        b"userfaultfd" => raw(libc::SYS_userfaultfd, [1, 0, 0, 0, 0]),
        b"bpf" => {
            // An array of one number.
            let attributes = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            raw(libc::SYS_bpf, [0, attributes.as_ptr() as i64, 64, 0, 0])
        }
        b"perf" => {
            // The clock of this process in user mode.
            let mut attributes = [0_u64; 16];
            attributes[0] = 1 | 128 << 32;
            attributes[5] = 1 << 5 | 1 << 6;
            raw(
                libc::SYS_perf_event_open,
                [attributes.as_ptr() as i64, 0, -1, -1, 0],
            )
        }
        b"handle" => status(open_by_handle()),
        _ => UNKNOWN,
    })
}

fn number(target: &CString) -> i32 {
    target
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(-1)
}

fn status(result: i64) -> i32 {
    if result < 0 {
        eprintln!("{}", io::Error::last_os_error());
        REFUSED
    } else {
        0
    }
}

fn raw(call: i64, arguments: [i64; 5]) -> i32 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: pointers among the arguments are of arrays that the caller keeps and that are as long as the call wants.
    status(unsafe { libc::syscall(call, a, b, c, d, e) })
}

fn open(path: &CString, flags: i32) -> i64 {
    // SAFETY: the path ends with a nul byte.
    unsafe { libc::openat(libc::AT_FDCWD, path.as_ptr(), flags, 0o600) }.into()
}

/// Writes as much as it can into a new file, up to a gigabyte.
fn fill(path: &CString) -> i64 {
    let fd = open(path, libc::O_RDWR | libc::O_CREAT);
    let block = [0x41_u8; 1 << 16];
    let mut written: i64 = 0;
    while fd >= 0 && written < 1 << 30 {
        // SAFETY: the block has as many bytes as are named.
        let got = unsafe {
            libc::write(
                i32::try_from(fd).unwrap_or(-1),
                block.as_ptr().cast(),
                block.len(),
            )
        };
        if got <= 0 {
            break;
        }
        written += got as i64;
    }
    if fd < 0 {
        fd
    } else {
        written - 1
    }
}

/// An open file and a place in it, written `FD:OFFSET`.
fn place(target: &CString) -> Option<(i32, i64)> {
    let (file, offset) = target.to_str().ok()?.split_once(':')?;
    Some((file.parse().ok()?, offset.parse().ok()?))
}

/// Makes an open file longer than it may be, in each way that the disk's filter lets through.
fn grow(target: &CString) -> i64 {
    let Some((file, end)) = place(target) else {
        return -1;
    };
    // SAFETY: the kernel reads one byte, which is there.
    let tried = unsafe {
        [
            libc::pwrite(file, b"x".as_ptr().cast(), 1, end) as i64,
            libc::fallocate(file, libc::FALLOC_FL_ZERO_RANGE, end, 4096).into(),
            libc::ftruncate(file, end + 1).into(),
        ]
    };
    tried.into_iter().max().unwrap_or(-1)
}

/// Takes room for an open file past its end, where its size does not show it.
fn allocate(target: &CString) -> i64 {
    // SAFETY: no pointers.
    place(target).map_or(-1, |(file, end)| unsafe {
        libc::fallocate(file, libc::FALLOC_FL_KEEP_SIZE, end, 1 << 20).into()
    })
}

fn connect(port: i32) -> i64 {
    // SAFETY: all-zero bytes are a valid address, and the kernel reads as many bytes of it as are named.
    unsafe {
        let mut address: libc::sockaddr_in = zeroed();
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = u16::try_from(port).unwrap_or(0).to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        libc::connect(
            fd,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
        .into()
    }
}

/// Connects to an abstract address, which belongs to a network namespace and to no directory.
fn connect_unix(name: &CString) -> i64 {
    // SAFETY: as in `connect`; the name is shorter than the address.
    unsafe {
        let mut address: libc::sockaddr_un = zeroed();
        address.sun_family = libc::AF_UNIX as u16;
        let name = name.to_bytes();
        for (place, byte) in address.sun_path[1..].iter_mut().zip(name) {
            *place = i8::from_ne_bytes([*byte]);
        }
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        libc::connect(fd, (&raw const address).cast(), 3 + name.len() as u32).into()
    }
}

fn exec(path: &CString) -> i64 {
    // SAFETY: both lists end with a null pointer, and the path with a nul byte.
    unsafe {
        libc::execve(
            path.as_ptr(),
            [path.as_ptr(), null()].as_ptr(),
            [null()].as_ptr(),
        )
    }
    .into()
}

/// Makes a child, and its end known; a jail that allows one allows any number.
fn fork() -> i64 {
    // SAFETY: one thread; the child ends at once.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        child.into()
    }
}

/// Opens the root of its tree without a path, by the handle its file system gives it.
fn open_by_handle() -> i64 {
    // The length that follows, the kind, and room for the handle itself.
    let mut handle = [0_u32; 34];
    handle[0] = 128;
    let mut mount = 0_i32;
    let root = open(&c"/".to_owned(), libc::O_RDONLY);
    // SAFETY: the handle has as much room as it says, and the kernel writes one number into `mount`.
    unsafe {
        let named = libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            handle.as_mut_ptr(),
            &raw mut mount,
            0,
        );
        if named < 0 {
            return named;
        }
        libc::syscall(
            libc::SYS_open_by_handle_at,
            root,
            handle.as_mut_ptr(),
            libc::O_RDONLY,
        )
    }
}

fn mount() -> i64 {
    // SAFETY: the strings end with nul bytes; a file system without data.
    unsafe {
        libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            null(),
        )
    }
    .into()
}

/// Maps memory that can be written and executed.
fn map_code() -> i64 {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, wherever the kernel likes.
    let start = unsafe { libc::mmap(null_mut(), 4096, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        -1
    } else {
        0
    }
}
