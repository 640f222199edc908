#!/usr/bin/env python3
"""Makes the fixtures and the first corpus: seeds.py BINARY, with llm-quantize's release binary. Needs nothing but Python.

What fuzzing has added to the corpus is not touched. Run it again only to change the seeds.
"""

import gzip
import hashlib
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data"
WIDTH, HEADS, KV, HEAD, FORWARD = 32, 2, 1, 16, 32


def byte_level():
    """The characters that byte-level BPE has for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    more = (256 + i for i in range(256))
    return {b: chr(b) if b in plain else chr(next(more)) for b in range(256)}


def tokenizer():
    special = ["<s>", "</s>"]
    vocab = special + sorted(byte_level().values()) + ["Ġt", "he"]
    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, text in enumerate(special)]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {text: i for i, text in enumerate(vocab)}, "merges": [["Ġ", "t"], ["h", "e"]]},
    }


def dump(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def safetensors(tensors, metadata=None):
    """Tensors as (name, type, shape, bytes)."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = dump(header)
    return struct.pack("<Q", len(head)) + head + b"".join(data for *_, data in tensors)


def tensors_of(file):
    """What `safetensors` takes."""
    [length] = struct.unpack_from("<Q", file)
    data = file[8 + length:]
    header = json.loads(file[8:8 + length])
    header.pop("__metadata__", None)
    return [(name, info["dtype"], info["shape"], data[slice(*info["data_offsets"])])
            for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"])]


def weights(vocab):
    generator = random.Random(1)

    def tensor(name, *shape):
        count = 1
        for size in shape:
            count *= size
        # bfloat16: the upper half of float32.
        value = (lambda: 1.0) if len(shape) == 1 else (lambda: generator.gauss(0, 0.05))
        data = b"".join(struct.pack("<f", value())[2:] for _ in range(count))
        return name, "BF16", list(shape), data

    layer = "model.layers.0"
    return safetensors([
        tensor("model.embed_tokens.weight", vocab, WIDTH),
        tensor(f"{layer}.input_layernorm.weight", WIDTH),
        tensor(f"{layer}.mlp.down_proj.weight", WIDTH, FORWARD),
        tensor(f"{layer}.mlp.gate_proj.weight", FORWARD, WIDTH),
        tensor(f"{layer}.mlp.up_proj.weight", FORWARD, WIDTH),
        tensor(f"{layer}.post_attention_layernorm.weight", WIDTH),
        tensor(f"{layer}.self_attn.k_proj.weight", KV * HEAD, WIDTH),
        tensor(f"{layer}.self_attn.o_proj.weight", WIDTH, HEADS * HEAD),
        tensor(f"{layer}.self_attn.q_proj.weight", HEADS * HEAD, WIDTH),
        tensor(f"{layer}.self_attn.v_proj.weight", KV * HEAD, WIDTH),
        tensor("model.norm.weight", WIDTH),
    ])


def config(vocab):
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 0, "eos_token_id": 1,
        "dtype": "bfloat16", "head_dim": HEAD, "hidden_act": "silu", "hidden_size": WIDTH, "intermediate_size": FORWARD,
        "max_position_embeddings": 64, "mlp_bias": False, "model_type": "llama", "num_attention_heads": HEADS,
        "num_hidden_layers": 1, "num_key_value_heads": KV, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": True,
        "vocab_size": vocab,
    }


def sentence_piece(pieces):
    """A model of (text, score, kind), by the wire format of protocol buffers."""
    out = b""
    for text, score, kind in pieces:
        text = text.encode()
        inner = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
        out += b"\x0a" + bytes([len(inner)]) + inner
    return out + b"\x12\x02\x18\x02" + b"\x1a\x04\x18\x01\x20\x00"


def seed(target, name, data):
    place = HERE / "corpus" / target
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)


def only(files):
    [file] = files
    return file


