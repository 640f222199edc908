//! Libraries that panic at some damaged files, where they should say what is wrong.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic on this thread is expected and says nothing.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a part of a library; none if it panics. What was half done then must not be used: it is to be dropped with the file that
/// it came from.
pub(crate) fn caught<T>(part: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                print(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(part));
    GUARDED.set(outer);
    done.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_no_result_and_ends_nothing_else() {
        assert_eq!(caught(|| 3), Some(3));
        assert_eq!(caught(|| caught(|| -> u8 { panic!("inside") })), Some(None));
        assert_eq!(caught(|| [1, 2, 3][std::hint::black_box(7)]), None);
        assert!(!GUARDED.get());
    }
}
