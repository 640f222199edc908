//! What happens when a mapped file cannot be read: it got shorter meanwhile, or its disk fails. The kernel says so by SIGBUS,
//! in the middle of whatever reads it; there is nothing to go on with, but something to say.

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use serde_json::json;

use super::Format;
use crate::error::Kind;

const WHAT: &str = "a file that was being read got shorter, or its disk fails";
const HINT: &str =
    "Nothing is half written. Run the command again when nobody changes the model or the data.";

/// What is printed, and where; made beforehand, since a handler may not allocate.
static MESSAGE: OnceLock<(i32, String)> = OnceLock::new();

/// Ends the program with code 6 and a message on SIGBUS, where it would be killed without one.
pub(super) fn handle(format: Format) {
    let message = match format {
        Format::Human => (libc::STDERR_FILENO, format!("Error: {WHAT}\n  {HINT}\n")),
        Format::Json => {
            let kind = Kind::Invalid;
            let value = json!({"status": "error", "error_code": kind as u8, "error_type": kind.name(),
                "message": WHAT, "suggestion": HINT});
            (libc::STDOUT_FILENO, format!("{value:#}\n"))
        }
    };
    if MESSAGE.set(message).is_err() {
        return;
    }
    // SAFETY: all bytes zero is a valid sigaction, whose fields are then set; the handler only makes calls that are allowed
    // in one. Failure leaves what was there before.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = say as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn say(_: libc::c_int) {
    if let Some((place, text)) = MESSAGE.get() {
        // SAFETY: both calls may be made in a handler, and the text lives as long as the program.
        unsafe {
            libc::write(*place, text.as_ptr().cast(), text.len());
        }
    }
    // SAFETY: as above. No destructor runs: temporary files stay, and the next run removes them.
    unsafe { libc::_exit(Kind::Invalid as i32) }
}
