//! Small programs whose results are known, and programs with every kind of mistake.

use gpu_twin::{Fault, Kind, Launch, Memory, Module, Options, Order, launch};

const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Seeded(1), Order::Seeded(99)];

/// A kernel with one pointer in %rd1, registers of all kinds, and its thread's number in %r1.
fn program(declarations: &str, body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n{declarations}\n\
         .visible .entry k(.param .u64 k_param_0) {{\n\
         .reg .pred %p<10>;\n.reg .b16 %h<10>;\n.reg .b32 %r<20>;\n.reg .b64 %rd<10>;\n.reg .f32 %f<10>;\n\
         ld.param.u64 %rd1, [k_param_0];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %rd2, %r1, 4;\n\
         add.s64 %rd3, %rd1, %rd2;\n{body}\nret;\n}}"
    )
}

/// Runs a program on `words`; its pointer is theirs.
fn run_in(order: Order, text: &str, words: &mut [u32], threads: u32) -> Result<(), Fault> {
    let memory = Memory::new(1 << 20);
    let module = Module::load(text, &memory).unwrap();
    let address = memory.allocate(words.len() as u64 * 4).unwrap();
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    memory.write(address, &bytes).unwrap();
    let kernel = module.kernel("k").unwrap();
    let parameters = address.to_le_bytes().to_vec();
    let what = Launch { kernel, grid: [1, 1, 1], block: [threads, 1, 1], dynamic_shared: 0, parameters };
    launch(&memory, &what, Options { order, workers: 1 })?;
    let mut bytes = vec![0; words.len() * 4];
    memory.read(address, &mut bytes).unwrap();
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().unwrap());
    }
    Ok(())
}

/// What a program makes of `words` in every order.
#[track_caller]
fn result(text: &str, words: &[u32], threads: u32) -> Vec<u32> {
    let mut results = ORDERS.map(|order| {
        let mut words = words.to_vec();
        run_in(order, text, &mut words, threads).unwrap();
        words
    });
    assert!(results.iter().all(|r| *r == results[0]), "{results:?}");
    std::mem::take(&mut results[0])
}

/// The mistake that is found in every order.
#[track_caller]
fn mistake(text: &str, threads: u32) -> Fault {
    let faults = ORDERS.map(|order| run_in(order, text, &mut [0; 64], threads).unwrap_err());
    assert!(faults.iter().all(|f| f.kind == faults[0].kind), "{faults:?}");
    faults[0].clone()
}

const SHARED: &str = ".shared .align 4 .b8 tile[256];";

/// Every thread reads what its neighbour wrote.
fn neighbours(barrier: &str) -> String {
    program(
        SHARED,
        &format!(
            "mov.u32 %r2, tile;\nshl.b32 %r3, %r1, 2;\nadd.u32 %r4, %r2, %r3;\n\
             ld.global.u32 %r5, [%rd3];\nst.shared.u32 [%r4], %r5;\n{barrier}\n\
             xor.b32 %r6, %r3, 4;\nadd.u32 %r6, %r2, %r6;\nld.shared.u32 %r7, [%r6];\n\
             st.global.u32 [%rd3], %r7;"
        ),
    )
}

#[test]
fn threads_exchange_values_through_shared_memory() {
    assert_eq!(result(&neighbours("bar.sync 0;"), &[1, 2, 3, 4], 4), [2, 1, 4, 3]);
    assert_eq!(result(&neighbours("bar.warp.sync -1;"), &[1, 2, 3, 4], 4), [2, 1, 4, 3]);
}

#[test]
fn a_barrier_that_is_missing_is_a_race() {
    let first = ORDERS.map(|o| run_in(o, &neighbours(""), &mut [0; 64], 4).unwrap_err().kind);
    // The first thread reads what its neighbour has not written yet, or the other way round.
    assert!(first.iter().all(|k| matches!(k, Kind::Race | Kind::Uninitialised)), "{first:?}");
    assert!(first.contains(&Kind::Uninitialised));
}

