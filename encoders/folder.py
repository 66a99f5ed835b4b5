"""What a model folder may hold, checked before any library sees it.

A model folder is data from outside. Everything here is an allow-list: a file, module or setting that nobody
thought about is refused, with its name and what to do about it. Pickles never get as far as being opened.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path, PurePosixPath
from typing import Any

from encoders.errors import UnsafeFolderError

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
POOLING = "1_Pooling/config.json"
DENSE = "2_Dense/config.json"
DENSE_WEIGHTS = "2_Dense/model.safetensors"
PROMPTS = "config_sentence_transformers.json"

_JSON_LIMITS = {
    "modules.json": 1 << 16,
    "config.json": 1 << 20,
    TOKENIZER: 1 << 26,
    "tokenizer_config.json": 1 << 20,
    "special_tokens_map.json": 1 << 20,
    "sentence_bert_config.json": 1 << 16,
    "config_sentence_transformers.json": 1 << 20,
    "data_config.json": 1 << 20,
    "manifest.json": 1 << 20,
    POOLING: 1 << 16,
    DENSE: 1 << 16,
    "2_Normalize/config.json": 1 << 16,
    "3_Normalize/config.json": 1 << 16,
    "generation_config.json": 1 << 16,
    "added_tokens.json": 1 << 20,
    "adapter/adapter_config.json": 1 << 16,
}
#: Forms of the tokenizer that older readers open; `tokenizer.json` has it all.
TOKENIZER_FORMS = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model")
_OTHER_FILES = {
    WEIGHTS,
    DENSE_WEIGHTS,
    "adapter/adapter_model.safetensors",  # what a LoRA added to the weights, for peft
    "onnx/model.onnx",  # neither is read here
    *TOKENIZER_FORMS,
    "README.md",
    "training.svg",  # the pictures of the model card
    "cosines.svg",
    "search.svg",
    ".gitattributes",
}
_FOLDERS = {"1_Pooling", "2_Dense", "2_Normalize", "3_Normalize", "adapter", "onnx"}
_NEEDED = ("config.json", TOKENIZER, WEIGHTS)

# Each module under its name before and since sentence-transformers 6, and where its files may lie.
_MODULES = {
    "sentence_transformers.models.Transformer": {""},
    "sentence_transformers.base.modules.transformer.Transformer": {""},
    "sentence_transformers.models.Pooling": {"1_Pooling"},
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling": {"1_Pooling"},
    "sentence_transformers.models.Dense": {"2_Dense"},
    "sentence_transformers.base.modules.dense.Dense": {"2_Dense"},
    "sentence_transformers.models.Normalize": {"2_Normalize", "3_Normalize"},
    "sentence_transformers.base.modules.normalize.Normalize": {"2_Normalize", "3_Normalize"},
}
_MODULE_ORDERS = (
    ["", "1_Pooling"],
    ["", "1_Pooling", "2_Normalize"],
    ["", "1_Pooling", "2_Dense"],
    ["", "1_Pooling", "2_Dense", "3_Normalize"],
)
#: Architectures whose forward is ours, packed; see `encoders/architectures.py`.
PACKED = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "mpnet"})
# Architectures that count positions from pad_token_id + 1, so that some of their position embeddings are never used.
_OFFSET_POSITIONS = PACKED - {"bert"}
# Names of a size in the architectures that have it at all, and what to take for those that have no limit.
_WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")
_POSITIONS = ("max_position_embeddings", "n_positions")
_UNLIMITED = 512

# Settings by which a folder makes transformers import code.
_CODE_SETTINGS = {"auto_map", "_attn_implementation", "_attn_implementation_internal", "custom_pipelines"}

# What transformers 3 to 5 write for an architecture of ours. An unknown setting may change what the weights mean.
_CONFIG_SETTINGS = {
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "classifier_dropout",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "id2label",
    "initializer_range",
    "intermediate_size",
    "is_decoder",
    "label2id",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "position_embedding_type",
    "relative_attention_num_buckets",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "type_vocab_size",
    "use_cache",
    "vocab_size",
}

_HEADER_LIMIT = 100_000_000
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but one text encoder, of sentence-transformers or of transformers.

    Raises UnsafeFolderError, whose message names the file and the remedy.
    """
    _check_names(folder)
    for name in _JSON_LIMITS.keys() - {TOKENIZER}:  # a vocabulary may hold any word
        if (folder / name).exists():
            _check_settings(read_json(folder, name), name)
    read_json(folder, TOKENIZER)
    if (folder / "modules.json").exists():
        _check_modules(read_json(folder, "modules.json"), folder)
    _check_config(read_json(folder, "config.json"))
    check_weights(folder / WEIGHTS)
    if (folder / DENSE_WEIGHTS).exists():
        check_weights(folder / DENSE_WEIGHTS)


