//! Looking at a process tree through /proc, where no cgroup counts for us: an estimate between two looks.

/// What one look saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Resident memory of all, shared pages counted more than once.
    pub(super) memory_bytes: u64,
    /// Processes and threads, init not counted.
    pub(super) processes: u64,
    /// CPU time of all that live, and of their reaped children.
    pub(super) cpu_ns: u64,
}

/// The largest of all looks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) memory_bytes: u64,
    pub(super) processes: u64,
    pub(super) cpu_ns: u64,
}

impl Seen {
    pub(super) fn note(&mut self, look: &Look) {
        self.memory_bytes = self.memory_bytes.max(look.memory_bytes);
        self.processes = self.processes.max(look.processes);
        self.cpu_ns = self.cpu_ns.max(look.cpu_ns);
    }
}

const MOST: usize = 65_536;
const TICK_NS: u64 = 10_000_000;

/// Looks at everything below init.
pub(super) fn look(init: i32) -> Look {
    let mut look = Look::default();
    let mut pending = vec![init];
    let mut seen = 0;
    while let Some(pid) = pending.pop() {
        seen += 1;
        if seen > MOST {
            break;
        }
        // A process may end between these reads; what is left of it is then nothing.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((ticks, threads, pages)) = parse_stat(&stat) else {
            continue;
        };
        look.cpu_ns += ticks * TICK_NS;
        if pid != init {
            look.processes += threads;
            look.memory_bytes += pages * 4096;
        }
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pending.extend(
                children
                    .split_whitespace()
                    .filter_map(|word| word.parse::<i32>().ok()),
            );
        }
    }
    look
}

/// CPU ticks (own and of reaped children), threads, resident pages. The name in parentheses is the command's to
/// choose, so fields are counted from the last `)`. (proc_pid_stat(5))
fn parse_stat(stat: &str) -> Option<(u64, u64, u64)> {
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some((ticks, number(17)?, number(21)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        let stat = "7 (x) R 1 (\n) S 1 7 7 0 -1 4194560 10 0 0 0 3 4 5 6 20 0 2 0 100 8192 55 184467";
        assert_eq!(parse_stat(stat), Some((18, 2, 55)));
        assert_eq!(parse_stat("nonsense"), None);
    }
}
