//! Models that the tests write or change, each in a temporary directory with a place for the output.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::{Outcome, entries, model, quantize};

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Weights {
    /// A weight of the type, little-endian.
    fn bytes_of(dtype: &str, value: f32) -> Vec<u8> {
        match dtype {
            "F32" => value.to_le_bytes().to_vec(),
            "F16" => f16::from_f32(value).to_le_bytes().to_vec(),
            "BF16" => bf16::from_f32(value).to_le_bytes().to_vec(),
            other => panic!("type {other}"),
        }
    }

    /// Sets one weight.
    pub(crate) fn set(&mut self, index: usize, value: f32) {
        let bytes = Self::bytes_of(&self.dtype, value);
        self.data[index * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
    }

    /// Converts bfloat16 to another type.
    pub(crate) fn convert(&mut self, dtype: &str) {
        assert_eq!(self.dtype, "BF16");
        let weights = self.data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32());
        self.data = weights.flat_map(|w| Self::bytes_of(dtype, w)).collect();
        self.dtype = dtype.into();
    }
}

/// The tensors of one safetensors file.
pub(crate) type Checkpoint = Vec<Weights>;

/// Reads a safetensors file, in the order of its data.
pub(crate) fn read_weights(path: &Path) -> Checkpoint {
    let bytes = fs::read(path).unwrap();
    let (header, data) = split(&bytes);
    let mut tensors: Vec<(usize, Weights)> = header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, info)| {
            let number = |v: &Value| v.as_u64().unwrap() as usize;
            let (start, end) = (number(&info["data_offsets"][0]), number(&info["data_offsets"][1]));
            let shape = info["shape"].as_array().unwrap().iter().map(number).collect();
            let dtype = info["dtype"].as_str().unwrap().to_owned();
            (start, Weights { name: name.clone(), dtype, shape, data: data[start..end].to_vec() })
        })
        .collect();
    tensors.sort_by_key(|(start, _)| *start);
    tensors.into_iter().map(|(_, tensor)| tensor).collect()
}

/// Writes a safetensors file.
pub(crate) fn write_weights(path: &Path, tensors: &[Weights]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for t in tensors {
        let offsets = [data.len(), data.len() + t.data.len()];
        header.insert(t.name.clone(), json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets}));
        data.extend_from_slice(&t.data);
    }
    fs::write(path, join(&header, &data)).unwrap();
}

fn split(bytes: &[u8]) -> (Map<String, Value>, &[u8]) {
    let (len, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

fn join(header: &Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), data].concat()
}

/// A model that a test may change, and an output directory that does not exist yet.
pub(crate) struct Case {
    dir: TempDir,
    name: String,
}

impl Case {
    /// A case whose model has no files.
    pub(crate) fn empty(name: &str) -> Case {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        Case { dir, name: name.into() }
    }

    /// A copy of one of the test models, without the states that belong to the tests.
    pub(crate) fn of(name: &str) -> Case {
        let case = Case::empty(name);
        for file in entries(&model(name)).into_iter().filter(|file| file != "reference.safetensors") {
            // Copied byte by byte: the original may be write-protected.
            fs::write(case.file(&file), fs::read(model(name).join(&file)).unwrap()).unwrap();
        }
        case
    }

    /// About 100 MB of bfloat16 weights.
    pub(crate) fn large() -> Case {
        let sizes = Llama {
            hidden: 1024,
            layers: 4,
            heads: 16,
            kv_heads: 16,
            head_dim: 64,
            feed_forward: 2816,
            vocab: 2048,
            tied: true,
        };
        Case::generate(&sizes, 1)
    }

    /// A model with random weights.
    pub(crate) fn generate(llama: &Llama, seed: u64) -> Case {
        let case = Case::empty("model");
        let tokenizer = if llama.vocab == 512 { "llama" } else { "tiny-llama" };
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::write(case.file(file), fs::read(model(tokenizer).join(file)).unwrap()).unwrap();
        }
        fs::write(case.file("config.json"), llama.config().to_string()).unwrap();
        write_weights(&case.file("model.safetensors"), &llama.weights(seed));
        case
    }

    /// The model's directory.
    pub(crate) fn model(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// A file of the model.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.model().join(name)
    }

    /// The output directory.
    pub(crate) fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Changes a JSON file of the model.
    pub(crate) fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&fs::read(self.file(file)).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.file(file), value.to_string()).unwrap();
    }

    /// Changes the weights.
    pub(crate) fn edit_weights(&self, change: impl FnOnce(&mut Checkpoint)) {
        let path = self.file("model.safetensors");
        let mut weights = read_weights(&path);
        change(&mut weights);
        write_weights(&path, &weights);
    }

    /// Changes the header of the weights and leaves the data as they are.
    pub(crate) fn edit_header(&self, change: impl FnOnce(&mut Map<String, Value>)) {
        let bytes = fs::read(self.file("model.safetensors")).unwrap();
        let (mut header, data) = split(&bytes);
        change(&mut header);
        fs::write(self.file("model.safetensors"), join(&header, data)).unwrap();
    }

    /// Quantizes.
    pub(crate) fn quantize(&self, level: &str, extra: &[&str]) -> Outcome {
        quantize(&self.model(), level, &self.out(), extra)
    }

    /// Asserts that the model is refused with `code` in words that hold each of `words`, and nothing is left behind.
    #[track_caller]
    pub(crate) fn refused(&self, level: &str, extra: &[&str], code: i32, words: &[&str]) -> Outcome {
        let outcome = self.quantize(level, extra).failure(code, words);
        assert_eq!(outcome.stdout, "", "failures go to standard error");
        assert!(outcome.stderr.contains("Error: "), "{}", outcome.stderr);
        assert_eq!(entries(&self.out()), [""; 0], "nothing is left behind");
        outcome
    }
}

/// The sizes of a Llama model.
#[derive(Clone, Debug)]
pub(crate) struct Llama {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) feed_forward: usize,
    /// 512 or 2048, the sizes of the test models' vocabularies.
    pub(crate) vocab: usize,
    pub(crate) tied: bool,
}

impl Llama {
    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied, "bos_token_id": 0, "eos_token_id": 1, "dtype": "bfloat16",
        })
    }

    fn weights(&self, seed: u64) -> Checkpoint {
        let (hidden, query, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.tied {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocab, hidden]));
        }
        for layer in 0..self.layers {
            for (name, shape) in [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![query, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, query]),
                ("mlp.gate_proj", vec![self.feed_forward, hidden]),
                ("mlp.up_proj", vec![self.feed_forward, hidden]),
                ("mlp.down_proj", vec![hidden, self.feed_forward]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        let mut state = seed | 1;
        shapes
            .into_iter()
            .map(|(name, shape)| {
                let len: usize = shape.iter().product();
                let data = (0..len).flat_map(|_| random_weight(&mut state).to_le_bytes()).collect();
                Weights { name, dtype: "BF16".into(), shape, data }
            })
            .collect()
    }
}

/// About normally distributed, by the sum of four uniform numbers of 16 bits from one of xorshift64.
fn random_weight(state: &mut u64) -> bf16 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    let sum: i32 = (0..4).map(|i| i32::from((*state >> (16 * i)) as i16)).sum();
    bf16::from_f32(sum as f32 / (1 << 20) as f32)
}
