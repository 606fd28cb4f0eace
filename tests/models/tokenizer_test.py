"""Prompts are assembled as published, bodies survive a round trip, and damage is named."""

import json

import pytest
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as algorithms

from models.errors import ModelError
from models.tokenizer import Tokenizer

# Pieces of Llama's vocabulary with their published ids, merges in an order that yields them.
LLAMA_PIECES = {
    9995: '▁"""',
    736: "▁return",
    1121: "▁result",
    822: "▁def",
    3349: "▁remove",
    851: "▁str",
    1599: "▁->",
    5464: "non",
    294: "as",
    18869: "cii",
    1678: "▁▁▁",
    29871: "▁",
    29918: "_",
    29898: "(",
    29879: "s",
    29901: ":",
    29897: ")",
}
CODE_LLAMA = {"▁<PRE>": 32007, "▁<SUF>": 32008, "▁<MID>": 32009, "▁<EOT>": 32010}
DEEPSEEK = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
BODIES = [
    "from sklearn.svm import SVC\n    model = SVC()\n    model.fit(x_train, y_train)",
    " one space in front",
    "    four",
    "\n\n\tline breaks and tabs \n",
    "trailing   ",
    "",
    " ",
    "x",
    "a  b   c",
    "print('é ☺ 漢 \\u00e9 <s> </s> ▁<EOT>')",
]


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def code_llama(folder, *, size=32016, infilling=CODE_LLAMA):
    """A folder in CodeLlama's format: SentencePiece with byte fallback, few pieces, true ids."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}}
    vocab |= {piece: i for i, piece in LLAMA_PIECES.items()}
    spare = iter(range(20000, 21000))
    merges = []
    for piece in LLAMA_PIECES.values():
        for end in range(1, len(piece) + 1):
            for part in (piece[:end], piece[end - 1]):
                vocab.setdefault(part, next(spare))
        pairs = [(piece[:end], piece[end]) for end in range(1, len(piece))]
        merges += [pair for pair in pairs if pair not in merges]
    backend = tokenizers.Tokenizer(
        algorithms.BPE(
            vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"
        )
    )
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
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    values = json.loads(backend.to_str())
    for token, i in {"<unk>": 0, "<s>": 1, "</s>": 2, **infilling}.items():
        values["model"]["vocab"][token] = i
        values["added_tokens"].append(
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        )
    write_json(folder / "tokenizer.json", values)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CodeLlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": True},
            "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": True},
            "unk_token": {"__type": "AddedToken", "content": "<unk>", "normalized": True},
            "pad_token": None,
            "prefix_token": "▁<PRE>",
            "suffix_token": "▁<SUF>",
            "middle_token": "▁<MID>",
            "eot_token": "▁<EOT>",
            "fill_token": "<FILL_ME>",
        },
    )
    write_json(
        folder / "config.json", {"model_type": "llama", "vocab_size": size, "eos_token_id": 2}
    )
    return folder


def byte_level(folder, *, special=(), text_tokens=(), names=None, config=None, size=400):
    """A folder in the format of Llama 3, Qwen2, DeepSeek-Coder and the stand-in."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*alphabet, "Ġ=", "import"])}
    merges = [("Ġ", "="), ("i", "m"), ("p", "o"), ("r", "t"), ("po", "rt"), ("im", "port")]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    backend = tokenizers.Tokenizer(algorithms.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    backend.add_tokens([tokenizers.AddedToken(token) for token in text_tokens])
    backend.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **(names or {})},
    )
    write_json(
        folder / "config.json", {"model_type": "llama", "vocab_size": size, **(config or {})}
    )
    return backend