def main():
    binary = sys.argv[1]
    fixtures = HERE / "fixtures"
    fixtures.mkdir(exist_ok=True)
    vocab = len(tokenizer()["model"]["vocab"])
    (fixtures / "tokenizer.json").write_bytes(dump(tokenizer()))
    (fixtures / "model.safetensors").write_bytes(weights(vocab))
    with tempfile.TemporaryDirectory() as made:
        made = Path(made)
        model = made / "model"
        model.mkdir()
        (model / "config.json").write_bytes(dump(config(vocab)))
        (model / "tokenizer.json").write_bytes(dump(tokenizer()))
        (model / "model.safetensors").write_bytes(weights(vocab))
        text = made / "text.txt"
        text.write_bytes((DATA / "text" / "calibration.txt").read_bytes()[:4000])

        def run(*arguments):
            subprocess.run([binary, *map(str, arguments), "--verbosity", "quiet"], check=True, stdout=subprocess.DEVNULL)

        for level in ["Q8_0", "IQ4_NL"]:
            run("quantize", model, "gguf", "-q", level, "-o", made)
            seed("gguf", level, only(made.glob(f"*{level}.gguf")).read_bytes())
        for kind in ["gguf", "dat"]:
            out = made / f"imatrix.{kind}"
            run("analyze", "importance", model, "--calibration-data", text, "--ctx", 32, "--chunks", 2, "-o", out)
            seed("imatrix", kind, out.read_bytes())
        calibration = ["--calibration-data", text, "--seq-len", 32, "--calibration-samples", 4, "--group-size", 32]
        for method, bits, more in [("gptq", "4bit", []), ("gptq", "3bit", ["--desc-act"]), ("gptq", "8bit", ["--asym"]),
                                   ("awq", "4bit", [])]:
            run("quantize", model, method, "-q", bits, "-o", made / f"{method}{bits}", *calibration, *more)
            found = only((made / f"{method}{bits}").iterdir())
            # Without the embedding, which is most of it.
            kept = [t for t in tensors_of((found / "model.safetensors").read_bytes()) if "embed" not in t[0]]
            seed("packed", f"{method}-{bits}", (found / "config.json").read_bytes() + b"\0" + safetensors(kept))

    seed("safetensors", "bf16", safetensors([("a", "BF16", [2, 2], bytes(8)), ("b.weight", "F32", [], bytes(4))]))
    seed("safetensors", "f16", safetensors([("a", "F16", [4], bytes(8)), ("e", "F16", [0, 4], b"")]))
    packed = [("l.qweight", "I32", [1, 2], bytes(8)), ("l.scales", "F16", [1, 2], bytes(4))]
    seed("safetensors", "i32", safetensors(packed))
    one = b"\0" + safetensors([("a", "F32", [2], bytes(8))])
    seed("safetensors", "index", dump({"metadata": {"total_size": 16},
                                       "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}) + one)
    seed("safetensors", "index-outside", dump({"weight_map": {"a": "../one.safetensors"}}) + one)

    for path in sorted((DATA / "models").glob("*/config.json")):
        seed("config", path.parent.name, path.read_bytes())
    seed("config", "fixture", dump(config(vocab)))

    seed("tokenizer", "bytes", dump(tokenizer()) + b"\0" + dump(
        {"add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"}, "tokenizer_class": "LlamaTokenizer",
         "chat_template": "{{ messages }}", "added_tokens_decoder": {"0": {"content": "<s>", "special": True}}}))
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "▁a": 6}
    llama = {"added_tokens": [{"id": 1, "content": "<s>", "special": True}],
             "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
             "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                         {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
             "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
                                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
             "model": {"type": "BPE", "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>", "vocab": pieces,
                       "merges": ["▁ a"]}}
    seed("tokenizer", "llama", dump(llama))
    gpt4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"added_tokens": [], "normalizer": {"type": "NFC"},
             "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                 {"type": "Split", "pattern": {"Regex": gpt4}, "behavior": "Isolated", "invert": False},
                 {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
             "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": ["a b"]}}
    seed("tokenizer", "split", dump(split))
    for kind, model in [("unigram", {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}),
                        ("wordpiece", {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                                       "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1, "##b": 2}}),
                        ("wordlevel", {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1}})]:
        normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                      "lowercase": True}
        seed("tokenizer", kind, dump({"model": model, "normalizer": normalizer,
                                           "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}}))
    seed("tokenizer", "sentencepiece", sentence_piece(
        [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("<0x0A>", 0, 6), ("▁", -1, 1), ("a", -2, 1), ("▁a", -3, 1),
         ("user", 0, 4), ("unused", 0, 5)]))

    conversation = dump({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"},
                                      {"role": "assistant", "content": "Me."}]}) + b"\n"
    for name, template in {
        "llama2": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + "
                  "' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n'}}{% endfor %}",
        "tools": "{% set ns = namespace(n=0) %}{%- macro f(x) %}{{ x | tojson(indent=2) }}{% endmacro %}{% for m in messages[::-1] "
                 "if m.role is defined %}{% set ns.n = ns.n + loop.index0 %}{{ f(m) }}{% break %}{% endfor %}{{ strftime_now('%d %b %Y') }}",
        "filters": "{{ messages | map(attribute='content') | join(', ') | upper | replace('A', 'b') | trim }}{{ range(3) | list "
                   "| sort | last }}{{ 'a,b'.split(',')[0].title() }}{{ '%s' | format(1.5) }}{{ messages | tojson }}",
        "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "repeat": "{{ 'x' * 999999 }}",
        "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    }.items():
        seed("chat_template", name, template.encode() + b"\0" + conversation)

    plain = dump(config(vocab)) + b"\0"
    seed("config", "card", plain + b"---\nlicense: other\nlicense_name: x\nlanguage:\n- en\n- de\ntags: [a, b]\nbase_model:\n- org/Base-7B-v1.0\n"
         b"datasets: [org/data]\nmodel_name: 'A name'\npipeline_tag: text-generation\n---\n# Title\n\0"
         + dump({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05, "do_sample": True}))
    seed("config", "card-anchors", plain + b"---\na: &x [1, 2]\nb: *x\nc: !!str 3\nd: |\n  text\ne: >-\n  more\n---\n")

    seed("data", "text-lines", "A line.\r\nAnother, with naïve façades \u2003 and \U0001f980.\n\n\n".encode() * 3)
    seed("data", "text-mark", b"\xef\xbb\xbfafter the mark of byte order, enough for a few tokens")
    lines = b'{"text": "one text of a line, long enough"}\n{"content": "another one \\ud83d\\ude00 \\u0000"}\n'
    seed("data", "json-lines", lines)
    seed("data", "json-conversation", conversation)
    seed("data", "json-list", dump(["a text of some length", {"text": "another"}]))
    seed("data", "json-object", dump({"data": [{"story": "once upon a time"}], "name": "x"}))
    seed("data", "json-map", dump({"one": "a text", "two": {"text": "b text"}}))
    seed("data", "gzip-lines", gzip.compress(lines * 4, mtime=0))
    seed("data", "gzip-two", gzip.compress(lines, mtime=0) + gzip.compress(conversation, mtime=0))
    [version] = re.findall(r'^version = "(.*)"', (HERE.parent.parent / "Cargo.toml").read_text(), re.M)
    layer = bytes(range(8))
    state = {"version": 1, "identity": {"command": "test", "program version": version}, "done": 1,
             "files": {"tensors-00000.ckpt-part": {"bytes": len(layer), "sha256": hashlib.sha256(layer).hexdigest()}},
             "note": {"x": [1, 2.5, None]}, "output": None}
    seed("checkpoint", "one", dump(state) + b"\0" + layer)
    output = {"device": 1, "inode": 2, "bytes": 3, "modified": [4, 5]}
    seed("checkpoint", "sealed", dump(state | {"done": 3, "output": output}) + b"\0" + layer)
    facts = {"linears": [{"name": "b", "shape": [1, 2], "method": "gptq", "damp": 0.05, "relative_error": 0.1, "share": 0.0,
                          "tokens": 7, "dead_inputs": 0, "outliers": 1, "seconds": 0.5, "weight_nmse": 3e-17}],
             "errors": [0.3], "first_rows": {"b": 3}}
    tensors = [("b.qweight", "I32", [1, 2], bytes(8)), ("a.scales", "F16", [3], bytes(6)), ("replaced:norm", "F32", [2], bytes(8)),
               ("columns:b", "F32", [1], bytes(4)), ("rows:b", "F32", [2], bytes(8))]
    seed("checkpoint", "layer", safetensors(tensors, {"layer": dump(facts).decode()}))
    for path in sorted((DATA / "datasets").glob("*.parquet")):
        if path.stem != "text-none":
            seed("data", path.stem + "-parquet", path.read_bytes())


main()
