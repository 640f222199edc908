#![no_main]

#[global_allocator]
static ALLOCATOR: llm_quantize_fuzz::limit::Counting = llm_quantize_fuzz::limit::Counting;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    llm_quantize_fuzz::run("chat_template", input);
});