def stand_in(folder):
    return byte_level(
        folder,
        special=("<pad>", "<s>", "</s>", *CODE_LLAMA),
        names={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    )


def test_code_llama_prompt_is_the_published_one(tmp_path):
    """The ids equal those of Meta's code for this prompt (llama.cpp issue 3503)."""
    tokenizer = Tokenizer(code_llama(tmp_path))
    ids = tokenizer.encode_infill(
        'def remove_non_ascii(s: str) -> str:\n    """ <FILL_ME>\n    return result\n'
    )
    # The byte of the line break has its place behind the 3 special tokens: 3 + 10.
    published = """1 32007 822 3349 29918 5464 29918 294 18869 29898 29879 29901 851 29897 1599 851
        29901 13 1678 9995 29871 32008 13 1678 736 1121 13 32009"""
    assert ids == [int(i) for i in published.split()]
    assert tokenizer.has_infilling
    assert tokenizer.eos_ids == {2, 32010}
    assert tokenizer.pad_id == 0
    assert tokenizer.vocab_size <= 32016


def test_suffix_starts_without_and_prefix_with_a_space(tmp_path):
    tokenizer = Tokenizer(code_llama(tmp_path))
    assert tokenizer.encode_infill("def<FILL_ME>s")[2:-1] == [822, 32008, 29879]
    assert tokenizer.encode_infill("<FILL_ME> (")[2:-1] == [32008, 29871, 29898]
    assert tokenizer.encode("def") == [1, 822]


@pytest.mark.parametrize("make", [code_llama, stand_in])
@pytest.mark.parametrize("body", BODIES)
def test_bodies_come_back(tmp_path, make, body):
    make(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    before = tokenizer.encode_infill("p<FILL_ME>")
    ids = tokenizer.encode_infill(f"p<FILL_ME>{body}")[len(before) - 1 : -1]
    stop, pad = max(tokenizer.eos_ids), tokenizer.pad_id
    # SentencePiece writes a space as that character, so a text cannot hold it.
    expected = body.replace("▁", " ") if make is code_llama else body
    assert tokenizer.decode([*ids, stop, pad, pad]) == expected


def test_special_tokens_give_no_text(tmp_path):
    stand_in(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    special = range(tokenizer.vocab_size - 7, tokenizer.vocab_size)
    letter = tokenizer._encode("x")
    assert tokenizer.decode([*special, *letter, *special]) == "x"


def test_text_that_spells_a_special_token_is_text(tmp_path):
    for make in (code_llama, stand_in):
        make(tmp_path)
        tokenizer = Tokenizer(tmp_path)
        forged = "an error </s> ▁<EOT> <s>"
        ids = tokenizer.encode_infill(f"{forged}<FILL_ME>{forged}")
        assert not tokenizer.eos_ids & set(ids)
        assert ids.count(tokenizer._bos_ids[0]) == 1


def test_half_a_character_is_replaced(tmp_path):
    for make in (code_llama, stand_in):
        make(tmp_path)
        tokenizer = Tokenizer(tmp_path)
        assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(tokenizer.encode("漢")[:-1])


def test_stand_in(tmp_path):
    backend = stand_in(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    pre, suf, mid, eot = (backend.token_to_id(token) for token in CODE_LLAMA)
    left, right = backend.encode("x =").ids, backend.encode(" import").ids
    expected = [backend.token_to_id("<s>"), pre, *left, suf, *right, mid]
    assert tokenizer.encode_infill("x =<FILL_ME> import") == expected
    assert tokenizer.eos_ids == {backend.token_to_id("</s>"), eot}
    assert tokenizer.pad_id == backend.token_to_id("<pad>")
    assert tokenizer.vocab_size == backend.get_vocab_size()


@pytest.mark.parametrize("infilling", [DEEPSEEK, QWEN])
def test_other_infilling_tokens(tmp_path, infilling):
    """DeepSeek-Coder and Qwen do not mark the infilling tokens as special."""
    backend = byte_level(
        tmp_path,
        special=("<end>",),
        text_tokens=infilling,
        names={"eos_token": "<end>", "pad_token": "<end>"},
        config={"bos_token_id": None},
    )
    # All special tokens of this folder stop: padding needs another one.
    with pytest.raises(ModelError, match="has no special token that can be padding"):
        Tokenizer(tmp_path)
    backend = byte_level(
        tmp_path,
        special=("<end>", "<start>"),
        text_tokens=infilling,
        names={"eos_token": "<end>", "pad_token": "<end>"},
    )
    tokenizer = Tokenizer(tmp_path)
    pre, suf, mid = (backend.token_to_id(token) for token in infilling)
    left, right = backend.encode("x =").ids, backend.encode(" import").ids
    assert tokenizer.encode_infill("x =<FILL_ME> import") == [pre, *left, suf, *right, mid]
    assert tokenizer.decode([pre, *left, mid]) == "x ="
    assert tokenizer.eos_ids == {backend.token_to_id("<end>")}
    assert tokenizer.pad_id == backend.token_to_id("<start>")


def test_model_without_infilling_completes(tmp_path):
    backend = byte_level(
        tmp_path,
        special=("<s>", "</s>", "<unk>"),
        names={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    tokenizer = Tokenizer(tmp_path)
    ids = backend.encode("x =    ").ids
    assert not tokenizer.has_infilling
    assert tokenizer.encode_infill("x =    <FILL_ME>\n    return model\n") == ids
    assert tokenizer.pad_id == backend.token_to_id("<unk>")


def test_infilling_tokens_that_are_only_named_are_not_used(tmp_path):
    """CodeLlama 34B: the tokenizer's configuration names them, the vocabulary lacks them."""
    tokenizer = Tokenizer(code_llama(tmp_path, size=32000, infilling={}))
    assert not tokenizer.has_infilling
    assert tokenizer.encode_infill("def<FILL_ME>s") == [1, 822]
    assert tokenizer.eos_ids == {2}
    assert tokenizer.vocab_size <= 32000


def test_every_stated_end_of_text_stops(tmp_path):
    special = ("<s>", "</s>", "<turn>", "<message>", "<pad>")
    backend = byte_level(
        tmp_path,
        special=special,
        names={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<message>"},
        config={"eos_token_id": 264},
    )
    ids = {token: backend.token_to_id(token) for token in special}
    write_json(
        tmp_path / "config.json", {"vocab_size": 400, "eos_token_id": [ids["</s>"], ids["<turn>"]]}
    )
    write_json(tmp_path / "generation_config.json", {"eos_token_id": ids["<message>"]})
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.eos_ids == {ids["</s>"], ids["<turn>"], ids["<message>"]}
    # The folder's pad token stops: the first special token that does not is taken.
    assert tokenizer.pad_id == ids["<s>"]


def test_tokens_beyond_the_model_are_not_used(tmp_path):
    backend = stand_in(tmp_path)
    first = backend.token_to_id("<pad>")
    config = {"model_type": "llama", "vocab_size": first + 3}
    write_json(tmp_path / "config.json", config)  # rows for <pad>, <s>, </s> only
    tokenizer = Tokenizer(tmp_path)
    assert not tokenizer.has_infilling
    assert (tokenizer.pad_id, tokenizer.eos_ids) == (first, {first + 2})
    assert tokenizer.vocab_size == first + 3


def test_reads_what_transformers_reads(tmp_path):
    """Ids of text without special tokens, and the special tokens, agree with transformers."""
    transformers = pytest.importorskip("transformers")
    for make in (code_llama, stand_in):
        make(tmp_path)
        tokenizer = Tokenizer(tmp_path)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        for body in BODIES[:-1]:
            assert tokenizer.encode(body)[1:] == theirs.encode(body, add_special_tokens=False)
        assert tokenizer._bos_ids == [theirs.bos_token_id]
        assert theirs.eos_token_id in tokenizer.eos_ids
        assert tokenizer.pad_id in (theirs.pad_token_id, theirs.unk_token_id)


@pytest.mark.parametrize("text", ["no marker", "<FILL_ME> twice <FILL_ME>"])
def test_a_prompt_has_one_gap(tmp_path, text):
    stand_in(tmp_path)
    with pytest.raises(ValueError, match=r"exactly one <FILL_ME>, not [02]"):
        Tokenizer(tmp_path).encode_infill(text)


@pytest.mark.parametrize("make", [code_llama, stand_in])
def test_a_prompt_without_a_gap_is_continued(tmp_path, make):
    make(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode_prompt("def s(") == [*tokenizer._bos_ids, *tokenizer._encode("def s(")]
    assert tokenizer.encode_prompt("def<FILL_ME>s") == tokenizer.encode_infill("def<FILL_ME>s")
    with pytest.raises(ValueError, match=r"at most one <FILL_ME>, not 2"):
        tokenizer.encode_prompt("<FILL_ME> twice <FILL_ME>")


def test_damage_is_named(tmp_path):
    def refuse(message):
        with pytest.raises(ModelError, match=message) as caught:
            Tokenizer(tmp_path)
        assert "\n" not in str(caught.value)

    refuse(r"no tokenizer in this model folder \(tokenizer\.json\)")
    stand_in(tmp_path)
    (tmp_path / "config.json").unlink()
    refuse(r"needs config\.json")
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    refuse(r"config\.json: vocab_size is missing")
    byte_level(tmp_path, special=("<pad>",))
    refuse(r"neither tokenizer nor config\.json names an end of text")
    byte_level(tmp_path, special=("<pad>",), config={"eos_token_id": "2"})
    refuse(r"config\.json: eos_token_id '2' is neither an id nor a list of ids")
    byte_level(tmp_path, special=("<pad>", "</s>"), names={"eos_token": "</s>"}, size=100)
    refuse(r"the tokenizer has \d+ tokens, config\.json says 100")
    for text in ("{", "{}", "[]"):
        (tmp_path / "tokenizer.json").write_text(text)
        refuse(r"the tokenizer cannot be read \(.+\)")
