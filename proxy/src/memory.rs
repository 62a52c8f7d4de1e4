//! Memory that was needed only to read a large configuration goes back to the system at once: the allocator
//! itself does so on later allocations, which an idle sidecar does not make.

// Links the allocator's library, whose function is declared below.
use mimalloc as _;

/// Configuration below this size (bytes on the wire) leaves too little behind to look for. Reading takes about
/// twenty times as much: parsed JSON, protobuf messages, the model.
const LARGE: usize = 256 * 1024;

#[allow(unsafe_code, reason = "the allocator's C interface")]
// SAFETY: `void mi_collect(bool force)` of mimalloc.h. Any thread may call it at any time; it takes no pointer and
// frees nothing that is allocated.
unsafe extern "C" {
    safe fn mi_collect(force: bool);
}

/// To be called by the control thread after it has read and dropped `size` bytes of configuration.
pub fn after_reading(size: usize) {
    if size >= LARGE {
        mi_collect(true);
    }
}
