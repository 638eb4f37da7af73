//! `cloche-fs`: serves one directory to one VMM over vhost-user, then ends.

use std::io;
use std::os::unix::io::FromRawFd;
use std::process::ExitCode;
use std::sync::Arc;

use cloche_fs::args::{Args, Cache};
use cloche_fs::backend::{Backend, Served};
use cloche_fs::limits::raise_fd_limit;
use cloche_fs::logger;
use cloche_fs::share::{ShareConfig, ShareFs};
use cloche_fs::tree::TreeFs;
use vhost::vhost_user::{Error as SocketError, Listener};
use vhost_user_backend::{Error, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Exit status for a wrong command line.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("cloche-fs: {error}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    logger::start(args.log_level);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloche-fs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> io::Result<()> {
    // The library comes back to the working directory now and then, which a process of another user might not be allowed.
    std::env::set_current_dir("/")?;
    let fd_limit = raise_fd_limit(args.fd_limit)?;
    match args.cache {
        Cache::Forever => serve(&TreeFs::new(&args.root, args.ids, fd_limit)?, args),
        Cache::Coherent => {
            let config = ShareConfig {
                root: args.root.clone(),
                ids: args.ids,
                fd_limit,
                is_readonly: args.is_readonly,
            };
            serve(&ShareFs::new(&config)?, args)
        }
    }
}

/// Serves one connection until the VMM ends it.
fn serve<F: Served>(files: &F, args: Args) -> io::Result<()> {
    let backend = Arc::new(Backend::new(files, args.threads, args.tag)?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), backend, memory).map_err(to_io)?;
    // SAFETY: the descriptor was given to this process for this purpose and nothing else here owns it.
    let mut listener = unsafe { Listener::from_raw_fd(args.socket_fd) };
    daemon.start(&mut listener).map_err(to_io)?;
    match daemon.wait() {
        Ok(())
        | Err(Error::HandleRequest(SocketError::Disconnected | SocketError::PartialMessage)) => {
            Ok(())
        }
        Err(error) => Err(to_io(error)),
    }
}

fn to_io(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}
