//! Log lines on stderr, bounded: what a guest does cannot fill the disk of its host.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

/// Lines written before the log falls silent.
const MAX_LINES: u32 = 1000;

struct Logger {
    program: OnceLock<&'static str>,
    lines: AtomicU32,
}

static LOGGER: Logger = Logger {
    program: OnceLock::new(),
    lines: AtomicU32::new(0),
};

impl log::Log for Logger {
    fn enabled(&self, _metadata: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let program = program();
        let is_bounded = log::max_level() <= log::LevelFilter::Info;
        let written = self.lines.load(Ordering::Relaxed);
        if is_bounded && written > MAX_LINES {
            return;
        }
        self.lines.fetch_add(1, Ordering::Relaxed);
        if is_bounded && written == MAX_LINES {
            eprintln!("{program}: too many messages, silent from here on");
        } else {
            eprintln!(
                "{program}: {}: {}",
                record.level(),
                record.args().to_string().escape_debug()
            );
        }
    }

    fn flush(&self) {}
}

/// The name in front of every line.
pub(crate) fn program() -> &'static str {
    LOGGER.program.get().copied().unwrap_or("cloche-device")
}

/// Says whose lines these are; before the first of them.
pub(crate) fn set_program(name: &'static str) {
    LOGGER.program.get_or_init(|| name);
}

/// Sends the log to stderr from `level` on.
pub(crate) fn start(level: log::LevelFilter) {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}
