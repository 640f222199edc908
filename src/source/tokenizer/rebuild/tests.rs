use super::super::added::FullVocab;
use super::super::definition::Definition;
use super::super::pre;
use super::*;

fn vocab(model: VocabModel, tokens: &[(&str, TokenType)]) -> Vocab {
    Vocab {
        model,
        pre: "gpt-2".into(),
        tokens: tokens.iter().map(|(text, _)| text.as_bytes().to_vec()).collect(),
        types: tokens.iter().map(|(_, kind)| *kind).collect(),
        special: vec![("bos".into(), 1), ("eos".into(), 2), ("unk".into(), 0)],
        add: vec![("bos".into(), true), ("eos".into(), false)],
        add_space_prefix: Some(true),
        chat_template: Some(ChatTemplate::One("{{ x }}".into())),
        lowercase: None,
        strip_accents: None,
        strip_after: vec![],
        late: vec![],
        warnings: vec![],
    }
}

const SPM: [(&str, TokenType); 12] = [
    ("<unk>", TokenType::Unknown),
    ("<s>", TokenType::Control),
    ("</s>", TokenType::Control),
    ("<0x41>", TokenType::Byte),
    ("\u{2581}", TokenType::Normal),
    ("a", TokenType::Normal),
    ("b", TokenType::Normal),
    ("ab", TokenType::Normal),
    ("\u{2581}a", TokenType::Normal),
    ("\u{2581}ab", TokenType::Normal),
    ("<u>", TokenType::UserDefined),
    ("[PAD11]", TokenType::Unused),
];

fn spm(scores: [f32; 12]) -> Vocab {
    vocab(VocabModel::SentencePiece { scores: scores.to_vec() }, &SPM)
}

const SCORES: [f32; 12] = [0.0, 0.0, 0.0, 0.0, -4.0, -5.0, -6.0, -1.0, -2.0, -3.0, -1000.0, -10000.0];

#[test]
fn sentence_piece_merges_the_best_score_first_and_falls_back_to_bytes() {
    let encoder = rebuild(&spm(SCORES)).unwrap().encoder().unwrap();
    let ids = |text: &str| encoder.encode(text).unwrap();
    assert_eq!(ids("ab"), [9]);
    // `ab` is better than `▁a`; after it nothing joins `b`.
    assert_eq!(ids("abab"), [9, 7]);
    assert_eq!(ids("aA"), [8, 3]);
    // A token of the user's is found whatever is asked, and the text after it begins anew.
    assert_eq!(ids("a<u>a"), [8, 10, 8]);
    assert_eq!(ids("</s>"), [4, 0], "an unknown token for all that has no bytes");
    assert_eq!(encoder.encode_with_special("a</s>a").unwrap(), [8, 2, 8]);
    assert!(encoder.add_bos());
    assert_eq!((encoder.bos(), encoder.eos(), encoder.vocab_size()), (Some(1), Some(2), 11));
    let with_bos = encoder.tokenizer().encode("ab", true).unwrap();
    assert_eq!(with_bos.get_ids(), [1, 9]);
    assert_eq!(encoder.tokenizer().decode(&[1, 9, 7, 8], true).unwrap(), "abab a");

    let mut plain = spm(SCORES);
    plain.add_space_prefix = Some(false);
    assert_eq!(rebuild(&plain).unwrap().encoder().unwrap().encode("ab b").unwrap(), [7, 4, 6]);
}

#[test]
fn scores_that_are_all_alike_and_tokens_that_are_too_long_are_refused() {
    let e = rebuild(&spm([-1000.0; 12])).unwrap_err();
    assert_eq!(e.kind(), Kind::Unsupported);
    assert!(e.to_string().contains("order in which they were merged is lost"), "{e}");
    let mut long = spm(SCORES);
    long.tokens[9] = vec![b'a'; 100_000];
    assert_eq!(rebuild(&long).unwrap_err().kind(), Kind::Unsupported);
    let mut some = SCORES;
    some[9] = some[8];
    let rebuilt = rebuild(&spm(some)).unwrap();
    assert!(rebuilt.warnings.iter().any(|w| w.contains("share their score")), "{:?}", rebuilt.warnings);
    assert!(rebuild(&spm(SCORES)).unwrap().warnings.is_empty());
}

