//! A classic-BPF interpreter over `struct seccomp_data`, for tests.

#![expect(clippy::cast_possible_truncation, reason = "the machine has 32-bit words")]

use libc::sock_filter;

/// What a filter sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Data {
    pub(crate) nr: u32,
    pub(crate) arch: u32,
    pub(crate) args: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.nr,
            4 => self.arch,
            16.. => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) {
                    arg as u32
                } else {
                    (arg >> 32) as u32
                }
            }
            other => panic!("load at {other}"),
        }
    }
}

/// Runs a program to its return value; panics on what the kernel's checker would refuse.
pub(crate) fn run(program: &[sock_filter], data: &Data) -> u32 {
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let i = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            0x20 => accumulator = data.word(i.k),
            0x05 => at += i.k as usize,
            0x15 => at += jump(accumulator == i.k),
            0x25 => at += jump(accumulator > i.k),
            0x35 => at += jump(accumulator >= i.k),
            0x45 => at += jump(accumulator & i.k != 0),
            0x54 => accumulator &= i.k,
            0x06 => return i.k,
            other => panic!("instruction {other:x}"),
        }
    }
}
