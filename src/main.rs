//! The program; see the library for what it does.

/// Ends the program in an orderly way when there is no more memory.
#[global_allocator]
static ALLOCATOR: llm_quantize::cli::Allocator = llm_quantize::cli::Allocator;

fn main() -> std::process::ExitCode {
    llm_quantize::cli::main()
}
