//! Which files of a data set belong to a configuration and split.
//!
//! The card may say so (`configs` in the front matter of `README.md`, huggingface.co/docs/hub/datasets-manual-configuration).
//! Otherwise folders at the top are configurations, and the split is in the files' names, as in
//! huggingface.co/docs/hub/datasets-file-names-and-splits.

use std::collections::{BTreeMap, BTreeSet};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::HubId;
use crate::error::{Error, Kind, Result};
use crate::source::card::front_matter::Yaml;

/// The chosen files, sorted by path, and what was chosen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) files: Vec<String>,
    pub(super) config: Option<String>,
    pub(super) split: Option<String>,
}

/// Files by configuration and split. Where there is nothing to name, the name is empty.
type Table = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// Words for the usual splits.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Chooses among `paths` by the data set's card and by their names; `known` tells whether a file can be read.
pub(super) fn choose(
    id: &HubId,
    paths: &[String],
    card: &Yaml,
    config: Option<&str>,
    split: Option<&str>,
    known: &dyn Fn(&str) -> bool,
) -> Result<Layout> {
    let (table, default) = match by_card(id, paths, card)? {
        Some(found) => found,
        None => (by_name(paths, known), None),
    };
    if table.is_empty() {
        return Err(Error::new(
            Kind::Invalid,
            format!("the data set {id} has no data files that can be read"),
        )
        .hint("Pass a data set with .parquet, .jsonl, .json or .txt files."));
    }
    let (config, splits) =
        pick(id, "configuration", "--dataset-config", &table, config, default.as_deref(), "default")?;
    let (split, files) = pick(id, "split", "--dataset-split", splits, split, None, "train")?;
    let mut files = files.clone();
    files.sort();
    files.dedup();
    if let Some(path) = files.iter().find(|path| !known(path)) {
        return Err(Error::new(
            Kind::Unsupported,
            format!("{id} keeps its data in files that are not read: {path}"),
        )
        .hint("Pass a data set with .parquet, .jsonl, .json or .txt files, or convert it."));
    }
    let named =
        |name: &str, of: usize| Some(name.to_owned()).filter(|n| !n.is_empty() && (of > 1 || n != "default"));
    Ok(Layout { files, config: named(config, table.len()), split: named(split, 2) })
}

/// The entry asked for; or else the default one, or the only one.
fn pick<'t, T>(
    id: &HubId,
    noun: &str,
    option: &str,
    table: &'t BTreeMap<String, T>,
    asked: Option<&str>,
    default: Option<&str>,
    usual: &str,
) -> Result<(&'t str, &'t T)> {
    let names = || table.keys().filter(|k| !k.is_empty()).map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(asked) = asked {
        let found = table.get_key_value(asked).map(|(k, v)| (k.as_str(), v));
        return found.ok_or_else(|| {
            let names = names();
            let there = if names.is_empty() { "none".to_owned() } else { names };
            Error::new(Kind::Usage, format!("{id} has no {noun} {asked:?}"))
                .hint(format!("Choose with {option}; there are: {there}."))
        });
    }
    let usual = default.and_then(|name| table.get_key_value(name)).or_else(|| table.get_key_value(usual));
    let only = table.first_key_value().filter(|_| table.len() == 1);
    usual.or(only).map(|(k, v)| (k.as_str(), v)).ok_or_else(|| {
        Error::new(Kind::Usage, format!("{id} has more than one {noun}, and none is the usual one"))
            .hint(format!("Choose one with {option}: {}.", names()))
    })
}

/// The configurations of the card, and which is the default.
fn by_card(id: &HubId, paths: &[String], card: &Yaml) -> Result<Option<(Table, Option<String>)>> {
    let Some(Yaml::List(configs)) = card.get("configs") else { return Ok(None) };
    let mut table = Table::new();
    let mut default = None;
    for config in configs {
        let Some(patterns) = config.get("data_files") else { continue };
        let name = config.get("config_name").and_then(Yaml::scalar).unwrap_or_else(|| "default".into());
        let folder = config.get("data_dir").and_then(Yaml::scalar).unwrap_or_default();
        if config.get("default").and_then(Yaml::scalar).as_deref() == Some("true") {
            default = Some(name.clone());
        }
        let splits = table.entry(name).or_default();
        for (split, patterns) in splits_of(patterns) {
            let globs = globs(id, &folder, &patterns)?;
            let matching = paths.iter().filter(|path| globs.is_match(path)).cloned();
            splits.entry(split).or_default().extend(matching);
        }
        splits.retain(|_, files| !files.is_empty());
    }
    table.retain(|_, splits| !splits.is_empty());
    Ok(Some((table, default)).filter(|(table, _)| !table.is_empty()))
}