def read_json(folder: Path, name: str, *, limit: int | None = None) -> Any:
    """Parse one of the folder's JSON files, of `limit` bytes, by default its own; raises UnsafeFolderError."""
    path = folder / name
    limit = _JSON_LIMITS[name] if limit is None else limit
    try:
        size = path.stat().st_size
        if size > limit:
            raise UnsafeFolderError(f"{name} is {size} bytes; at most {limit} are read.")
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UnsafeFolderError(f"{name} is missing from {folder}; copy it from the model's source.") from error
    except (ValueError, RecursionError) as error:
        raise UnsafeFolderError(f"{name} is not readable JSON; copy it again from the model's source.") from error


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Like `read_json`, of a file that must hold an object; a missing file is an empty object."""
    if not (folder / name).exists():
        return {}
    content = read_json(folder, name)
    if not isinstance(content, dict):
        raise UnsafeFolderError(f"{name} must hold a JSON object.")
    return content


def write_json(content: Any, path: Path) -> None:
    """Write one of a folder's JSON files, for people to read as well. Raises OSError."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_max_seq_length(folder: Path) -> int:
    """How many tokens of a text the model reads, [CLS] and [SEP] included.

    sentence-transformers before 6 says so in `sentence_bert_config.json`, since 6 in `tokenizer_config.json`;
    never more than there are position embeddings.
    """
    stated = [
        read_object(folder, "sentence_bert_config.json").get("max_seq_length"),
        read_object(folder, "tokenizer_config.json").get("model_max_length"),
    ]
    positions = _read_positions(folder)
    # A tokenizer without a limit says 1e30, as a float.
    known = [int(length) for length in stated if isinstance(length, int | float) and length >= 2]
    return min(known[0], positions) if known else positions


def position_offset(config: dict[str, Any]) -> int:
    """From where an architecture counts its positions; raises UnsafeFolderError where it can't be told."""
    if config.get("model_type") not in _OFFSET_POSITIONS:
        return 0
    # transformers' MPNet has it as a constant.
    padding = 1 if config["model_type"] == "mpnet" else config.get("pad_token_id", 1)
    if not isinstance(padding, int) or not 0 <= padding < 1 << 16:
        raise UnsafeFolderError("config.json must hold a token's number as 'pad_token_id'.")
    return padding + 1


def read_dimension(folder: Path) -> int:
    """How many numbers a vector of the model has; raises UnsafeFolderError."""
    if (folder / DENSE).exists():
        width = read_object(folder, DENSE).get("out_features")
        if not isinstance(width, int) or width < 1:
            raise UnsafeFolderError(f"{DENSE} must hold a positive whole number as 'out_features'.")
        return width
    config = read_object(folder, "config.json")
    return read_positive_int(folder, next((name for name in _WIDTHS if name in config), _WIDTHS[0]))


def packs(folder: Path) -> bool:
    """Whether the model's forward is one that spends nothing on padding; raises UnsafeFolderError."""
    config = read_object(folder, "config.json")
    return config.get("model_type") in PACKED and config.get("hidden_act", "gelu") == "gelu"


def _read_positions(folder: Path) -> int:
    """The longest text, in tokens, that the architecture has positions for; 512 where it has no limit."""
    config = read_object(folder, "config.json")
    named = next((name for name in _POSITIONS if name in config), None)
    if named is None and config.get("model_type") not in PACKED:
        return _UNLIMITED
    return read_positive_int(folder, named or _POSITIONS[0]) - position_offset(config)


def read_positive_int(folder: Path, setting: str) -> int:
    """A size from `config.json`; raises UnsafeFolderError when it isn't a positive whole number."""
    value = read_object(folder, "config.json").get(setting)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsafeFolderError(f"config.json must hold a positive whole number as {setting!r}.")
    return value


def read_fraction(folder: Path, setting: str, default: float) -> float:
    """A number from 0 to below 1 from `config.json`; raises UnsafeFolderError when it is anything else."""
    value = read_object(folder, "config.json").get(setting, default)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise UnsafeFolderError(f"config.json must hold a number from 0 to below 1 as {setting!r}.")
    return float(value)


