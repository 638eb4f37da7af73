//! Log lines on stderr, bounded: what a guest does cannot fill the disk of its host.

use std::sync::atomic::{AtomicU32, Ordering};

/// Lines written before the log falls silent.
const MAX_LINES: u32 = 1000;

struct Logger {
    lines: AtomicU32,
}

static LOGGER: Logger = Logger {
    lines: AtomicU32::new(0),
};

impl log::Log for Logger {
    fn enabled(&self, _metadata: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let is_bounded = log::max_level() <= log::LevelFilter::Info;
        let written = self.lines.load(Ordering::Relaxed);
        if is_bounded && written > MAX_LINES {
            return;
        }
        self.lines.fetch_add(1, Ordering::Relaxed);
        if is_bounded && written == MAX_LINES {
            eprintln!("cloche-fs: too many messages, silent from here on");
        } else {
            eprintln!(
                "cloche-fs: {}: {}",
                record.level(),
                record.args().to_string().escape_debug()
            );
        }
    }

    fn flush(&self) {}
}

/// Sends the log to stderr from `level` on.
pub fn start(level: log::LevelFilter) {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}