/// The patterns of each split in `data_files`: one pattern, a list of patterns, or a list of splits with theirs.
fn splits_of(data_files: &Yaml) -> Vec<(String, Vec<String>)> {
    let patterns = |yaml: &Yaml| match yaml {
        Yaml::List(list) => list.iter().filter_map(Yaml::scalar).collect(),
        one => one.scalar().into_iter().collect::<Vec<_>>(),
    };
    let Yaml::List(list) = data_files else { return vec![("train".into(), patterns(data_files))] };
    let mut splits = Vec::new();
    for entry in list {
        match (entry.get("split").and_then(Yaml::scalar), entry.get("path")) {
            (Some(split), Some(path)) => splits.push((split, patterns(path))),
            _ => splits.push(("train".into(), patterns(entry))),
        }
    }
    splits
}

fn globs(id: &HubId, folder: &str, patterns: &[String]) -> Result<GlobSet> {
    let bad = |e: globset::Error| {
        Error::new(Kind::Invalid, format!("the card of {id} has a bad pattern")).because(e)
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let folder = folder.trim_matches('/');
        let pattern = pattern.trim_start_matches("./");
        let full = if folder.is_empty() { pattern.to_owned() } else { format!("{folder}/{pattern}") };
        set.add(GlobBuilder::new(&full).literal_separator(true).build().map_err(bad)?);
    }
    set.build().map_err(bad)
}

/// Configurations from folders, splits from names. Of several kinds of files the best described one is taken.
fn by_name(paths: &[String], known: &dyn Fn(&str) -> bool) -> Table {
    let data: Vec<&String> = paths.iter().filter(|path| known(path) && !is_about(path)).collect();
    let kinds = [".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz"];
    let of_kind = |kind: &str| data.iter().copied().filter(|p| p.ends_with(kind)).collect::<Vec<_>>();
    let data = kinds.iter().map(|kind| of_kind(kind)).find(|files| !files.is_empty()).unwrap_or(data);
    let mut table = Table::new();
    for path in data {
        let mut folders: Vec<&str> = path.split('/').collect();
        folders.pop();
        let config = match folders.first() {
            Some(first) if *first != "data" && split_in(first).is_none() => *first,
            _ => "default",
        };
        let below = path.strip_prefix(config).unwrap_or(path);
        let split = split_of(below).unwrap_or_default();
        table.entry(config.to_owned()).or_default().entry(split).or_default().push(path.clone());
    }
    for splits in table.values_mut() {
        // Files without a split beside some that have one are about something else; alone they are all there is.
        if splits.len() > 1 {
            splits.remove("");
        }
    }
    table
}

/// Whether a file tells about the data rather than having some.
fn is_about(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let stem = name.split('.').next().unwrap_or(&name);
    let about = [
        "readme",
        "license",
        "licence",
        "requirements",
        "dataset_info",
        "dataset_infos",
        "dataset_dict",
        "metadata",
        "state",
        "config",
        "croissant",
    ];
    about.contains(&stem) || path.split('/').any(|part| part.starts_with('.'))
}

/// The split that a path names: `NAME-00000-of-00012`, or one of the usual words in a folder's or the file's name.
fn split_of(path: &str) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = name.split('.').next().unwrap_or(name);
    if let [total, "of", number, rest @ ..] = &stem.rsplit('-').collect::<Vec<_>>()[..]
        && [total, number].iter().all(|n| n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit()))
        && !rest.is_empty()
    {
        let rest: Vec<&str> = rest.iter().rev().copied().collect();
        let whole = rest.join("-");
        return Some(split_in(&whole).map_or(whole, String::from));
    }
    path.split('/')
        .rev()
        .find_map(|part| split_in(part.split(".parquet").next().unwrap_or(part)))
        .map(String::from)
}