def _check_names(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise UnsafeFolderError(f"{folder} is not a folder; links are not followed.")
    for parent, folders, files in os.walk(folder):
        inside = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        for name in folders:
            check_entry(folder, inside / name, _FOLDERS)
        for name in files:
            check_entry(folder, inside / name, _JSON_LIMITS.keys() | _OTHER_FILES)
    for needed in _NEEDED:
        if not (folder / needed).is_file():
            raise UnsafeFolderError(f"{needed} is missing from {folder}; copy it from the model's source.")


def check_entry(folder: Path, name: PurePosixPath, allowed: set[str]) -> None:
    """Refuse what is a link, or not one of the `allowed` names. Raises UnsafeFolderError."""
    path = folder / name
    if path.is_symlink():
        raise UnsafeFolderError(f"{name} is a link; put the file itself in its place.")
    if str(name) not in allowed:
        raise UnsafeFolderError(f"{name} has no place in a model folder ({WEIGHTS} holds the weights); remove it.")
    if not (path.is_file() or path.is_dir()):
        raise UnsafeFolderError(f"{name} is neither a file nor a folder; remove it.")


def _check_settings(content: Any, name: str) -> None:
    """Look for code settings at any depth; a loop, because JSON from outside may be nested deeply."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if found := _CODE_SETTINGS & value.keys():
                raise UnsafeFolderError(f"{name} sets {min(found)!r}, which makes a library load code; remove it.")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_modules(modules: Any, folder: Path) -> None:
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise UnsafeFolderError("modules.json must hold a list of modules.")
    for module in modules:
        kind = str(module.get("type"))
        if kind not in _MODULES:
            raise UnsafeFolderError(
                f"modules.json names {kind!r}; a model here is made of Transformer, Pooling, Dense and Normalize."
            )
        if module.get("path") not in _MODULES[kind] or module.keys() - {"idx", "name", "path", "type"}:
            places = " or ".join(repr(place) for place in sorted(_MODULES[kind]))
            raise UnsafeFolderError(f"modules.json must place {kind} in {places}, and say nothing else.")
    places_found = [module["path"] for module in modules]
    if places_found not in _MODULE_ORDERS:
        raise UnsafeFolderError(
            "modules.json must list Transformer, Pooling and, at will, Dense and Normalize, in this order."
        )
    needed = [POOLING, *((DENSE, DENSE_WEIGHTS) if "2_Dense" in places_found else ())]
    for name in needed:
        if not (folder / name).is_file():
            raise UnsafeFolderError(f"{name} is missing from {folder}; copy it from the model's source.")


def _check_config(config: Any) -> None:
    if not isinstance(config, dict):
        raise UnsafeFolderError("config.json must hold a JSON object.")
    # The settings of all other architectures are for transformers to read.
    unknown = config.keys() - _CONFIG_SETTINGS
    if unknown and (kind := config.get("model_type")) in PACKED:
        raise UnsafeFolderError(
            f"config.json sets {min(unknown)!r}, which a {kind} does not have; remove it if it means nothing."
        )
    if "quantization_config" in config:
        raise UnsafeFolderError("config.json sets 'quantization_config'; take the weights as they were before it.")


def check_weights(path: Path) -> None:
    """Read the safetensors header ourselves: its length, the kinds of numbers, and where they lie."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        (header_size,) = struct.unpack("<Q", start) if len(start) == 8 else (size,)
        if header_size > min(_HEADER_LIMIT, size - 8):
            raise UnsafeFolderError(f"{WEIGHTS} has no sound header; copy it again from the model's source.")
        header = file.read(header_size)
    spans = sorted(_read_spans(header))
    end = 0
    for first, last in spans:
        if first != end:
            raise UnsafeFolderError(f"{WEIGHTS} has tensors that overlap or leave gaps; copy it again.")
        end = last
    if end != size - 8 - header_size:
        raise UnsafeFolderError(f"{WEIGHTS} is cut short or too long for its header; copy it again.")


def _read_spans(header: bytes) -> list[tuple[int, int]]:
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        return [_read_span(name, tensor) for name, tensor in tensors.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnsafeFolderError(f"{WEIGHTS} has an unreadable header; copy it again.") from error


def _read_span(name: str, tensor: dict[str, Any]) -> tuple[int, int]:
    if tensor["dtype"] not in _ITEM_BYTES:
        raise UnsafeFolderError(
            f"{WEIGHTS} keeps {name!r} as {tensor['dtype']}; convert it to one of {', '.join(_ITEM_BYTES)}."
        )
    first, last = tensor["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (first, last, *tensor["shape"]))
    if not whole or last - first != math.prod(tensor["shape"]) * _ITEM_BYTES[tensor["dtype"]]:
        raise UnsafeFolderError(f"{WEIGHTS} places {name!r} where it cannot lie; copy it again.")
    return first, last