#[test]
fn the_files_say_what_the_tokenizer_does() {
    let mut vocab = spm(SCORES);
    vocab.strip_after = vec![2];
    let rebuilt = rebuild(&vocab).unwrap();
    let config = &rebuilt.config;
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&json!("<s>"), &json!("</s>")));
    assert_eq!((&config["add_bos_token"], &config["add_eos_token"]), (&json!(true), &json!(false)));
    assert_eq!(config["chat_template"], "{{ x }}");
    let dir = tempfile::tempdir().unwrap();
    rebuilt.save(dir.path()).unwrap();
    let saved = Encoder::open(dir.path()).unwrap();
    assert!(saved.same_vocabulary(&rebuilt.encoder().unwrap()));
    assert_eq!(saved.special(), &rebuilt.special);
    assert_eq!(saved.encode_with_special("a</s>  a<u>  a").unwrap(), [8, 2, 8, 10, 4, 4, 8]);
}

#[test]
fn byte_level_merges_follow_their_ranks() {
    let tokens = [
        ("a", TokenType::Normal),
        ("b", TokenType::Normal),
        ("Ġ", TokenType::Normal),
        ("ab", TokenType::Normal),
        ("Ġa", TokenType::Normal),
        ("<|x|>", TokenType::Control),
    ];
    let merges = ["a b", "Ġ a", "b x"].map(String::from).to_vec();
    let mut vocab = vocab(VocabModel::ByteLevelBpe { merges }, &tokens);
    vocab.special = vec![("eos".into(), 5)];
    let rebuilt = rebuild(&vocab).unwrap();
    assert!(rebuilt.warnings.iter().any(|w| w.contains("1 of 3 merge rules")), "{:?}", rebuilt.warnings);
    let encoder = rebuilt.encoder().unwrap();
    assert_eq!(encoder.encode("ab ab a").unwrap(), [3, 2, 3, 4]);
    assert_eq!(encoder.encode_with_special("a<|x|>").unwrap(), [0, 5]);
    assert!(!encoder.add_bos(), "there is no such token");

    vocab.pre = "unheard-of".into();
    assert_eq!(rebuild(&vocab).unwrap_err().kind(), Kind::Unsupported);
    vocab.pre = "gpt-2".into();
    vocab.tokens[1] = b"a".to_vec();
    assert_eq!(rebuild(&vocab).unwrap_err().kind(), Kind::Invalid);
    vocab.tokens[1] = vec![0xff];
    assert_eq!(rebuild(&vocab).unwrap_err().kind(), Kind::Unsupported);
}

/// A name that is recognized stands for the same patterns as the one that was rebuilt.
#[test]
fn every_pattern_cuts_text_and_is_recognized_again() {
    for name in patterns::names() {
        let mut vocab = vocab(VocabModel::ByteLevelBpe { merges: vec![] }, &[("a", TokenType::Normal)]);
        vocab.special.clear();
        vocab.pre = name.into();
        let rebuilt = rebuild(&vocab).unwrap();
        let ids = rebuilt.encoder().unwrap().encode("a 1a'S\r\n  aA, 一 ...\u{301}").unwrap();
        assert_eq!(ids, [0, 0, 0], "{name}");
        let definition: Definition = serde_json::from_value(rebuilt.definition).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let full = FullVocab::load(dir.path(), &definition, None).unwrap();
        let found = pre::recognize(&definition, &full, None);
        if found.warning.is_none() {
            let patterns = |name: &str| patterns::find(name).map(|pre| pre.patterns);
            assert_eq!(patterns(found.name), patterns(name), "{name} is taken for {}", found.name);
        }
    }
}
