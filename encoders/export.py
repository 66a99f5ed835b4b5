"""An encoder back into the folder that everybody's tools open."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoders import lora
from encoders.architectures import check_finite, stored_names
from encoders.errors import UnsafeFolderError
from encoders.folder import (
    DENSE,
    DENSE_WEIGHTS,
    POOLING,
    PROMPTS,
    TOKENIZER_FORMS,
    WEIGHTS,
    check_folder,
    read_object,
    write_json,
)
from encoders.text import TextEncoder

_COPIED = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", *TOKENIZER_FORMS)

_PACKAGE = "sentence_transformers.models"
_POOLING_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}

_README = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- sentence-similarity
---

# A fine-tuned text encoder

Maps a text of up to {max_seq_length} tokens to {dimension} numbers of length 1; two texts are as alike as the
dot product of theirs says.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
vectors = model.encode(["one text", "another"])
```
"""
_README_MATRYOSHKA = """
Vectors may be cut to their first {dims} numbers and normalised again:
`SentenceTransformer(path, truncate_dim={first})`.
"""
_README_PROMPTS = """
It was trained with prompts: embed queries with `model.encode_query` and documents with `model.encode_document`.
"""
_README_ADAPTER = """
`adapter/` has what training added to the base model, for `peft`; the weights here have it merged already.
"""


def save(encoder: TextEncoder, folder: Path, *, base_folder: Path, extra_readme: str | None = None) -> None:
    """Write a sentence-transformers folder in float32, and flush it to the disk.

    `base_folder` is what `encoder` was once loaded from: the tokenizer and the weights that are not used here
    (BERT's pooler) come from it unchanged. `folder` must be empty or not exist. `extra_readme` is Markdown
    that the README ends with. Raises UnsafeFolderError, and NonFiniteWeightsError before anything is written;
    OSError as the file system does.
    """
    check_folder(base_folder)
    weights = _weights(encoder, base_folder)
    projection = _finite(encoder.projection.state_dict()) if encoder.projection else None
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UnsafeFolderError(f"{folder} holds files already; a model is written to a folder of its own.")
    write_tensors(weights, folder / WEIGHTS)
    _write_configs(encoder, folder, base_folder)
    if encoder.projection and projection:
        (folder / DENSE).parent.mkdir()
        write_json(encoder.projection.config, folder / DENSE)
        write_tensors(projection, folder / DENSE_WEIGHTS)
    _write_tokenizer(folder, base_folder)
    if lora.is_adapted(encoder.transformer):
        lora.save_adapter(encoder.transformer, folder / lora.ADAPTER)
    (folder / "README.md").write_text(
        _readme(encoder) + (f"\n{extra_readme}\n" if extra_readme else ""), encoding="utf-8"
    )
    flush(folder)


def _readme(encoder: TextEncoder) -> str:
    return _README.format(max_seq_length=encoder.max_seq_length, dimension=encoder.dimension) + notes(encoder)


def notes(encoder: TextEncoder) -> str:
    """What whoever uses the folder must know of this encoder, in Markdown; nothing for most."""
    readme = ""
    if dims := encoder.matryoshka_dims:
        readme += _README_MATRYOSHKA.format(dims=" or ".join(map(str, dims)), first=dims[0])
    if encoder.prompts.texts:
        readme += _README_PROMPTS
    if lora.is_adapted(encoder.transformer):
        readme += _README_ADAPTER
    return readme


def _weights(encoder: TextEncoder, base_folder: Path) -> dict[str, Tensor]:
    """The transformer's weights by their published names, with those of the base that are not used here."""
    weights = _finite(lora.merged(encoder.transformer))
    if not encoder.packs:
        return weights
    kind = str(read_object(base_folder, "config.json").get("model_type"))
    with safe_open(base_folder / WEIGHTS, framework="pt") as file:
        unused = {name: key for name, key in stored_names(file.keys(), kind).items() if name not in weights}
        return weights | {name: file.get_tensor(key).clone() for name, key in unused.items()}


def _finite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are written, in float32. Raises NonFiniteWeightsError."""
    weights = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    for name, tensor in weights.items():
        check_finite(name, tensor)
    return weights


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that everybody may read. Raises OSError as the file system does."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # A kind of its own also for a full disk, with the system's number in the text only.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    # safetensors makes it 0600; the service that reads it may be another user than the worker that wrote it.
    path.chmod(0o644)


def _write_configs(encoder: TextEncoder, folder: Path, base_folder: Path) -> None:
    config = read_object(base_folder, "config.json")
    for stated in {"dtype", "torch_dtype"} & config.keys():
        config[stated] = "float32"
    lowercase = read_object(base_folder, "sentence_bert_config.json").get("do_lower_case") is True
    pooling: dict[str, Any] = {flag: name == encoder.pooling for name, flag in _POOLING_FLAGS.items()}
    modules = _modules(encoder)
    (folder / "1_Pooling").mkdir()
    (folder / modules[-1]["path"]).mkdir()
    write_json(config, folder / "config.json")
    write_json(modules, folder / "modules.json")
    width = encoder.transformer.word_embeddings.embedding_dim
    write_json({"word_embedding_dimension": width, **pooling}, folder / POOLING)
    write_json(_sentence_transformers_config(encoder), folder / PROMPTS)
    write_json(
        {"max_seq_length": encoder.max_seq_length, "do_lower_case": lowercase},
        folder / "sentence_bert_config.json",
    )


def _modules(encoder: TextEncoder) -> list[dict[str, Any]]:
    """Under their names from before sentence-transformers 6, which newer versions read as well."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if encoder.projection else []), "Normalize"]
    return [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": f"{_PACKAGE}.{kind}"}
        for index, kind in enumerate(kinds)
    ]


def _sentence_transformers_config(encoder: TextEncoder) -> dict[str, Any]:
    config: dict[str, Any] = {
        "prompts": dict(encoder.prompts.texts),
        "default_prompt_name": encoder.prompts.default,
        "similarity_fn_name": "cosine",
    }
    # Not as `truncate_dim`, by which every reader would cut.
    return config | ({"matryoshka_dims": list(encoder.matryoshka_dims)} if encoder.matryoshka_dims else {})


def _write_tokenizer(folder: Path, base_folder: Path) -> None:
    for name in _COPIED:
        if (base_folder / name).exists():
            shutil.copyfile(base_folder / name, folder / name)
    # Without the cut and the padding of its own: readers follow max_seq_length.
    tokenizer = read_object(base_folder, "tokenizer.json") | {"truncation": None, "padding": None}
    write_json(tokenizer, folder / "tokenizer.json")


def flush(folder: Path) -> None:
    """Force a folder to the disk: files first, then the folders that name them."""
    paths = sorted(folder.rglob("*"), key=Path.is_dir)
    for path in [*paths, folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