/// The usual split whose word stands in `name`.
fn split_in(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let words: BTreeSet<&str> = name.split(|c: char| !c.is_ascii_alphabetic()).collect();
    // What has a word before it and an underscore between is a name of its own: `train_sft`.
    let is_own = name.contains('_');
    SPLITS
        .iter()
        .find(|(split, variants)| match is_own {
            true => name == *split,
            false => variants.iter().any(|variant| words.contains(variant)),
        })
        .map(|(split, _)| *split)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(path: &str) -> bool {
        [".parquet", ".jsonl", ".json", ".json.gz", ".txt"].iter().any(|end| path.ends_with(end))
    }

    fn layout(paths: &[&str], card: &str, config: Option<&str>, split: Option<&str>) -> Result<Layout> {
        let id = HubId::parse("org/name").unwrap();
        let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
        let card = serde_norway::from_str(card).unwrap();
        choose(&id, &paths, &card, config, split, &known)
    }

    fn files(paths: &[&str], card: &str, config: Option<&str>, split: Option<&str>) -> Vec<String> {
        layout(paths, card, config, split).unwrap().files
    }

    const WIKITEXT: [&str; 7] = [
        "README.md",
        "wikitext-103-raw-v1/test-00000-of-00001.parquet",
        "wikitext-103-raw-v1/train-00000-of-00002.parquet",
        "wikitext-103-raw-v1/train-00001-of-00002.parquet",
        "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        "wikitext-2-raw-v1/train-00000-of-00001.parquet",
        "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
    ];

    #[test]
    fn folders_are_configurations_and_names_splits() {
        let chosen = layout(&WIKITEXT, "null", Some("wikitext-2-raw-v1"), None).unwrap();
        assert_eq!(chosen.files, ["wikitext-2-raw-v1/train-00000-of-00001.parquet"]);
        assert_eq!(
            (chosen.config.as_deref(), chosen.split.as_deref()),
            (Some("wikitext-2-raw-v1"), Some("train"))
        );
        assert_eq!(
            files(&WIKITEXT, "null", Some("wikitext-103-raw-v1"), Some("train")),
            [
                "wikitext-103-raw-v1/train-00000-of-00002.parquet",
                "wikitext-103-raw-v1/train-00001-of-00002.parquet"
            ]
        );
        for (config, split, word) in [
            (None, None, "wikitext-103-raw-v1, wikitext-2-raw-v1"),
            (Some("wikitext-3"), None, "wikitext-103-raw-v1, wikitext-2-raw-v1"),
            (Some("wikitext-2-raw-v1"), Some("dev"), "test, train, validation"),
        ] {
            let e = layout(&WIKITEXT, "null", config, split).unwrap_err();
            assert_eq!(e.kind(), Kind::Usage);
            assert!(e.suggestion().unwrap().contains(word), "{e:?}");
        }
    }

    #[test]
    fn splits_with_names_of_their_own_must_be_chosen() {
        let paths = [
            "data/train_sft-00000-of-00002.parquet",
            "data/train_sft-00001-of-00002.parquet",
            "data/test_gen-00000-of-00001.parquet",
        ];
        let e = layout(&paths, "null", None, None).unwrap_err();
        assert!(e.suggestion().unwrap().contains("test_gen, train_sft"), "{e:?}");
        assert_eq!(files(&paths, "null", None, Some("train_sft")), paths[..2]);
        assert_eq!(files(&paths[2..], "null", None, None), paths[2..], "the only one");
    }

    #[test]
    fn files_of_every_name_are_found() {
        for (paths, expected) in [
            (&["train.jsonl", "test.jsonl", "README.md"][..], &["train.jsonl"][..]),
            (&["data.jsonl", "LICENSE.txt"], &["data.jsonl"]),
            (&["a.txt", "b.txt", "notes.csv"], &["a.txt", "b.txt"]),
            (&["train/1.json", "train/2.json", "test/1.json"], &["train/1.json", "train/2.json"]),
            (&["data/my-train-set.parquet", "data/val.parquet"], &["data/my-train-set.parquet"]),
            (&["train.parquet", "train.jsonl"], &["train.parquet"]),
            (&["dataset_infos.json", "train.json"], &["train.json"]),
        ] {
            assert_eq!(files(paths, "null", None, None), expected);
        }
        let e = layout(&["README.md", "a.csv"], "null", None, None).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
    }

    #[test]
    fn the_card_comes_first() {
        let paths = [
            "en/c4-train.00000-of-01024.json.gz",
            "en/c4-train.00001-of-01024.json.gz",
            "en/c4-validation.00000-of-00008.json.gz",
            "realnewslike/c4-train.00000-of-00512.json.gz",
            "old.csv",
        ];
        let card = "configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: [en/c4-validation.*.json.gz]
- config_name: realnewslike
  data_files: realnewslike/c4-train.*
- config_name: old
  data_files: ['*.csv']
";
        assert_eq!(files(&paths, card, Some("en"), None), paths[..2]);
        assert_eq!(files(&paths, card, Some("en"), Some("validation")), paths[2..3]);
        assert_eq!(files(&paths, card, Some("realnewslike"), None), paths[3..4]);
        assert_eq!(layout(&paths, card, None, None).unwrap_err().kind(), Kind::Usage);
        assert_eq!(layout(&paths, card, Some("old"), None).unwrap_err().kind(), Kind::Unsupported);
        let card = card.replace("config_name: realnewslike", "config_name: realnewslike\n  default: true");
        assert_eq!(files(&paths, &card, None, None), paths[3..4]);
        let card = "configs:\n- config_name: default\n  data_dir: en\n  data_files: 'c4-validation*'\n";
        assert_eq!(files(&paths, card, None, None), paths[2..3]);
    }
}