#[test]
fn a_barrier_between_reading_and_writing_again_is_needed_too() {
    let again = |barrier: &str| {
        neighbours("bar.sync 0;")
            .replace("st.global.u32 [%rd3], %r7;", &format!("{barrier}st.shared.u32 [%r4], %r7;"))
    };
    assert_eq!(mistake(&again(""), 4).kind, Kind::Race);
    result(&again("bar.sync 0;"), &[1, 2, 3, 4], 4);
}

#[test]
fn a_race_in_global_memory_is_found_in_some_order() {
    let text = program(
        "",
        "st.global.u32 [%rd3], %r1;\nxor.b32 %r2, %r1, 1;\nmul.wide.u32 %rd4, %r2, 4;\nadd.s64 %rd5, %rd1, %rd4;\nld.global.u32 %r3, [%rd5];",
    );
    assert_eq!(mistake(&text, 2).kind, Kind::Race);
}

#[test]
fn an_access_outside_of_an_allocation_names_its_line() {
    let fault = mistake(&program("", "st.global.u32 [%rd3+252], %r1;"), 2);
    assert_eq!(fault.kind, Kind::OutOfBounds);
    let place = fault.place.as_ref().unwrap();
    assert_eq!((place.thread, place.line), ([1, 0, 0], 15), "{fault}");
    assert!(fault.to_string().contains("st.global.u32 [%rd3+252], %r1"), "{fault}");
}

#[test]
fn misaligned_and_uninitialised_reads_are_found() {
    assert_eq!(mistake(&program("", "ld.global.u32 %r2, [%rd3+2];"), 1).kind, Kind::Misaligned);
    assert_eq!(
        mistake(&program("", "ld.global.v4.u32 {%r2,%r3,%r4,%r5}, [%rd3+4];"), 1).kind,
        Kind::Misaligned
    );
    assert_eq!(mistake(&program(SHARED, "ld.shared.u32 %r2, [tile+8];"), 1).kind, Kind::Uninitialised);
    assert_eq!(mistake(&program(SHARED, "ld.shared.u32 %r2, [tile+256];"), 1).kind, Kind::OutOfBounds);
}

#[test]
fn threads_at_different_barriers_are_found() {
    let text = program(
        "",
        "setp.eq.u32 %p1, %r1, 0;\n@%p1 bra $one;\nbar.sync 0;\nbra $end;\n$one:\nbar.sync 0;\n$end:",
    );
    assert_eq!(mistake(&text, 2).kind, Kind::Divergence);
    let left = program("", "setp.eq.u32 %p1, %r1, 0;\n@%p1 ret;\nbar.sync 0;");
    assert_eq!(mistake(&left, 2).kind, Kind::Divergence);
}

#[test]
fn lanes_that_do_not_come_are_found() {
    let text = program(
        "",
        "setp.eq.u32 %p1, %r1, 0;\n@%p1 bra $end;\nshfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, -1;\n$end:",
    );
    assert_eq!(mistake(&text, 32).kind, Kind::Deadlock);
}

#[test]
fn an_unknown_instruction_stops_the_kernel_that_comes_to_it() {
    let fault = mistake(&program("", "frobnicate.b32 %r2, %r1;"), 1);
    assert_eq!(fault.kind, Kind::Unknown);
    assert!(fault.to_string().contains("frobnicate.b32 %r2, %r1"), "{fault}");
    result(&program("", "bra $end;\nfrobnicate.b32 %r2, %r1;\n$end:"), &[0], 1);
}

#[test]
fn lanes_exchange_values() {
    let shuffle = |what: &str| {
        let text = program(
            "",
            &format!("ld.global.u32 %r2, [%rd3];\nshfl.sync.{what}, -1;\nst.global.u32 [%rd3], %r3;"),
        );
        result(&text, &(0..32).map(|i| i * 10).collect::<Vec<_>>(), 32)
    };
    assert_eq!(shuffle("bfly.b32 %r3|%p1, %r2, 1, 31")[..4], [10, 0, 30, 20]);
    assert_eq!(shuffle("up.b32 %r3, %r2, 2, 0")[..4], [0, 10, 0, 10]);
    assert_eq!(shuffle("down.b32 %r3, %r2, 2, 31")[28..], [300, 310, 300, 310]);
    assert_eq!(shuffle("idx.b32 %r3, %r2, 5, 31")[..3], [50, 50, 50]);
    // Segments of eight lanes.
    assert_eq!(shuffle("idx.b32 %r3, %r2, 1, 6175")[6..10], [10, 10, 90, 90]);
}

