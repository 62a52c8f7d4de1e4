//! The binary: Envoy's command line, and the allocator.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Transparent huge pages are off before the allocator touches its first page: it asks for them, and each one
/// would round a few kilobytes up to two megabytes (15 MB instead of 3 in an idle process).
#[used]
#[allow(
    unsafe_code,
    reason = "only a function in .preinit_array runs before the allocator's constructor"
)]
// SAFETY: the section holds pointers to C functions without required arguments, called once by the C runtime
// before any constructor; the function makes one system call and relies on nothing being initialised.
#[unsafe(link_section = ".preinit_array")]
static BEFORE_INIT: extern "C" fn() = no_huge_pages;

extern "C" fn no_huge_pages() {
    // Without the call the process works too, it only needs more memory.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

fn main() -> std::process::ExitCode {
    match outrigger::server::run(std::env::args()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
