#![expect(unsafe_code, reason = "a page shared between processes")]
//! The page that the supervisor, init and the command share until exec: it carries the first fault across.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::Errno;

/// What stands on the page. All zero means: nothing happened yet.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Board {
    fault: AtomicU64,
    /// fd number (plus one) of the seccomp listener in the table that init and the command share.
    listener: AtomicI32,
}

/// The first thing that failed between clone and exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawFault {
    /// [`crate::child::Stage`] as a number.
    pub stage: u8,
    /// Which object of that stage.
    pub index: u16,
    /// Why.
    pub errno: i32,
}

impl Board {
    /// Notes a fault; the first one stays.
    pub(crate) fn set_fault(&self, fault: RawFault) {
        let packed = 1 << 63
            | u64::from(fault.stage) << 48
            | u64::from(fault.index) << 32
            | u64::from(fault.errno.unsigned_abs());
        // Failure to exchange means that an earlier fault is already there, which is the one that matters.
        self.fault
            .compare_exchange(0, packed, Ordering::SeqCst, Ordering::SeqCst)
            .unwrap_or(0);
    }

    /// The fault, if there was one.
    #[must_use]
    pub(crate) fn fault(&self) -> Option<RawFault> {
        let packed = self.fault.load(Ordering::SeqCst);
        (packed != 0).then_some(RawFault {
            stage: (packed >> 48 & 0x7f) as u8,
            index: (packed >> 32 & 0xffff) as u16,
            errno: (packed & 0xffff) as i32,
        })
    }

    /// Leaves the number of the seccomp listener for init.
    pub(crate) fn set_listener(&self, fd: i32) {
        self.listener.store(fd + 1, Ordering::SeqCst);
    }

    /// The seccomp listener, if the command got one.
    #[must_use]
    pub(crate) fn listener(&self) -> Option<i32> {
        match self.listener.load(Ordering::SeqCst) {
            0 => None,
            n => Some(n - 1),
        }
    }
}

/// A [`Board`] on a shared anonymous mapping; unmapped on drop.
#[derive(Debug)]
pub(crate) struct SharedBoard {
    page: std::ptr::NonNull<Board>,
}

// SAFETY: the page holds atomics only, and is reached through `&Board` alone.
unsafe impl Send for SharedBoard {}
// SAFETY: as above.
unsafe impl Sync for SharedBoard {}

impl SharedBoard {
    /// Maps a new page.
    ///
    /// # Errors
    /// The errno of mmap(2).
    pub(crate) fn new() -> Result<SharedBoard, Errno> {
        // SAFETY: a fresh anonymous mapping, so no Rust object is there; its size covers a `Board`.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Board>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        std::ptr::NonNull::new(page.cast::<Board>())
            .map(|page| SharedBoard { page })
            .ok_or(Errno::ENOMEM)
    }
}

impl std::ops::Deref for SharedBoard {
    type Target = Board;

    fn deref(&self) -> &Board {
        // SAFETY: the mapping lives as long as `self`, is aligned to a page, and all-zero is a valid `Board`.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for SharedBoard {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size and never unmapped elsewhere; no borrow outlives `self`.
        // A failure would leave one page mapped, which harms nobody.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<Board>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_stays() {
        let board = SharedBoard::new().unwrap();
        assert_eq!(board.fault(), None);
        let first = RawFault {
            stage: 7,
            index: 300,
            errno: 13,
        };
        board.set_fault(first);
        board.set_fault(RawFault {
            stage: 1,
            index: 1,
            errno: 1,
        });
        assert_eq!(board.fault(), Some(first));
    }

    #[test]
    fn a_listener_at_descriptor_zero_is_told_from_none() {
        let board = SharedBoard::new().unwrap();
        assert_eq!(board.listener(), None);
        board.set_listener(0);
        assert_eq!(board.listener(), Some(0));
    }
}