#[test]
fn lanes_vote_and_reduce() {
    let text = program(
        "",
        "setp.lt.u32 %p1, %r1, 3;\nvote.sync.ballot.b32 %r2, %p1, -1;\nredux.sync.add.s32 %r3, %r1, -1;\n\
         add.u32 %r4, %r2, %r3;\nst.global.u32 [%rd3], %r4;",
    );
    assert_eq!(result(&text, &[0; 32], 32), [7 + 496; 32]);
}

#[test]
fn atomics_add_up() {
    let text = program(SHARED, "atom.global.add.u32 %r2, [%rd1], %r1;\nred.global.max.u32 [%rd1+4], %r1;");
    assert_eq!(result(&text, &[5, 0], 64), [5 + 63 * 32, 63]);
}

#[test]
fn vectors_bytes_and_local_memory() {
    let text = program(
        "",
        ".local .align 8 .b8 own[16];\nld.global.v2.u32 {%r2, %r3}, [%rd1];\n\
         st.local.v2.u32 [own], {%r2, %r3};\nld.local.u8 %r4, [own+5];\nld.local.s8 %r5, [own+3];\n\
         mov.b32 {%h1, %h2}, %r2;\nmov.b32 %r6, {%h2, %h1};\n\
         st.global.u32 [%rd1], %r4;\nst.global.u32 [%rd1+4], %r5;\nst.global.u32 [%rd1+8], %r6;",
    );
    let words = [0xff33_2211, 0x8877_6655, 0];
    assert_eq!(result(&text, &words, 1), [0x66, u32::MAX, 0x2211_ff33]);
}

#[test]
fn tables_loops_and_predicates() {
    // The sum of a table, by a loop.
    let text = program(
        ".const .align 4 .u32 table[4] = {1, 20, 300, 4000};",
        "mov.u32 %r2, 0;\nmov.u32 %r3, 0;\nmov.u64 %rd4, table;\n$again:\nld.const.u32 %r4, [%rd4];\n\
         add.u32 %r2, %r2, %r4;\nadd.s64 %rd4, %rd4, 4;\nadd.u32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, 4;\n\
         @%p1 bra $again;\n@!%p1 st.global.u32 [%rd1], %r2;",
    );
    assert_eq!(result(&text, &[0], 1), [4321]);
}

#[test]
fn floats_are_those_of_the_processor() {
    let text = program(
        "",
        "ld.global.f32 %f1, [%rd1];\nld.global.f32 %f2, [%rd1+4];\ndiv.rn.f32 %f3, %f1, %f2;\n\
         fma.rn.f32 %f4, %f3, %f2, %f1;\nst.global.f32 [%rd1], %f3;\nst.global.f32 [%rd1+4], %f4;",
    );
    let (a, b) = (1.1f32, 3.3f32);
    let expected = [(a / b).to_bits(), (a / b).mul_add(b, a).to_bits()];
    assert_eq!(result(&text, &[a.to_bits(), b.to_bits()], 1), expected);
}

#[test]
fn a_block_that_no_gpu_takes_is_refused() {
    let text = program("", "");
    assert_eq!(run_in(Order::Forward, &text, &mut [0], 1025).unwrap_err().kind, Kind::Launch);
    assert_eq!(run_in(Order::Forward, &text, &mut [0], 0).unwrap_err().kind, Kind::Launch);
}

#[test]
fn a_text_that_is_no_ptx_is_refused_with_its_line() {
    let error = Module::load(".version 9.0\n.target sm_80\nhello;", &Memory::new(1)).unwrap_err();
    assert_eq!(error.line, 3);
}
