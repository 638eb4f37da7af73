//! The frequency of the host's time-stamp counter, measured once for each boot of the host (`--tsc-khz`).
//!
//! An emulated guest reads the host's counter. Told its frequency, the guest's kernel need not measure it against an
//! emulated clock chip, which takes a quarter of its boot and goes wrong on a busy host.

use std::arch::x86_64::_rdtsc;

/// How long is measured, in nanoseconds: the error of both readings together is below 200 ns, so below 4 parts in a million.
const SPAN_NS: u64 = 50_000_000;
/// Readings of which the one least disturbed is taken.
const ATTEMPTS: u32 = 200;

/// A moment on both clocks.
struct Moment {
    clock_ns: u64,
    tsc: u64,
}

/// Measures and returns kHz; nothing when the clock cannot be read.
pub fn measure_khz() -> Option<u64> {
    let first = moment()?;
    while clock_ns()? < first.clock_ns + SPAN_NS {
        std::hint::spin_loop();
    }
    let last = moment()?;
    let ticks = u128::from(last.tsc.checked_sub(first.tsc)?);
    let span = u128::from(last.clock_ns.checked_sub(first.clock_ns)?);
    u64::try_from(ticks * 1_000_000 / span.max(1)).ok()
}

/// Reads both clocks as close together as they can be read: the reading with the smallest distance is the best.
fn moment() -> Option<Moment> {
    let mut best: Option<(u64, Moment)> = None;
    for _ in 0..ATTEMPTS {
        let before = counter();
        let clock_ns = clock_ns()?;
        let after = counter();
        let distance = after.wrapping_sub(before);
        if best.as_ref().is_none_or(|(least, _)| distance < *least) {
            let tsc = before.wrapping_add(distance / 2);
            best = Some((distance, Moment { clock_ns, tsc }));
        }
    }
    best.map(|(_, moment)| moment)
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it reads no memory.
    unsafe { _rdtsc() }
}

/// The raw monotonic clock: no time daemon bends it while we measure.
fn clock_ns() -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec that the call may fill in.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut time) } != 0 {
        return None;
    }
    let seconds = u64::try_from(time.tv_sec).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).ok()?)
}
