//! Classic BPF: what the compiler of filters makes of rules, and the one thing that it leaves out.

use seccompiler::{compile_from_json, sock_filter, BpfProgram, TargetArch};
use serde_json::{json, Value};

use crate::error::PolicyError;

/// Instructions in front of the rules: they look at the architecture and load the call's number.
const HEAD: usize = 4;
pub(crate) const LOAD_WORD: u16 = 0x20;
const JUMP_IF_AT_LEAST: u16 = 0x35;
pub(crate) const RETURN: u16 = 0x06;
/// The first number of x32.
pub(crate) const X32: u32 = 0x4000_0000;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Compiles rules: what a call is answered with that one of them `named`, and what `others` are.
pub(crate) fn generate(
    rules: &[Value],
    others: &Value,
    named: &Value,
) -> Result<BpfProgram, PolicyError> {
    let description = json!({
        "main": { "mismatch_action": others, "match_action": named, "filter": rules }
    })
    .to_string();
    let mut compiled = compile_from_json(description.as_bytes(), TargetArch::x86_64)?;
    compiled.remove("main").ok_or(PolicyError::Nothing)
}

/// Has calls by the numbers of x32 fail as on a kernel that does not have them, whatever the rules say.
pub(crate) fn refuse_second_numbers(program: &mut BpfProgram) -> Result<(), PolicyError> {
    let [.., _, number] = program.get(..HEAD).ok_or(PolicyError::Nothing)? else {
        return Err(PolicyError::Nothing);
    };
    if (number.code, number.k) != (LOAD_WORD, 0) {
        return Err(PolicyError::Nothing);
    }
    let refusal = [
        instruction(JUMP_IF_AT_LEAST, 0, 1, X32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    program.splice(HEAD..HEAD, refusal);
    Ok(())
}

/// The program as the kernel takes it: an array of `struct sock_filter`.
pub(crate) fn bytes_of(program: &BpfProgram) -> Vec<u8> {
    program
        .iter()
        .flat_map(|instruction| {
            let [code_0, code_1] = instruction.code.to_ne_bytes();
            let [k_0, k_1, k_2, k_3] = instruction.k.to_ne_bytes();
            [
                code_0,
                code_1,
                instruction.jt,
                instruction.jf,
                k_0,
                k_1,
                k_2,
                k_3,
            ]
        })
        .collect()
}
