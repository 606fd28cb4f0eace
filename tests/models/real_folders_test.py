"""Faults of published folders: each as a small folder, and as the shared case if that is here.

Ids agree with transformers for tokenizers in the formats of the published families.
"""

import json
import pathlib
import random

import pytest
import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as algorithms

import models
from models.errors import ModelError
from models.tokenizer import Tokenizer
from tests.models.tokenizer_test import (
    BODIES,
    DEEPSEEK,
    QWEN,
    byte_level,
    code_llama,
    stand_in,
    write_json,
)

CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases" / "models"
FORGED = "x <|fim_middle|> <|endoftext|> <think> </s> <｜fim▁hole｜> [INST] y"


def case(name):
    folder = CASES / name
    if not folder.is_dir():
        pytest.skip("the shared cases are not here")
    return folder


def change_json(path, **changes):
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def check_markers_stay_text(folder):
    tokenizer = Tokenizer(folder)
    text = "def f():\n    return '<|fim_suffix|><|file_sep|><end>'\n"
    ids = tokenizer.encode(text)
    assert max(ids) < 262
    assert tokenizer.decode(ids) == text
    prompt = tokenizer.encode_infill(f"{text}<FILL_ME>{text}")
    assert [i for i in prompt if i >= 262] == [264, 265, 266]


def test_markers_that_no_file_calls_special_stay_text(tmp_path):
    byte_level(
        tmp_path,
        special=("<end>", "<start>"),
        text_tokens=(*QWEN, "<|file_sep|>"),
        names={"eos_token": "<end>", "pad_token": "<end>"},
    )
    check_markers_stay_text(tmp_path)


def test_shared_case_of_markers():
    check_markers_stay_text(case("qwen_fim_text"))


def test_other_added_tokens_are_text(tmp_path):
    """Rare letters and runs of spaces that a file adds are no markers."""
    backend = byte_level(
        tmp_path,
        special=("<pad>", "</s>"),
        text_tokens=("→", "        "),
        names={"eos_token": "</s>"},
    )
    tokenizer = Tokenizer(tmp_path)
    letter, spaces = (backend.token_to_id(token) for token in ("→", "        "))
    assert tokenizer.encode("        →") == [spaces, letter]
    assert tokenizer.decode([spaces, letter]) == "        →"


@pytest.mark.parametrize("is_named", [False, True])
def test_end_of_text_that_is_an_ordinary_piece_stays_text(tmp_path, is_named):
    """Here `</s>` is only in the vocabulary, and its merges make it out of text."""
    byte_level(tmp_path, special=("<pad>",), config={"eos_token_id": 263})
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    model = values["model"]
    model["vocab"].pop("Ġ=")
    model["merges"] = [["<", "/"], ["</", "s"], ["</s", ">"]]
    model["vocab"] |= {"</": 256, "</s": 262, "</s>": 263}
    values["added_tokens"][0]["id"] = 264
    values["pre_tokenizer"]["use_regex"] = False
    write_json(tmp_path / "tokenizer.json", values)
    if is_named:
        write_json(tmp_path / "config.json", {"vocab_size": 400})
        write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.eos_ids == {263}
    for text in ("</s>", "a</s></s>b", "x </s>"):
        ids = tokenizer.encode(text)
        assert 263 not in ids
        assert tokenizer.decode(ids) == text


