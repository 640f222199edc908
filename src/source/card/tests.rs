use super::*;

fn card(name: &str, readme: &str, config: Value, total: u64) -> (Card, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join(name);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("README.md"), readme).unwrap();
    std::fs::write(
        dir.join("generation_config.json"),
        r#"{"temperature": 0.6, "top_k": 20, "top_p": null, "repetition_penalty": 1.05, "min_p": "x"}"#,
    )
    .unwrap();
    load_card(&dir, &config, name, ParamCounts { total, shared: total, ..Default::default() }).unwrap()
}

#[test]
fn front_matter_comes_before_names() {
    let readme = "---\r\nlicense: apache-2.0\r\nlicense: mit\nname: My model\nbase_model: Qwen/Qwen2.5-7B\n\
                  datasets:\n- https://huggingface.co/datasets/x\n- a/b-v2\ntags: [x, y]\npipeline_tag: text\n\
                  language:\n- en\n- no\nversion: 1.5\n---\n# Text\n";
    let config = serde_json::json!({"_name_or_path": "acme/Big-8B-Instruct-v0.3"});
    let (card, warnings) = card("other-1b", readme, config, 8_000_000_000);
    assert_eq!(card.name, "My model");
    assert_eq!(card.license.as_deref(), Some("mit"));
    assert_eq!(card.version.as_deref(), Some("1.5"));
    assert_eq!(card.organization.as_deref(), Some("Acme"));
    assert_eq!((card.basename.as_deref(), card.finetune.as_deref()), (Some("Big"), Some("Instruct")));
    assert_eq!(card.size_label.as_deref(), Some("8B"));
    let base = &card.base_models.as_ref().unwrap()[0];
    assert_eq!(base.name.as_deref(), Some("Qwen2.5 7B"));
    assert_eq!(base.organization.as_deref(), Some("Qwen"));
    assert_eq!(base.repo_url.as_deref(), Some("https://huggingface.co/Qwen/Qwen2.5-7B"));
    let data = card.datasets.as_ref().unwrap();
    assert_eq!(data[0].repo_url.as_deref(), Some("https://huggingface.co/datasets/x"));
    assert_eq!(data[1].version.as_deref(), Some("v2"));
    assert_eq!(card.tags.as_ref().unwrap(), &["x", "y", "text"]);
    assert_eq!(card.languages.as_ref().unwrap(), &["en", "no"]);
    assert_eq!((card.sampling.temp, card.sampling.top_k), (Some(0.6), Some(20)));
    assert_eq!((card.sampling.top_p, card.sampling.penalty_repeat), (None, Some(1.05)));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn a_broken_card_is_a_warning() {
    let (card, warnings) = card("tiny-llama", "---\na: [b\n---\n", Value::Null, 1_849_472);
    assert_eq!((card.name.as_str(), card.size_label.as_deref()), ("Tiny Llama", Some("1.8M")));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("README.md"));
}
