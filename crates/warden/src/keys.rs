//! Keeps the processes of a domain away from the kernel's keyrings.
//!
//! A process inherits its caller's session keyring, and user namespaces do not take it away: whatever tickets and
//! passwords the caller keeps there would be a domain's to read. A keyring of the domain's own would count against the
//! caller's quota (200 by default), so the system calls are taken away instead, for PID 1 and all it starts. To
//! programs it looks like a kernel without keyrings.

use crate::failure::{Outcome, Step};
use crate::sys;

/// Where in `struct seccomp_data` the number and the architecture stand.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ALLOW: u32 = 0x7FFF_0000;
const FAIL_NOT_IMPLEMENTED: u32 = 0x0005_0000 | 38;
/// x32 has the numbers of x86-64 with this bit set.
const WITHOUT_X32_BIT: u32 = !0x4000_0000;

/// `AUDIT_ARCH_*` of what this kernel runs, and the number of `add_key` there; `request_key` and `keyctl` follow it.
#[cfg(target_arch = "x86_64")]
const FIRST: [(u32, u32); 2] = [(0xC000_003E, 248), (0x4000_0003, 286)];
#[cfg(target_arch = "aarch64")]
const FIRST: [(u32, u32); 2] = [(0xC000_00B7, 217), (0x4000_0028, 309)];

/// Takes `add_key`, `request_key` and `keyctl` away from this process and those it will start.
///
/// # Errors
/// When the kernel refuses the filter.
pub fn take_away() -> Outcome {
    sys::install_filter(&program()).step("take keyrings away")
}

fn program() -> Vec<u8> {
    let mut program = Vec::new();
    for (architecture, first) in FIRST {
        // Jumps that do not hold lead behind this block of seven instructions.
        program.extend(load(ARCHITECTURE));
        program.extend(jump_if_equal(architecture, 0, 5));
        program.extend(load(NUMBER));
        program.extend(keep_bits(WITHOUT_X32_BIT));
        program.extend(jump_if_at_least(first, 0, 2));
        program.extend(jump_if_at_least(first + 3, 1, 0));
        program.extend(end(FAIL_NOT_IMPLEMENTED));
    }
    program.extend(end(ALLOW));
    program
}

fn load(offset: u32) -> [u8; 8] {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn keep_bits(mask: u32) -> [u8; 8] {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask)
}

fn jump_if_equal(value: u32, then: u8, otherwise: u8) -> [u8; 8] {
    instruction(
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        then,
        otherwise,
        value,
    )
}

fn jump_if_at_least(value: u32, then: u8, otherwise: u8) -> [u8; 8] {
    instruction(
        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
        then,
        otherwise,
        value,
    )
}

fn end(action: u32) -> [u8; 8] {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

/// One `struct sock_filter`. All codes of classic BPF fit in a byte.
fn instruction(code: u32, then: u8, otherwise: u8, value: u32) -> [u8; 8] {
    let [low, ..] = code.to_le_bytes();
    let [c0, c1] = u16::from(low).to_ne_bytes();
    let [k0, k1, k2, k3] = value.to_ne_bytes();
    [c0, c1, then, otherwise, k0, k1, k2, k3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program returns for a system call, by the rules of classic BPF.
    fn verdict(architecture: u32, number: u32) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let one = &program[at * 8..at * 8 + 8];
            let code = u32::from(u16::from_ne_bytes([one[0], one[1]]));
            let value = u32::from_ne_bytes([one[4], one[5], one[6], one[7]]);
            let jump = |holds: bool| usize::from(if holds { one[2] } else { one[3] });
            at += 1;
            match (code & 7, code & 0xF0) {
                (libc::BPF_LD, _) if value == ARCHITECTURE => accumulator = architecture,
                (libc::BPF_LD, _) => accumulator = number,
                (libc::BPF_ALU, _) => accumulator &= value,
                (libc::BPF_JMP, libc::BPF_JEQ) => at += jump(accumulator == value),
                (libc::BPF_JMP, _) => at += jump(accumulator >= value),
                _ => return value,
            }
        }
    }

    /// The three calls fail on every architecture, x32 too, and their neighbours do not.
    #[test]
    fn only_the_calls_for_keys_are_refused() {
        for (architecture, first) in FIRST {
            for number in first..first + 3 {
                assert_eq!(verdict(architecture, number), FAIL_NOT_IMPLEMENTED);
                assert_eq!(
                    verdict(architecture, number | 0x4000_0000),
                    FAIL_NOT_IMPLEMENTED
                );
            }
            for number in [0, first - 1, first + 3, u32::MAX] {
                assert_eq!(verdict(architecture, number), ALLOW);
            }
        }
        assert_eq!(verdict(0, FIRST[0].1), ALLOW);
    }
}