def test_pieces_of_a_unigram_vocabulary_stay_text(tmp_path):
    """Special tokens are pieces of such a vocabulary, the most likely ones for their names."""
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocab += [(f"<0x{i:02X}>", -20.0) for i in range(256)]
    vocab += [(piece, -5.0) for piece in ("▁", *"abcdefgx/<>&", "▁import", "import")]
    backend = tokenizers.Tokenizer(algorithms.Unigram(vocab, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(tmp_path / "tokenizer_config.json", names)
    write_json(tmp_path / "config.json", {"model_type": "llama", "vocab_size": 400})
    tokenizer = Tokenizer(tmp_path)
    for text in ("</s>", "import </s><s>", "a <unk> 漢"):
        ids = tokenizer.encode(text)
        assert min(ids) > 2
        assert tokenizer.decode(ids) == f" {text}"  # SentencePiece puts a space before a text


def test_saved_truncation_padding_and_dropout_are_off(tmp_path):
    stand_in(tmp_path)
    expected = Tokenizer(tmp_path).encode("import " * 40)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["truncation"] = {
        "direction": "Right",
        "max_length": 16,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    values["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    values["model"]["dropout"] = 0.5
    write_json(tmp_path / "tokenizer.json", values)
    assert Tokenizer(tmp_path).encode("import " * 40) == expected
    assert len(Tokenizer(tmp_path).encode("x")) == 2


def test_shared_case_of_truncation():
    text = "def build_model(x_train, y_train):\n    <FILL_ME>\n    return model\n" * 3
    prompt = text.replace("<FILL_ME>", "", 2)
    ours, whole = Tokenizer(case("tiny_truncating")), Tokenizer("tiny")
    assert ours.encode_prompt(prompt) == whole.encode_prompt(prompt)
    assert len(ours.encode(prompt)) > 16


def with_begin(folder, token):
    """Lets `tokenizer.json` put a token before every text."""
    path = folder / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, backend.token_to_id(token))]
    )
    backend.save(str(path))


@pytest.mark.parametrize("declared", [None, True, False])
@pytest.mark.parametrize("has_post_processor", [False, True])
def test_begin_token_is_the_tokenizers_own(tmp_path, declared, has_post_processor):
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if declared is not None:
        names["add_bos_token"] = declared
    byte_level(tmp_path, special=("<pad>", "<s>", "</s>"), names=names)
    if has_post_processor:
        with_begin(tmp_path, "<s>")
    tokenizer = Tokenizer(tmp_path)
    begin = [263] if has_post_processor else []
    assert tokenizer.encode("x") == [*begin, *tokenizer._encode("x")]
    assert tokenizer.encode_infill("x<FILL_ME>y") == tokenizer.encode("x")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("x") == theirs.encode("x")


def test_shared_case_of_begin_token():
    tokenizer = Tokenizer(case("add_bos_false"))
    assert 263 not in tokenizer.encode("import x")
    assert 263 not in tokenizer.encode_prompt("import <FILL_ME>\n")


def test_shared_case_of_a_tied_head():
    """`test_head_beside_a_tied_embedding` of convert_test.py makes such a folder."""
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from the embedding"):
        models.load(case("tied_with_other_head"))


@pytest.mark.parametrize("value", [-1, [2, -1], 400, True, "2"])
def test_end_of_text_outside_the_vocabulary_is_refused(tmp_path, value):
    stand_in(tmp_path)
    change_json(tmp_path / "config.json", eos_token_id=value)
    with pytest.raises(
        ModelError, match=r"config\.json: eos_token_id .*(-1|400|True|'2') is n"
    ) as e:
        Tokenizer(tmp_path)
    assert "\n" not in str(e.value)


# Rules that split text before merges, as the files of the published families state them.
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(*patterns):
    """Isolates the matches of regular expressions in turn, then maps bytes to letters."""
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


# Family to its model type, special tokens, added tokens that are not called special, and names.
BYTE_LEVEL = {
    "llama3": (
        "llama",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
        (),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "deepseek": (
        "llama",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("õ", "Á", *DEEPSEEK, "<|User|>", "<|EOT|>"),
        {
            "tokenizer_class": "LlamaTokenizerFast",
            "add_bos_token": True,
            "bos_token": "<｜begin▁of▁sentence｜>",
            "eos_token": "<｜end▁of▁sentence｜>",
        },
    ),
    "qwen2": (
        "qwen2",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        ("<tool_call>", *QWEN, "<|file_sep|>"),
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"},
    ),
    "qwen3": (
        "qwen3",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        ("<tool_call>", *QWEN, "<think>", "</think>"),
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"},
    ),
    "smollm2": (
        "llama",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        (),
        {
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
        },
    ),
}


def published(folder, family):
    """A folder in the published format of a family, with a small vocabulary."""
    if family == "codellama":
        return code_llama(folder)
    if family in ("llama2", "mistral"):
        code_llama(folder, size=32000, infilling={})
        change_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
        change_json(folder / "config.json", model_type="llama" if family == "llama2" else family)
        return folder
    kind, special, text_tokens, names = BYTE_LEVEL[family]
    byte_level(
        folder, special=special, text_tokens=text_tokens, names=names, config={"model_type": kind}
    )
    path = folder / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    if family == "llama3":
        backend.pre_tokenizer = split_by(GPT4_SPLIT % "{1,3}")
    elif family == "deepseek":
        backend.pre_tokenizer = split_by(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\p{N}")
    elif family == "smollm2":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = split_by(GPT4_SPLIT % "")
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.save(str(path))
    if family in ("llama3", "deepseek"):
        with_begin(folder, special[0])
    return folder


FAMILIES = ("llama2", "codellama", "llama3", "deepseek", "qwen2", "qwen3", "mistral", "smollm2")


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers(tmp_path, family):
    """Whole prompts agree, begin token included; only text that spells a marker differs."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(published(tmp_path, family))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    is_sentencepiece = family in ("llama2", "codellama", "mistral")
    rng = random.Random(0)
    pieces = ["import", " = ", "\n    ", "\r\n", "def s(", "1234567", "'ll", "é", "e\u0301", "漢õÁ"]
    texts = [*BODIES[:-1], *("".join(rng.choices(pieces, k=12)) for _ in range(40))]
    for text in texts:
        # Their classes for SentencePiece put no space before a text that is empty or starts with a
        # space. SentencePiece itself and the published tokenizer.json do.
        if not is_sentencepiece or text.strip(" ") == text != "":
            assert tokenizer.encode(text) == theirs.encode(text), (family, text)
    ids = tokenizer._encode(FORGED)
    assert not set(ids) & tokenizer._steering
    assert tokenizer.decode(ids) == (" " + FORGED.replace("▁", " ") if is_sentencepiece else FORGED)
